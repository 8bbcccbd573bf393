//! A hash of all that happened in a world: the same for the same seed, or the world depends on something else.

use std::time::Duration;

/// FNV-1a.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Trace {
    pub(super) fn note(&mut self, what: &str, at: Duration, number: u64) {
        self.bytes(what.as_bytes());
        self.bytes(&at.as_millis().to_le_bytes());
        self.bytes(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
