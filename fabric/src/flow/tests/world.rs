//! A random world: one consumer, one provider's process with its table, legs that break, under virtual time.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::bugs::{Bug, sabotage};
use super::check::{App, Ending, Peer};
use super::legs::{Bound, Leg, Random};
use crate::flow::{Finished, Flow, FlowLimits, State};
use crate::wire::{
    FlowId, Frame, Generation, GoneCode, Open, Protocol, RefuseCode, Secret, VERSION,
};

/// One flow at the provider's process.
pub(super) struct Served {
    pub(super) flow: Flow,
    pub(super) app: App,
    pub(super) decide_at: Instant,
    pub(super) refuse: bool,
}

/// What a run did, to see that the worlds are not too peaceful.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Report {
    pub(super) breaks: u64,
    pub(super) resumes: u64,
    pub(super) done: u64,
    pub(super) expired: u64,
    pub(super) refused: u64,
    /// Repeated opens that a router refused.
    pub(super) lapses: u64,
    pub(super) bytes: u64,
}

pub(super) struct World {
    pub(super) random: Random,
    pub(super) bug: Option<Bug>,
    pub(super) now: Instant,
    pub(super) limits: FlowLimits,
    pub(super) consumer: Flow,
    pub(super) app: App,
    pub(super) served: HashMap<FlowId, Served>,
    pub(super) finished: HashMap<FlowId, Finished>,
    pub(super) dials: HashMap<FlowId, u32>,
    pub(super) legs: Vec<Leg>,
    pub(super) redial_at: Option<Instant>,
    /// Breaks that are still allowed; a world that breaks for ever proves nothing about the end.
    pub(super) breaks_left: u64,
    pub(super) refusals_left: u64,
    /// How often the router on the way will not know the provider.
    pub(super) lapses_left: u64,
    pub(super) long_outage: bool,
    pub(super) consumer_ended: Option<Instant>,
    pub(super) report: Report,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random(seed);
        let window = 2048 << random.below(8);
        let limits = FlowLimits {
            window,
            max_window: window << random.below(4),
            resume_window: Duration::from_secs(60),
        };
        let mut app = App::new(
            "the consumer's application",
            random.below(60_000),
            &mut random,
        );
        let breaks_left = if random.once_in(10) {
            0
        } else {
            random.below(30)
        };
        let refusals_left = if random.once_in(5) {
            1 + random.below(2)
        } else {
            0
        };
        let lapses_left = if random.once_in(4) {
            random.below(4)
        } else {
            0
        };
        if bug.is_some_and(|bug| bug != Bug::CutTakenForEnd) {
            app.ending = Ending::Fin;
        }
        let mut world = Self {
            consumer: Flow::initiate(open(&mut random), limits),
            random,
            bug,
            now: Instant::now(),
            limits,
            app,
            served: HashMap::new(),
            finished: HashMap::new(),
            dials: HashMap::new(),
            legs: Vec::new(),
            redial_at: None,
            breaks_left,
            refusals_left,
            lapses_left,
            long_outage: false,
            consumer_ended: None,
            report: Report::default(),
        };
        world.dial(Generation::FIRST);
        world.flush_consumer();
        world
    }

    /// Runs until both ends are through.
    ///
    /// # Errors
    /// What did not hold.
    pub(super) fn run(mut self) -> Result<Report, String> {
        let start = self.now;
        for _ in 0..STEPS {
            if self.step()? {
                self.judge()?;
                return Ok(self.report);
            }
        }
        let served: Vec<_> = self
            .served
            .values()
            .map(|served| served.flow.state().clone())
            .collect();
        Err(format!(
            "I7: no end after {:?}: consumer {:?}, provider {served:?}",
            self.now - start,
            self.consumer.state()
        ))
    }

    fn step(&mut self) -> Result<bool, String> {
        self.now += match self.random.below(100) {
            0 => Duration::from_secs(2),
            1..20 => Duration::from_millis(30),
            _ => Duration::from_millis(1),
        };
        if self.breaks_left > 0 && self.random.once_in(100) {
            self.break_any();
        }
        self.check_quiet()?;
        self.consumer.tick(self.now);
        self.served
            .values_mut()
            .for_each(|served| served.flow.tick(self.now));
        self.consume()?;
        self.serve()?;
        self.deliver()?;
        self.flush_consumer();
        self.served.iter_mut().for_each(|(id, served)| {
            flush(served, *id, &mut self.legs, self.now, &mut self.random)
        });
        self.check_bounds()?;
        self.leave_table()
    }

    fn break_any(&mut self) {
        let index = self.random.below(self.legs.len() as u64) as usize;
        if let Some(leg) = self.legs.get_mut(index).filter(|leg| !leg.broken) {
            leg.cut(self.now, &mut self.random);
            self.breaks_left -= 1;
            self.report.breaks += 1;
        }
    }

    /// The consumer's driver.
    fn consume(&mut self) -> Result<(), String> {
        let peer = match self.served.get(&self.consumer.id()) {
            Some(served) => served.app.as_peer(),
            // The provider's end is through; what it wrote was checked while it was there.
            None => self.gone_peer(),
        };
        self.app
            .act(&mut self.consumer, peer, self.now, &mut self.random)?;
        if let State::Refused { .. } = self.consumer.state() {
            self.report.refused += 1;
            assert!(
                self.consumer.restart(open(&mut self.random)),
                "a refused open can be restarted"
            );
            self.dial(Generation::FIRST);
        }
        self.redial();
        self.flush_consumer();
        if is_through(&self.consumer) && self.consumer_ended.is_none() {
            self.consumer_ended = Some(self.now);
        }
        Ok(())
    }

    fn flush_consumer(&mut self) {
        let (flow, generation) = (self.consumer.id(), self.consumer.generation());
        if let Some(leg) = self
            .legs
            .iter_mut()
            .find(|leg| leg.flow == flow && leg.generation == generation)
        {
            while let Some(frame) = self.consumer.transmit(generation, self.now) {
                leg.send_up(&frame, self.now, &mut self.random);
            }
            leg.up.finished |= is_through(&self.consumer);
        }
    }

    fn redial(&mut self) {
        let suspect =
            matches!(self.consumer.state(), State::Attached(_)) && self.random.once_in(2000);
        if !self.consumer.wants_leg() && !suspect {
            self.redial_at = None;
            return;
        }
        let delay = if suspect {
            Duration::ZERO
        } else if self.random.once_in(150) {
            Duration::from_secs(90)
        } else {
            self.random.millis(1500)
        };
        let at = *self.redial_at.get_or_insert(self.now + delay);
        self.long_outage |= at > self.now + self.limits.resume_window;
        if at > self.now {
            return;
        }
        self.redial_at = None;
        // Sometimes two legs race, and the later one may be the faster one.
        for _ in 0..1 + u64::from(self.random.once_in(4)) {
            if let Some(generation) = self.consumer.resume(self.now) {
                self.dial(generation);
                self.flush_consumer();
            }
        }
    }

    fn dial(&mut self, generation: Generation) {
        let breaks = self.breaks_left > 0;
        self.breaks_left = self.breaks_left.saturating_sub(1);
        self.legs.push(Leg::new(
            self.consumer.id(),
            generation,
            &mut self.random,
            breaks,
        ));
    }

    /// The provider's drivers.
    fn serve(&mut self) -> Result<(), String> {
        let peer = self.app.as_peer();
        for (id, served) in &mut self.served {
            let undecided = matches!(served.flow.state(), State::Opening | State::Detached { .. })
                && !served.app.ended;
            if undecided && served.decide_at <= self.now && served.app.written == 0 {
                if served.refuse {
                    served.flow.refuse(RefuseCode::BackendRefused, "refused");
                } else {
                    served.flow.accept(0);
                }
            }
            if *id == self.consumer.id() && served.decide_at <= self.now && !served.refuse {
                served
                    .app
                    .act(&mut served.flow, peer, self.now, &mut self.random)?;
            } else if served.flow.readable().next().is_some() {
                return Err("a refused open delivered bytes".to_owned());
            }
            flush(served, *id, &mut self.legs, self.now, &mut self.random);
        }
        Ok(())
    }

    /// Everything that arrived by now, on any leg, also on those that are fenced.
    fn deliver(&mut self) -> Result<(), String> {
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
                if leg.flow == self.consumer.id() {
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
        let leg = &self.legs[index];
        if leg.flow != self.consumer.id() {
            return Ok(());
        }
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
        let Some(served) = self.served.get_mut(&id) else {
            return Ok(());
        };
        match sabotage(self.bug, frame, leg.generation, served.flow.generation()) {
            Some((frame, generation)) => receive(&mut served.flow, generation, frame, self.now),
            None => Ok(()),
        }
    }

    /// The listener: first frame of a leg.
    fn header(&mut self, index: usize, frame: &Frame) -> Result<(), String> {
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
        let known = self
            .served
            .get_mut(&id)
            .filter(|_| self.bug != Some(Bug::DoubleDial));
        let outcome = match (known, self.finished.get(&id), frame) {
            (Some(served), _, Frame::Open(open)) => served.flow.attach_open(open, self.now),
            (Some(served), _, Frame::Resume(resume)) => served.flow.attach(resume, self.now),
            (None, Some(finished), _) if self.bug != Some(Bug::DoubleDial) => Err(finished.code),
            (None, _, Frame::Open(open)) => {
                self.admit(open);
                Ok(())
            }
            _ => Err(GoneCode::Unknown),
        };
        self.report.resumes += u64::from(outcome.is_ok() && generation > Generation::FIRST);
        let leg = &mut self.legs[index];
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
            },
        );
    }

    fn gone_peer(&self) -> Peer {
        Peer {
            key: 0,
            written: 0,
            finished: false,
        }
    }
}

/// Whether a driver would finish the leg and forget the machine.
pub(super) fn is_through(flow: &Flow) -> bool {
    flow.state().is_final() && !flow.is_telling()
}

fn flush(served: &mut Served, id: FlowId, legs: &mut [Leg], now: Instant, random: &mut Random) {
    let generation = served.flow.generation();
    let leg = legs
        .iter_mut()
        .find(|leg| leg.bound == Bound::To(id) && leg.generation == generation);
    if let Some(leg) = leg {
        while let Some(frame) = served.flow.transmit(generation, now) {
            leg.send_down(&frame, now, random);
        }
        leg.down.finished |= is_through(&served.flow);
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

/// Many times what the longest world takes.
const STEPS: u32 = 30_000;

pub(super) fn open(random: &mut Random) -> Open {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random.next().to_le_bytes());
    id[8..].copy_from_slice(&random.next().to_le_bytes());
    Open {
        version: VERSION,
        flow: FlowId::from_bytes(id),
        generation: Generation::FIRST,
        secret: Secret::from_bytes([random.next() as u8; 32]),
        service: "mysql.default".parse().expect("a service"),
        port: 3306,
        protocol: Protocol::Tcp,
        provider: "/node/edge-b".parse().expect("a subject"),
        limit: 0,
        max_datagram: 0,
        hops: 0,
        flags: 0,
        from: None,
        rest: bytes::Bytes::new(),
    }
}
