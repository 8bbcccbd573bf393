//! What came of opens lately: how fast providers answer over which router, who is ejected for failing, which routers were
//! not reached. Short map touches, never held across an await.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keel_certs::{NodeName, Subject};
use tokio::time::Instant;

use crate::directory::{Candidate, PortKey};
use crate::pick::Seen;

/// Failed opens in a row that eject a provider of a service.
const FAILURES: u32 = 3;
/// For how long it is ejected at first, and at most; each time in a row doubles it.
const EJECTED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// By which part of it that may be shorter, so that not everybody comes back at once.
const JITTER: f64 = 0.25;
/// After that time one connection tries the provider; for so long the others wait for what comes of it.
const TRIAL: Duration = Duration::from_secs(5);
/// What a new measurement counts against all before: one of four.
const SHARE: u32 = 4;
/// An old measurement says less: what it says halves in this time, so that a provider that was slow is tried again.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// Services and providers that are remembered; the one that was used longest ago is forgotten for another.
const MOST: usize = 4096;
/// For how long a router that was not reached is tried last.
const AWAY: Duration = Duration::from_secs(5);

/// What a sidecar has seen of endpoints.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    known: Mutex<BTreeMap<(PortKey, Subject), Known>>,
    /// No more entries than there are routers.
    away: Mutex<BTreeMap<NodeName, Instant>>,
    /// Opens so far.
    asked: AtomicU64,
}

#[derive(Debug)]
struct Known {
    streak: Streak,
    answers: BTreeMap<NodeName, Answers>,
    /// Opens over each router that wait for their answer, oldest first.
    waiting: BTreeMap<NodeName, BTreeMap<u64, Instant>>,
    used: Instant,
}

/// An open that waits for its answer.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    endpoints: &'a Endpoints,
    what: (PortKey, Subject),
    router: NodeName,
    number: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut all = self.endpoints.known();
        // It may have been forgotten meanwhile.
        let Some(known) = all.get_mut(&self.what) else {
            return;
        };
        if let Some(waiting) = known.waiting.get_mut(&self.router) {
            waiting.remove(&self.number);
            if waiting.is_empty() {
                known.waiting.remove(&self.router);
            }
        }
    }
}

/// Failures in a row.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Streak {
    failures: u32,
    /// Ejections in a row.
    ejections: u32,
    until: Option<Instant>,
    /// When the last pause is over.
    over: Option<Instant>,
}

impl Streak {
    /// Counts a failure of a connection that was opened at `asked`; returns for how long the provider is ejected now, if it is.
    /// `luck` is from 0 to 1.
    fn failed(
        &mut self,
        failures: u32,
        asked: Instant,
        now: Instant,
        luck: f64,
    ) -> Option<Duration> {
        if self.over.is_some_and(|over| asked < over) {
            // It was under way with those that have had the provider ejected, or there was nobody else to ask: nothing new.
            return None;
        }
        self.failures = self.failures.saturating_add(failures);
        if self.failures < FAILURES {
            return None;
        }
        let doubled = EJECTED.0.saturating_mul(1 << self.ejections.min(16));
        let pause = doubled.min(EJECTED.1).mul_f64(1.0 - JITTER * luck);
        self.ejections += 1;
        self.over = Some(now + pause);
        self.until = self.over;
        Some(pause)
    }

    fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// The time of answers, smoothed.
#[derive(Debug, Clone, Copy)]
struct Answers {
    time: Duration,
    at: Instant,
}

impl Answers {
    fn add(&mut self, time: Duration, now: Instant) {
        self.time = (self.time * (SHARE - 1) + time) / SHARE;
        self.at = now;
    }

    fn now(&self, now: Instant) -> Duration {
        let age = now.saturating_duration_since(self.at);
        let halves = age.as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.time.mul_f64(0.5_f64.powf(halves))
    }
}

/// How an open failed, as far as it says something about the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The backend said no: cheap to find out.
    Refused,
    /// Nobody said anything: that held a connection up, so once is enough.
    Silent,
}

impl Endpoints {
    /// A connection is opened over `way`, until that is dropped. If the provider was ejected, the others wait for the outcome.
    pub(crate) fn asking(&self, key: &PortKey, way: &Candidate) -> Asking<'_> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let (provider, router) = (&way.provider, &way.router.node);
        let mut all = self.known();
        let now = Instant::now();
        let known = entry(&mut all, key, provider, now);
        let waiting = known.waiting.entry(router.clone()).or_default();
        waiting.insert(number, now);
        if known.streak.until.is_some() && !known.streak.is_ejected(now) {
            known.streak.until = Some(now + TRIAL);
        }
        Asking {
            endpoints: self,
            what: (key.clone(), provider.clone()),
            router: router.clone(),
            number,
        }
    }

    /// The provider took a connection, `time` after it was asked over `router`.
    pub(crate) fn answered(
        &self,
        key: &PortKey,
        provider: &Subject,
        router: &NodeName,
        time: Duration,
    ) {
        let mut all = self.known();
        let now = Instant::now();
        let known = entry(&mut all, key, provider, now);
        known.streak = Streak::default();
        match known.answers.get_mut(router) {
            Some(answers) => answers.add(time, now),
            None => {
                _ = known
                    .answers
                    .insert(router.clone(), Answers { time, at: now })
            }
        }
    }

    /// The provider did not take a connection that was opened at `asked`. Returns for how long it is ejected, if it is from now on.
    pub(crate) fn failed(
        &self,
        key: &PortKey,
        provider: &Subject,
        asked: Instant,
        failure: Failure,
    ) -> Option<Duration> {
        let mut all = self.known();
        let now = Instant::now();
        let known = entry(&mut all, key, provider, now);
        let failures = match failure {
            Failure::Refused => 1,
            Failure::Silent => FAILURES,
        };
        known.streak.failed(failures, asked, now, rand::random())
    }

    /// The router was not reached, or takes nothing new.
    pub(crate) fn away(&self, router: &NodeName) {
        self.routers_away().insert(router.clone(), Instant::now());
    }

    /// The router was reached.
    pub(crate) fn back(&self, router: &NodeName) {
        self.routers_away().remove(router);
    }

    /// What was seen of the ways to a service's port.
    pub(crate) fn of<'a>(&'a self, key: &'a PortKey) -> OfService<'a> {
        OfService {
            endpoints: self,
            key,
            now: Instant::now(),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<(PortKey, Subject), Known>> {
        // Nothing is left half changed, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn routers_away(&self) -> MutexGuard<'_, BTreeMap<NodeName, Instant>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry<'a>(
    all: &'a mut BTreeMap<(PortKey, Subject), Known>,
    key: &PortKey,
    provider: &Subject,
    now: Instant,
) -> &'a mut Known {
    let key = (key.clone(), provider.clone());
    if all.len() >= MOST && !all.contains_key(&key) {
        let oldest = all.iter().min_by_key(|(_, known)| known.used);
        if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
            all.remove(&oldest);
        }
    }
    let known = all.entry(key).or_insert_with(|| Known {
        streak: Streak::default(),
        answers: BTreeMap::new(),
        waiting: BTreeMap::new(),
        used: now,
    });
    known.used = now;
    known
}

/// What was seen of the ways to one service's port.
#[derive(Debug)]
pub(crate) struct OfService<'a> {
    endpoints: &'a Endpoints,
    key: &'a PortKey,
    now: Instant,
}

impl OfService<'_> {
    /// The time of an answer over a way, smoothed; `None` if there was none yet.
    pub(crate) fn usual(&self, way: &Candidate) -> Option<Duration> {
        let known = self.endpoints.known();
        let known = known.get(&(self.key.clone(), way.provider.clone()))?;
        Some(known.answers.get(&way.router.node)?.now(self.now))
    }
}

impl Seen for OfService<'_> {
    fn avoided(&self, way: &Candidate) -> bool {
        let mut away = self.endpoints.routers_away();
        let since = away.get(&way.router.node);
        let is_away = since.map(|at| self.now.saturating_duration_since(*at) < AWAY);
        if is_away == Some(false) {
            away.remove(&way.router.node);
        }
        drop(away);
        let known = self.endpoints.known();
        let known = known.get(&(self.key.clone(), way.provider.clone()));
        is_away == Some(true) || known.is_some_and(|known| known.streak.is_ejected(self.now))
    }

    fn latency(&self, way: &Candidate) -> Option<Duration> {
        let usual = self.usual(way);
        let known = self.endpoints.known();
        let known = known.get(&(self.key.clone(), way.provider.clone()))?;
        let waiting = known.waiting.get(&way.router.node);
        let oldest = waiting.and_then(|waiting| waiting.values().next());
        // The next answer takes at least as long as one that is still awaited.
        let awaited = oldest.map(|since| self.now.saturating_duration_since(*since));
        usual.max(awaited)
    }
}

#[cfg(test)]
mod tests;
