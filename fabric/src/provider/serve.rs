//! One flow that ends here, top to bottom: from its first leg over the dial to its last word.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Backend;
use super::arrivals::{Arrival, Arrivals};
use super::dial::{Dialled, Reset};
use super::reach::{Reached, reach};
use super::table::Key;
use super::terminator::{Terminator, Via, gone};
use crate::end::{EndReason, FlowEnd, Route, Told, tell};
use crate::flow::{Finished, Flow};
use crate::leg::{Header, IncomingLeg, Leg};
use crate::link::Drain;
use crate::memory::Buffers;
use crate::meter::FlowMeter;
use crate::metrics::{FabricMetrics, Side};
use crate::options::MAX_RESUME_WINDOW;
use crate::pump::{Event, Pump};
use crate::series::At;
use crate::udp;
use crate::wire::{AbortCode, GoneCode, Open, Place, Protocol, RefuseCode};

/// How long an answer to a leg that is not taken may keep a flow waiting.
const ANSWER: Duration = Duration::from_secs(1);

/// A flow that begins. Boxed on its way: arguments of a future take their room twice, for as long as it lives.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) key: Key,
    pub(super) open: Box<Open>,
    pub(super) leg: IncomingLeg,
    /// Later legs.
    pub(super) legs: Arc<Arrivals>,
    pub(super) via: Via,
    pub(super) backend: Backend,
}

impl Start {
    /// Gives the box back now: one that is emptied inside of a future lives as long as that.
    fn unpacked(self: Box<Self>) -> Self {
        *self
    }
}

/// The routers that the flow's legs went over, and what is known of the end of the newest one's link.
struct Path {
    routers: Route,
    drain: Option<Drain>,
}

/// Serves a flow that was entered in the table until it is over.
pub(super) async fn run(terminator: Arc<Terminator>, start: Box<Start>) {
    let Start {
        key,
        open,
        leg,
        legs,
        mut via,
        backend,
    } = start.unpacked();
    let _ended = Ended {
        terminator: &terminator,
        key: &key,
        legs: &legs,
    };
    let started = Instant::now();
    let mut pump = pump(&terminator, &open, leg, &mut via, &backend);
    if let Some(udp) = pump.udp_mut() {
        legs.associate(udp.arrived());
    }
    let mut path = Path {
        routers: Route::default(),
        drain: via.drain.take(),
    };
    path.routers.note(&via.router);
    carry(&terminator, &mut pump, &open, &backend, &legs, &mut path).await;
    let finished = pump.flow().finished(Instant::now());
    terminator.over(&key, &legs, finished);
    say(&terminator, &mut pump, &open, &via, &path.routers, started);
    // Boxed, as what is awaited once, or never, takes its room in the task for as long as the flow lives.
    Box::pin(turn_away(&legs, finished, &terminator.metrics)).await;
}

/// The flow's machine with all that it is counted and bounded by.
fn pump(
    terminator: &Terminator,
    open: &Open,
    leg: IncomingLeg,
    via: &mut Via,
    backend: &Backend,
) -> Pump {
    let metrics = &terminator.metrics;
    let mut limits = terminator.flow_limits;
    if let Some(window) = backend.options.resume_window {
        limits.resume_window = window.min(MAX_RESUME_WINDOW);
    }
    let buffers = Buffers::new(Arc::clone(&terminator.memory), Some(&via.from), limits);
    let flow = Flow::terminate(open, limits);
    let service = At(&open.service, open.port, open.protocol);
    let passing = via.passing.take();
    let meter = FlowMeter::new(metrics, Side::provider, service, &via.from, passing);
    let what = (open.service.clone(), open.port, open.protocol);
    let limit = backend.options.limit;
    let mut pace = terminator.paces.pace(what, limit, Side::provider);
    if let Some(limit) = &via.limit {
        pace.under(limit);
    }
    let mut pump = Pump::new(flow, None, AbortCode::BackendReset, buffers, meter, pace);
    if open.protocol == Protocol::Udp {
        let bounds = (backend.options.idle_timeout, limits);
        pump.set_udp(udp::End::provider(bounds, Arc::clone(metrics)));
    }
    pump.attach(Leg::new(open.generation, leg.send, leg.recv, leg.decoder));
    pump
}

/// Dials the backend, takes later legs, and copies until the flow is over.
///
/// The leg is served while the backend is dialled: the initiator may give up, and its early bytes would else stay in the
/// window that all flows of the connection share.
async fn carry(
    terminator: &Terminator,
    pump: &mut Pump,
    open: &Open,
    backend: &Backend,
    legs: &Arrivals,
    path: &mut Path,
) {
    // Given back when it is done: the flow may live for days.
    let mut dialling = Some(Box::pin(reach(terminator, open, &backend.address)));
    loop {
        tokio::select! {
            reached = dialled(&mut dialling) => {
                dialling = None;
                decide(pump, open, backend, reached, &terminator.metrics);
            }
            event = pump.event() => if event == Event::Over { break },
            () = terminator.cut.cancelled() => {
                pump.stop();
                break;
            }
            arrival = legs.next() => match arrival {
                Some(arrival) => Box::pin(offer(pump, arrival, path, &terminator.metrics)).await,
                None => {
                    pump.abort(AbortCode::Limit);
                    break;
                }
            },
            place = leave(path.drain.as_ref()) => {
                // Only the initiator can open another leg, and it may not have heard of this router's stop.
                path.drain = None;
                // Without a window the flow dies with its leg, so it stays as long as that.
                if pump.flow().is_kept() {
                    pump.flow_mut().request_move(place);
                }
            }
        }
    }
}

/// Accepts the flow with the backend's socket, or refuses it.
fn decide(
    pump: &mut Pump,
    open: &Open,
    backend: &Backend,
    reached: Result<Reached, (RefuseCode, String)>,
    metrics: &FabricMetrics,
) {
    match reached {
        Ok(Reached::Tcp(Dialled {
            socket,
            reset: None,
        })) => {
            pump.set_tcp(socket);
            pump.flow_mut().accept(0);
        }
        Ok(Reached::Tcp(Dialled {
            socket,
            reset: Some(reset),
        })) => {
            pump.flow_mut().accept(0);
            pump.set_tcp_reset(socket, reset == Reset::Ended);
        }
        // It is accepted once the backend did not refuse the first packets.
        Ok(Reached::Udp(socket)) => {
            if let Some(udp) = pump.udp_mut() {
                udp.connected(socket);
            }
        }
        Err((code, text)) => {
            tracing::debug!(flow = %open.flow, service = %open.service, backend = %backend.address, text, "backend cannot be reached");
            if code == RefuseCode::BackendTimeout {
                metrics.hit("dial_time");
            }
            pump.flow_mut().refuse(code, text);
        }
    }
}

/// Writes the line about the flow, and counts its end.
fn say(
    terminator: &Terminator,
    pump: &mut Pump,
    open: &Open,
    via: &Via,
    routers: &Route,
    started: Instant,
) {
    let reason = EndReason::of(pump.flow().state());
    let (stats, stalls) = (pump.stats(), pump.meter().stalls());
    let end = FlowEnd::new(Side::provider, reason, stats, stalls, started.elapsed());
    let told = Told {
        flow: Some(open.flow),
        side: Side::provider,
        peer: &via.from,
        service: At(&open.service, open.port, open.protocol),
        provider: &via.provider,
        routers,
    };
    tell(&told, &end, &terminator.metrics, Some(pump.meter()));
}

/// Legs that came just now are answered as later ones will be.
async fn turn_away(legs: &Arrivals, finished: Option<Finished>, metrics: &FabricMetrics) {
    for arrival in legs.close() {
        let code = finished.map_or(GoneCode::Unknown, |finished| finished.code);
        let _ = tokio::time::timeout(ANSWER, gone(arrival.leg, code, metrics)).await;
    }
}

/// Takes the flow out of the table however its task ends.
struct Ended<'a> {
    terminator: &'a Terminator,
    key: &'a Key,
    legs: &'a Arrivals,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.terminator.ended(self.key, self.legs);
    }
}

/// The outcome of a dial that is still under way.
async fn dialled<F: Future>(dialling: &mut Option<Pin<Box<F>>>) -> F::Output {
    match dialling {
        Some(dialling) => dialling.await,
        None => std::future::pending().await,
    }
}

/// Waits until the flow should leave the link of its newest leg.
async fn leave(drain: Option<&Drain>) -> Place {
    match drain {
        Some(drain) => drain.leave().await,
        None => std::future::pending().await,
    }
}

/// Attaches a later leg, or says on it why not.
async fn offer(pump: &mut Pump, arrival: Box<Arrival>, path: &mut Path, metrics: &FabricMetrics) {
    let now = Instant::now();
    let Arrival {
        leg,
        router,
        drain,
        passing,
    } = *arrival;
    let (generation, attached) = match &leg.header {
        Header::Open(open) => (open.generation, pump.flow_mut().attach_open(open, now)),
        Header::Resume(resume) => (resume.generation, pump.flow_mut().attach(resume, now)),
    };
    match attached {
        Ok(()) => {
            pump.attach(Leg::new(generation, leg.send, leg.recv, leg.decoder));
            path.routers.note(&router);
            path.drain = drain.filter(|drain| !drain.is_replaced());
            pump.meter().pass(passing);
        }
        // Its connection may be blocked, and the flow goes on over another one.
        Err(code) => drop(tokio::time::timeout(ANSWER, gone(leg, code, metrics)).await),
    }
}
