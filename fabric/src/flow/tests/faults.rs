//! What goes wrong in the random world.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::bugs::Bug;
use super::check::Ending;
use super::legs::Bound;
use super::world::{World, table};
use crate::flow::{self, Violation};
use crate::wire::{AbortCode, Frame, Generation, GoneCode, Place, Proof, Resume, Secret};

/// Each kind is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A leg is cut now; what is under way still arrives.
    Cut,
    /// A leg will be cut after so many bytes, in the middle of a frame.
    CutAtByte,
    /// One way of a leg stands still for a while.
    Stall,
    /// A router drops one direction, and says nothing for long.
    OneWay,
    /// A leg that is good is replaced by one or two others.
    Race,
    /// A frame of an old leg comes once more, late.
    Ghost,
    /// A header that was taken is brought once more.
    Replay,
    /// A header, or an answer to one, by somebody who has not the secret.
    Forgery,
    /// An end asks for another leg.
    Move,
    /// The window of an end is changed.
    Squeeze,
    /// An application reads nothing for seconds.
    SlowReader,
    /// An application resets in the middle.
    Reset,
    /// The consumer looks for a leg only when its window is over.
    Outage,
    /// The provider's process starts anew, with an empty table.
    Restart,
    /// The consumer's process is gone.
    Death,
}

/// How many of each there were.
#[derive(Debug, Default, Clone)]
pub(super) struct Faults(BTreeMap<Fault, u64>);

impl Faults {
    pub(super) fn add(&mut self, other: &Self) {
        for (fault, count) in &other.0 {
            *self.0.entry(*fault).or_default() += count;
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub(super) fn kinds(&self) -> usize {
        self.0.len()
    }
}

/// What was delivered lately, for those who bring it again.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Leg, whether it went to the provider, frame.
    frames: VecDeque<(usize, bool, Frame)>,
    /// Headers that the provider's process has seen.
    headers: VecDeque<Frame>,
}

impl Past {
    pub(super) fn frame(&mut self, leg: usize, up: bool, frame: &Frame) {
        self.frames.push_back((leg, up, frame.clone()));
        if self.frames.len() > 64 {
            self.frames.pop_front();
        }
    }

    pub(super) fn header(&mut self, frame: &Frame) {
        self.headers.push_back(frame.clone());
        if self.headers.len() > 16 {
            self.headers.pop_front();
        }
    }
}

impl World {
    pub(super) fn note(&mut self, fault: Fault) {
        self.faults_left = self.faults_left.saturating_sub(1);
        *self.report.faults.0.entry(fault).or_default() += 1;
        let at = self.now - self.start;
        self.report.trace.note("fault", at, fault as u64);
    }

    /// One fault, if the one that was drawn is possible now.
    ///
    /// # Errors
    /// A fault that had an effect which it must not have.
    pub(super) fn fault(&mut self) -> Result<(), String> {
        let fault = match self.random.below(100) {
            0..6 => Fault::Cut,
            6..12 => Fault::CutAtByte,
            12..20 => Fault::Stall,
            20..24 => Fault::OneWay,
            24..30 => Fault::Race,
            30..52 => Fault::Ghost,
            52..64 => Fault::Replay,
            64..76 => Fault::Forgery,
            76..82 => Fault::Move,
            82..90 => Fault::Squeeze,
            90..97 => Fault::SlowReader,
            97 if self.random.once_in(2) => Fault::Reset,
            98 if self.random.once_in(5) => Fault::Restart,
            99 if self.random.once_in(5) => Fault::Death,
            _ => Fault::Cut,
        };
        let fault = match self.bug {
            // What this bug spoils is rare: a process that starts anew while an open has no answer.
            Some(Bug::YoungProcessBelieved) if !self.consumer.accepted => Fault::Restart,
            Some(_) if matches!(fault, Fault::Reset | Fault::Restart | Fault::Death) => {
                return Ok(());
            }
            _ => fault,
        };
        let happened = match fault {
            Fault::Cut | Fault::CutAtByte | Fault::Stall | Fault::OneWay => self.hurt_leg(fault),
            Fault::Race => self.race(),
            Fault::Ghost => self.ghost()?,
            Fault::Replay => self.replay()?,
            Fault::Forgery => self.forge()?,
            Fault::Move => self.ask_to_move(),
            Fault::Squeeze => self.squeeze(),
            Fault::SlowReader => self.slow_down(),
            Fault::Reset => self.reset(),
            Fault::Restart => self.restart(),
            Fault::Death => self.die(),
            Fault::Outage => false,
        };
        if happened {
            self.note(fault);
        }
        if self.faults_left == 0 {
            // A flow that stays squeezed would only take very long.
            self.resize(self.limits.max_window);
        }
        Ok(())
    }

    fn hurt_leg(&mut self, fault: Fault) -> bool {
        // The newest ones are those in use.
        let back = self.random.below(3) as usize + 1;
        let Some(index) = self.legs.len().checked_sub(back) else {
            return false;
        };
        let leg = &mut self.legs[index];
        if leg.broken {
            return false;
        }
        let up = self.random.once_in(2);
        let pipe = if up { &mut leg.up } else { &mut leg.down };
        match fault {
            Fault::CutAtByte => pipe.cut_in(self.random.spread(40_000)),
            Fault::Stall => pipe.stall(self.now + self.random.millis(5000)),
            Fault::OneWay => {
                pipe.swallow();
                leg.notice(self.now + Duration::from_secs(10) + self.random.millis(10_000));
            }
            _ => leg.cut(self.now, &mut self.random),
        }
        true
    }

    fn race(&mut self) -> bool {
        if self.consumer_gone || !matches!(self.consumer.state(), flow::State::Attached(_)) {
            return false;
        }
        for _ in 0..1 + self.random.below(2) {
            self.resume();
        }
        true
    }

    fn ghost(&mut self) -> Result<bool, String> {
        let at = self.random.below(self.past.frames.len() as u64) as usize;
        let Some((index, up, frame)) = self.past.frames.get(at).cloned() else {
            return Ok(false);
        };
        let leg = &self.legs[index];
        let generation = leg.generation;
        let flow = match leg.bound {
            _ if !up => Some(&mut self.consumer).filter(|flow| flow.id() == leg.flow),
            Bound::To(id) => self.served.get_mut(&id).map(|served| &mut served.flow),
            _ => None,
        };
        let Some(flow) = flow.filter(|flow| generation < flow.generation()) else {
            return Ok(false);
        };
        let generation = match self.bug {
            Some(Bug::StaleGenerationAccepted) => flow.generation(),
            _ => generation,
        };
        let before = (flow.state().clone(), flow.stats(), flow.recv.owned());
        let taken = flow.receive(generation, frame.clone(), self.now);
        if taken.is_err() || before != (flow.state().clone(), flow.stats(), flow.recv.owned()) {
            return Err(format!(
                "I3: a late {} of an old leg was taken",
                frame.name()
            ));
        }
        Ok(true)
    }

    fn replay(&mut self) -> Result<bool, String> {
        let at = self.random.below(self.past.headers.len() as u64) as usize;
        match self.past.headers.get(at).cloned() {
            Some(header) => self.must_refuse(&header, "replayed"),
            None => Ok(false),
        }
    }

    fn forge(&mut self) -> Result<bool, String> {
        let at = self.random.below(self.past.headers.len() as u64) as usize;
        let Some(header) = self.past.headers.get(at).cloned() else {
            return Ok(false);
        };
        let generation = Generation(1 + self.random.below(1000));
        match header {
            Frame::Open(mut open) if self.random.once_in(2) => {
                open.secret = Secret::from_bytes(std::array::from_fn(|i| i as u8));
                open.generation = generation;
                self.must_refuse(&Frame::Open(open), "forged")
            }
            Frame::Open(open) => {
                let proof = match self.bug {
                    // As if nobody looked at it.
                    Some(Bug::ForgeryAccepted) => {
                        let role = crate::wire::Role::Initiator;
                        open.secret.prove(open.flow, generation, role)
                    }
                    _ => Proof::from_bytes([self.random.next() as u8; 32]),
                };
                let resume = Resume {
                    version: open.version,
                    flow: open.flow,
                    generation,
                    service: open.service,
                    port: open.port,
                    protocol: open.protocol,
                    provider: open.provider,
                    recv: 0,
                    limit: u64::from(u32::MAX),
                    proof,
                    from: None,
                    rest: bytes::Bytes::new(),
                };
                self.must_refuse(&Frame::Resume(Box::new(resume)), "forged")
            }
            _ => self.forge_answer(),
        }
    }

    /// A router answers a RESUME by itself.
    fn forge_answer(&mut self) -> Result<bool, String> {
        let listens = !self.consumer.is_over() || self.consumer.is_telling();
        if self.consumer_gone || !listens || self.consumer.leg != flow::Leg::Waiting {
            return Ok(false);
        }
        let generation = self.consumer.generation();
        let answer = Frame::Resumed {
            generation,
            recv: 0,
            limit: u64::from(u32::MAX),
            proof: Proof::from_bytes([1; 32]),
            age: None,
        };
        match self.consumer.receive(generation, answer, self.now) {
            Err(Violation::Proof) => {}
            other => return Err(format!("a forged RESUMED was taken: {other:?}")),
        }
        let id = self.consumer.id();
        for leg in &mut self.legs {
            if leg.flow == id && leg.generation == generation {
                leg.cut(self.now, &mut self.random);
            }
        }
        Ok(true)
    }

    /// A header that nobody may get attached.
    fn must_refuse(&mut self, header: &Frame, what: &str) -> Result<bool, String> {
        let (id, is_open) = match header {
            Frame::Open(open) => (open.flow, true),
            Frame::Resume(resume) => (resume.flow, false),
            _ => return Ok(false),
        };
        let Some(served) = self.served.get_mut(&id) else {
            return Ok(false);
        };
        let before = served.flow.generation();
        let outcome = match header {
            Frame::Open(open) => served.flow.attach_open(open, self.now),
            Frame::Resume(resume) => served.flow.attach(resume, self.now),
            _ => Err(GoneCode::Unknown),
        };
        if outcome.is_ok() || served.flow.generation() != before {
            let name = if is_open { "OPEN" } else { "RESUME" };
            return Err(format!("I3: a {what} {name} was taken"));
        }
        Ok(true)
    }

    fn ask_to_move(&mut self) -> bool {
        let id = self.consumer.id();
        match self.served.get_mut(&id) {
            Some(served) if self.random.once_in(2) => served.flow.request_move(Place::Elsewhere),
            _ if !self.consumer_gone => self.consumer.request_move(Place::Elsewhere),
            _ => return false,
        }
        true
    }

    fn squeeze(&mut self) -> bool {
        let bytes = self.limits.max_window >> self.random.below(4);
        let id = self.consumer.id();
        match self.served.get_mut(&id) {
            Some(served) if self.random.once_in(2) => served.flow.set_max_window(bytes),
            _ => self.consumer.set_max_window(bytes),
        }
        true
    }

    fn resize(&mut self, bytes: usize) {
        self.consumer.set_max_window(bytes);
        for served in self.served.values_mut() {
            served.flow.set_max_window(bytes);
        }
    }

    fn slow_down(&mut self) -> bool {
        let until = Some(self.now + self.random.millis(8000));
        let id = self.consumer.id();
        match self.served.get_mut(&id) {
            Some(served) if self.random.once_in(2) => served.app.stalled_until = until,
            _ => self.app.stalled_until = until,
        }
        true
    }

    fn reset(&mut self) -> bool {
        let id = self.consumer.id();
        let (app, flow) = match self.served.get_mut(&id) {
            Some(served) if self.random.once_in(2) => (&mut served.app, &mut served.flow),
            _ if !self.consumer_gone => (&mut self.app, &mut self.consumer),
            _ => return false,
        };
        if app.reset || flow.state().is_final() || !flow.accepted {
            return false;
        }
        // Also behind an end of file.
        app.finished |= app.ended && app.ending == Ending::Fin;
        (app.ended, app.ending) = (true, Ending::Reset);
        app.plan = app.written;
        flow.abort(AbortCode::Reset);
        true
    }

    fn restart(&mut self) -> bool {
        let Some(served) = self.served.get(&self.consumer.id()) else {
            return false;
        };
        self.gone_peer = served.app.as_peer();
        let begun = self.served.iter().filter(|(_, served)| !served.refuse);
        self.lost.extend(begun.map(|(id, _)| *id));
        self.served.clear();
        self.table = table(self.limits, self.now);
        self.past.headers.clear();
        for leg in &mut self.legs {
            leg.cut(self.now, &mut self.random);
            // Its connections are gone with it, and nobody carries a header from them to the new process.
            leg.bound = Bound::Refused;
        }
        self.died = true;
        true
    }

    fn die(&mut self) -> bool {
        if self.consumer_gone || self.served.is_empty() {
            return false;
        }
        for leg in &mut self.legs {
            leg.cut(self.now, &mut self.random);
        }
        self.died = true;
        self.consumer_gone = true;
        self.consumer_ended.get_or_insert(self.now);
        true
    }
}
