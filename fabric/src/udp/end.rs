//! One end of an association, as the pump drives it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::time::{Instant, Sleep};

use super::inbox::{Arrivals, Inbox};
use super::local::{Backend, Local, PROBE};
use super::packets::{self, PREFIX};
use super::{Client, IDLE_TIMEOUT};
use crate::flow::{Flow, FlowLimits, State};
use crate::leg::Leg;
use crate::metrics::FabricMetrics;
use crate::pace::Gate;
use crate::quic::{NotSent, Route, SAFE_DATAGRAM};
use crate::wire::{AbortCode, Generation, RefuseCode};

/// Packets moved one way before anything else gets its turn.
const PACKETS: usize = 32;
/// How long datagrams leave without one that arrives before the other end is asked for a sign of life.
const ASK: Duration = Duration::from_secs(1);

/// One end of an association.
#[derive(Debug)]
pub(crate) struct End {
    local: Local,
    /// Datagrams of the leg at hand.
    route: Option<Route>,
    /// Largest packet that goes as a datagram, besides what both ends agreed on.
    cap: u64,
    arrived: Arc<Inbox>,
    /// A packet that the socket does not take yet; `paid` if the flow's first one is such a one. The rate has counted both.
    held: Option<Bytes>,
    paid: bool,
    idle: Duration,
    moved: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
    /// When the first datagram left that nothing came back for.
    unanswered: Option<Instant>,
    /// Payload, as [`counts`](Self::counts) tells it.
    taken: u64,
    given: u64,
    metrics: Arc<FabricMetrics>,
}

/// How a packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Datagram,
    Stream,
    Drop(&'static str),
}

/// What the way of a packet depends on.
#[derive(Debug, Clone, Copy)]
struct Now {
    /// Largest packet of a datagram.
    max: u64,
    attached: bool,
    accepted: bool,
    has_leg: bool,
    /// Bytes that the flow takes.
    room: usize,
}

fn way(length: usize, now: Now) -> Way {
    if now.attached && now.has_leg && length as u64 <= now.max {
        Way::Datagram
    } else if now.accepted && !now.has_leg {
        // By the time there is a leg again it would be stale, and its sender has repeated it.
        Way::Drop("no_leg")
    } else if PREFIX + length <= now.room {
        Way::Stream
    } else {
        Way::Drop("queue")
    }
}

impl End {
    fn new(
        local: Local,
        (idle, limits): (Option<Duration>, FlowLimits),
        metrics: Arc<FabricMetrics>,
    ) -> Self {
        Self {
            local,
            route: None,
            cap: u64::MAX,
            arrived: Arc::new(Inbox::new(&limits)),
            held: None,
            paid: false,
            idle: idle.unwrap_or(IDLE_TIMEOUT),
            moved: Instant::now(),
            timer: None,
            ended: false,
            unanswered: None,
            taken: 0,
            given: 0,
            metrics,
        }
    }

    /// The consumer's end; it ends after `idle` without a packet, [`IDLE_TIMEOUT`] if nothing is said.
    pub(crate) fn client(
        client: Client,
        bounds: (Option<Duration>, FlowLimits),
        metrics: Arc<FabricMetrics>,
    ) -> Self {
        Self::new(Local::Client(client), bounds, metrics)
    }

    /// The provider's end, as [`client`](Self::client); its backend comes with [`connected`](Self::connected).
    pub(crate) fn provider(
        bounds: (Option<Duration>, FlowLimits),
        metrics: Arc<FabricMetrics>,
    ) -> Self {
        Self::new(Local::None, bounds, metrics)
    }

    /// The backend's socket is there.
    pub(crate) fn connected(&mut self, socket: UdpSocket) {
        self.moved = Instant::now();
        self.local = Local::Backend(Backend::new(socket));
    }

    /// Uses the datagrams of a new leg.
    pub(crate) fn attach(&mut self, leg: &Leg) {
        let (datagrams, stream) = leg.datagrams();
        let arrivals = Arrivals {
            inbox: Arc::clone(&self.arrived),
            metrics: Arc::clone(&self.metrics),
        };
        // What was agreed on holds for the way of the first leg; other ways may be narrower.
        self.cap = if leg.generation == Generation::FIRST {
            u64::MAX
        } else {
            SAFE_DATAGRAM
        };
        self.route = Some(datagrams.route(stream, Arc::new(arrivals), &self.metrics));
    }

    /// Where the datagrams of the other end come to; it knows when a packet last went either way.
    pub(crate) fn arrived(&self) -> Arc<Inbox> {
        Arc::clone(&self.arrived)
    }

    /// Bytes of packets that wait, either direction.
    pub(crate) fn waiting(&self) -> usize {
        let client = match &self.local {
            Local::Client(client) => client.inbox.bytes(),
            Local::Backend(_) | Local::None => 0,
        };
        client + self.arrived.bytes()
    }

    /// Payload that came from the application, and that went to it.
    pub(crate) const fn counts(&self) -> (u64, u64) {
        (self.taken, self.given)
    }

    /// Packets of the application into the flow or its datagrams; whether something moved.
    pub(crate) fn poll_in(
        &mut self,
        cx: &mut Context<'_>,
        flow: &mut Flow,
        has_leg: bool,
        gate: &mut Gate,
    ) -> bool {
        if !has_leg {
            self.route = None;
        }
        let mut moved = self.poll_idle(cx, flow);
        for _ in 0..PACKETS {
            if self.ended || !is_open(flow) {
                return moved;
            }
            match self.local.poll_recv(cx) {
                // Only now: an error that is there already is heard before the flow is accepted.
                Poll::Pending => return self.poll_probe(cx, flow) || moved,
                Poll::Ready(Ok(packet)) => {
                    self.accept(flow);
                    self.touch();
                    if gate.try_take(packet.len(), self.moved) {
                        self.carry(&packet, flow, has_leg);
                    } else {
                        self.metrics.dropped("rate");
                    }
                }
                Poll::Ready(Err(error)) => self.failed(&error, flow),
            }
            moved = true;
        }
        true
    }

    fn carry(&mut self, packet: &[u8], flow: &mut Flow, has_leg: bool) {
        let max = self
            .route
            .as_ref()
            .map_or(0, |_| flow.max_datagram().min(self.cap));
        let mut now = Now {
            max,
            attached: matches!(flow.state(), State::Attached(_)),
            accepted: flow.is_accepted(),
            has_leg,
            room: flow.writable(),
        };
        if way(packet.len(), now) == Way::Datagram
            && let Some(route) = &self.route
        {
            match route.sender().send(packet) {
                Ok(()) => {
                    self.taken += packet.len() as u64;
                    return self.ask(flow);
                }
                // The path has become narrower: this packet goes on the stream.
                Err(NotSent::TooLarge) => now.attached = false,
                Err(NotSent::Full(limit)) => return self.metrics.queue_full(limit),
                Err(NotSent::Lost) => return self.metrics.dropped("no_leg"),
            }
        }
        match (way(packet.len(), now), packets::frame(packet)) {
            (Way::Stream, Some(framed)) => {
                self.taken += packet.len() as u64;
                flow.write(framed);
            }
            (Way::Drop(reason), _) => self.metrics.dropped(reason),
            (Way::Datagram | Way::Stream, _) => self.metrics.dropped("malformed"),
        }
    }

    /// Nobody acknowledges datagrams: whether the other end is still there is asked on the stream, and a leg that gives no
    /// answer is suspected like any other.
    fn ask(&mut self, flow: &mut Flow) {
        match self.unanswered {
            None => self.unanswered = Some(self.moved),
            Some(since) if self.moved - since >= ASK => {
                flow.ping();
                self.unanswered = Some(self.moved);
            }
            Some(_) => {}
        }
    }

    /// Packets of the flow and its datagrams to the application; whether something moved.
    pub(crate) fn poll_out(
        &mut self,
        cx: &mut Context<'_>,
        flow: &mut Flow,
        gate: &mut Gate,
    ) -> bool {
        if !flow.is_accepted() {
            return self.show(cx, flow);
        }
        let mut moved = false;
        for _ in 0..PACKETS {
            let Some(packet) = packets::first(flow.readable(), 0) else {
                break;
            };
            self.paid = self.pass(cx, &packet, self.paid, flow, gate).is_pending();
            if self.paid {
                return moved;
            }
            flow.consumed(PREFIX + packet.len());
            moved = true;
        }
        if !self.ended && flow.at_eof() {
            self.end(flow);
            moved = true;
        }
        for _ in 0..PACKETS {
            let (packet, paid) = match self.held.take() {
                Some(packet) => (packet, true),
                None => match self.arrived.poll_pop(cx) {
                    Poll::Ready(packet) => {
                        self.unanswered = None;
                        (packet, false)
                    }
                    Poll::Pending => return moved,
                },
            };
            if self.pass(cx, &packet, paid, flow, gate).is_pending() {
                self.held = Some(packet);
                return moved;
            }
            moved = true;
        }
        true
    }

    /// Shows the backend what came before the flow is accepted.
    fn show(&mut self, cx: &mut Context<'_>, flow: &mut Flow) -> bool {
        let mut moved = false;
        while let Local::Backend(Backend {
            probe: Some(probe), ..
        }) = &self.local
        {
            let shown = probe.shown;
            let Some(packet) = packets::first(flow.arrived(), shown) else {
                break;
            };
            if self.give(cx, &packet, flow).is_pending() || !is_open(flow) {
                break;
            }
            if let Local::Backend(Backend {
                probe: Some(probe), ..
            }) = &mut self.local
            {
                if probe.shown == 0 {
                    probe.until.as_mut().reset(Instant::now() + PROBE);
                }
                probe.shown += PREFIX + packet.len();
            }
            moved = true;
        }
        moved
    }

    /// The backend answered, or had time to refuse.
    fn accept(&mut self, flow: &mut Flow) {
        let Local::Backend(backend) = &mut self.local else {
            return;
        };
        if let Some(probe) = backend.probe.take() {
            let max = self
                .route
                .as_ref()
                .map_or(SAFE_DATAGRAM, |route| route.sender().max_packet());
            flow.accept(max);
            flow.consumed(probe.shown);
        }
    }

    fn poll_probe(&mut self, cx: &mut Context<'_>, flow: &mut Flow) -> bool {
        let Local::Backend(Backend {
            probe: Some(probe), ..
        }) = &mut self.local
        else {
            return false;
        };
        if probe.until.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.accept(flow);
        true
    }

    /// As [`give`](Self::give), within the limits of the service's rate, unless it has `paid`. One that is still pending has.
    fn pass(
        &mut self,
        cx: &mut Context<'_>,
        packet: &[u8],
        paid: bool,
        flow: &mut Flow,
        gate: &mut Gate,
    ) -> Poll<()> {
        if paid || gate.try_take(packet.len(), Instant::now()) {
            self.give(cx, packet, flow)
        } else {
            self.metrics.dropped("rate");
            Poll::Ready(())
        }
    }

    /// A packet went one way or the other, by whatever means; those that look for idle associations ask the inbox.
    fn touch(&mut self) {
        self.moved = Instant::now();
        self.arrived.touch();
    }

    /// One packet to the application. Ready also if it was lost there.
    fn give(&mut self, cx: &mut Context<'_>, packet: &[u8], flow: &mut Flow) -> Poll<()> {
        match ready!(self.local.poll_send(cx, packet)) {
            Ok(()) => {
                self.touch();
                self.given += packet.len() as u64;
            }
            Err(error) => self.failed(&error, flow),
        }
        Poll::Ready(())
    }

    /// An error of the socket: mostly what an ICMP message said about an earlier packet.
    fn failed(&self, error: &io::Error, flow: &mut Flow) {
        let code = match error.kind() {
            io::ErrorKind::ConnectionRefused => RefuseCode::BackendRefused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                RefuseCode::BackendUnreachable
            }
            _ => return self.metrics.dropped("socket"),
        };
        if matches!(self.local, Local::Client(_)) {
            self.metrics.dropped("socket");
        } else if !flow.is_accepted() {
            flow.refuse(code, error.to_string());
        } else if code == RefuseCode::BackendRefused {
            flow.abort(AbortCode::BackendReset);
        } else {
            self.metrics.dropped("socket");
        }
    }

    /// Ends the association after a time without packets, and gives up if that end gets no answer.
    fn poll_idle(&mut self, cx: &mut Context<'_>, flow: &mut Flow) -> bool {
        // A client's packet that waits in the queue counts.
        let moved = match &self.local {
            Local::Client(client) => client.inbox.moved().max(self.moved),
            Local::None | Local::Backend(_) => self.moved,
        };
        let deadline = moved + self.idle;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            if timer.deadline() >= deadline {
                break;
            }
            timer.as_mut().reset(deadline);
        }
        self.timer = None;
        self.moved = Instant::now();
        if self.ended {
            flow.abort(AbortCode::Limit);
        } else {
            self.end(flow);
        }
        true
    }

    fn end(&mut self, flow: &mut Flow) {
        self.ended = true;
        self.local.close();
        if flow.is_accepted() {
            flow.finish();
        } else {
            flow.abort(AbortCode::Limit);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.local.close();
    }
}

fn is_open(flow: &Flow) -> bool {
    matches!(
        flow.state(),
        State::Opening | State::Attached(_) | State::Detached { .. }
    )
}

#[cfg(test)]
mod tests;
