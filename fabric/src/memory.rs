//! The memory that the flow ends of one process share.
//!
//! What flows hold is counted for the process and for each consumer's identity. The fuller it is the less each flow gets:
//! first no more than the window that it starts with, then a trickle, and new flows are refused. Only if that is not
//! enough, because credit once given cannot be taken back, the newest flows that hold anything are cut. A flow that is not
//! cut loses no byte: its source is not read.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Context;

use futures_util::task::AtomicWaker;
use keel_certs::Subject;

use crate::flow::{Flow, FlowLimits};
use crate::limits::MemoryLimits;
use crate::metrics::FabricMetrics;

/// The window of a flow while there is no memory left: enough to go on.
const TRICKLE: usize = 16 << 10;

/// The memory of one process.
#[derive(Debug)]
pub struct Memory {
    limits: MemoryLimits,
    metrics: Arc<FabricMetrics>,
    identities: Mutex<HashMap<Subject, Weak<Share>>>,
    flows: Mutex<Flows>,
}

#[derive(Debug, Default)]
struct Flows {
    next: u64,
    /// By age.
    all: BTreeMap<u64, Arc<Holder>>,
}

/// What an identity's flows hold together.
#[derive(Debug, Default)]
struct Share {
    held: AtomicI64,
}

/// What one flow holds.
#[derive(Debug)]
struct Holder {
    held: AtomicI64,
    share: Option<Arc<Share>>,
    cut: AtomicBool,
    waker: AtomicWaker,
}

/// What flows hold together, in bytes.
#[derive(Debug, Clone, Copy)]
struct Held {
    process: i64,
    identity: i64,
}

/// How full it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// Flows may grow.
    Free,
    /// They may not, from three quarters on.
    Tight,
    /// They trickle and new ones are refused, from nine tenths on.
    Full,
    /// Somebody has to go.
    Over,
}

impl Level {
    fn of(held: i64, most: u64) -> Self {
        let held = u128::from(held.unsigned_abs()) * u128::from(held > 0);
        let most = u128::from(most);
        if held > most {
            Self::Over
        } else if held * 10 >= most * 9 {
            Self::Full
        } else if held * 4 >= most * 3 {
            Self::Tight
        } else {
            Self::Free
        }
    }
}

/// Which bound, as its metric names it.
const PROCESS: &str = "buffers";
const IDENTITY: &str = "identity_buffers";
/// The largest window of a flow, which is no bound of this one: whoever follows the flow sees that it is reached.
const WINDOW: &str = "flow_window_max";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half changed here, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// Memory with these bounds; what is held shows in `metrics`.
    #[must_use]
    pub fn new(limits: MemoryLimits, metrics: Arc<FabricMetrics>) -> Arc<Self> {
        Arc::new(Self {
            limits,
            metrics,
            identities: Mutex::default(),
            flows: Mutex::default(),
        })
    }

    /// Whether another flow of this consumer may start.
    ///
    /// # Errors
    /// What is full. It is counted.
    pub(crate) fn admit(&self, identity: Option<&Subject>) -> Result<(), &'static str> {
        let share = identity.and_then(|identity| lock(&self.identities).get(identity)?.upgrade());
        let own = share.map_or(0, |share| share.held.load(Ordering::Relaxed));
        if Level::of(self.metrics.flow_buffered.get(), self.limits.process) >= Level::Full {
            self.metrics.hit(PROCESS);
            return Err("the memory for flows of this process is used up");
        }
        if Level::of(own, self.limits.identity) >= Level::Full {
            self.metrics.hit(IDENTITY);
            return Err("the memory for flows of this identity is used up");
        }
        Ok(())
    }

    fn share(&self, identity: &Subject) -> Arc<Share> {
        let mut all = lock(&self.identities);
        if let Some(share) = all.get(identity).and_then(Weak::upgrade) {
            return share;
        }
        all.retain(|_, share| share.strong_count() > 0);
        let share = Arc::default();
        all.insert(identity.clone(), Arc::downgrade(&share));
        share
    }

    /// Has the newest flows cut that hold anything, of one identity or of all, until they will give back `over` bytes. Those
    /// that are to be cut and have not noticed yet count: it may take one of them a while.
    fn shed(&self, of: Option<&Arc<Share>>, over: i64) {
        let flows = lock(&self.flows);
        let mut given_back = 0;
        for holder in flows.all.values().rev() {
            let held = holder.held.load(Ordering::Relaxed);
            let same = |own| of.is_none_or(|share| Arc::ptr_eq(share, own));
            let concerned = match &holder.share {
                Some(own) => same(own),
                None => of.is_none(),
            };
            if held == 0 || !concerned {
                continue;
            }
            if !holder.cut.swap(true, Ordering::Relaxed) {
                self.metrics
                    .hit(if of.is_some() { IDENTITY } else { PROCESS });
                holder.waker.wake();
            }
            given_back += held;
            if given_back >= over {
                return;
            }
        }
    }
}

/// One flow's part of the memory.
#[derive(Debug)]
pub(crate) struct Buffers {
    memory: Arc<Memory>,
    limits: FlowLimits,
    number: u64,
    holder: Arc<Holder>,
    counted: i64,
    level: Level,
}

impl Buffers {
    /// `identity` is the consumer's, where it is another one's than this process's own.
    pub(crate) fn new(memory: Arc<Memory>, identity: Option<&Subject>, limits: FlowLimits) -> Self {
        let holder = Arc::new(Holder {
            held: AtomicI64::new(0),
            share: identity.map(|identity| memory.share(identity)),
            cut: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let number = {
            let mut flows = lock(&memory.flows);
            flows.next += 1;
            let number = flows.next;
            flows.all.insert(number, Arc::clone(&holder));
            number
        };
        Self {
            memory,
            limits,
            number,
            holder,
            counted: 0,
            level: Level::Free,
        }
    }

    /// Whether the flow has to be cut to make room. Wakes when it has to.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> bool {
        self.holder.waker.register(cx.waker());
        self.holder.cut.load(Ordering::Relaxed)
    }

    /// Counts what `flow` holds, and `more` beside it; lets its windows grow only while there is room.
    pub(crate) fn follow(&mut self, flow: &mut Flow, more: usize) {
        if flow.take_narrow() && self.level == Level::Free {
            self.memory.metrics.hit(WINDOW);
        }
        let held = i64::try_from(flow.stats().buffered + more).unwrap_or(i64::MAX);
        if held == self.counted {
            return;
        }
        let held = self.count(held);
        self.make_room(&held);
        let limits = self.memory.limits;
        let process = Level::of(held.process, limits.process);
        let identity = Level::of(held.identity, limits.identity);
        let level = process.max(identity).min(Level::Full);
        if level == self.level {
            return;
        }
        if level > self.level {
            let name = if process >= level { PROCESS } else { IDENTITY };
            self.memory.metrics.hit(name);
        }
        self.level = level;
        flow.set_max_window(match level {
            Level::Free => self.limits.max_window,
            Level::Tight => self.limits.window.min(self.limits.max_window),
            Level::Full | Level::Over => TRICKLE.min(self.limits.max_window),
        });
    }

    /// Flows are cut if too much is held, and more of them if that was not enough: nothing else may move.
    fn make_room(&self, held: &Held) {
        let over = |held: i64, most: u64| held - i64::try_from(most).unwrap_or(i64::MAX);
        let limits = self.memory.limits;
        let process = over(held.process, limits.process);
        if process > 0 {
            self.memory.shed(None, process);
            return;
        }
        let identity = over(held.identity, limits.identity);
        if identity > 0 {
            self.memory.shed(self.holder.share.as_ref(), identity);
        }
    }

    /// Enters what the flow holds; says what is held together.
    fn count(&mut self, held: i64) -> Held {
        let more = held - self.counted;
        self.counted = held;
        self.holder.held.store(held, Ordering::Relaxed);
        let own = self.holder.share.as_ref();
        Held {
            process: self.memory.metrics.flow_buffered.inc_by(more) + more,
            identity: own.map_or(0, |share| {
                share.held.fetch_add(more, Ordering::Relaxed) + more
            }),
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let held = self.count(0);
        lock(&self.memory.flows).all.remove(&self.number);
        self.make_room(&held);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::metrics::LimitLabels;
    use crate::wire::{AbortCode, FlowId, Frame, Generation, Open, Protocol, Secret, VERSION};

    const LIMITS: MemoryLimits = MemoryLimits {
        identity: 50_000,
        process: 125_000,
    };

    fn flow() -> Flow {
        Flow::initiate(open(), FlowLimits::default())
    }

    fn open() -> Open {
        Open {
            version: VERSION,
            flow: FlowId::random(),
            generation: Generation::FIRST,
            secret: Secret::random(),
            service: "a.b".parse().unwrap(),
            port: 1,
            protocol: Protocol::Tcp,
            provider: "/node/a".parse().unwrap(),
            limit: 0,
            max_datagram: 0,
            hops: 0,
            flags: 0,
            from: None,
            window: None,
            rest: Bytes::new(),
        }
    }

    struct World {
        memory: Arc<Memory>,
        metrics: Arc<FabricMetrics>,
        flows: Vec<(Buffers, Flow)>,
    }

    impl World {
        fn new() -> Self {
            let metrics = Arc::<FabricMetrics>::default();
            Self {
                memory: Memory::new(LIMITS, Arc::clone(&metrics)),
                metrics,
                flows: Vec::new(),
            }
        }

        /// A flow of this identity that holds so much; its number.
        fn add(&mut self, identity: &str, bytes: usize) -> usize {
            let identity = identity.parse().unwrap();
            let limits = FlowLimits::default();
            let mut buffers = Buffers::new(Arc::clone(&self.memory), Some(&identity), limits);
            let mut flow = flow();
            flow.write(Bytes::from(vec![0; bytes]));
            buffers.follow(&mut flow, 0);
            self.flows.push((buffers, flow));
            self.flows.len() - 1
        }

        fn is_cut(&self, index: usize) -> bool {
            let cx = Context::from_waker(std::task::Waker::noop());
            self.flows[index].0.poll_cut(&cx)
        }

        fn hits(&self, name: &'static str) -> u64 {
            let labels = LimitLabels { name };
            self.metrics.limit_hit.get_or_create(&labels).get()
        }
    }

    #[test]
    fn a_window_that_cannot_grow_for_a_fast_reader_is_a_hit() {
        let mut world = World::new();
        world.add("/node/a", 0);
        let limits = FlowLimits {
            window: 1000,
            max_window: 1000,
            ..FlowLimits::default()
        };
        let (mut flow, now) = (Flow::initiate(open(), limits), tokio::time::Instant::now());
        flow.transmit(Generation::FIRST, now);
        let accept = Frame::Accept {
            limit: 0,
            max_datagram: 0,
            window: None,
        };
        flow.receive(Generation::FIRST, accept, now).unwrap();
        let buffers = &mut world.flows[0].0;
        for (offset, length) in [(0, 999), (999, 1)] {
            buffers.follow(&mut flow, 0);
            let bytes = Bytes::from(vec![0; length]);
            flow.receive(Generation::FIRST, Frame::Data { offset, bytes }, now)
                .unwrap();
        }
        flow.consumed(1000);
        buffers.follow(&mut flow, 0);
        buffers.follow(&mut flow, 0);
        assert_eq!(world.hits("flow_window_max"), 1);
    }

    #[test]
    fn what_a_flow_holds_is_counted_and_given_back() {
        let mut world = World::new();
        world.add("/node/a", 100);
        world.add("/node/a", 50);
        assert_eq!(world.metrics.flow_buffered.get(), 150);
        world.flows.clear();
        assert_eq!(world.metrics.flow_buffered.get(), 0);
        assert!(lock(&world.memory.flows).all.is_empty());
    }

    #[test]
    fn an_identity_fills_only_its_own_part() {
        let mut world = World::new();
        let identity = "/node/a".parse().unwrap();
        world.add("/node/a", 35_000);
        assert_eq!(world.flows[0].0.level, Level::Free);
        world.add("/node/a", 5_000);
        assert_eq!(world.flows[1].0.level, Level::Tight);
        assert_eq!(world.memory.admit(Some(&identity)), Ok(()));
        world.add("/node/a", 5_000);
        assert_eq!(world.flows[2].0.level, Level::Full);
        assert!(world.memory.admit(Some(&identity)).is_err());
        assert_eq!((world.hits(IDENTITY), world.hits(PROCESS)), (3, 0));
        assert_eq!(
            world.memory.admit(Some(&"/node/b".parse().unwrap())),
            Ok(())
        );
        let other = world.add("/node/b", 5_000);
        assert_eq!(world.flows[other].0.level, Level::Free);
        assert!(!(0..=other).any(|flow| world.is_cut(flow)));
    }

    #[test]
    fn the_newest_flow_of_who_has_too_much_is_cut_and_no_more_than_needed() {
        let mut world = World::new();
        let old = world.add("/node/a", 30_000);
        let new = world.add("/node/a", 15_000);
        let idle = world.add("/node/a", 0);
        let other = world.add("/node/b", 30_000);
        let (buffers, flow) = &mut world.flows[old];
        flow.write(Bytes::from(vec![0; 10_000]));
        buffers.follow(flow, 0);
        let cut: Vec<_> = (0..=other).filter(|&flow| world.is_cut(flow)).collect();
        assert_eq!(cut, [new], "and not {idle}, which holds nothing");
        let share = world.flows[old].0.holder.share.clone();
        world.memory.shed(share.as_ref(), 5_000);
        assert!(!world.is_cut(old));
        // Its end makes room.
        drop(world.flows.remove(new));
        assert_eq!(world.metrics.flow_buffered.get(), 70_000);
    }

    #[test]
    fn flows_are_cut_until_there_is_room_although_nothing_else_moves() {
        let mut world = World::new();
        for bytes in [30_000, 5_000, 5_000, 5_000] {
            world.add("/node/a", bytes);
        }
        let (buffers, flow) = &mut world.flows[0];
        flow.write(Bytes::from(vec![0; 20_000]));
        buffers.follow(flow, 0);
        // 65,000 of 50,000: none of the small ones has to notice before the others are cut.
        assert!((1..4).all(|small| world.is_cut(small)) && !world.is_cut(0));
        for _ in 0..3 {
            let (buffers, mut flow) = world.flows.remove(1);
            flow.abort(AbortCode::Limit);
            drop((buffers, flow));
        }
        assert!(!world.is_cut(0));
    }

    #[test]
    fn who_does_not_notice_that_it_is_cut_is_no_shelter_for_others() {
        let mut world = World::new();
        let old = world.add("/node/a", 30_000);
        let large = world.add("/node/a", 15_000);
        let deaf = world.add("/node/a", 18);
        let (buffers, flow) = &mut world.flows[old];
        flow.write(Bytes::from(vec![0; 10_000]));
        buffers.follow(flow, 0);
        // 55,018 of 50,000.
        assert!(world.is_cut(deaf));
        assert!(world.is_cut(large) && !world.is_cut(old));
    }

    #[test]
    fn a_full_process_slows_everybody_and_refuses_everybody() {
        let mut world = World::new();
        for node in ["/node/a", "/node/b", "/node/c"] {
            world.add(node, 38_000);
        }
        assert_eq!(world.flows[2].0.level, Level::Full);
        assert!(world.memory.admit(None).is_err());
        let last = world.add("/node/d", 15_000);
        assert!(world.is_cut(last));
        assert!(world.hits(PROCESS) > 0);
    }
}
