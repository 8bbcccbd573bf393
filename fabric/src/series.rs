//! Live counters per service and peer, of which there is never more than a bounded number.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keel_certs::ServiceId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::time::Instant;

use crate::wire::Protocol;

/// Pairs of service and peer that are counted apart, in each role. What comes on top is counted as [`OTHER`].
pub const MAX_PAIRS: usize = 200;
/// A pair without a flow for this long gives way to a new one when there are [`MAX_PAIRS`].
const IDLE: Duration = Duration::from_secs(600);
/// While no pair can give way, this often one is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Service and peer of all flows for which there was no room.
pub const OTHER: &str = "other";
/// Peer of a connection that no provider took.
pub(crate) const NOBODY: &str = "none";

/// What one role counted for one service and peer. Everything moves while flows run.
#[derive(Debug, Clone, PartialEq)]
pub struct PairCounts {
    /// `consumer` or `provider` for an end of flows, `router` for what passes.
    pub role: &'static str,
    /// `mysql.default:3306`, with `/udp` behind it if it is not TCP.
    pub service: String,
    /// The other end's identity; at a router, whose connection it is that opened the flows.
    pub peer: String,
    /// Flows now.
    pub active: u64,
    /// Flows that were started.
    pub started: u64,
    /// Bytes from consumer to provider.
    pub bytes_up: u64,
    /// Bytes from provider to consumer.
    pub bytes_down: u64,
    /// Legs that replaced another one.
    pub resumes: u64,
    /// Times that bytes which were sent made no progress for a second.
    pub stalls: u64,
    /// How long they made none, altogether.
    pub stalled: Duration,
    /// Flows that did not end well, by code.
    pub resets: BTreeMap<&'static str, u64>,
}

/// The counters behind [`PairCounts`].
#[derive(Debug, Default)]
pub(crate) struct Series {
    active: AtomicU64,
    started: AtomicU64,
    pub(crate) up: Arc<AtomicU64>,
    pub(crate) down: Arc<AtomicU64>,
    resumes: AtomicU64,
    stalls: AtomicU64,
    stalled_micros: AtomicU64,
    /// Touched only when a flow ends.
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    resets: BTreeMap<&'static str, u64>,
    ended: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half changed here, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Series {
    pub(crate) fn resumed(&self, times: u32) {
        self.resumes.fetch_add(u64::from(times), Ordering::Relaxed);
    }

    pub(crate) fn stalled(&self, new: bool, time: Duration) {
        self.stalls.fetch_add(u64::from(new), Ordering::Relaxed);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.stalled_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(crate) fn reset(&self, code: &'static str) {
        *lock(&self.last).resets.entry(code).or_default() += 1;
    }

    /// Since when no flow runs, if none does.
    fn idle_since(&self) -> Option<Instant> {
        if self.active.load(Ordering::Relaxed) > 0 {
            return None;
        }
        lock(&self.last).ended
    }

    fn counts(&self, role: &'static str, (service, peer): &Pair) -> PairCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PairCounts {
            role,
            service: service.clone(),
            peer: peer.clone(),
            active: of(&self.active),
            started: of(&self.started),
            bytes_up: of(&self.up),
            bytes_down: of(&self.down),
            resumes: of(&self.resumes),
            stalls: of(&self.stalls),
            stalled: Duration::from_micros(of(&self.stalled_micros)),
            resets: lock(&self.last).resets.clone(),
        }
    }
}

/// A flow that is counted as running for as long as this lives. Taken once per flow; counting with it looks nothing up.
#[derive(Debug)]
pub(crate) struct Running(Arc<Series>);

impl Running {
    fn new(series: &Arc<Series>) -> Self {
        series.active.fetch_add(1, Ordering::Relaxed);
        series.started.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(series))
    }
}

impl std::ops::Deref for Running {
    type Target = Series;

    fn deref(&self) -> &Series {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.0.last).ended = Some(Instant::now());
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

type Pair = (String, String);

/// A service at a port: `mysql.default:3306`, `dns.default:53/udp`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a>(
    pub(crate) &'a ServiceId,
    pub(crate) u16,
    pub(crate) Protocol,
);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(service, port, protocol) = self;
        match protocol {
            Protocol::Tcp => write!(f, "{service}:{port}"),
            Protocol::Udp => write!(f, "{service}:{port}/udp"),
        }
    }
}

/// All pairs of all roles of a process.
#[derive(Debug, Default)]
pub struct Pairs {
    roles: Mutex<BTreeMap<&'static str, Role>>,
}

#[derive(Debug, Default)]
struct Role {
    pairs: BTreeMap<Pair, Arc<Series>>,
    other: Option<Arc<Series>>,
    /// No pair can give way before that.
    full_until: Option<Instant>,
}

impl Role {
    fn series(&mut self, pair: Pair, now: Instant) -> &Arc<Series> {
        if !self.pairs.contains_key(&pair) && self.pairs.len() >= MAX_PAIRS && !self.make_room(now)
        {
            return self.other.get_or_insert_default();
        }
        self.pairs.entry(pair).or_default()
    }

    /// Forgets the pair that has been idle for longest, if that is long enough.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.full_until.is_some_and(|until| now < until) {
            return false;
        }
        let idle = self.pairs.iter().filter_map(|(pair, series)| {
            let since = series.idle_since()?;
            (now.saturating_duration_since(since) >= IDLE).then_some((since, pair))
        });
        let Some((_, pair)) = idle.min() else {
            self.full_until = Some(now + LOOK);
            return false;
        };
        let pair = pair.clone();
        self.pairs.remove(&pair);
        true
    }
}

impl Pairs {
    /// Counts one more flow of this service and peer, until the answer is dropped.
    pub(crate) fn start(
        &self,
        role: &'static str,
        service: At<'_>,
        peer: &dyn fmt::Display,
    ) -> Running {
        let pair = (service.to_string(), peer.to_string());
        let mut roles = lock(&self.roles);
        Running::new(roles.entry(role).or_default().series(pair, Instant::now()))
    }

    /// What was counted so far, sorted by role, service and peer; [`OTHER`] is the last of its role.
    pub fn counts(&self) -> Vec<PairCounts> {
        let other = (OTHER.to_owned(), OTHER.to_owned());
        let roles = lock(&self.roles);
        let all = roles.iter().flat_map(|(name, role)| {
            let rest = role.other.iter().map(|series| (&other, series));
            let pairs = role.pairs.iter().chain(rest);
            pairs.map(|(pair, series)| series.counts(name, pair))
        });
        all.collect()
    }
}

impl PairCounts {
    fn labels(&self) -> [(&str, &str); 3] {
        [
            ("role", self.role),
            ("service", &self.service),
            ("peer", &self.peer),
        ]
    }

    fn labels_and<'a>(&'a self, key: &'a str, value: &'a str) -> [(&'a str, &'a str); 4] {
        let [role, service, peer] = self.labels();
        [role, service, peer, (key, value)]
    }
}

/// What [`Pairs`] look like to a scraper.
#[derive(Debug)]
pub(crate) struct PairsCollector(pub(crate) Arc<Pairs>);

impl Collector for PairsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.counts();
        let count = |of: fn(&PairCounts) -> u64| {
            let sample = move |pair| (PairCounts::labels(pair), ConstCounter::new(of(pair)));
            all.iter().map(sample)
        };
        let out = &mut encoder;
        family(
            out,
            ("service_flows", "Flows that run now, by service and peer"),
            (MetricType::Gauge, None),
            all.iter()
                .map(|pair| (pair.labels(), ConstGauge::new(pair.active))),
        )?;
        family(
            out,
            (
                "service_flows_started",
                "Flows started, by service and peer",
            ),
            (MetricType::Counter, None),
            count(|pair| pair.started),
        )?;
        family(
            out,
            (
                "service",
                "Bytes of applications so far, by service, peer and direction",
            ),
            (MetricType::Counter, Some(Unit::Bytes)),
            all.iter().flat_map(|pair| {
                [("up", pair.bytes_up), ("down", pair.bytes_down)].map(|(direction, bytes)| {
                    let labels = pair.labels_and("direction", direction);
                    (labels, ConstCounter::new(bytes))
                })
            }),
        )?;
        family(
            out,
            (
                "service_resumes",
                "Legs that replaced another one, by service and peer",
            ),
            (MetricType::Counter, None),
            count(|pair| pair.resumes),
        )?;
        family(
            out,
            (
                "service_stalls",
                "Times that sent bytes made no progress for a second, by service and peer",
            ),
            (MetricType::Counter, None),
            count(|pair| pair.stalls),
        )?;
        family(
            out,
            (
                "service_stalled",
                "Time in which sent bytes made no progress, by service and peer",
            ),
            (MetricType::Counter, Some(Unit::Seconds)),
            all.iter().map(|pair| {
                let seconds = ConstCounter::new(pair.stalled.as_secs_f64());
                (pair.labels(), seconds)
            }),
        )?;
        family(
            out,
            (
                "service_resets",
                "Flows that did not end well, by service, peer and reason",
            ),
            (MetricType::Counter, None),
            all.iter().flat_map(|pair| {
                pair.resets.iter().map(|(&code, &count)| {
                    (pair.labels_and("code", code), ConstCounter::new(count))
                })
            }),
        )
    }
}

fn family<'a, const N: usize>(
    out: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    (kind, unit): (MetricType, Option<Unit>),
    samples: impl Iterator<Item = ([(&'a str, &'a str); N], impl EncodeMetric)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, unit.as_ref(), kind)?;
    for (labels, value) in samples {
        value.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
