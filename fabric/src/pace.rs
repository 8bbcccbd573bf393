//! Bandwidth limits: flows of one limit take turns in quanta that are spread over time.
//!
//! A [`Line`] is pure: it hands out slots in the order in which they are asked for, so flows that want more than there is
//! get equal shares, and none gets more than about [`SLACK`] at once. Who has no slot yet does not read its source; the
//! credit of the flow then holds the sender back, and nothing is dropped.

mod line;

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use keel_certs::ServiceId;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, Sleep};

use crate::metrics::{FabricMetrics, PaceLabels, RateLabels, Seconds, Side};
use crate::options::PublicationOptions;
use crate::units::Rate;
use crate::wire::Protocol;
use line::{Line, Slot};

/// A port of a service.
pub(crate) type ServicePort = (ServiceId, u16, Protocol);
/// Which end's limit for which service.
type Key = (Side, ServicePort);

/// The limits of one process: one over all its flows, and one for each service. Limits may change while flows run.
#[derive(Debug)]
pub struct Paces {
    metrics: Arc<FabricMetrics>,
    all: Option<Arc<Limit>>,
    services: Mutex<HashMap<Key, Arc<Limit>>>,
}

impl Paces {
    /// Limits over `all` flows together; services have none yet.
    #[must_use]
    pub fn new(all: Option<Rate>, metrics: Arc<FabricMetrics>) -> Arc<Self> {
        let all = all.map(|rate| Limit::new("all".to_owned(), Some(rate), &metrics));
        Arc::new(Self {
            metrics,
            all,
            services: Mutex::default(),
        })
    }

    /// The limits of a flow of a service, which is to have this limit from now on.
    pub(crate) fn pace(&self, service: ServicePort, limit: Option<Rate>, side: Side) -> Pace {
        let limit = {
            // Nothing is left half changed here, so a panic elsewhere does not spoil it.
            let mut all = self.services.lock().unwrap_or_else(PoisonError::into_inner);
            // As many entries as there are services published or mapped: others are refused before.
            let found = all
                .entry((side, service))
                .or_insert_with_key(|key| Limit::new(name(key), limit, &self.metrics));
            found.set(limit);
            Arc::clone(found)
        };
        Pace::new(self.all.clone(), Some(limit), side)
    }

    /// Changes the limits of services that are provided here. One that is not named any more keeps its limit for the flows that
    /// still run.
    pub(crate) fn set<'a>(
        &self,
        services: impl Iterator<Item = (ServicePort, &'a PublicationOptions)>,
    ) {
        let mut wanted: HashMap<_, _> = services
            .map(|(service, options)| ((Side::provider, service), options.limit))
            .collect();
        let mut all = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|key, limit| match wanted.remove(key) {
            _ if key.0 != Side::provider => true,
            Some(rate) => {
                limit.set(rate);
                true
            }
            None if Arc::strong_count(limit) > 1 => true,
            None => {
                limit.set(None);
                false
            }
        });
        for (key, rate) in wanted.into_iter().filter(|(_, rate)| rate.is_some()) {
            let limit = Limit::new(name(&key), rate, &self.metrics);
            all.insert(key, limit);
        }
    }
}

fn name((_, (service, port, protocol)): &Key) -> String {
    match protocol {
        Protocol::Tcp => format!("{service}:{port}"),
        Protocol::Udp => format!("{service}:{port}/udp"),
    }
}

/// One limit: the same rate for each direction.
#[derive(Debug)]
pub(crate) struct Limit {
    up: Line,
    down: Line,
    name: String,
    metrics: Arc<FabricMetrics>,
}

impl Limit {
    pub(crate) fn new(name: String, rate: Option<Rate>, metrics: &Arc<FabricMetrics>) -> Arc<Self> {
        let now = Instant::now();
        let limit = Self {
            up: Line::new(now),
            down: Line::new(now),
            name,
            metrics: Arc::clone(metrics),
        };
        limit.set(rate);
        Arc::new(limit)
    }

    /// Changes the rate; flows that wait hear of it within [`LOOK`].
    pub(crate) fn set(&self, rate: Option<Rate>) {
        let rate = rate.map_or(0, Rate::bytes_per_second);
        if !(self.up.set(rate) | self.down.set(rate)) {
            return;
        }
        if rate > 0 {
            for (line, direction) in [(&self.up, "up"), (&self.down, "down")] {
                let labels = PaceLabels {
                    limit: self.name.clone(),
                    direction,
                };
                line.counts.get_or_init(|| Counts {
                    bytes: self.metrics.limited.get_or_create_owned(&labels),
                    time: self.metrics.limited_time.get_or_create_owned(&labels),
                });
            }
        }
        let labels = RateLabels {
            limit: self.name.clone(),
        };
        if rate == 0 {
            self.metrics.rate_limit.remove(&labels);
        } else {
            let gauge = self.metrics.rate_limit.get_or_create_owned(&labels);
            gauge.set(i64::try_from(rate).unwrap_or(i64::MAX));
        }
    }
}

/// What a limit did in one direction.
#[derive(Debug)]
pub(crate) struct Counts {
    bytes: Counter,
    time: Seconds,
}

/// The limits of one flow at one end.
#[derive(Debug)]
pub(crate) struct Pace {
    /// From the application into the fabric.
    pub(crate) read: Gate,
    /// From the fabric to the application.
    pub(crate) write: Gate,
}

impl Pace {
    fn new(all: Option<Arc<Limit>>, own: Option<Arc<Limit>>, side: Side) -> Self {
        let (read, write) = match side {
            Side::consumer => (Way::Up, Way::Down),
            Side::provider => (Way::Down, Way::Up),
        };
        Self {
            read: Gate::new([all.clone(), own.clone()], read),
            write: Gate::new([all, own], write),
        }
    }

    /// Two gates of the same limits, in the order up, down: for who stands between the ends.
    pub(crate) fn between(limit: &Arc<Limit>) -> (Gate, Gate) {
        let gate = |way| Gate::new([Some(Arc::clone(limit)), None], way);
        (gate(Way::Up), gate(Way::Down))
    }

    /// Adds another limit to those of the flow, at most one.
    pub(crate) fn under(&mut self, limit: &Arc<Limit>) {
        for gate in [&mut self.read, &mut self.write] {
            gate.limits[0].get_or_insert_with(|| Arc::clone(limit));
        }
    }
}

/// A direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From consumer to provider.
    Up,
    Down,
}

/// How many quanta of the narrower of two lines one turn may be.
const STRETCH: usize = 5;

/// How often who waits looks whether the rate has changed.
const LOOK: Duration = Duration::from_millis(100);

/// One direction of one flow. Gives its slots back when dropped.
pub(crate) struct Gate {
    limits: [Option<Arc<Limit>>; 2],
    way: Way,
    turn: Option<Turn>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A place in the order of every limit.
#[derive(Debug)]
struct Turn {
    bytes: usize,
    at: Instant,
    slots: [Option<Slot>; 2],
    /// Since when it is waited for.
    asked: Instant,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("turn", &self.turn).finish()
    }
}

impl Gate {
    const fn new(limits: [Option<Arc<Limit>>; 2], way: Way) -> Self {
        Self {
            limits,
            way,
            turn: None,
            timer: None,
        }
    }

    fn line(&self, index: usize) -> Option<&Line> {
        let limit = self.limits[index].as_ref()?;
        let line = match self.way {
            Way::Up => &limit.up,
            Way::Down => &limit.down,
        };
        line.is_limited().then_some(line)
    }

    /// Whether anything is limited now.
    pub(crate) fn is_limited(&self) -> bool {
        (0..2).any(|index| self.line(index).is_some())
    }

    /// Whether a turn is waited for.
    pub(crate) const fn waits(&self) -> bool {
        self.turn.is_some()
    }

    /// How many of `want` bytes, which must be there, may go now; then [`used`](Self::used) has to follow. Wakes when more
    /// may.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<usize> {
        loop {
            let at = match self.ask(want, Instant::now()) {
                Ok(bytes) => return Poll::Ready(bytes),
                Err(at) => at,
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.is_elapsed() || timer.deadline() > at {
                timer.as_mut().reset(at);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }

    /// As [`poll`](Self::poll) without waiting.
    ///
    /// # Errors
    /// When to ask again.
    fn ask(&mut self, want: usize, now: Instant) -> Result<usize, Instant> {
        if self.turn.as_ref().is_some_and(|turn| !self.stands(turn)) {
            self.give_back(0);
        }
        let turn = match &mut self.turn {
            Some(turn) => turn,
            None => {
                let Some(turn) = self.queue_up(want, now) else {
                    return Ok(want);
                };
                self.turn.insert(turn)
            }
        };
        if turn.at <= now {
            Ok(turn.bytes.min(want))
        } else {
            Err(turn.at.min(now + LOOK))
        }
    }

    /// Takes a place at every line; `None` if nothing is limited.
    fn queue_up(&self, want: usize, now: Instant) -> Option<Turn> {
        let lines = [self.line(0), self.line(1)];
        let quanta = || lines.iter().flatten().map(|line| line.quantum());
        // Turns at the wider line must be as large as those of others there, or they are no fair share of it.
        let bytes = want.min(quanta().max()?.min(quanta().min()? * STRETCH));
        let slots = lines.map(|line| line.map(|line| line.reserve(bytes, now)));
        let at = slots.iter().flatten().map(|slot| slot.at).max()?;
        Some(Turn {
            bytes,
            at,
            slots,
            asked: now,
        })
    }

    /// Whether the lines are still as they were when the turn was taken.
    fn stands(&self, turn: &Turn) -> bool {
        (0..2).all(|index| match (&turn.slots[index], self.line(index)) {
            (Some(slot), Some(line)) => line.stands(slot),
            (None, None) => true,
            _ => false,
        })
    }

    /// So many bytes went, of those that were allowed; more only where they come in pieces.
    pub(crate) fn used(&mut self, bytes: usize) {
        if self.turn.is_some() {
            self.used_at(bytes, Instant::now());
        }
    }

    fn used_at(&mut self, bytes: usize, now: Instant) {
        let Some(turn) = &self.turn else { return };
        let waited = now.saturating_duration_since(turn.asked);
        let late = turn.at > turn.asked;
        if late && bytes > 0 {
            let slow = (0..2).filter(|&index| {
                turn.slots[index]
                    .as_ref()
                    .is_some_and(|slot| slot.at == turn.at)
            });
            for counts in slow.filter_map(|index| self.line(index)?.counts.get()) {
                counts.bytes.inc_by(bytes as u64);
                counts.time.inc_by(waited.as_secs_f64());
            }
        }
        self.give_back(bytes);
    }

    /// Whether a packet of so many bytes may go now; it then counts. One that may not is for the caller to drop.
    pub(crate) fn try_take(&mut self, bytes: usize, now: Instant) -> bool {
        let lines = [self.line(0), self.line(1)];
        if !lines.iter().flatten().all(|line| line.takes_packet(now)) {
            return false;
        }
        for line in lines.iter().flatten() {
            line.packet(bytes, now);
        }
        true
    }

    fn give_back(&mut self, used: usize) {
        self.timer = None;
        let Some(turn) = self.turn.take() else { return };
        for (index, slot) in turn.slots.iter().enumerate() {
            if let (Some(slot), Some(line)) = (slot, self.line(index)) {
                line.settle(slot, turn.bytes, used);
            }
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.give_back(0);
    }
}

#[cfg(test)]
mod tests;
