//! A pace that is kept over time, with a burst: nothing is refused, only told when it may go on.

use std::time::Duration;

use tokio::time::Instant;

/// What a status of another node costs, pushed by it or pulled from it, so that one that floods does not wear out our flash nor fill
/// it: ten a second,
pub(crate) const STATUS: Duration = Duration::from_millis(100);
/// and twenty at once,
pub(crate) const STATUS_BURST: Duration = Duration::from_secs(2);
/// and so many bytes a second. Each is written three times: as the object, and in the history with the one before.
const STATUS_BYTES: u32 = 64 << 10;

/// What a status of so many bytes costs besides, once it is written.
pub(crate) fn status_bytes(bytes: usize) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Duration::from_secs(1).mul_f64(f64::from(bytes) / f64::from(STATUS_BYTES))
}

/// How far ahead of its time something may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    burst: Duration,
    /// When all that was taken would be paid for; `None` before the first.
    paid: Option<Instant>,
}

impl Pace {
    /// A pace that nothing was taken from; costs of `burst` may be taken at once.
    pub(crate) fn new(burst: Duration) -> Self {
        Self { burst, paid: None }
    }

    /// Takes something that costs this much time; when the next may be taken.
    pub(crate) fn take(&mut self, now: Instant, cost: Duration) -> Instant {
        let paid = self.paid.unwrap_or(now).max(now) + cost;
        self.paid = Some(paid);
        paid.checked_sub(self.burst).unwrap_or(now).max(now)
    }

    /// Whether something may be taken now.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        self.paid
            .is_none_or(|paid| paid.saturating_duration_since(now) <= self.burst)
    }

    /// Whether all that was taken is paid for: there is nothing to remember.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        self.paid.is_none_or(|paid| paid <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_through_and_then_the_pace_is_kept() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(second * 3);
        for _ in 0..3 {
            assert!(pace.is_open(now));
            assert_eq!(pace.take(now, second), now);
        }
        assert_eq!(pace.take(now, second), now + second);
        assert!(!pace.is_open(now) && pace.is_open(now + second));
        assert!(!pace.is_idle(now + second * 3) && pace.is_idle(now + second * 4));
        // What was not used is not saved beyond the burst.
        let later = now + second * 1000;
        for _ in 0..3 {
            assert_eq!(pace.take(later, second), later);
        }
        assert_eq!(pace.take(later, second), later + second);
    }
}
