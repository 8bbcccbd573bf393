//! Drives one end of a flow between the application's socket and a leg.
//!
//! One poll function does all the work of an end, so there is one task per end and no lock. It reads the socket only
//! while the flow has room, never waits for one side before it serves another, and holds no buffer of its own while
//! idle. Any error on either half of the socket cuts the whole flow: a failed write may have eaten the reset that a
//! later read would have shown, and a cut must never look like an end.

mod socket;
pub(crate) mod tcp;
mod udp;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::flow::{Flow, State};
use crate::leg::{Leg, LegEnd};
use crate::memory::Buffers;
use crate::meter::FlowMeter;
use crate::pace::Pace;
use crate::udp::End;
use crate::wire::{AbortCode, RefuseCode, ResetCode};
use tcp::Socket;

/// Rounds of work before other tasks get their turn.
const ROUNDS: usize = 16;
/// Frames taken from the leg in one round.
const FRAMES: usize = 64;

thread_local! {
    /// Where frame headers are written before they become chunks; shared by all flows of the thread.
    static HEADERS: std::cell::RefCell<BytesMut> = std::cell::RefCell::new(BytesMut::new());
}

/// What the owner of a pump has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The provider answered: the flow is accepted or refused.
    Decided,
    /// A router does not hear the provider that it handed the flow to.
    Silent,
    /// The flow has begun to want another leg, or does not want one any more.
    Legs,
    /// The flow is over, and the other end was told if that was possible.
    Over,
}

/// One end of a flow with its socket and its leg.
///
/// Dropped before it is over, the application sees an RST and the other end is told as far as that goes at once.
#[derive(Debug)]
pub(crate) struct Pump {
    flow: Flow,
    /// The application's socket; none before the backend is dialled, and after the end.
    tcp: Option<Socket>,
    /// The application's side of a UDP association instead.
    udp: Option<Box<End>>,
    leg: Option<Leg>,
    buffers: Buffers,
    meter: FlowMeter,
    pace: Pace,
    /// What a reset of the application is called.
    reset_code: AbortCode,
    read_open: bool,
    write_open: bool,
    undecided: bool,
    /// The owner has to hear of a silent provider.
    silent: bool,
    /// What the owner knows: whether another leg is wanted, and whether there is one.
    legs: (bool, bool),
    over: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pump {
    pub(crate) const fn new(
        flow: Flow,
        tcp: Option<Socket>,
        reset_code: AbortCode,
        buffers: Buffers,
        meter: FlowMeter,
        pace: Pace,
    ) -> Self {
        Self {
            flow,
            tcp,
            udp: None,
            leg: None,
            buffers,
            meter,
            pace,
            reset_code,
            read_open: true,
            write_open: true,
            undecided: true,
            silent: false,
            legs: (false, false),
            over: false,
            timer: None,
        }
    }

    pub(crate) const fn flow(&self) -> &Flow {
        &self.flow
    }

    pub(crate) const fn flow_mut(&mut self) -> &mut Flow {
        &mut self.flow
    }

    pub(crate) fn set_tcp(&mut self, tcp: TcpStream) {
        self.tcp = Some(Socket::new(tcp));
    }

    /// The application has reset its connection already; only what it sent before is left, and its end of file, if that
    /// came before the reset. Asking for the reset took it from later reads.
    pub(crate) fn set_tcp_reset(&mut self, tcp: TcpStream, ended: bool) {
        self.set_tcp(tcp);
        self.read_rest(ended);
    }

    /// Ready once the application's socket has failed, also while nothing is read from it.
    pub(crate) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.tcp {
            Some(socket) => socket.poll_failed(cx),
            None if self.udp.is_some() => Poll::Pending,
            None => Poll::Ready(()),
        }
    }

    /// Whether it has to go to make room. Wakes when it has to.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> bool {
        self.buffers.poll_cut(cx)
    }

    /// What the flow is counted with.
    pub(crate) const fn meter(&mut self) -> &mut FlowMeter {
        &mut self.meter
    }

    /// Takes the socket of a flow that was never accepted.
    pub(crate) fn take_tcp(&mut self) -> Option<Socket> {
        self.tcp.take()
    }

    /// The flow starts again with another provider, and is counted as a flow with that one.
    pub(crate) fn restarted(&mut self, meter: FlowMeter) {
        self.meter = meter;
        self.leg = None;
        self.undecided = true;
        self.silent = false;
        self.legs = (false, false);
        self.over = false;
    }

    /// Uses a new leg; the one before is abandoned.
    pub(crate) fn attach(&mut self, leg: Leg) {
        self.legs = (false, true);
        if let Some(udp) = &mut self.udp {
            udp.attach(&leg);
        }
        if let Some(old) = self.leg.replace(leg) {
            old.cut(ResetCode::Abandoned);
        }
    }

    /// Works until there is something to know. Cancel safe.
    pub(crate) async fn event(&mut self) -> Event {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.poll_cut(cx) && !self.flow.state().is_final() {
            self.flow.abort(AbortCode::Limit);
        }
        for _ in 0..ROUNDS {
            let now = Instant::now();
            let mut moved = self.poll_leg_in(cx, now);
            moved |= self.poll_tcp_out(cx);
            self.flow.part();
            moved |= self.poll_tcp_in(cx);
            moved |= self.poll_tcp_error(cx);
            moved |= self.poll_leg_out(cx, now);
            self.settle();
            let packets = self.udp.as_ref().map_or(0, |udp| udp.waiting());
            self.buffers.follow(&mut self.flow, packets);
            let stats = self.stats();
            self.meter.follow(&stats, now);
            if let Some(event) = self.next_event() {
                return Poll::Ready(event);
            }
            if !moved && !self.poll_timer(cx) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn next_event(&mut self) -> Option<Event> {
        let waits = matches!(self.flow.state(), State::Opening | State::Detached { .. });
        // The leg on which it was accepted may be lost by now.
        if self.undecided && (!waits || self.flow.is_accepted()) {
            self.undecided = false;
            return Some(Event::Decided);
        }
        if std::mem::take(&mut self.silent) {
            return Some(Event::Silent);
        }
        let wanted = self.flow.wants_leg();
        // A flow that wants another leg and then loses the one it has looks for it in other places.
        let legs = (wanted, self.flow.has_leg());
        if std::mem::replace(&mut self.legs, legs) != legs {
            return Some(Event::Legs);
        }
        if wanted || self.leg.is_some() {
            return None;
        }
        let passed_on = *self.flow.state() != State::Done || self.tcp.is_none();
        if self.flow.state().is_final() && passed_on && !self.flow.is_telling() {
            self.over = true;
            return Some(Event::Over);
        }
        None
    }

    /// Frames from the leg into the flow.
    fn poll_leg_in(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(leg) = &mut self.leg else {
            return false;
        };
        let generation = leg.generation;
        for count in 0..FRAMES {
            match leg.poll_frame(cx) {
                Poll::Pending => return count > 0,
                Poll::Ready(Ok(frame)) => {
                    self.meter.heard(&frame);
                    if let Err(violation) = self.flow.receive(generation, frame, now) {
                        tracing::warn!(flow = %self.flow.id(), %violation, "the other end broke the flow protocol");
                        if !self.flow.has_leg() || !self.flow.state().is_final() {
                            self.meter.broken(violation);
                            self.drop_leg(ResetCode::Protocol, now);
                        }
                        return true;
                    }
                    let goes_on = !self.flow.state().is_final() || self.flow.is_telling();
                    if !self.flow.has_leg() && goes_on {
                        self.meter.leg_lost("finished");
                        self.drop_leg(ResetCode::Abandoned, now);
                        return true;
                    }
                }
                Poll::Ready(Err(end)) => {
                    if end == LegEnd::Finished {
                        self.flow.leg_finished(generation);
                    }
                    self.silent |= end == LegEnd::Reset(ResetCode::ProviderSilent);
                    // After the flow's last frames the stream just ends; what we still owe goes out before.
                    if end == LegEnd::Finished
                        && self.flow.state().is_final()
                        && !self.flow.is_telling()
                    {
                        return false;
                    }
                    tracing::debug!(flow = %self.flow.id(), ?end, "leg lost");
                    self.meter.leg_lost(end.cause());
                    let code = if matches!(end, LegEnd::Wire(_)) {
                        ResetCode::Protocol
                    } else {
                        ResetCode::Unspecified
                    };
                    self.drop_leg(code, now);
                    return true;
                }
            }
        }
        true
    }

    /// Frames from the flow onto the leg. In a final state the leg is finished behind the last frame.
    fn poll_leg_out(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(leg) = &mut self.leg else {
            return false;
        };
        let mut moved = false;
        while !leg.is_mute() {
            HEADERS.with_borrow_mut(|headers| {
                while leg.has_room() {
                    let Some(frame) = self.flow.transmit(leg.generation, now) else {
                        break;
                    };
                    leg.push(frame, headers);
                }
            });
            if leg.is_flushed() {
                break;
            }
            if leg.poll_flush(cx).is_pending() {
                return moved;
            }
            moved = true;
        }
        if self.flow.state().is_final()
            && !self.flow.is_telling()
            && let Some(mut leg) = self.leg.take()
        {
            leg.finish();
            leg.cut(match *self.flow.state() {
                State::Aborted(code) if !self.flow.is_forsaken() => ResetCode::of(code),
                _ => ResetCode::FlowEnded,
            });
            moved = true;
        }
        moved
    }

    fn drop_leg(&mut self, code: ResetCode, now: Instant) {
        if let Some(leg) = self.leg.take() {
            self.flow.leg_lost(leg.generation, now);
            leg.cut(code);
        }
    }

    /// Lets the application see how the flow ended.
    fn settle(&mut self) {
        match self.flow.state() {
            // Dropped, the socket is reset. That of an open which may go elsewhere waits for that.
            State::Aborted(_) if !self.flow.is_forsaken() => self.tcp = None,
            // Everything was delivered both ways and both ends were passed on.
            State::Done if !self.write_open => {
                if let Some(socket) = self.tcp.take() {
                    socket.close();
                }
            }
            _ => {}
        }
    }

    /// Whether time moved the flow.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let both = [self.flow.next_timeout(), self.meter.next_look()];
        let Some(deadline) = both.into_iter().flatten().min() else {
            return false;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.timer = None;
        self.flow.tick(Instant::now());
        true
    }

    /// Ends the flow now: RST to the application, and the other end is told as far as that goes at once.
    pub(crate) fn abort(&mut self, code: AbortCode) {
        self.flow.abort(code);
        self.settle();
        self.leave();
        self.over = true;
    }

    /// Ends the flow because its process stops. One that was not accepted yet may go to another provider.
    pub(crate) fn stop(&mut self) {
        self.flow.refuse(RefuseCode::Draining, "the provider stops");
        self.abort(AbortCode::Shutdown);
    }

    /// As [`Flow::forsake`]; the application waits on.
    pub(crate) fn forsake(&mut self) -> bool {
        self.flow.forsake().then(|| self.leave()).is_some()
    }

    /// Sends what goes at once, and has no leg from then on.
    fn leave(&mut self) {
        self.flow.hurry_abort();
        let mut cx = Context::from_waker(Waker::noop());
        self.poll_leg_out(&mut cx, Instant::now());
        if let Some(mut leg) = self.leg.take() {
            if leg.is_flushed() {
                leg.finish();
            }
            leg.cut(ResetCode::Abandoned);
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if !self.over {
            self.stop();
        }
    }
}
