//! Flows that end in this process: found by id, started once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keel_certs::{NodeName, Subject};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::arrivals::{Arrival, Arrivals, Turned};
use super::serve::{self, Start};
use super::table::{self, Key, Table};
use super::{Backend, Entrances};
use crate::flow::{Finished, FlowLimits};
use crate::leg::{Header, IncomingLeg};
use crate::limits::ProviderLimits;
use crate::link::Drain;
use crate::memory::Memory;
use crate::meter::Passing;
use crate::metrics::{CodeLabels, FabricMetrics, RoleLabels, Side};
use crate::pace::{Limit, Paces};
use crate::wire::{FlowId, Frame, GoneCode, Open, RefuseCode, ResetCode};

/// Time for the last frames of flows that are cut to leave, before their connections are closed.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// An association makes room for another flow only after so long without a packet.
const IDLE: Duration = Duration::from_secs(1);

/// How soon that is looked for again after nothing was found: each look goes over all flows.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often it is looked for flows that need not be remembered any more.
const TIDY: Duration = Duration::from_secs(5);

/// The table of flows that end here.
#[derive(Debug)]
pub(crate) struct Terminator {
    pub(super) limits: ProviderLimits,
    pub(super) flow_limits: FlowLimits,
    pub(super) paces: Arc<Paces>,
    pub(super) memory: Arc<Memory>,
    pub(super) entrances: Entrances,
    pub(super) metrics: Arc<FabricMetrics>,
    table: Arc<Mutex<Tidied>>,
    tasks: Arc<Mutex<JoinSet<()>>>,
    /// Tidies the table and the tasks while there is anything in the table.
    tidying: Mutex<JoinSet<()>>,
    /// A flow has ended.
    ended: Notify,
    /// Flows that are just ending to make room.
    displaced: AtomicUsize,
    /// When nothing was found that could make room.
    looked: Mutex<Option<Instant>>,
    /// No flow starts any more.
    draining: AtomicBool,
    /// Ends all flows.
    pub(super) cut: CancellationToken,
}

/// The table, and whether a task tidies it.
#[derive(Debug)]
struct Tidied {
    flows: Table<Arc<Arrivals>>,
    tidied: bool,
}

/// What becomes of a leg that asks for a flow.
#[derive(Debug)]
enum Found {
    Live(Arc<Arrivals>),
    Finished(GoneCode),
    /// It was entered just now; legs for it come here.
    New(Backend, Arc<Arrivals>),
    Refused(RefuseCode, String),
    Unknown,
}

/// Where a leg came from.
#[derive(Debug)]
pub(crate) struct Via {
    /// Who opened the flow, as stamped by the first router.
    pub(crate) from: Subject,
    /// Who we are for it.
    pub(crate) provider: Subject,
    /// The router that the leg came over.
    pub(crate) router: NodeName,
    /// What is known of that router's stop; nothing where the flow ends in the router itself.
    pub(crate) drain: Option<Drain>,
    /// Where a router counts the flow.
    pub(crate) passing: Option<Passing>,
    /// What a router lets the consumer's identity have.
    pub(crate) limit: Option<Arc<Limit>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half changed here, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A task keeps memory until it is joined.
fn join_ended(tasks: &mut JoinSet<()>) {
    while tasks.try_join_next().is_some() {}
}

impl Terminator {
    pub(crate) fn new(
        limits: ProviderLimits,
        flow_limits: FlowLimits,
        (paces, memory): (Arc<Paces>, Arc<Memory>),
        entrances: Entrances,
        metrics: Arc<FabricMetrics>,
    ) -> Arc<Self> {
        let flows = Table::new(flow_limits, limits.remembered, Instant::now());
        Arc::new(Self {
            limits,
            flow_limits,
            paces,
            memory,
            entrances,
            metrics,
            table: Arc::new(Mutex::new(Tidied {
                flows,
                tidied: false,
            })),
            tasks: Arc::default(),
            tidying: Mutex::default(),
            ended: Notify::new(),
            displaced: AtomicUsize::new(0),
            looked: Mutex::default(),
            draining: AtomicBool::new(false),
            cut: CancellationToken::new(),
        })
    }

    /// Takes a leg that was authorised: attaches it to its flow, or starts one towards `backend`.
    pub(crate) async fn take(
        self: &Arc<Self>,
        leg: IncomingLeg,
        via: Via,
        backend: Option<Backend>,
    ) {
        let (flow, open) = match &leg.header {
            Header::Open(open) => (open.flow, Some(open.clone())),
            Header::Resume(resume) => (resume.flow, None),
        };
        let (key, found) = self.find((&via.from, flow), open.as_deref(), backend);
        match (found, open) {
            (Found::Live(live), _) => {
                let arrival = Box::new(Arrival {
                    leg,
                    router: via.router,
                    drain: via.drain,
                    passing: via.passing,
                });
                if let Err((arrival, why)) = live.push(arrival, self.limits.waiting_legs) {
                    // The flow is just ending, or its initiator floods it with legs: it may come back.
                    arrival.leg.cut(ResetCode::LegLost);
                    if why == Turned::Full {
                        self.metrics.hit("waiting_legs");
                    }
                }
            }
            (Found::New(backend, legs), Some(open)) => {
                self.start(Box::new(Start {
                    key,
                    open,
                    leg,
                    legs,
                    via,
                    backend,
                }));
            }
            (Found::Refused(code, text), _) => {
                tracing::debug!(%flow, from = %via.from, %code, text, "flow refused");
                let labels = CodeLabels { code: code.name() };
                self.metrics.provider_refusals.get_or_create(&labels).inc();
                let age = lock(&self.table).flows.age(Instant::now());
                leg.refuse(code, text, age).await;
            }
            (Found::Finished(code), _) => gone(leg, code, &self.metrics).await,
            (Found::Unknown | Found::New(..), _) => {
                gone(leg, GoneCode::Unknown, &self.metrics).await;
            }
        }
    }

    /// Looks the flow up and, if it is new and may start, enters it: under one lock, so that no two legs start it twice.
    fn find(
        &self,
        (from, flow): (&Subject, FlowId),
        open: Option<&Open>,
        backend: Option<Backend>,
    ) -> (Key, Found) {
        let mut table = lock(&self.table);
        if !table.tidied {
            table.tidied = true;
            self.tidy_in_time();
        }
        let flows = &mut table.flows;
        let key = flows.key(from, flow);
        let found = self.find_in(flows, &key, open, backend);
        (key, found)
    }

    fn find_in(
        &self,
        flows: &mut Table<Arc<Arrivals>>,
        key: &Key,
        open: Option<&Open>,
        backend: Option<Backend>,
    ) -> Found {
        let generation = open.map(|open| open.generation);
        match (flows.find(key, generation, Instant::now()), open) {
            (table::Found::Live(live), _) => Found::Live(live),
            (table::Found::Finished(code), _) => Found::Finished(code),
            (table::Found::NeverArrived { forgot }, _) => {
                self.forgot(forgot);
                let text = "only a repeated open came here".to_owned();
                Found::Refused(RefuseCode::NeverArrived, text)
            }
            (table::Found::New, Some(open)) => match self.admit(open, &key.0, backend, flows) {
                Ok(backend) => {
                    let legs = Arc::<Arrivals>::default();
                    flows.begin(key, Arc::clone(&legs));
                    Found::New(backend, legs)
                }
                Err((code, text)) => Found::Refused(code, text),
            },
            (table::Found::New | table::Found::Unknown, _) => Found::Unknown,
        }
    }

    /// Counts a record that had to make room.
    fn forgot(&self, early: bool) {
        if early {
            self.metrics.hit("remembered");
        }
    }

    fn admit(
        &self,
        open: &Open,
        from: &Subject,
        backend: Option<Backend>,
        flows: &Table<Arc<Arrivals>>,
    ) -> Result<Backend, (RefuseCode, String)> {
        if self.draining.load(Ordering::Relaxed) {
            return Err((RefuseCode::Draining, "the provider stops".to_owned()));
        }
        if open.flags != 0 {
            return Err((
                RefuseCode::Unsupported,
                "only plain flows are served here".to_owned(),
            ));
        }
        let backend = backend.ok_or_else(|| {
            (
                RefuseCode::NoProvider,
                format!("{}:{} is not published here", open.service, open.port),
            )
        })?;
        if let Err(why) = self.memory.admit(Some(from)) {
            return Err((RefuseCode::Limit, why.to_owned()));
        }
        if !self.has_room(flows) {
            return Err((
                RefuseCode::Limit,
                format!("the limit of {} flows is reached", self.limits.flows),
            ));
        }
        Ok(backend)
    }

    /// Whether another flow may start. At the limit associations make room that nobody has used for a moment: resolvers take
    /// a new port for each question, and nothing says that they are done.
    fn has_room(&self, flows: &Table<Arc<Arrivals>>) -> bool {
        let stay = |displaced: usize| flows.live().saturating_sub(displaced);
        if stay(self.displaced.load(Ordering::Relaxed)) < self.limits.flows {
            return true;
        }
        self.metrics.hit("provider_flows");
        let now = Instant::now();
        let mut looked = lock(&self.looked);
        if looked.is_some_and(|looked| now - looked < LOOK_AGAIN) {
            return false;
        }
        let idle = flows
            .all_live()
            .filter_map(|flow| Some((flow.moved()?, flow)));
        let mut idle: Vec<_> = idle.filter(|(moved, _)| now - *moved >= IDLE).collect();
        // Some at once: each look goes over all.
        let some = idle.len().min(1 + flows.live() / 64);
        idle.sort_unstable_by_key(|(moved, _)| *moved);
        for (_, flow) in &idle[..some] {
            flow.displace();
        }
        self.displaced.fetch_add(some, Ordering::Relaxed);
        *looked = (some == 0).then_some(now);
        some > 0
    }

    fn start(self: &Arc<Self>, start: Box<Start>) {
        self.metrics
            .flows_started
            .get_or_create(&RoleLabels {
                role: Side::provider,
            })
            .inc();
        let mut tasks = lock(&self.tasks);
        join_ended(&mut tasks);
        tasks.spawn(serve::run(Arc::clone(self), start));
    }

    /// The flow is over; later legs are answered from its record.
    pub(super) fn over(&self, key: &Key, legs: &Arrivals, finished: Option<Finished>) {
        let mut table = lock(&self.table);
        let early = table.flows.over(key, finished, Instant::now());
        self.is_gone(legs);
        drop(table);
        self.forgot(early);
    }

    /// The flow is in the table no more, which is locked: from now on nobody can ask it to make room.
    fn is_gone(&self, legs: &Arrivals) {
        if legs.take_displaced() {
            self.displaced.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn tidy_in_time(&self) {
        let (table, tasks) = (Arc::clone(&self.table), Arc::clone(&self.tasks));
        let mut tidying = lock(&self.tidying);
        join_ended(&mut tidying);
        tidying.spawn(async move {
            loop {
                tokio::time::sleep(TIDY).await;
                join_ended(&mut lock(&tasks));
                let mut table = lock(&table);
                table.tidied = table.flows.tidy(Instant::now());
                if !table.tidied {
                    return;
                }
            }
        });
    }

    /// The flow's task has ended.
    pub(super) fn ended(&self, key: &Key, legs: &Arrivals) {
        let mut table = lock(&self.table);
        table.flows.forget_live(key, Instant::now());
        self.is_gone(legs);
        drop(table);
        self.ended.notify_one();
    }

    /// Starts no flow from now on; those that run go on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// How many flows end here now.
    pub(crate) fn live(&self) -> usize {
        lock(&self.table).flows.live()
    }

    /// Waits until no flow is left. For one waiter; cancel safe.
    pub(crate) async fn idle(&self) {
        while self.live() > 0 {
            self.ended.notified().await;
        }
    }

    /// Cuts all flows: RST to the backends. Their other ends are told before this returns, if they are within reach.
    pub(crate) async fn shutdown(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        join_ended(&mut tasks);
        if !tasks.is_empty() {
            let last_words = tokio::time::sleep(LAST_WORDS);
            self.cut.cancel();
            let ended = async { while tasks.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(LAST_WORDS, ended).await;
            tasks.shutdown().await;
            last_words.await;
        }
    }
}

/// Says that a leg is not taken. A leg for a flow that was delivered in whole is no odd one.
pub(super) async fn gone(leg: IncomingLeg, code: GoneCode, metrics: &FabricMetrics) {
    if code != GoneCode::Complete {
        metrics.gone(Side::provider, code);
    }
    leg.answer(&Frame::Gone { code }).await;
}
