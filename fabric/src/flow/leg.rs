//! Frames that leave on a leg, and the change of legs.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::local::is_in_order;
use super::{Flow, Header, Leg, Outbox, State, TERMINATOR_GRACE};
use crate::wire::{AbortCode, Frame, Generation, GoneCode, Open, Resume, Role, VERSION};

impl Flow {
    /// The next frame for the leg with this generation, or `None` if there is nothing now, or the leg is not the newest.
    ///
    /// A frame that came out counts as sent. If it cannot be written, call [`leg_lost`](Self::leg_lost).
    pub fn transmit(&mut self, generation: Generation, now: Instant) -> Option<Frame> {
        if generation != self.generation {
            return None;
        }
        let before = self.owed();
        let frame = self.next_frame(now)?;
        if matches!(frame, Frame::Ping) {
            self.suspicion.ask();
        }
        if before != self.owed() {
            self.suspicion.owes(self.owed(), now);
        }
        Some(frame)
    }

    fn next_frame(&mut self, now: Instant) -> Option<Frame> {
        match self.leg {
            Leg::None => return None,
            Leg::Header(header, wait) => {
                self.leg = if wait { Leg::Waiting } else { Leg::Up };
                return self.header(header, now);
            }
            Leg::Waiting | Leg::Up => {}
        }
        // A reset goes behind its bytes, and those wait for the answer to the header. So does the reset alone: a router
        // that does not find the provider would swallow it.
        let ready = |code| self.leg == Leg::Up || !is_in_order(code);
        if self.outbox.abort.is_some_and(ready) {
            return self.abort_frame(now);
        }
        if std::mem::take(&mut self.outbox.complete) {
            return Some(Frame::Gone {
                code: GoneCode::Complete,
            });
        }
        if let State::Refused { code, text } = &self.state {
            let text = text.clone();
            return std::mem::take(&mut self.outbox.refuse)
                .then_some(Frame::Refuse { code: *code, text });
        }
        if self.leg != Leg::Up || self.is_over() {
            return None;
        }
        if self.role == Role::Terminator {
            if !self.accepted {
                return None;
            }
            if std::mem::take(&mut self.outbox.accept) {
                let limit = self.recv.grant();
                return Some(self.accept_frame(limit));
            }
        }
        self.flowing(now)
    }

    fn accept_frame(&self, limit: u64) -> Frame {
        let window = self.limits.resume_window.saturating_sub(TERMINATOR_GRACE);
        Frame::Accept {
            limit,
            max_datagram: self.max_datagram,
            window: Some(window.as_millis() as u64),
        }
    }

    /// Frames of a leg that is up.
    fn flowing(&mut self, now: Instant) -> Option<Frame> {
        if self.accepted && self.recv.ack_due(self.send.is_pending(), now) {
            let (recv, limit) = self.recv.report();
            return Some(Frame::Ack { recv, limit });
        }
        if let Some((offset, bytes)) = self.send.next_data() {
            return Some(Frame::Data { offset, bytes });
        }
        if let Some(offset) = self.send.next_fin() {
            return Some(Frame::Fin { offset });
        }
        if let Some(place) = self.outbox.request_move.take() {
            return Some(Frame::Move(place));
        }
        std::mem::take(&mut self.outbox.ping).then_some(Frame::Ping)
    }

    /// Bytes that the application had written before its reset, then the ABORT.
    fn abort_frame(&mut self, now: Instant) -> Option<Frame> {
        if self.leg == Leg::Up && (self.role == Role::Initiator || self.accepted) {
            if std::mem::take(&mut self.outbox.accept) {
                return Some(self.accept_frame(self.recv.limit()));
            }
            if let Some((offset, bytes)) = self.send.next_data() {
                return Some(Frame::Data { offset, bytes });
            }
            if let Some(offset) = self.send.next_fin() {
                return Some(Frame::Fin { offset });
            }
        }
        let code = self.outbox.abort.take()?;
        let offset = self.send.sent();
        if is_in_order(code) {
            self.outbox.unconfirmed = Some(code);
            self.outbox
                .tell_until
                .get_or_insert(now + self.limits.resume_window);
        } else {
            self.send.clear();
        }
        Some(Frame::Abort { code, offset })
    }

    fn header(&mut self, header: Header, now: Instant) -> Option<Frame> {
        if header == Header::Resumed {
            let proof = self
                .secret
                .prove(self.id, self.generation, Role::Terminator);
            let (recv, limit) = if self.accepted {
                self.recv.report()
            } else {
                (self.recv.owned(), self.recv.limit())
            };
            return Some(Frame::Resumed {
                generation: self.generation,
                recv,
                limit,
                proof,
                age: None,
            });
        }
        // Only an initiator sends the other two, and it keeps its OPEN.
        let open = self.open.as_deref()?;
        self.opened = true;
        self.asked.get_or_insert(now);
        if header == Header::Open {
            return Some(Frame::Open(Box::new(Open {
                generation: self.generation,
                ..open.clone()
            })));
        }
        let (recv, limit) = self.recv.report();
        Some(Frame::Resume(Box::new(Resume {
            version: VERSION,
            flow: self.id,
            generation: self.generation,
            service: open.service.clone(),
            port: open.port,
            provider: open.provider.clone(),
            recv,
            limit,
            proof: self.secret.prove(self.id, self.generation, Role::Initiator),
            from: None,
            protocol: open.protocol,
            rest: Bytes::new(),
        })))
    }

    /// The leg with this generation ended or was reset. Starts the resume window; a leg that was fenced is ignored.
    pub fn leg_lost(&mut self, generation: Generation, now: Instant) {
        if generation != self.generation || self.leg == Leg::None {
            return;
        }
        if !self.opened || self.state == State::Aborted(AbortCode::WindowExpired) {
            // Nobody heard of it, or has to: its own window ends, too.
            self.outbox.abort = None;
        }
        // An ABORT that has not left yet is told on the next leg. A terminator only waits for one, and takes none but to deliver.
        let can_be_told = |code| self.role == Role::Initiator || is_in_order(code);
        let telling = self.last_words().is_some_and(can_be_told);
        self.leg = Leg::None;
        self.suspicion.forget();
        if telling {
            self.tell_again();
            self.outbox
                .tell_until
                .get_or_insert(now + self.limits.resume_window);
            return;
        }
        if self.is_over() {
            self.outbox = Outbox::default();
            self.send.clear();
            return;
        }
        if !matches!(self.state, State::Detached { .. }) {
            self.detach(self.limits.resume_window, now);
        }
    }

    /// The other end has finished the leg with this generation, behind its last frame. If it was told of an ABORT, it has
    /// heard that now. Call [`leg_lost`](Self::leg_lost) all the same, unless the flow is over and has nothing to tell.
    pub fn leg_finished(&mut self, generation: Generation) {
        if generation == self.generation && self.outbox.unconfirmed.is_some() {
            self.outbox = Outbox::default();
            self.send.clear();
        }
    }

    /// An ABORT that was sent may be lost with its leg.
    fn tell_again(&mut self) {
        if let Some(code) = self.outbox.unconfirmed.take() {
            self.outbox.abort = Some(code);
        }
    }

    /// Whether the initiator should dial another leg: the flow has none, or was asked to move, or the one it has is
    /// suspected. For a flow that was cut here and could not tell, this ends with the resume window
    /// ([`next_timeout`](Self::next_timeout) names the time).
    pub fn wants_leg(&self) -> bool {
        let lost = self.leg == Leg::None && (!self.is_over() || self.outbox.abort.is_some());
        let leave = self.move_requested.is_some() || self.suspicion.is_suspected();
        self.role == Role::Initiator && (lost || (leave && self.may_move()))
    }

    /// Whether a flow that has a leg may leave it for another one.
    pub fn may_move(&self) -> bool {
        self.role == Role::Initiator && self.is_kept() && !self.is_over()
    }

    /// Initiator: a new leg is there. Fences the leg before, if there still is one, and returns the generation of the new
    /// one, whose first `transmit` is RESUME (or OPEN again, while there was no answer to it). `None`: the flow is over
    /// and needs no leg.
    pub fn resume(&mut self, now: Instant) -> Option<Generation> {
        let telling = self.outbox.abort.is_some() && self.opened;
        if self.role != Role::Initiator || (self.is_over() && !telling) {
            return None;
        }
        if !self.is_over() && !matches!(self.state, State::Detached { .. }) {
            // A move, or a leg that is only suspected.
            self.detach(self.limits.resume_window, now);
        }
        let header = if self.accepted {
            Header::Resume
        } else {
            Header::Open
        };
        // An OPEN that never left is the first one still. A terminator answers every header of a later generation.
        if self.opened {
            self.generation = self.generation.next();
        }
        self.leg = Leg::Header(header, self.opened);
        self.move_requested = None;
        self.suspicion.forget();
        Some(self.generation)
    }

    /// Terminator: a RESUME came in on a new leg. Fences the leg before; the new one carries `resume.generation`, and its
    /// first `transmit` is RESUMED.
    ///
    /// # Errors
    /// The code for the GONE that the new leg must be answered with. The leg before stays as it is, unless the RESUME was
    /// genuine and contradicts the flow: then the flow is aborted.
    pub fn attach(&mut self, resume: &Resume, now: Instant) -> Result<(), GoneCode> {
        if self.role != Role::Terminator || resume.flow != self.id {
            return Err(GoneCode::Unknown);
        }
        if !self
            .secret
            .accepts(&resume.proof, self.id, resume.generation, Role::Initiator)
        {
            return Err(GoneCode::Forbidden);
        }
        self.admit(resume.generation, now)?;
        if !self.accepted || self.send.resume_at(resume.recv, true).is_err() {
            return Err(self.cannot_go_on());
        }
        self.send.raise(resume.limit);
        if self.all_owned() && !self.is_telling() {
            self.complete();
            return Err(GoneCode::Complete);
        }
        self.take_leg(resume.generation);
        Ok(())
    }

    /// Terminator: an OPEN of a flow that is known already came in, because its initiator saw no answer. Attaches the new
    /// leg, so that the backend is never dialled twice; as [`attach`](Self::attach).
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn attach_open(&mut self, open: &Open, now: Instant) -> Result<(), GoneCode> {
        if self.role != Role::Terminator || open.flow != self.id {
            return Err(GoneCode::Unknown);
        }
        if !self.secret.matches(&open.secret) {
            return Err(GoneCode::Forbidden);
        }
        self.admit(open.generation, now)?;
        if self.send.resume_at(0, true).is_err() {
            return Err(self.cannot_go_on());
        }
        self.outbox.accept = self.accepted;
        self.take_leg(open.generation);
        Ok(())
    }

    /// A genuine leg asks for bytes that are not here.
    fn cannot_go_on(&mut self) -> GoneCode {
        if self.is_kept() {
            self.cut_and_tell(AbortCode::Protocol);
            GoneCode::Aborted
        } else {
            // They were never kept: for this flow the window is over with its leg.
            self.cut_and_tell(AbortCode::WindowExpired);
            GoneCode::Expired
        }
    }

    /// Whether a flow in this state takes a genuine leg of this generation.
    fn admit(&mut self, generation: Generation, now: Instant) -> Result<(), GoneCode> {
        self.tick(now);
        match &self.state {
            State::Done | State::Draining => Err(GoneCode::Complete),
            State::Refused { .. } => Err(GoneCode::Refused),
            State::Aborted(AbortCode::WindowExpired) => Err(GoneCode::Expired),
            // It was cut while there was no leg: the bytes before still have to get over.
            State::Aborted(_)
                if generation > self.generation && self.last_words().is_some_and(is_in_order) =>
            {
                Ok(())
            }
            State::Aborted(_) | State::Aborting { .. } => Err(GoneCode::Aborted),
            _ if generation <= self.generation => Err(GoneCode::Stale),
            _ => Ok(()),
        }
    }

    fn take_leg(&mut self, generation: Generation) {
        self.generation = generation;
        self.leg = Leg::Header(Header::Resumed, false);
        if self.is_telling() {
            self.tell_again();
        } else {
            self.state = if self.accepted {
                State::Attached(generation)
            } else {
                State::Opening
            };
        }
        self.move_requested = None;
        // It was about the leg before.
        self.outbox.request_move = None;
        self.resumes += 1;
    }

    fn detach(&mut self, window: Duration, now: Instant) {
        self.state = State::Detached {
            until: now + window,
        };
        self.recv.hold_ack();
        if window.is_zero() {
            self.expire();
        }
    }

    /// The resume window has passed.
    pub(super) fn expire(&mut self) {
        let leg = std::mem::replace(&mut self.leg, Leg::None);
        if self.accepted && self.all_owned() {
            // Only the other end's last word was lost. It holds everything, and so does this end.
            self.complete();
            return;
        }
        self.forsaken = self.may_forsake();
        if matches!(leg, Leg::Header(_, true) | Leg::Waiting) && !self.forsaken {
            // The other end has taken this leg, or takes it yet: without a word it would wait for another whole window.
            self.leg = leg;
            self.send.clear();
            self.outbox.abort = Some(AbortCode::WindowExpired);
        }
        self.cut(AbortCode::WindowExpired);
    }

    /// The leg is left now: a reset that waits for the answer to its header goes without the bytes before it, under a code
    /// that may.
    pub(crate) fn hurry_abort(&mut self) {
        if matches!(self.leg, Leg::Header(_, true) | Leg::Waiting)
            && self.outbox.abort.is_some_and(is_in_order)
        {
            self.send.clear();
            self.outbox.abort = Some(AbortCode::Shutdown);
        }
    }
}
