//! How many bytes of a stream h3 may hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

/// What a request stream may send until its header is complete. h3 holds a frame of any announced length in memory until all of
/// it is there, so this is the bound of what one stream costs.
const BEFORE_HEADER: u64 = 64 * 1024;

/// What is added once the header is there: the bytes of the body that may wait in h3 unread. h3 reads one piece more for every frame
/// than it gives out, so without a bound all that a peer sends faster than it is used would gather there.
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

    /// How much of a body h3 may read now; before the header it may ask for all.
    pub(crate) fn room(&self) -> Option<usize> {
        let left = || usize::try_from(self.left.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        (!self.awaits_header()).then(left)
    }

    /// Takes a piece of a body off; what h3 makes of it comes back when h3 lets go of the last part.
    pub(crate) fn lend(self: &Arc<Self>, piece: Bytes) -> Bytes {
        // Never more than there is room for, which is what was asked for.
        self.take(piece.len());
        let budget = Arc::clone(self);
        Bytes::from_owner(Lent { piece, budget })
    }
}

/// A piece of a body that h3 holds.
struct Lent {
    piece: Bytes,
    budget: Arc<Budget>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.budget.grant(self.piece.len() as u64);
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
        assert_eq!(budget.room(), None);
        budget.header_complete();
        assert!(!budget.awaits_header());
        assert_eq!(budget.room(), Some(256 * 1024));
    }

    #[test]
    fn what_is_lent_comes_back_with_its_last_part() {
        let budget = Budget::new();
        budget.header_complete();
        let room = budget.room().unwrap();
        let mut whole = budget.lend(Bytes::from(vec![7; 1000]));
        assert_eq!(budget.room(), Some(room - 1000));
        let part = whole.split_to(10);
        drop(whole);
        assert_eq!(
            (budget.room(), &part[..]),
            (Some(room - 1000), &[7; 10][..])
        );
        drop(part);
        assert_eq!(budget.room(), Some(room));
    }
}
