//! Active checks: whether backends work, found out where they are.
//!
//! Each check is a task of its own, so that a backend that says nothing holds up nobody else's check.

mod probe;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keel_certs::ServiceId;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::Publication;
use crate::metrics::{CheckLabels, CheckedLabels, FabricMetrics};
use crate::options::Check;
use crate::quic::HostPort;
use crate::wire::{Health, Offer, Protocol};

/// The first check comes within this part of the interval, so that many do not come at once.
const FIRST: f64 = 0.1;
/// By which part of it a pause may be longer or shorter.
const JITTER: f64 = 0.1;

/// What a publication is known by.
pub(crate) type Key = (ServiceId, u16, Protocol);

/// What is known of the backends that are checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Healths(BTreeMap<Key, (u64, Health)>);

impl Healths {
    /// How `publication` is offered now.
    pub(crate) fn offer(&self, publication: &Publication) -> Offer {
        let known = self.0.get(&key(publication));
        Offer {
            weight: publication.options.weight,
            priority: publication.options.priority,
            health: known.map_or(Health::Unknown, |(_, health)| *health),
        }
    }
}

/// What a router knows of a publication: not the backend.
pub(crate) fn key(publication: &Publication) -> Key {
    (
        publication.service.clone(),
        publication.port,
        publication.protocol,
    )
}

/// Counts what comes of one backend's checks. Pure.
#[derive(Debug)]
struct Counter {
    failures: u16,
    recoveries: u16,
    health: Health,
    /// Outcomes in a row that speak against `health`.
    against: u16,
}

impl Counter {
    fn new(check: &Check) -> Self {
        Self {
            failures: check.failures.max(1),
            recoveries: check.recoveries.max(1),
            health: Health::Unknown,
            against: 0,
        }
    }

    /// Takes in one outcome; says what the backend is from now on. Only outcomes in a row count. Of a backend that was
    /// never seen, one success says enough: it owes nobody a recovery.
    fn note(&mut self, works: bool) -> Health {
        let (needed, next) = match (self.health, works) {
            (Health::Unknown, true) => (1, Health::Healthy),
            (Health::Unhealthy, true) => (self.recoveries, Health::Healthy),
            (Health::Unknown | Health::Healthy, false) => (self.failures, Health::Unhealthy),
            (Health::Healthy, true) | (Health::Unhealthy, false) => {
                self.against = 0;
                return self.health;
            }
        };
        self.against += 1;
        if self.against >= needed {
            self.health = next;
            self.against = 0;
        }
        self.health
    }
}

/// The checks of a list of publications.
pub(crate) struct Checks {
    healths: watch::Sender<Healths>,
    metrics: Arc<FabricMetrics>,
    running: BTreeMap<Key, Running>,
    tasks: JoinSet<()>,
    number: u64,
}

struct Running {
    backend: HostPort,
    check: Check,
    task: AbortHandle,
}

impl Checks {
    /// Checks nothing yet.
    pub(crate) fn new(metrics: Arc<FabricMetrics>) -> Self {
        Self {
            healths: watch::Sender::default(),
            metrics,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            number: 0,
        }
    }

    /// What is known of the backends, now and at every change.
    pub(crate) fn healths(&self) -> watch::Receiver<Healths> {
        self.healths.subscribe()
    }

    /// Checks what `publications` ask for, and nothing else, until their sender is gone. Dropped, all checks end.
    pub(crate) async fn run(mut self, mut publications: watch::Receiver<Arc<Vec<Publication>>>) {
        loop {
            let wanted = Arc::clone(&publications.borrow_and_update());
            self.follow(&wanted);
            loop {
                tokio::select! {
                    changed = publications.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return std::future::pending().await,
                    },
                    // Checks run until they are aborted.
                    Some(ended) = self.tasks.join_next() => if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a check failed by itself");
                    },
                }
            }
        }
    }

    /// Starts what is new and ends what is not wanted; what stays keeps its counts.
    fn follow(&mut self, wanted: &[Publication]) {
        let find = |key: &Key| {
            wanted
                .iter()
                .find(|publication| self::key(publication) == *key)
        };
        let mut ended = Vec::new();
        self.running.retain(|key, running| {
            let keep = find(key).is_some_and(|publication| {
                publication.backend == running.backend
                    && publication.options.check.as_ref() == Some(&running.check)
            });
            if !keep {
                running.task.abort();
                ended.push(key.clone());
            }
            keep
        });
        for key in ended {
            self.healths.send_modify(|all| _ = all.0.remove(&key));
            self.metrics.check_healthy.remove(&labels(&key));
        }
        for publication in wanted {
            let key = key(publication);
            // Who is asked over TCP says nothing of UDP.
            let is_tcp = publication.protocol == Protocol::Tcp;
            let Some(check) = publication.options.check.clone().filter(|_| is_tcp) else {
                continue;
            };
            if self.running.contains_key(&key) {
                continue;
            }
            self.number += 1;
            // Not a change that anybody has to hear of.
            let entry = (self.number, Health::Unknown);
            self.healths.send_if_modified(|all| {
                all.0.insert(key.clone(), entry);
                false
            });
            let one = One {
                key: key.clone(),
                number: self.number,
                backend: publication.backend.clone(),
                check: check.clone(),
                healths: self.healths.clone(),
                metrics: Arc::clone(&self.metrics),
            };
            let task = self.tasks.spawn(one.run());
            let backend = publication.backend.clone();
            self.running.insert(
                key,
                Running {
                    backend,
                    check,
                    task,
                },
            );
        }
    }
}

/// The checks of one backend.
struct One {
    key: Key,
    /// Tells its entry from that of a later check of the same service.
    number: u64,
    backend: HostPort,
    check: Check,
    healths: watch::Sender<Healths>,
    metrics: Arc<FabricMetrics>,
}

impl One {
    async fn run(self) {
        let mut counter = Counter::new(&self.check);
        let mut pause = self.check.interval.mul_f64(rand::random_range(0.0..FIRST));
        loop {
            tokio::time::sleep(pause).await;
            let before = counter.health;
            let outcome = probe::probe(&self.backend, &self.check.probe, self.check.timeout).await;
            let result = if outcome.is_ok() { "ok" } else { "failed" };
            self.metrics
                .checks
                .get_or_create(&CheckLabels { result })
                .inc();
            let now = counter.note(outcome.is_ok());
            let (service, port, _) = &self.key;
            if let Err(why) = &outcome {
                tracing::debug!(%service, port, backend = %self.backend, %why, "check failed");
            }
            if now != before {
                match outcome {
                    Ok(()) if before == Health::Unknown => {
                        tracing::info!(%service, port, backend = %self.backend, "backend is healthy");
                    }
                    Ok(()) => {
                        tracing::warn!(%service, port, backend = %self.backend, "backend is healthy again");
                    }
                    Err(why) => {
                        tracing::warn!(%service, port, backend = %self.backend, %why, "backend is unhealthy");
                    }
                }
                self.tell(now);
            }
            pause = jittered(self.check.interval);
        }
    }

    fn tell(&self, health: Health) {
        self.healths.send_if_modified(|all| {
            let Some((_, known)) = all
                .0
                .get_mut(&self.key)
                .filter(|(number, _)| *number == self.number)
            else {
                return false;
            };
            *known = health;
            self.metrics
                .check_healthy
                .get_or_create(&labels(&self.key))
                .set((health == Health::Healthy).into());
            true
        });
    }
}

fn labels((service, port, _): &Key) -> CheckedLabels {
    CheckedLabels {
        service: format!("{service}:{port}"),
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(1.0 - JITTER..1.0 + JITTER))
}

#[cfg(test)]
mod tests;
