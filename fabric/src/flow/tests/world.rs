//! A random world: one consumer, one provider's process with its table, legs that break, under virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keel_certs::Subject;
use tokio::time::Instant;

use super::bugs::Bug;
use super::check::{App, Ending, Peer};
use super::faults::{Fault, Faults, Past};
use super::legs::{Bound, Leg, Random};
use super::trace::Trace;
use crate::flow::{Flow, FlowLimits, State};
use crate::limits::ProviderLimits;
use crate::provider::table::Table;
use crate::wire::{FlowId, Generation, Open, Protocol, RefuseCode, Secret, VERSION};

/// One flow at the provider's process.
pub(super) struct Served {
    pub(super) flow: Flow,
    pub(super) app: App,
    pub(super) decide_at: Instant,
    pub(super) refuse: bool,
    /// Until when its leg takes nothing of what it has to say.
    pub(super) blocked: Option<Instant>,
}

/// What a run did, to see that the worlds are not too peaceful.
#[derive(Debug, Default, Clone)]
pub(super) struct Report {
    pub(super) faults: Faults,
    pub(super) resumes: u64,
    pub(super) done: u64,
    pub(super) expired: u64,
    pub(super) refused: u64,
    /// Repeated opens that a router refused.
    pub(super) lapses: u64,
    /// Repeated opens whose first one had not come to the provider's process.
    pub(super) strangers: u64,
    pub(super) bytes: u64,
    /// Of all that happened.
    pub(super) trace: Trace,
}

impl Report {
    pub(super) fn add(&mut self, other: &Self) {
        self.faults.add(&other.faults);
        self.resumes += other.resumes;
        self.done += other.done;
        self.expired += other.expired;
        self.refused += other.refused;
        self.lapses += other.lapses;
        self.strangers += other.strangers;
        self.bytes += other.bytes;
    }
}

pub(super) struct World {
    pub(super) random: Random,
    pub(super) bug: Option<Bug>,
    pub(super) now: Instant,
    pub(super) limits: FlowLimits,
    pub(super) consumer: Flow,
    /// Until when the consumer's leg takes nothing of what it has to say.
    pub(super) blocked: Option<Instant>,
    pub(super) app: App,
    pub(super) served: BTreeMap<FlowId, Served>,
    /// As the provider's process has it, which decides by it what becomes of a leg.
    pub(super) table: Table<()>,
    /// By all processes that the provider had.
    pub(super) dials: BTreeMap<FlowId, u32>,
    /// Flows that were begun by a process that is gone.
    pub(super) lost: BTreeSet<FlowId>,
    pub(super) legs: Vec<Leg>,
    pub(super) redial_at: Option<Instant>,
    /// Faults that are still allowed; a world that breaks for ever proves nothing about the end.
    pub(super) faults_left: u64,
    pub(super) refusals_left: u64,
    /// How often the router on the way will not know the provider.
    pub(super) lapses_left: u64,
    pub(super) long_outage: bool,
    /// The provider's process has started anew, or the consumer's is gone: the flow ends with an RST.
    pub(super) died: bool,
    pub(super) consumer_gone: bool,
    /// What the consumer's application may still read of a provider's process that is gone.
    pub(super) gone_peer: Peer,
    pub(super) consumer_ended: Option<Instant>,
    /// Frames and headers of the past, for those who bring them again.
    pub(super) past: Past,
    pub(super) start: Instant,
    pub(super) report: Report,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random(seed);
        let start = Instant::now();
        let window = 2048 << random.below(8);
        let limits = FlowLimits {
            window,
            max_window: window << random.below(4),
            resume_window: if random.once_in(40) && bug.is_none() {
                Duration::ZERO
            } else {
                Duration::from_secs(60)
            },
            ..FlowLimits::default()
        };
        let mut app = App::new(
            "the consumer's application",
            random.below(60_000),
            &mut random,
        );
        let faults_left = if random.once_in(20) {
            0
        } else {
            60 + random.below(60)
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
            blocked: None,
            random,
            bug,
            now: start,
            start,
            limits,
            app,
            served: BTreeMap::new(),
            table: table(limits, start - PROCESS_AGE),
            dials: BTreeMap::new(),
            lost: BTreeSet::new(),
            legs: Vec::new(),
            redial_at: None,
            faults_left,
            refusals_left,
            lapses_left,
            long_outage: false,
            died: false,
            consumer_gone: false,
            gone_peer: Peer::default(),
            consumer_ended: None,
            past: Past::default(),
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
        self.check_quiet()?;
        if self.faults_left > 0 && self.random.once_in(FAULT_STEPS) {
            self.fault()?;
        }
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

    /// The consumer's driver.
    fn consume(&mut self) -> Result<(), String> {
        if self.consumer_gone {
            return Ok(());
        }
        let peer = match self.served.get(&self.consumer.id()) {
            Some(served) => served.app.as_peer(),
            // The provider's end is through; what it wrote was checked while it was there.
            None => self.gone_peer,
        };
        self.app
            .act(&mut self.consumer, peer, self.now, &mut self.random)?;
        if let State::Refused { .. } = self.consumer.state() {
            self.report.refused += 1;
            if self.lost.contains(&self.consumer.id()) && self.app.written > 0 {
                return Err("I8: early bytes of a process that is gone go out again".to_owned());
            }
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
            // Its driver drops the legs that it had left.
            let generation = self.consumer.generation();
            for leg in &mut self.legs {
                if leg.flow == self.consumer.id() && leg.generation < generation {
                    leg.cut(self.now, &mut self.random);
                }
            }
        }
        Ok(())
    }

    fn flush_consumer(&mut self) {
        if self.consumer_gone {
            return;
        }
        let (flow, generation) = (self.consumer.id(), self.consumer.generation());
        if let Some(leg) = self
            .legs
            .iter_mut()
            .find(|leg| leg.flow == flow && leg.generation == generation)
        {
            if self.blocked.is_some_and(|until| until > self.now) {
                return;
            }
            self.blocked = loop {
                if self.random.once_in(BLOCKED) {
                    break Some(self.now + self.random.millis(800));
                }
                let Some(frame) = self.consumer.transmit(generation, self.now) else {
                    break None;
                };
                leg.send_up(&frame, self.now, &mut self.random);
            };
            leg.up.finished |= self.blocked.is_none() && is_through(&self.consumer);
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
        } else if self.random.once_in(200) && self.faults_left > 0 && self.redial_at.is_none() {
            self.note(Fault::Outage);
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
            self.resume();
        }
    }

    pub(super) fn resume(&mut self) {
        if let Some(generation) = self.consumer.resume(self.now) {
            self.dial(generation);
            self.flush_consumer();
        }
    }

    fn dial(&mut self, generation: Generation) {
        let breaks = self.faults_left > 0;
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
        if served.blocked.is_some_and(|until| until > now) {
            return;
        }
        served.blocked = loop {
            if random.once_in(BLOCKED) {
                break Some(now + random.millis(800));
            }
            let Some(frame) = served.flow.transmit(generation, now) else {
                break None;
            };
            leg.send_down(&frame, now, random);
        };
        leg.down.finished |= served.blocked.is_none() && is_through(&served.flow);
    }
}

/// The table of a provider's process that starts now.
pub(super) fn table(limits: FlowLimits, now: Instant) -> Table<()> {
    Table::new(limits, ProviderLimits::default().remembered, now)
}

/// How long the provider's process was there before the flow. One that is as young as the flow may have been another one when
/// it began.
const PROCESS_AGE: Duration = Duration::from_secs(3600);

/// Whose flows these are.
pub(super) fn initiator() -> Subject {
    "/node/edge-a".parse().expect("a subject")
}

/// A leg takes nothing for a moment, once in so many frames.
const BLOCKED: u64 = 300;

/// A fault once in so many steps.
const FAULT_STEPS: u64 = 4;

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
        window: None,
        rest: bytes::Bytes::new(),
    }
}
