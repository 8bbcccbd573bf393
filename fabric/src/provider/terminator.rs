//! Flows that end in this process: found by id, dialled once, carried to their end.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keel_certs::{NodeName, Subject};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Backend;
use super::dial::{Dialled, Reset};
use super::reach::{Reached, reach};
use crate::end::{EndReason, FlowEnd, Route, Told, tell};
use crate::flow::{Finished, Flow, FlowLimits};
use crate::leg::{Header, IncomingLeg, Leg};
use crate::limits::ProviderLimits;
use crate::link::Drain;
use crate::memory::{Buffers, Memory};
use crate::meter::{FlowMeter, Passing};
use crate::metrics::{CodeLabels, FabricMetrics, RoleLabels, Side};
use crate::options::MAX_RESUME_WINDOW;
use crate::pace::{Limit, Paces};
use crate::pump::{Event, Pump};
use crate::series::At;
use crate::udp;
use crate::wire::{AbortCode, FlowId, Frame, GoneCode, Open, Protocol, RefuseCode, ResetCode};

/// Legs that wait for one flow.
const LEGS: usize = 4;
/// Time for the last frames of flows that are cut to leave, before their connections are closed.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Finished flows that are remembered at most.
const REMEMBERED: usize = 65_536;

/// A flow is its initiator's: nobody else finds it, whatever id he guesses.
type Key = (Subject, FlowId);

/// The table of flows that end here.
#[derive(Debug)]
pub(crate) struct Terminator {
    limits: ProviderLimits,
    flow_limits: FlowLimits,
    paces: Arc<Paces>,
    memory: Arc<Memory>,
    metrics: Arc<FabricMetrics>,
    table: Mutex<Table>,
    tasks: Mutex<JoinSet<()>>,
    /// A flow has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct Table {
    live: HashMap<Key, mpsc::Sender<Box<Arrival>>>,
    finished: HashMap<Key, Finished>,
    /// The finished ones in the order in which they ended.
    order: VecDeque<(Instant, Key)>,
}

/// A leg on its way to its flow. Boxed: a queue keeps room for 32 entries from the start, for every flow.
#[derive(Debug)]
struct Arrival {
    leg: IncomingLeg,
    /// The router that it came over, and what is known of that router's stop.
    router: NodeName,
    drain: Option<Drain>,
    /// Where a router counts it.
    passing: Option<Passing>,
}

/// A flow that begins. Boxed on its way: arguments of a future take their room twice, for as long as it lives.
#[derive(Debug)]
struct Start {
    key: Key,
    open: Box<Open>,
    leg: IncomingLeg,
    /// Later legs.
    legs: mpsc::Receiver<Box<Arrival>>,
    via: Via,
    backend: Backend,
}

/// What the table says of a flow that a leg asks for.
#[derive(Debug)]
enum Found {
    Live(mpsc::Sender<Box<Arrival>>),
    Finished(GoneCode),
    /// It was entered just now; legs for it come here.
    New(Backend, mpsc::Receiver<Box<Arrival>>),
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

impl Terminator {
    pub(crate) fn new(
        limits: ProviderLimits,
        flow_limits: FlowLimits,
        (paces, memory): (Arc<Paces>, Arc<Memory>),
        metrics: Arc<FabricMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits,
            flow_limits,
            paces,
            memory,
            metrics,
            table: Mutex::default(),
            tasks: Mutex::default(),
            ended: Notify::new(),
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
        let key = (via.from.clone(), flow);
        match (self.find(&key, open.as_deref(), backend), open) {
            (Found::Live(live), _) => {
                let arrival = Box::new(Arrival {
                    leg,
                    router: via.router,
                    drain: via.drain,
                    passing: via.passing,
                });
                if let Err(error) = live.try_send(arrival) {
                    // The flow is just ending, or its initiator floods it with legs: it may come back.
                    error.into_inner().leg.cut(ResetCode::LegLost);
                }
            }
            (Found::New(backend, queue), Some(open)) => {
                self.start(Box::new(Start {
                    key,
                    open,
                    leg,
                    legs: queue,
                    via,
                    backend,
                }));
            }
            (Found::Refused(code, text), _) => {
                tracing::debug!(%flow, from = %via.from, %code, text, "flow refused");
                let labels = CodeLabels { code: code.name() };
                self.metrics.provider_refusals.get_or_create(&labels).inc();
                leg.refuse(code, text).await;
            }
            (Found::Finished(code), _) => gone(leg, code, &self.metrics).await,
            (Found::Unknown | Found::New(..), _) => {
                gone(leg, GoneCode::Unknown, &self.metrics).await;
            }
        }
    }

    /// Looks the flow up and, if it is new and may start, enters it: under one lock, so that no two legs start it twice.
    fn find(&self, key: &Key, open: Option<&Open>, backend: Option<Backend>) -> Found {
        let mut table = lock(&self.table);
        if let Some(live) = table.live.get(key) {
            return Found::Live(live.clone());
        }
        if let Some(finished) = table.finished.get(key) {
            return Found::Finished(finished.code);
        }
        let Some(open) = open else {
            return Found::Unknown;
        };
        match self.admit(open, &key.0, backend, table.live.len()) {
            Ok(backend) => {
                let (legs, queue) = mpsc::channel(LEGS);
                table.live.insert(key.clone(), legs);
                Found::New(backend, queue)
            }
            Err((code, text)) => Found::Refused(code, text),
        }
    }

    fn admit(
        &self,
        open: &Open,
        from: &Subject,
        backend: Option<Backend>,
        live: usize,
    ) -> Result<Backend, (RefuseCode, String)> {
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
        if live >= self.limits.flows {
            self.metrics.hit("provider_flows");
            return Err((
                RefuseCode::Limit,
                format!("the limit of {} flows is reached", self.limits.flows),
            ));
        }
        Ok(backend)
    }

    fn start(self: &Arc<Self>, start: Box<Start>) {
        self.metrics
            .flows_started
            .get_or_create(&RoleLabels {
                role: Side::provider,
            })
            .inc();
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(Arc::clone(self).run(start));
    }

    async fn run(self: Arc<Self>, start: Box<Start>) {
        let Start {
            key,
            open,
            leg,
            mut legs,
            via,
            backend,
        } = *start;
        let Via {
            from,
            provider,
            router,
            mut drain,
            passing,
            limit,
        } = via;
        let forget = Forget {
            terminator: &self,
            key: &key,
        };
        let started = Instant::now();
        let mut flow_limits = self.flow_limits;
        if let Some(window) = backend.options.resume_window {
            flow_limits.resume_window = window.min(MAX_RESUME_WINDOW);
        }
        let buffers = Buffers::new(Arc::clone(&self.memory), Some(&from), flow_limits);
        let flow = Flow::terminate(&open, flow_limits);
        let service = At(&open.service, open.port, open.protocol);
        let meter = FlowMeter::new(&self.metrics, Side::provider, service, &from, passing);
        let what = (open.service.clone(), open.port, open.protocol);
        let mut pace = self.paces.pace(what, backend.options.limit, Side::provider);
        if let Some(limit) = &limit {
            pace.under(limit);
        }
        let mut pump = Pump::new(flow, None, AbortCode::BackendReset, buffers, meter, pace);
        let mut routers = Route::default();
        routers.note(&router);
        if open.protocol == Protocol::Udp {
            let idle = backend.options.idle_timeout;
            pump.set_udp(udp::End::provider(idle, Arc::clone(&self.metrics)));
        }
        pump.attach(Leg::new(open.generation, leg.send, leg.recv, leg.decoder));
        {
            // The leg is served meanwhile: the initiator may give up, and its early bytes would else stay in the window
            // that all flows of the connection share.
            let reached = reach(&backend.address, open.protocol, self.limits.dial_time);
            // Given back when it is done: the flow may live for days.
            let mut dialling = Some(Box::pin(reached));
            let mut more = true;
            loop {
                tokio::select! {
                    socket = dialled(&mut dialling) => {
                        dialling = None;
                        match socket {
                            Ok(Reached::Tcp(Dialled { socket, reset: None })) => {
                                pump.set_tcp(socket);
                                pump.flow_mut().accept(0);
                            }
                            Ok(Reached::Tcp(Dialled { socket, reset: Some(reset) })) => {
                                pump.flow_mut().accept(0);
                                pump.set_tcp_reset(socket, reset == Reset::Ended);
                            }
                            // It is accepted once the backend did not refuse the first packets.
                            Ok(Reached::Udp(socket)) => if let Some(udp) = pump.udp_mut() {
                                udp.connected(socket);
                            }
                            Err((code, text)) => {
                                tracing::debug!(flow = %open.flow, service = %open.service, backend = %backend.address, text, "backend cannot be reached");
                                pump.flow_mut().refuse(code, text);
                            }
                        }
                    }
                    event = pump.event() => if event == Event::Over { break },
                    arrival = legs.recv(), if more => match arrival {
                        Some(arrival) => if offer(&mut pump, arrival.leg, &self.metrics).await {
                            routers.note(&arrival.router);
                            drain = arrival.drain;
                            pump.meter().pass(arrival.passing);
                        },
                        None => more = false,
                    },
                    () = begun(drain.as_ref()) => {
                        // Only the initiator can open a leg elsewhere, and it may not have heard of this router's stop.
                        drain = None;
                        pump.flow_mut().request_move();
                    }
                }
            }
        }
        let finished = pump.flow().finished(Instant::now());
        forget.remember(finished);
        let reason = EndReason::of(pump.flow().state());
        let end = FlowEnd::new(
            Side::provider,
            reason,
            pump.stats(),
            pump.meter().stalls(),
            started.elapsed(),
        );
        let told = Told {
            flow: Some(open.flow),
            side: Side::provider,
            peer: &from,
            service,
            provider: &provider,
            routers: &routers,
        };
        tell(&told, &end, &self.metrics, Some(pump.meter()));
        // Legs that came just now are answered as later ones will be.
        legs.close();
        while let Ok(arrival) = legs.try_recv() {
            let code = finished.map_or(GoneCode::Unknown, |finished| finished.code);
            gone(arrival.leg, code, &self.metrics).await;
        }
    }

    /// How many flows end here now.
    pub(crate) fn live(&self) -> usize {
        lock(&self.table).live.len()
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
        while tasks.try_join_next().is_some() {}
        if !tasks.is_empty() {
            tasks.shutdown().await;
            tokio::time::sleep(LAST_WORDS).await;
        }
    }
}

/// Takes the flow out of the table however its task ends.
struct Forget<'a> {
    terminator: &'a Terminator,
    key: &'a Key,
}

impl Forget<'_> {
    fn remember(&self, finished: Option<Finished>) {
        let now = Instant::now();
        let mut table = lock(&self.terminator.table);
        table.live.remove(self.key);
        if let Some(finished) = finished {
            table.finished.insert(self.key.clone(), finished);
            table.order.push_back((finished.until, self.key.clone()));
        }
        while let Some((until, key)) = table.order.front() {
            if *until > now && table.order.len() <= REMEMBERED {
                break;
            }
            let key = key.clone();
            table.finished.remove(&key);
            table.order.pop_front();
        }
    }
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.terminator.table).live.remove(self.key);
        self.terminator.ended.notify_one();
    }
}

/// The outcome of a dial that is still under way.
async fn dialled<F: Future>(dialling: &mut Option<Pin<Box<F>>>) -> F::Output {
    match dialling {
        Some(dialling) => dialling.await,
        None => std::future::pending().await,
    }
}

/// Waits until the router of the newest leg says that it stops.
async fn begun(drain: Option<&Drain>) {
    match drain {
        Some(drain) => drain.begun().await,
        None => std::future::pending().await,
    }
}

/// Attaches a later leg, or says on it why not. Returns whether it is the flow's leg now.
async fn offer(pump: &mut Pump, leg: IncomingLeg, metrics: &FabricMetrics) -> bool {
    let now = Instant::now();
    let (generation, attached) = match &leg.header {
        Header::Open(open) => (open.generation, pump.flow_mut().attach_open(open, now)),
        Header::Resume(resume) => (resume.generation, pump.flow_mut().attach(resume, now)),
    };
    match attached {
        Ok(()) => {
            pump.attach(Leg::new(generation, leg.send, leg.recv, leg.decoder));
            true
        }
        Err(code) => {
            gone(leg, code, metrics).await;
            false
        }
    }
}

/// Says that a leg is not taken. A leg for a flow that was delivered in whole is no odd one.
async fn gone(leg: IncomingLeg, code: GoneCode, metrics: &FabricMetrics) {
    if code != GoneCode::Complete {
        metrics.gone(Side::provider, code);
    }
    leg.answer(&Frame::Gone { code }).await;
}
