//! Attempts to connect that wait for their handshake.
//!
//! Handshakes are what costs a server most. When a herd of clients comes back at once, it does them at a pace, and those who are
//! connected already are served meanwhile.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::pace::Pace;

/// How far handshakes may be ahead of their pace.
const BURST: Duration = Duration::from_millis(100);
/// How long an attempt waits at most: well within what a client waits for an answer, so that none is answered who has gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// Attempts that wait at most, whatever the pace. The QUIC implementation keeps no more than 1,024, those of which the handshake runs
/// among them.
const MOST: usize = 512;

/// Attempts in the order in which they came.
pub(super) struct Arrivals<T> {
    waiting: VecDeque<T>,
    most: usize,
    /// The time for one handshake.
    cost: Duration,
    pace: Pace,
    next: Instant,
}

impl<T> Arrivals<T> {
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = per_second.max(1);
        let most = usize::try_from(per_second).unwrap_or(usize::MAX);
        let cost = Duration::from_secs(1) / per_second;
        Self {
            waiting: VecDeque::new(),
            most: most.saturating_mul(PATIENCE.as_secs() as usize).min(MOST),
            cost,
            pace: Pace::new(BURST.max(cost)),
            next: Instant::now(),
        }
    }

    /// Takes one more.
    ///
    /// # Errors
    /// Gives it back if too many wait.
    pub(super) fn push(&mut self, arrived: T) -> Result<(), T> {
        if self.waiting.len() >= self.most {
            return Err(arrived);
        }
        self.waiting.push_back(arrived);
        Ok(())
    }

    /// Whether so many wait that those who may not be where they say would take the places of others.
    pub(super) fn is_crowded(&self) -> bool {
        self.waiting.len() >= self.most.div_ceil(2)
    }

    /// The next whose handshake may begin; never if none waits. Cancel safe.
    pub(super) async fn next(&mut self) -> T {
        if self.waiting.is_empty() {
            return pending().await;
        }
        sleep_until(self.next).await;
        let now = Instant::now();
        match self.waiting.pop_front() {
            Some(arrived) => {
                self.next = self.pace.take(now, self.cost);
                arrived
            }
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_herd_gets_in_at_the_pace_and_the_rest_is_given_back() {
        let mut arrivals = Arrivals::new(100);
        for number in 0..200 {
            assert_eq!(arrivals.is_crowded(), number >= 100);
            assert_eq!(arrivals.push(number), Ok(()));
        }
        assert_eq!(arrivals.push(200), Err(200));
        let began = Instant::now();
        for number in 0..200 {
            assert_eq!(arrivals.next().await, number);
        }
        // All but the burst were paced, and nobody waited for longer than a client does.
        let took = began.elapsed();
        assert!(took > PATIENCE - BURST * 2 && took <= PATIENCE, "{took:?}");
        assert!(
            timeout(Duration::from_secs(60), arrivals.next())
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_alone_does_not_wait() {
        let mut arrivals = Arrivals::new(1);
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let now = Instant::now();
            assert_eq!(arrivals.push(()), Ok(()));
            arrivals.next().await;
            assert_eq!(now.elapsed(), Duration::ZERO);
        }
    }

    #[test]
    fn the_fastest_pace_is_no_flood_of_attempts() {
        let mut arrivals = Arrivals::new(u32::MAX);
        for number in 0..MOST {
            assert_eq!(arrivals.push(number), Ok(()));
        }
        assert!(arrivals.push(0).is_err());
    }
}
