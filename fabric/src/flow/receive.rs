//! Frames that arrive on a leg.

use std::time::Duration;

use tokio::time::Instant;

use super::{Flow, Leg, Outbox, Owed, State, Violation};
use crate::wire::{AbortCode, Frame, Generation, GoneCode, Proof, RefuseCode, Role};

impl Flow {
    /// Whether [`FlowLimits::max_window`](super::FlowLimits::max_window) held the other end back, though the application here keeps
    /// up. Said once.
    pub(crate) fn take_narrow(&mut self) -> bool {
        self.recv.take_narrow()
    }

    /// Takes a frame of the leg with this generation. Frames of a leg that was fenced, lost or is over are ignored.
    ///
    /// # Errors
    /// A [`Violation`]: drop the leg. The flow is `Aborted(PROTOCOL)` then and `transmit` has an ABORT for the other end;
    /// only after [`Violation::Proof`] it is `Detached` and lives on.
    pub fn receive(
        &mut self,
        generation: Generation,
        frame: Frame,
        now: Instant,
    ) -> Result<(), Violation> {
        if generation != self.generation || self.leg == Leg::None {
            return Ok(());
        }
        if self.is_telling() {
            return self.answer_to_last_words(frame, now);
        }
        if self.is_over() {
            return Ok(());
        }
        self.suspicion.heard(now);
        let result = self.dispatch(frame, now);
        match result {
            Ok(()) if self.owed() == Owed::Nothing => self.suspicion.forget(),
            Ok(()) => {}
            Err(Violation::Proof) => self.leg_lost(generation, now),
            Err(_) => self.cut_and_tell(AbortCode::Protocol),
        }
        result
    }

    fn dispatch(&mut self, frame: Frame, now: Instant) -> Result<(), Violation> {
        let unexpected = Err(Violation::Unexpected {
            frame: frame.name(),
        });
        let initiator = self.role == Role::Initiator;
        let up = self.leg == Leg::Up;
        match frame {
            Frame::Accept {
                limit,
                max_datagram,
                window,
            } if initiator && up && !self.accepted => {
                self.accept_received(limit, max_datagram, window);
                Ok(())
            }
            Frame::Refuse { code, text } if initiator && up && !self.accepted => {
                self.refused(code, text);
                Ok(())
            }
            // A repeated open, and no proof that this is the provider's answer: it may be a router that has lost the
            // provider from its books, while the first open was taken. Only the provider may say that it was not.
            Frame::Refuse { .. } if initiator && self.leg == Leg::Waiting => {
                self.leg_lost(self.generation, now);
                Ok(())
            }
            Frame::Resumed {
                generation,
                recv,
                limit,
                proof,
                age,
            } if initiator && self.leg == Leg::Waiting => {
                self.resumed(generation, (recv, limit), &proof)?;
                if age.is_some_and(|age| self.may_be_delivered(age, now)) {
                    self.cut(AbortCode::PeerGone);
                }
                Ok(())
            }
            Frame::Gone {
                code: GoneCode::Complete,
            } if initiator => self.completed(),
            Frame::Gone { code } if initiator && self.leg == Leg::Waiting => {
                self.gone(code, now);
                Ok(())
            }
            Frame::Abort { code, .. } => {
                self.abort_received(code, now);
                Ok(())
            }
            Frame::Data { offset, bytes } if up => self.recv.data(offset, bytes, now),
            Frame::Fin { offset } if up => {
                self.recv.finish(offset)?;
                self.check_complete();
                Ok(())
            }
            Frame::Ack { recv, limit } if up && self.accepted => {
                self.send.ack(recv)?;
                self.send.raise(limit);
                self.check_complete();
                Ok(())
            }
            Frame::Move(place) => {
                self.move_requested = self.move_requested.max(Some(place));
                Ok(())
            }
            Frame::Ping => {
                self.recv.ack_at_once();
                Ok(())
            }
            _ => unexpected,
        }
    }

    /// A leg of a flow that was cut here: it is there for the bytes before the ABORT, and the ABORT.
    fn answer_to_last_words(&mut self, frame: Frame, now: Instant) -> Result<(), Violation> {
        let waiting = self.role == Role::Initiator && self.leg == Leg::Waiting;
        match frame {
            Frame::Resumed {
                generation,
                recv,
                limit,
                proof,
                ..
            } if waiting => {
                if !self.is_answered(generation, &proof) {
                    self.leg_lost(self.generation, now);
                    return Err(Violation::Proof);
                }
                if self.send.resume_at(recv, self.accepted).is_err() {
                    // The ends disagree about the bytes; the ABORT goes all the same.
                    self.send.clear();
                }
                self.send.raise(limit);
                self.leg = Leg::Up;
            }
            Frame::Gone {
                code: GoneCode::Stale,
            }
            | Frame::Refuse { .. }
                if waiting =>
            {
                self.leg_lost(self.generation, now);
            }
            // The other end has nothing to be told.
            Frame::Gone { .. } | Frame::Refuse { .. } | Frame::Abort { .. } => {
                self.outbox = Outbox::default();
                self.send.clear();
            }
            _ => {}
        }
        Ok(())
    }

    fn is_answered(&self, generation: Generation, proof: &Proof) -> bool {
        generation == self.generation
            && self
                .secret
                .accepts(proof, self.id, generation, Role::Terminator)
    }

    fn accept_received(&mut self, limit: u64, max_datagram: u64, window: Option<u64>) {
        self.accepted = true;
        if let Some(window) = window {
            // There is nothing to come back for after that.
            let window = Duration::from_millis(window);
            self.limits.resume_window = self.limits.resume_window.min(window);
        }
        self.max_datagram = self.max_datagram.min(max_datagram);
        self.send.raise(limit);
        if !self.is_kept() {
            self.send.keep_nothing();
        }
        self.state = State::Attached(self.generation);
    }

    fn refused(&mut self, code: RefuseCode, text: String) {
        self.state = State::Refused { code, text };
        self.leg = Leg::None;
        self.recv.clear();
    }

    fn resumed(
        &mut self,
        generation: Generation,
        (recv, limit): (u64, u64),
        proof: &Proof,
    ) -> Result<(), Violation> {
        if !self.is_answered(generation, proof) {
            return Err(Violation::Proof);
        }
        self.send.resume_at(recv, self.accepted)?;
        self.send.raise(limit);
        self.leg = Leg::Up;
        self.state = if self.accepted {
            State::Attached(generation)
        } else {
            State::Opening
        };
        self.resumes += 1;
        Ok(())
    }

    /// Whether a process of this age, which does not know the flow, is younger than the flow, and there are early bytes: the
    /// one before it may have delivered them. Its answer took its time, so this errs on the side of the doubt.
    fn may_be_delivered(&self, age: u64, now: Instant) -> bool {
        let flow = self.asked.map(|asked| now.saturating_duration_since(asked));
        self.send.is_begun() && flow.is_none_or(|flow| Duration::from_millis(age) < flow)
    }

    /// The terminator has everything and knows that this end has, too.
    fn completed(&mut self) -> Result<(), Violation> {
        if !self.accepted || !self.send.is_sent() || !self.recv.is_finished() {
            return Err(Violation::Unexpected { frame: "GONE" });
        }
        self.complete();
        Ok(())
    }

    fn gone(&mut self, code: GoneCode, now: Instant) {
        match code {
            // Another leg of ours was faster, or somebody replayed our header: the next generation wins.
            GoneCode::Stale => self.leg_lost(self.generation, now),
            GoneCode::Refused if !self.accepted => {
                self.refused(
                    RefuseCode::Unspecified,
                    "refused; the reason was lost with the leg".to_owned(),
                );
            }
            GoneCode::Expired => self.cut(AbortCode::WindowExpired),
            GoneCode::Aborted => self.cut(AbortCode::BackendReset),
            GoneCode::Forbidden => self.cut(AbortCode::Forbidden),
            GoneCode::Unknown | GoneCode::Refused | GoneCode::Complete => {
                self.cut(AbortCode::PeerGone)
            }
        }
    }

    /// Terminator: once both FINs are owned, the initiator is told so and needs nothing any more.
    pub(super) fn check_complete(&mut self) {
        if self.role == Role::Terminator && self.all_owned() {
            self.outbox.complete = true;
            self.complete();
        }
    }

    /// Whether the other end owns all that was sent here, and this end all that was sent there.
    pub(super) fn all_owned(&self) -> bool {
        self.send.is_acked() && self.recv.is_finished()
    }
}
