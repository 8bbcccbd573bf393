//! Budgets of identities: connections, new flows, floods.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use keel_certs::Subject;
use tokio::time::Instant;

use crate::limits::RouterLimits;

/// The budgets of all identities that are connected.
#[derive(Debug, Default)]
pub(super) struct Identities {
    all: Mutex<HashMap<Subject, Arc<Mutex<Budget>>>>,
}

#[derive(Debug)]
struct Budget {
    connections: usize,
    tokens: f64,
    filled: Instant,
    floods: u32,
    floods_since: Instant,
}

/// An identity's share; gives its connection back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    identities: Arc<Identities>,
    subject: Subject,
    budget: Arc<Mutex<Budget>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing is left half changed here, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Identities {
    /// One more connection of `subject`; `None` if it has too many.
    pub(super) fn connect(
        self: &Arc<Self>,
        subject: &Subject,
        limits: &RouterLimits,
        now: Instant,
    ) -> Option<Share> {
        let budget = Arc::clone(lock(&self.all).entry(subject.clone()).or_insert_with(|| {
            Arc::new(Mutex::new(Budget {
                connections: 0,
                tokens: f64::from(limits.opens_burst),
                filled: now,
                floods: 0,
                floods_since: now,
            }))
        }));
        let mut held = lock(&budget);
        if held.connections >= limits.connections_per_identity {
            return None;
        }
        held.connections += 1;
        drop(held);
        Some(Share {
            identities: Arc::clone(self),
            subject: subject.clone(),
            budget,
        })
    }
}

impl Share {
    /// Takes one new flow out of the budget; false if it is used up.
    pub(super) fn open(&self, limits: &RouterLimits, now: Instant) -> bool {
        let mut budget = lock(&self.budget);
        let earned = now.saturating_duration_since(budget.filled).as_secs_f64()
            * f64::from(limits.opens_per_second);
        budget.tokens = (budget.tokens + earned).min(f64::from(limits.opens_burst));
        budget.filled = now;
        if budget.tokens < 1.0 {
            return false;
        }
        budget.tokens -= 1.0;
        true
    }

    /// Notes a stream that was cut without a byte; true if there were too many.
    pub(super) fn flood(&self, limits: &RouterLimits, now: Instant) -> bool {
        let mut budget = lock(&self.budget);
        if now.saturating_duration_since(budget.floods_since) > limits.flood_time {
            budget.floods = 0;
            budget.floods_since = now;
        }
        budget.floods += 1;
        budget.floods > limits.flood
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = lock(&self.identities.all);
        let mut budget = lock(&self.budget);
        budget.connections -= 1;
        if budget.connections == 0 {
            all.remove(&self.subject);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn connections_are_counted_and_given_back() {
        let identities = Arc::new(Identities::default());
        let limits = RouterLimits {
            connections_per_identity: 1,
            ..RouterLimits::default()
        };
        let subject = "/node/a".parse().unwrap();
        let share = identities
            .connect(&subject, &limits, Instant::now())
            .unwrap();
        assert!(
            identities
                .connect(&subject, &limits, Instant::now())
                .is_none()
        );
        drop(share);
        assert!(
            identities
                .connect(&subject, &limits, Instant::now())
                .is_some()
        );
    }

    #[test]
    fn opens_are_bounded_by_burst_and_rate() {
        let identities = Arc::new(Identities::default());
        let limits = RouterLimits {
            opens_burst: 2,
            opens_per_second: 1,
            ..RouterLimits::default()
        };
        let now = Instant::now();
        let share = identities
            .connect(&"/node/a".parse().unwrap(), &limits, now)
            .unwrap();
        assert!(share.open(&limits, now) && share.open(&limits, now));
        assert!(!share.open(&limits, now));
        assert!(share.open(&limits, now + Duration::from_secs(1)));
    }

    #[test]
    fn floods_are_forgotten_after_their_time() {
        let identities = Arc::new(Identities::default());
        let limits = RouterLimits {
            flood: 1,
            ..RouterLimits::default()
        };
        let now = Instant::now();
        let share = identities
            .connect(&"/node/a".parse().unwrap(), &limits, now)
            .unwrap();
        assert!(!share.flood(&limits, now));
        assert!(share.flood(&limits, now));
        assert!(!share.flood(&limits, now + limits.flood_time + Duration::from_secs(1)));
    }
}
