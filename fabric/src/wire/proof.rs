//! What names a flow and proves that a resume comes from its other end.

use std::fmt;

use aws_lc_rs::{constant_time, hmac};

/// The name of a flow: 128 random bits chosen by the initiator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId([u8; 16]);

impl FlowId {
    /// A new random id.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// An id of given bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes on the wire.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// 32 lower-case hex digits.
impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Counts the legs of a flow. The open has 1; a higher generation fences all lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation of the first leg.
    pub const FIRST: Self = Self(1);

    /// The generation of the leg after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which end of a flow speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The consumer's end: it opens the legs.
    Initiator,
    /// The provider's end.
    Terminator,
}

impl Role {
    fn to_wire(self) -> u8 {
        match self {
            Self::Initiator => 1,
            Self::Terminator => 2,
        }
    }
}

/// The flow's 32 random bytes, known to both ends and to the routers that carried the OPEN. Never printed.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new random secret.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// A secret of given bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    /// `HMAC-SHA256(secret, "keel-resume" || flow || generation || role)`; the generation as 8 bytes big-endian, the
    /// role as one byte (initiator 1, terminator 2).
    pub fn prove(&self, flow: FlowId, generation: Generation, role: Role) -> Proof {
        let tag = hmac::sign(&self.key(), &proved(flow, generation, role));
        let mut proof = [0; 32];
        proof.copy_from_slice(tag.as_ref());
        Proof(proof)
    }

    /// Whether `proof` is the one that [`prove`](Self::prove) makes; in constant time.
    pub fn accepts(&self, proof: &Proof, flow: FlowId, generation: Generation, role: Role) -> bool {
        hmac::verify(&self.key(), &proved(flow, generation, role), &proof.0).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other)
    }
}

impl Eq for Secret {}

/// Proof of the flow's secret for one generation and role. Good for nothing else, but not printed either.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof(pub(crate) [u8; 32]);

impl Proof {
    /// A proof of given bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(..)")
    }
}

fn proved(flow: FlowId, generation: Generation, role: Role) -> [u8; LABEL.len() + 16 + 8 + 1] {
    let mut text = [0; LABEL.len() + 25];
    text[..LABEL.len()].copy_from_slice(LABEL);
    text[LABEL.len()..LABEL.len() + 16].copy_from_slice(flow.as_bytes());
    text[LABEL.len() + 16..LABEL.len() + 24].copy_from_slice(&generation.0.to_be_bytes());
    text[LABEL.len() + 24] = role.to_wire();
    text
}

const LABEL: &[u8] = b"keel-resume";
