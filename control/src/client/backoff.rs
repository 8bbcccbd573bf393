//! How long to wait before the next attempt.

use std::time::Duration;

use tokio::time::Instant;

/// Exponential backoff with full jitter: each wait is random between nothing and a bound that doubles, so that many clients of one
/// server do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// For a server elsewhere: bounds from 0.5 s to 60 s.
    #[must_use]
    pub fn remote() -> Self {
        Self {
            first: Duration::from_millis(500),
            cap: Duration::from_secs(60),
            failures: 0,
        }
    }

    /// For a server on this host, which is only away while it restarts: bounds from 0.1 s to 2 s.
    #[must_use]
    pub fn local() -> Self {
        Self {
            first: Duration::from_millis(100),
            cap: Duration::from_secs(2),
            failures: 0,
        }
    }

    /// The next attempt is the first one again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure.
    pub fn failed(&mut self) -> Duration {
        self.failed_by(rand::random())
    }

    /// As [`failed`](Self::failed), with `jitter` from 0 to 1 as the random share of the bound.
    pub(crate) fn failed_by(&mut self, jitter: f64) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(jitter)
    }

    fn bound(&self) -> Duration {
        // Beyond 2^16 the cap has long been reached.
        self.first
            .saturating_mul(1 << self.failures.min(16))
            .min(self.cap)
    }
}

/// A time in which nobody waits long, because what was away seems to be back: every attempt within it is made after a random share
/// of `spread` at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hurry {
    /// Over how long attempts are spread.
    pub spread: Duration,
    /// When everybody waits as usual again.
    pub until: Instant,
}

impl Hurry {
    /// What is left at `now` of a wait of `left`; `jitter` is a random share from 0 to 1.
    pub(crate) fn shorten(&self, left: Duration, now: Instant, jitter: f64) -> Duration {
        if now < self.until {
            left.min(self.spread.mul_f64(jitter))
        } else {
            left
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hurry_only_shortens_and_ends() {
        let now = Instant::now();
        let hurry = Hurry {
            spread: Duration::from_secs(4),
            until: now + Duration::from_secs(10),
        };
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(10));
        assert_eq!(hurry.shorten(long, now, 0.5), Duration::from_secs(2));
        assert_eq!(hurry.shorten(short, now, 0.5), short);
        assert_eq!(hurry.shorten(long, hurry.until, 0.5), long);
    }

    #[test]
    fn waits_grow_to_the_cap_and_start_again_after_success() {
        let mut backoff = Backoff::remote();
        let mut bounds = Vec::new();
        for _ in 0..40 {
            let bound = backoff.bound();
            assert!(backoff.failed() <= bound);
            bounds.push(bound.as_millis());
        }
        assert_eq!(
            bounds[..9],
            [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]
        );
        assert_eq!(bounds[39], 60000);
        backoff.succeeded();
        assert_eq!(backoff.bound(), Duration::from_millis(500));
    }
}
