//! How long to wait before the next attempt.

use std::time::Duration;

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
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rand::random::<f64>())
    }

    fn bound(&self) -> Duration {
        // Beyond 2^16 the cap has long been reached.
        self.first
            .saturating_mul(1 << self.failures.min(16))
            .min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
