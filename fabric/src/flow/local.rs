//! The application's side of a flow, and the provider's decision.

use bytes::Bytes;
use tokio::time::Instant;

use super::{Flow, Header, Leg, Outbox, RecvHalf, State};
use crate::wire::{AbortCode, EARLY, Open, Place, Protocol, RefuseCode, Role};

impl Flow {
    /// Bytes that [`write`](Self::write) may be given now. 0 means: do not read the application's socket (also not in
    /// order to see its end; what it sent stays in the kernel).
    pub fn writable(&self) -> usize {
        match self.state {
            State::Opening | State::Attached(_) | State::Detached { .. } => self.send.writable(),
            _ => 0,
        }
    }

    /// Takes bytes of the application, at most [`writable`](Self::writable). They are kept until the other end owns them.
    pub fn write(&mut self, bytes: Bytes) {
        debug_assert!(
            bytes.len() <= self.writable(),
            "wrote {} of {} bytes",
            bytes.len(),
            self.writable()
        );
        if !self.is_over() {
            self.send.write(bytes);
        }
    }

    /// The application closed its writing side: a FIN follows the bytes, also where a refused flow is [restarted](Self::restart).
    pub fn finish(&mut self) {
        if !self.is_over() || matches!(self.state, State::Refused { .. }) {
            self.send.finish();
        }
    }

    /// Cuts the flow because of this end: its application was reset (`RESET`, `BACKEND_RESET`: bytes written before
    /// still go first) or it may not go on (any other code). The state is `Aborted` at once; on a leg, `transmit` gives the
    /// ABORT. Without a leg the other end learns it if the driver goes on while [`is_telling`](Self::is_telling) (it need
    /// not), else by its own window.
    pub fn abort(&mut self, code: AbortCode) {
        match self.state {
            State::Aborting { code, .. } => return self.cut(code),
            State::Draining => return self.cut(code),
            State::Refused { .. } | State::Done | State::Aborted(_) => return,
            State::Opening | State::Attached(_) | State::Detached { .. } => {}
        }
        if !is_in_order(code) {
            self.send.clear();
        }
        // An OPEN that waits for its leg still goes out, and the ABORT behind it.
        let opens = self.opened || matches!(self.leg, Leg::Header(..));
        self.outbox.abort = opens.then_some(code);
        if let State::Detached { until } = self.state {
            self.outbox.tell_until = Some(until);
        }
        self.cut(code);
    }

    /// Bytes for the application, in order; empty before the flow is accepted.
    pub fn readable(&self) -> impl Iterator<Item = &Bytes> + Clone {
        self.recv
            .chunks()
            .take(if self.accepted { usize::MAX } else { 0 })
    }

    /// The application takes no more now: what has arrived gets memory of its own, instead of a part of the packets in which
    /// the bytes of other flows came too.
    pub(crate) fn part(&mut self) {
        self.recv.part();
    }

    /// Bytes that arrived and were not taken, also before the flow is accepted.
    pub(crate) fn arrived(&self) -> impl Iterator<Item = &Bytes> + Clone {
        self.recv.chunks()
    }

    /// Whether ACCEPT was received or decided.
    pub(crate) fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// The application took the first `count` bytes of [`readable`](Self::readable). Credit for the other end follows.
    pub fn consumed(&mut self, count: usize) {
        self.recv.take(count);
        match self.state {
            State::Draining if self.recv.is_consumed() => self.state = State::Done,
            // An end of file that came before still goes to the application.
            State::Aborting { code, .. }
                if self.recv.buffered() == 0 && !self.recv.is_finished() =>
            {
                self.cut(code);
            }
            _ => {}
        }
    }

    /// Whether the other end's FIN was reached and all bytes before it were taken. Stays true in `Done`. In `Aborting`,
    /// once the application was told, [`abort`](Self::abort) ends the flow.
    pub fn at_eof(&self) -> bool {
        self.accepted
            && self.recv.is_consumed()
            && !matches!(self.state, State::Aborted(_) | State::Refused { .. })
    }

    /// Terminator: the backend is connected. `max_datagram` is what this end can use, 0 for none.
    pub fn accept(&mut self, max_datagram: u64) {
        if self.role != Role::Terminator || self.accepted || self.is_over() {
            return;
        }
        self.accepted = true;
        self.max_datagram = self.max_datagram.min(max_datagram);
        self.outbox.accept = true;
        if self.state == State::Opening {
            self.state = State::Attached(self.generation);
        }
    }

    /// Terminator: the flow is not taken. Nothing was delivered, so the initiator may go elsewhere.
    pub fn refuse(&mut self, code: RefuseCode, text: impl Into<String>) {
        if self.role != Role::Terminator || self.accepted || self.is_over() {
            return;
        }
        self.outbox.refuse = true;
        self.send.clear();
        self.recv.clear();
        self.state = State::Refused {
            code,
            text: text.into(),
        };
    }

    /// Initiator: gives up an open without an answer, if the application has said nothing yet: nothing can be delivered
    /// twice, so [`restart`](Self::restart) is possible. Else nothing happens and the answer is `false`. The one that was
    /// asked is told as by [`abort`](Self::abort).
    ///
    /// Packets may be delivered twice, so an association is given up whatever it has said. That is kept for whoever is asked
    /// next, and the one that was asked before hears nothing more.
    pub fn forsake(&mut self) -> bool {
        let undecided = matches!(self.state, State::Opening | State::Detached { .. });
        if !undecided || !self.may_forsake() {
            return false;
        }
        self.forsaken = true;
        if self.send.is_begun() {
            self.cut(AbortCode::Shutdown);
        } else {
            self.abort(AbortCode::Shutdown);
        }
        true
    }

    /// Whether nothing can be delivered twice that must not be if this flow is given up: nobody took it, as far as known, and
    /// nothing was said, or packets only.
    pub(super) fn may_forsake(&self) -> bool {
        let open = self.open.as_deref();
        let packets = open.is_some_and(|open| open.protocol == Protocol::Udp);
        self.role == Role::Initiator && !self.accepted && (packets || !self.send.is_begun())
    }

    /// Initiator: whether it was cut without an answer and before its application had said anything that counts, by
    /// [`forsake`](Self::forsake) or with the resume window. The application waits on for a [`restart`](Self::restart).
    pub(crate) fn is_forsaken(&self) -> bool {
        self.forsaken
    }

    /// Initiator: tries another provider with the same early bytes, under the new id and secret of `open`, on a first
    /// leg again (drop the old one before: its frames must not reach this machine any more). Possible after `Refused`,
    /// when it is forsaken, and while no leg has been given the OPEN; otherwise nothing happens and the answer is `false`
    /// (the provider may have dialled: only a resume is allowed).
    pub fn restart(&mut self, open: Open) -> bool {
        let refused = matches!(self.state, State::Refused { .. });
        let possible = refused || self.forsaken || (!self.opened && !self.is_over());
        if self.role != Role::Initiator || !possible {
            return false;
        }
        let window = self.limits.window.min(self.limits.max_window);
        let acks = self.is_kept();
        self.recv = RecvHalf::new(window as u64, window, self.limits.max_window, acks);
        self.send.restart();
        self.suspicion.forget();
        self.set_open(open);
        self.state = State::Opening;
        self.leg = Leg::Header(Header::Open, false);
        self.opened = false;
        self.asked = None;
        self.forsaken = false;
        self.outbox = Outbox::default();
        debug_assert!(
            self.send.written() <= EARLY,
            "more than the early bytes were written before ACCEPT"
        );
        true
    }

    /// Initiator: if nobody answers by then, the window of a flow without a leg is over.
    pub(crate) fn hurry(&mut self, by: Instant) {
        if let State::Detached { until } = &mut self.state {
            *until = by.min(*until);
        }
    }

    /// Asks the other end for another leg (MOVE): this end's router stops, or its connection there comes to its end.
    pub fn request_move(&mut self, place: Place) {
        self.outbox.request_move = self.outbox.request_move.max(Some(place));
    }

    /// Sends a PING; the other end answers it with an ACK at once.
    pub fn ping(&mut self) {
        self.outbox.ping = true;
    }

    /// Whether the application's side takes no part any more (or only drains).
    pub(super) fn is_over(&self) -> bool {
        self.state.is_final() || matches!(self.state, State::Aborting { .. } | State::Draining)
    }

    /// Whether a flow that was cut here still has to tell the other end, with the bytes that go before. It is kept for
    /// that, without its application, as long as [`next_timeout`](Self::next_timeout) allows.
    pub fn is_telling(&self) -> bool {
        self.last_words().is_some()
    }

    pub(super) fn last_words(&self) -> Option<AbortCode> {
        let possible = self.leg != Leg::None || self.outbox.tell_until.is_some();
        match self.state {
            State::Aborted(_) if possible => self.outbox.abort.or(self.outbox.unconfirmed),
            _ => None,
        }
    }

    /// Starts the way to `Aborted` after the other end's ABORT.
    pub(super) fn abort_received(&mut self, code: AbortCode, now: Instant) {
        self.send.clear();
        self.outbox = Outbox::default();
        let undelivered = self.recv.buffered() > 0 || self.recv.is_finished();
        if is_in_order(code) && self.accepted && undelivered {
            self.state = State::Aborting {
                code,
                until: now + super::ABORT_LINGER,
            };
        } else {
            self.cut(code);
        }
    }

    /// The bytes before the other end's ABORT wait for something else than the application: its time to take them begins anew.
    pub(crate) fn linger(&mut self, now: Instant) {
        if let State::Aborting { until, .. } = &mut self.state {
            *until = now + super::ABORT_LINGER;
        }
    }
}

/// Whether bytes that were written before such an ABORT go first: it is a reset of an application.
pub(super) const fn is_in_order(code: AbortCode) -> bool {
    matches!(code, AbortCode::Reset | AbortCode::BackendReset)
}
