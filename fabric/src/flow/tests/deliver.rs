//! What arrives, and where it goes.

use std::time::Duration;

use tokio::time::Instant;

use super::bugs::{Bug, sabotage};
use super::check::{App, Ending};
use super::legs::Bound;
use super::world::{Served, World, initiator};
use crate::flow::Flow;
use crate::provider::table::Found;
use crate::wire::{FlowId, Frame, Generation, GoneCode, Open, RefuseCode, Role};

impl World {
    /// Everything that arrived by now, on any leg, also on those that are fenced.
    pub(super) fn deliver(&mut self) -> Result<(), String> {
        for index in 0..self.legs.len() {
            while let Some(frame) = self.legs[index].up.receive(self.now)? {
                self.at_provider(index, frame)?;
            }
            while let Some(frame) = self.legs[index].down.receive(self.now)? {
                self.at_consumer(index, frame)?;
            }
            let leg = &mut self.legs[index];
            if leg.down_notice.is_some_and(|at| at <= self.now) || leg.down.is_drained() {
                leg.down_notice = None;
                if leg.flow == self.consumer.id() && !self.consumer_gone {
                    if leg.down.is_drained() {
                        self.consumer.leg_finished(leg.generation);
                    }
                    self.consumer.leg_lost(leg.generation, self.now);
                }
            }
            if leg.up_notice.is_some_and(|at| at <= self.now) || leg.up.is_drained() {
                leg.up_notice = None;
                if let Bound::To(id) = leg.bound
                    && let Some(served) = self.served.get_mut(&id)
                {
                    if leg.up.is_drained() {
                        served.flow.leg_finished(leg.generation);
                    }
                    served.flow.leg_lost(leg.generation, self.now);
                }
            }
        }
        Ok(())
    }

    fn at_consumer(&mut self, index: usize, frame: Frame) -> Result<(), String> {
        self.past.frame(index, false, &frame);
        let leg = &self.legs[index];
        if leg.flow != self.consumer.id() || self.consumer_gone {
            return Ok(());
        }
        let at = self.now - self.start;
        let owned = self.consumer.recv.owned();
        self.report.trace.note(frame.name(), at, owned);
        match sabotage(self.bug, frame, leg.generation, self.consumer.generation()) {
            Some((frame, generation)) => receive(&mut self.consumer, generation, frame, self.now),
            None => Ok(()),
        }
    }

    fn at_provider(&mut self, index: usize, frame: Frame) -> Result<(), String> {
        let leg = &self.legs[index];
        let Bound::To(id) = leg.bound else {
            return if leg.bound == Bound::Unread {
                self.header(index, &frame)
            } else {
                Ok(())
            };
        };
        self.past.frame(index, true, &frame);
        let leg = &self.legs[index];
        let Some(served) = self.served.get_mut(&id) else {
            return Ok(());
        };
        let at = self.now - self.start;
        let owned = served.flow.recv.owned();
        self.report.trace.note(frame.name(), at, !owned);
        match sabotage(self.bug, frame, leg.generation, served.flow.generation()) {
            Some((frame, generation)) => receive(&mut served.flow, generation, frame, self.now),
            None => Ok(()),
        }
    }

    /// The listener: first frame of a leg.
    pub(super) fn header(&mut self, index: usize, frame: &Frame) -> Result<(), String> {
        let (id, generation) = match frame {
            Frame::Open(open) => (open.flow, open.generation),
            Frame::Resume(resume) => (resume.flow, resume.generation),
            other => return Err(format!("a leg began with {}", other.name())),
        };
        if matches!(frame, Frame::Open(_)) && self.lapses_left > 0 && self.random.once_in(2) {
            self.lapses_left -= 1;
            self.report.lapses += u64::from(generation > Generation::FIRST);
            let refuse = Frame::Refuse {
                code: RefuseCode::NoProvider,
                text: String::new(),
            };
            let leg = &mut self.legs[index];
            leg.send_down(&refuse, self.now, &mut self.random);
            leg.down.finished = true;
            leg.bound = Bound::Refused;
            return Ok(());
        }
        self.past.header(frame);
        let open = match frame {
            Frame::Open(open) => Some(open),
            _ => None,
        };
        let key = self.table.key(&initiator(), id);
        let found = match open {
            // As if nobody had looked.
            Some(_) if self.bug == Some(Bug::DoubleDial) => Found::New,
            _ => self
                .table
                .find(&key, open.map(|open| open.generation), self.now),
        };
        let outcome = match (found, open) {
            (Found::Live(()), _) => self.attach(id, frame),
            (Found::NeverArrived { .. }, Some(open)) => {
                self.stranger(index, open);
                return Ok(());
            }
            (Found::Finished(code), _) => Err(code),
            (Found::New, Some(open)) => {
                self.table.begin(&key, ());
                self.admit(open);
                Ok(())
            }
            _ => Err(GoneCode::Unknown),
        };
        self.report.resumes += u64::from(outcome.is_ok() && generation > Generation::FIRST);
        let leg = &mut self.legs[index];
        if leg.broken {
            // Noticed before there was a flow to tell.
            leg.up_notice.get_or_insert(self.now);
        }
        leg.bound = match outcome {
            Ok(()) => Bound::To(id),
            Err(code) => {
                leg.send_down(&Frame::Gone { code }, self.now, &mut self.random);
                leg.down.finished = true;
                Bound::Refused
            }
        };
        match self.dials.get(&id) {
            Some(2..) => Err(format!("I8: the backend of {id} was dialled twice")),
            _ => Ok(()),
        }
    }

    /// A leg of a flow that runs.
    fn attach(&mut self, id: FlowId, header: &Frame) -> Result<(), GoneCode> {
        match (self.served.get_mut(&id), header) {
            (Some(served), Frame::Open(open)) => served.flow.attach_open(open, self.now),
            (Some(served), Frame::Resume(resume)) => served.flow.attach(resume, self.now),
            _ => Err(GoneCode::Unknown),
        }
    }

    /// A repeated open of a flow that the provider's process does not know.
    fn stranger(&mut self, index: usize, open: &Open) {
        self.report.strangers += 1;
        let age = match self.bug {
            Some(Bug::YoungProcessBelieved) => Duration::from_secs(3600),
            _ => self.table.age(self.now),
        };
        let proof = open
            .secret
            .prove(open.flow, open.generation, Role::Terminator);
        let resumed = Frame::Resumed {
            generation: open.generation,
            recv: 0,
            limit: 0,
            proof,
            age: Some(age.as_millis() as u64),
        };
        let refuse = Frame::Refuse {
            code: RefuseCode::NeverArrived,
            text: String::new(),
        };
        let leg = &mut self.legs[index];
        leg.send_down(&resumed, self.now, &mut self.random);
        leg.send_down(&refuse, self.now, &mut self.random);
        leg.down.finished = true;
        leg.bound = Bound::Refused;
    }

    fn admit(&mut self, open: &Open) {
        *self.dials.entry(open.flow).or_default() += 1;
        let refuse = self.refusals_left > 0;
        self.refusals_left -= u64::from(refuse);
        let mut app = App::new("the backend", self.random.below(60_000), &mut self.random);
        if self.bug.is_some_and(|bug| bug != Bug::CutTakenForEnd) {
            app.ending = Ending::Fin;
        }
        let decide_at = self.now + self.random.millis(400);
        let flow = Flow::terminate(open, self.limits);
        self.served.insert(
            open.flow,
            Served {
                flow,
                app,
                decide_at,
                refuse,
                blocked: None,
            },
        );
    }
}

fn receive(
    flow: &mut Flow,
    generation: Generation,
    frame: Frame,
    now: Instant,
) -> Result<(), String> {
    let (fenced, owned, name) = (
        generation < flow.generation(),
        flow.recv.owned(),
        frame.name(),
    );
    flow.receive(generation, frame, now)
        .map_err(|violation| format!("{name}: {violation}"))?;
    if fenced && flow.recv.owned() != owned {
        return Err("I3: a fenced leg delivered".to_owned());
    }
    Ok(())
}
