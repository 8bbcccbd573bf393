//! Budgets of identities: connections, new flows, legs of known ones, floods.

use std::collections::HashMap;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keel_certs::Subject;
use tokio::time::Instant;

use super::held::Holding;
use crate::limits::RouterLimits;
use crate::metrics::FabricMetrics;
use crate::pace::Limit;
use crate::units::Rate;

/// The budgets of all identities that are connected, or were a short time ago.
#[derive(Debug)]
pub(super) struct Identities {
    all: Mutex<All>,
    /// What their flows hold together.
    held: Arc<AtomicI64>,
    metrics: Arc<FabricMetrics>,
}

#[derive(Debug)]
struct All {
    shares: HashMap<Subject, Allowance>,
    /// Bandwidth of each.
    rate: Option<Rate>,
}

#[derive(Debug)]
struct Budget {
    connections: usize,
    opens: Bucket,
    known: Bucket,
    /// Publications and withdrawals.
    changes: Bucket,
    /// Legs of known flows that wait for their provider.
    parked: usize,
    floods: u32,
    floods_since: Instant,
    /// When the last connection ended. The counters outlive it by the flood time: a new connection is no clean slate.
    left: Instant,
}

/// What is left of a rate.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn full(burst: u32, now: Instant) -> Self {
        Self {
            tokens: f64::from(burst),
            filled: now,
        }
    }

    fn fill(&mut self, per_second: f64, burst: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        self.tokens = (self.tokens + passed.as_secs_f64() * per_second).min(burst);
        self.filled = now;
    }
}

/// Part of all legs of known flows that an identity has before others: a few that come again and again leave room.
const KNOWN_SHARE: f64 = 0.25;

/// An identity's share; gives its connection back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    allowance: Allowance,
}

/// What an identity's flows may have.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    budget: Arc<Mutex<Budget>>,
    /// The identity's bandwidth.
    pub(super) limit: Arc<Limit>,
    /// What its flows hold here.
    pub(super) holding: Holding,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing is left half changed here, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Identities {
    pub(super) fn new(rate: Option<Rate>, metrics: Arc<FabricMetrics>) -> Self {
        Self {
            all: Mutex::new(All {
                shares: HashMap::new(),
                rate,
            }),
            held: Arc::default(),
            metrics,
        }
    }

    /// Each identity has this bandwidth from now on, flows that run included.
    pub(super) fn limit(&self, rate: Option<Rate>) {
        let mut all = lock(&self.all);
        all.rate = rate;
        for known in all.shares.values() {
            known.limit.set(rate);
        }
    }

    /// One more connection of `subject`; `None` if it has too many.
    pub(super) fn connect(
        &self,
        subject: &Subject,
        limits: &RouterLimits,
        now: Instant,
    ) -> Option<Share> {
        let mut all = lock(&self.all);
        let rate = all.rate;
        all.shares.retain(|_, known| {
            let budget = lock(&known.budget);
            // A flow that ends here goes on while its consumer is away.
            let used = Arc::strong_count(&known.limit) > 1;
            used || budget.connections > 0
                || now.saturating_duration_since(budget.left) <= limits.flood_time
        });
        let known = all.shares.entry(subject.clone()).or_insert_with(|| {
            let budget = Budget {
                connections: 0,
                opens: Bucket::full(limits.opens_burst, now),
                known: Bucket::full(limits.resumes_per_second, now),
                changes: Bucket::full(limits.changes_burst, now),
                parked: 0,
                floods: 0,
                floods_since: now,
                left: now,
            };
            Allowance {
                budget: Arc::new(Mutex::new(budget)),
                limit: Limit::new("identity".to_owned(), rate, &self.metrics),
                holding: Holding::new(limits, &self.held, &self.metrics),
            }
        });
        let allowance = known.clone();
        drop(all);
        let mut held = lock(&allowance.budget);
        if held.connections >= limits.connections_per_identity {
            return None;
        }
        held.connections += 1;
        drop(held);
        Some(Share { allowance })
    }
}

impl Allowance {
    /// Takes one new flow out of the budget, before it is known whether it is one; false if far too many came. Once it is
    /// used up, another burst of them may still turn out to be none.
    pub(super) fn stream(&self, limits: &RouterLimits, now: Instant) -> bool {
        let mut budget = lock(&self.budget);
        let burst = f64::from(limits.opens_burst);
        budget
            .opens
            .fill(f64::from(limits.opens_per_second), burst, now);
        if budget.opens.tokens < 1.0 - burst {
            return false;
        }
        budget.opens.tokens -= 1.0;
        true
    }

    /// It was a new flow: whether the budget allows it.
    pub(super) fn open(&self) -> bool {
        let mut budget = lock(&self.budget);
        if budget.opens.tokens < 0.0 {
            budget.opens.tokens += 1.0;
            return false;
        }
        true
    }

    /// It was none, but a leg of a known flow: whether it may be served before those of other identities. All flows of an
    /// identity may come back at once, as many as are served in a second.
    pub(super) fn known(&self, limits: &RouterLimits, now: Instant) -> bool {
        let mut budget = lock(&self.budget);
        budget.opens.tokens += 1.0;
        let all = f64::from(limits.resumes_per_second);
        budget.known.fill(all * KNOWN_SHARE, all, now);
        let before = budget.known.tokens >= 1.0;
        if before {
            budget.known.tokens -= 1.0;
        }
        before
    }

    /// Takes one publication or withdrawal out of the budget; how long it has to wait.
    pub(super) fn change(&self, limits: &RouterLimits, now: Instant) -> Duration {
        let mut budget = lock(&self.budget);
        let rate = f64::from(limits.changes_per_second);
        let changes = &mut budget.changes;
        changes.fill(rate, f64::from(limits.changes_burst), now);
        changes.tokens -= 1.0;
        Duration::from_secs_f64((-changes.tokens).max(0.0) / rate)
    }

    /// Room for a leg that waits for its provider; an identity has half of all.
    pub(super) fn park(&self, limits: &RouterLimits) -> Option<Parked<'_>> {
        let mut budget = lock(&self.budget);
        if budget.parked >= limits.parked.div_ceil(2) {
            return None;
        }
        budget.parked += 1;
        Some(Parked(&self.budget))
    }
}

/// A leg that waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Parked<'a>(&'a Mutex<Budget>);

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        lock(self.0).parked -= 1;
    }
}

impl Share {
    /// For the flows of a connection.
    pub(super) fn allowance(&self) -> Allowance {
        self.allowance.clone()
    }

    /// Notes a stream that was cut without a byte; true if there were too many.
    pub(super) fn flood(&self, limits: &RouterLimits, now: Instant) -> bool {
        let mut budget = lock(&self.allowance.budget);
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
        let mut budget = lock(&self.allowance.budget);
        budget.connections -= 1;
        budget.left = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identities() -> Identities {
        Identities::new(None, Arc::default())
    }

    #[test]
    fn connections_are_counted_and_given_back() {
        let identities = identities();
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
        let identities = identities();
        let limits = RouterLimits {
            opens_burst: 2,
            opens_per_second: 1,
            ..RouterLimits::default()
        };
        let now = Instant::now();
        let share = identities
            .connect(&"/node/a".parse().unwrap(), &limits, now)
            .unwrap()
            .allowance();
        let open = |now| share.stream(&limits, now) && share.open();
        assert!(open(now) && open(now));
        assert!(!open(now));
        assert!(open(now + Duration::from_secs(1)));
    }

    #[test]
    fn legs_of_known_flows_come_through_a_budget_that_is_used_up() {
        let identities = identities();
        let limits = RouterLimits {
            opens_burst: 2,
            opens_per_second: 0,
            ..RouterLimits::default()
        };
        let now = Instant::now();
        let share = identities.connect(&"/node/a".parse().unwrap(), &limits, now);
        let allowance = share.unwrap().allowance();
        let stream = || allowance.stream(&limits, now);
        assert!(stream() && allowance.open() && stream() && allowance.open());
        for _ in 0..10 {
            assert!(stream() && !allowance.open());
            assert!(stream());
            allowance.known(&limits, now);
        }
        // Streams that say nothing cannot go on for ever.
        assert!(stream() && stream() && !stream());
    }

    #[test]
    fn legs_of_known_flows_come_first_up_to_a_quarter_of_all() {
        let identities = identities();
        let limits = RouterLimits {
            resumes_per_second: 40,
            ..RouterLimits::default()
        };
        let now = Instant::now();
        let share = identities.connect(&"/node/a".parse().unwrap(), &limits, now);
        let allowance = share.unwrap().allowance();
        let first = |now| (0..100).filter(|_| allowance.known(&limits, now)).count();
        assert_eq!(first(now), 40);
        assert_eq!(first(now + Duration::from_secs(1)), 10);
        assert_eq!(first(now + Duration::from_secs(60)), 40);
    }

    #[test]
    fn publications_beyond_the_burst_come_at_the_rate() {
        let identities = identities();
        let limits = RouterLimits {
            changes_burst: 2,
            changes_per_second: 10,
            ..RouterLimits::default()
        };
        let now = Instant::now();
        let share = identities.connect(&"/node/a".parse().unwrap(), &limits, now);
        let allowance = share.unwrap().allowance();
        let waits = |now| [(); 4].map(|()| allowance.change(&limits, now).as_millis());
        assert_eq!(waits(now), [0, 0, 100, 200]);
        // Two are owed, and no more than the burst is earned.
        assert_eq!(waits(now + Duration::from_millis(300)), [0, 100, 200, 300]);
        assert_eq!(waits(now + Duration::from_secs(60)), [0, 0, 100, 200]);
    }

    #[test]
    fn an_identity_parks_in_half_of_all_places() {
        let identities = identities();
        let limits = RouterLimits {
            parked: 3,
            ..RouterLimits::default()
        };
        let share = identities.connect(&"/node/a".parse().unwrap(), &limits, Instant::now());
        let allowance = share.unwrap().allowance();
        let (one, two) = (allowance.park(&limits), allowance.park(&limits));
        assert!(one.is_some() && two.is_some() && allowance.park(&limits).is_none());
        drop(one);
        assert!(allowance.park(&limits).is_some());
    }

    #[test]
    fn floods_are_forgotten_after_their_time() {
        let identities = identities();
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

    #[test]
    fn a_new_connection_is_no_clean_slate_but_old_budgets_are_dropped() {
        let identities = identities();
        let limits = RouterLimits {
            flood: 1,
            opens_burst: 1,
            opens_per_second: 0,
            ..RouterLimits::default()
        };
        let subject = "/node/a".parse().unwrap();
        let now = Instant::now();
        let share = identities.connect(&subject, &limits, now).unwrap();
        let open = |share: &Share| share.allowance.stream(&limits, now) && share.allowance.open();
        assert!(open(&share) && !share.flood(&limits, now));
        drop(share);
        let share = identities.connect(&subject, &limits, now).unwrap();
        assert!(!open(&share) && share.flood(&limits, now));
        drop(share);
        let later = Instant::now() + limits.flood_time + Duration::from_secs(1);
        let other = identities.connect(&"/node/b".parse().unwrap(), &limits, later);
        assert!(other.is_some());
        assert_eq!(lock(&identities.all).shares.len(), 1);
    }
}
