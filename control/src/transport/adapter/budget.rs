//! How many bytes of a stream h3 may take before somebody has used some of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a request stream may send until its header is complete. h3 holds a frame of any announced length in memory until all of
/// it is there, so this is the bound of what one stream costs.
const BEFORE_HEADER: u64 = 64 * 1024;

/// What is added once the header is there: the bytes of the body that may wait in h3 unread.
const FOR_BODY: u64 = 256 * 1024;

/// The bytes that h3 may still read from a stream; shared by the stream and by whoever takes the payload out of h3.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicU64,
    /// The header is complete.
    begun: AtomicBool,
    /// More came than was left.
    exceeded: AtomicBool,
}

impl Budget {
    /// The budget of a new stream.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(BEFORE_HEADER),
            begun: AtomicBool::new(false),
            exceeded: AtomicBool::new(false),
        })
    }

    /// Takes `bytes` off; `false` if there is not that much left.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .is_ok();
        if !taken {
            self.exceeded.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// Adds `bytes`.
    pub(crate) fn grant(&self, bytes: u64) {
        // The update never fails: its closure always gives a value.
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(left.saturating_add(bytes))
            });
    }

    /// The header is complete: the body may come.
    pub(crate) fn header_complete(&self) {
        self.begun.store(true, Ordering::Relaxed);
        self.grant(FOR_BODY);
    }

    /// Whether the header is still to come.
    pub(crate) fn awaits_header(&self) -> bool {
        !self.begun.load(Ordering::Relaxed)
    }

    /// Whether more came than was left.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed)
    }

    /// `bytes` of payload were taken out of h3. Twice that is granted, so that frame headers cost nothing as long as they are not
    /// larger than what they carry.
    pub(crate) fn consumed(&self, bytes: usize) {
        self.grant(2 * bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_and_grows_with_what_is_used() {
        let budget = Budget::new();
        assert!(budget.take(60 * 1024));
        assert!(!budget.is_exceeded());
        assert!(!budget.take(8 * 1024), "a refused take must not be counted");
        assert!(budget.is_exceeded() && budget.awaits_header());
        assert!(budget.take(4 * 1024));
        assert!(!budget.take(1));
        budget.consumed(10);
        assert!(budget.take(20));
        assert!(!budget.take(1));
        budget.header_complete();
        assert!(!budget.awaits_header());
        assert!(budget.take(256 * 1024));
        assert!(!budget.take(1));
    }
}
