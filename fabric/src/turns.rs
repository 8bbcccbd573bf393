//! Turns for legs of known flows: after the death of a router or a link all its flows come back at once, and so many a
//! second are let through, in the order of their arrival.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::FabricMetrics;

/// How long a leg waits for its turn at most. One that would have to wait longer is cut, and its flow tries again, later
/// and over any router.
const WAIT: Duration = Duration::from_millis(250);

/// The rate of one process.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Time of one turn.
    step: Duration,
    /// How far the turns given may be ahead of the time without anybody waiting.
    burst: Duration,
    /// The end of the last turn that was given.
    given: Mutex<Instant>,
    metrics: Arc<FabricMetrics>,
}

/// Too many legs came at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crowded;

impl Turns {
    pub(crate) fn new((per_second, burst): (u32, u32), metrics: Arc<FabricMetrics>) -> Self {
        let step = Duration::from_secs(1) / per_second.max(1);
        Self {
            step,
            burst: step * burst.max(1),
            given: Mutex::new(Instant::now()),
            metrics,
        }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Crowded`], at once, if that would take too long.
    pub(crate) async fn take(&self) -> Result<(), Crowded> {
        self.take_within(WAIT).await
    }

    /// Takes a turn that nobody waits for.
    ///
    /// # Errors
    /// [`Crowded`], if there is none.
    pub(crate) async fn take_spare(&self) -> Result<(), Crowded> {
        self.take_within(Duration::ZERO).await
    }

    async fn take_within(&self, wait: Duration) -> Result<(), Crowded> {
        match self.turn(Instant::now(), wait) {
            Ok(at) => {
                tokio::time::sleep_until(at).await;
                Ok(())
            }
            Err(crowded) => {
                self.metrics.hit("resumes");
                Err(crowded)
            }
        }
    }

    /// Lets those go first that wait for their turn now: a new flow can wait, one that runs is waited for.
    pub(crate) async fn behind(&self) {
        let given = *self.given();
        // Most of the time nobody waits, and this costs no timer.
        if let Some(ahead) = given.checked_sub(self.burst)
            && ahead > Instant::now()
        {
            tokio::time::sleep_until(ahead).await;
        }
    }

    /// When the next leg has its turn.
    fn turn(&self, now: Instant, wait: Duration) -> Result<Instant, Crowded> {
        let mut given = self.given();
        let end = (*given).max(now) + self.step;
        let at = end.checked_sub(self.burst).map_or(now, |at| at.max(now));
        if at > now + wait {
            return Err(Crowded);
        }
        *given = end;
        Ok(at)
    }

    fn given(&self) -> std::sync::MutexGuard<'_, Instant> {
        // One number is never left half changed.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(rate: (u32, u32)) -> (Turns, Instant) {
        (Turns::new(rate, Arc::default()), Instant::now())
    }

    #[test]
    fn a_burst_waits_for_nothing_and_the_rest_comes_at_the_rate() {
        let (turns, now) = turns((100, 50));
        let waits: Vec<_> = (0..100)
            .map_while(|_| turns.turn(now, WAIT).ok())
            .map(|at| at - now)
            .collect();
        assert_eq!(waits[..50], [Duration::ZERO; 50]);
        let step = Duration::from_millis(10);
        assert_eq!(waits[50..53], [step, step * 2, step * 3]);
        assert_eq!(waits.last(), Some(&WAIT), "who would wait longer is cut");
        // What was earned meanwhile is there, and no more than the burst.
        let later = now + Duration::from_secs(60);
        let at_once = (0..100)
            .filter(|_| turns.turn(later, WAIT) == Ok(later))
            .count();
        assert_eq!(at_once, 50);
    }

    #[test]
    fn spare_turns_make_nobody_wait() {
        let (turns, now) = turns((100, 50));
        let spare = |now| turns.turn(now, Duration::ZERO);
        for _ in 0..50 {
            spare(now).unwrap();
        }
        assert_eq!(spare(now), Err(Crowded));
        let step = Duration::from_millis(10);
        assert_eq!(turns.turn(now, WAIT), Ok(now + step), "as if none had come");
        assert_eq!(spare(now + step), Err(Crowded));
        assert_eq!(spare(now + step * 2), Ok(now + step * 2));
    }

    #[tokio::test]
    async fn what_is_new_waits_behind_those_that_wait() {
        let (turns, began) = turns((100, 1));
        for _ in 0..11 {
            turns.turn(began, WAIT).unwrap();
        }
        turns.behind().await;
        assert!(began.elapsed() >= Duration::from_millis(100));
    }
}
