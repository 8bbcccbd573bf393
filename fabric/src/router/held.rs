//! The memory of bytes that were read from one connection and wait for the other one of their flow.
//!
//! An identity has its budget, and no more than what all others leave of the process's: who comes late, or has one flow
//! only, always finds room. Beyond it a flow is read packet by packet, and not at all while one waits. Those packets are in no
//! budget, or the stuck flows of one identity would take with them what the others have.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::limits::RouterLimits;
use crate::metrics::FabricMetrics;

/// Which bound, as its metric names it.
const PROCESS: &str = "passing_buffers";
const IDENTITY: &str = "identity_passing_buffers";

/// What the flows of one identity may hold. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Holding {
    identity: Arc<AtomicI64>,
    process: Arc<AtomicI64>,
    limits: Bounds,
    metrics: Arc<FabricMetrics>,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    identity: i64,
    process: i64,
}

impl Holding {
    /// Of an identity that holds nothing yet; `process` is what all of them hold.
    pub(super) fn new(
        limits: &RouterLimits,
        process: &Arc<AtomicI64>,
        metrics: &Arc<FabricMetrics>,
    ) -> Self {
        let bytes = |limit| i64::try_from(limit).unwrap_or(i64::MAX);
        Self {
            identity: Arc::default(),
            process: Arc::clone(process),
            limits: Bounds {
                identity: bytes(limits.passing_identity),
                process: bytes(limits.passing),
            },
            metrics: Arc::clone(metrics),
        }
    }

    /// The bound that is reached, if one is.
    fn reached(&self) -> Option<&'static str> {
        let own = self.identity.load(Ordering::Relaxed);
        let left = self.limits.process - self.process.load(Ordering::Relaxed);
        if own >= self.limits.identity {
            Some(IDENTITY)
        } else {
            (own >= left).then_some(PROCESS)
        }
    }

    fn add(&self, bytes: i64) {
        self.identity.fetch_add(bytes, Ordering::Relaxed);
        self.process.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What one direction of a flow holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    of: &'a Holding,
    bytes: i64,
    /// Of these, what is in the budgets.
    counted: i64,
    tight: bool,
}

impl<'a> Held<'a> {
    pub(super) const fn new(of: &'a Holding) -> Self {
        Self {
            of,
            bytes: 0,
            counted: 0,
            tight: false,
        }
    }

    /// Whether more than a packet may be read at once.
    pub(super) fn is_free(&mut self) -> bool {
        let reached = self.of.reached();
        if let Some(name) = reached.filter(|_| !self.tight) {
            self.of.metrics.hit(name);
        }
        self.tight = reached.is_some();
        !self.tight
    }

    pub(super) const fn bytes(&self) -> i64 {
        self.bytes
    }

    /// It holds so much now. It is in the budgets if they allowed to read it.
    pub(super) fn set(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.of.metrics.router_held.inc_by(bytes - self.bytes);
        self.bytes = bytes;
        let counted = if self.tight { 0 } else { bytes };
        if counted != self.counted {
            self.of.add(counted - self.counted);
            self.counted = counted;
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::LimitLabels;

    fn world() -> (Arc<FabricMetrics>, impl Fn() -> Holding) {
        let metrics = Arc::<FabricMetrics>::default();
        let limits = RouterLimits {
            passing_identity: 1000,
            passing: 2500,
            ..RouterLimits::default()
        };
        let (of, process) = (Arc::clone(&metrics), Arc::default());
        (metrics, move || Holding::new(&limits, &process, &of))
    }

    fn hits(metrics: &FabricMetrics, name: &'static str) -> u64 {
        metrics.limit_hit.get_or_create(&LimitLabels { name }).get()
    }

    #[test]
    fn an_identity_holds_exactly_its_budget() {
        let (metrics, holding) = world();
        let (one, other) = (holding(), holding());
        let (mut first, mut second) = (Held::new(&one), Held::new(&one));
        first.set(999);
        assert!(second.is_free());
        assert_eq!(hits(&metrics, IDENTITY), 0);
        second.set(1);
        assert!(!first.is_free() && !first.is_free() && !second.is_free());
        assert_eq!(hits(&metrics, IDENTITY), 2, "once for each direction");
        assert!(Held::new(&other).is_free());
        drop(second);
        assert!(first.is_free());
        drop(first);
        assert_eq!(metrics.router_held.get(), 0);
    }

    #[test]
    fn packets_of_stuck_flows_beyond_a_budget_take_nothing_from_others() {
        let (metrics, holding) = world();
        let (one, other) = (holding(), holding());
        let mut stuck: Vec<_> = (0..30).map(|_| Held::new(&one)).collect();
        for flow in &mut stuck {
            flow.is_free();
            flow.set(100);
        }
        assert_eq!(metrics.router_held.get(), 3000, "10 in the budget");
        let mut another = Held::new(&other);
        assert!(another.is_free());
        another.set(700);
        assert!(another.is_free());
        assert_eq!(hits(&metrics, PROCESS), 0);
        drop(stuck);
        drop(another);
        assert_eq!(metrics.router_held.get(), 0);
        let (own, all) = (&one.identity, &one.process);
        assert_eq!([own, all].map(|held| held.load(Ordering::Relaxed)), [0, 0]);
    }

    #[test]
    fn what_is_left_of_the_process_is_anybodys_who_holds_less() {
        let (metrics, holding) = world();
        let all = [holding(), holding(), holding()];
        let [mut first, mut second, mut third] = [0, 1, 2].map(|at| Held::new(&all[at]));
        first.set(850);
        second.set(849);
        third.set(100);
        // 701 are left.
        assert!(!first.is_free() && !second.is_free() && third.is_free());
        assert_eq!((hits(&metrics, PROCESS), hits(&metrics, IDENTITY)), (2, 0));
        third.set(400);
        // 401 are left.
        assert!(third.is_free());
        third.set(401);
        assert!(!third.is_free());
    }
}
