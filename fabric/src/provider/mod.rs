//! The provider's end: publishes at routers, takes legs from them, dials backends.

mod arrivals;
pub(crate) mod check;
mod dial;
mod entrances;
mod publish;
mod reach;
mod remembered;
mod serve;
pub(crate) mod table;
pub(crate) mod terminator;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use keel_certs::{LiveIdentity, NodeName, ServiceId};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::flow::FlowLimits;
use crate::grace::Grace;
use crate::limits::ProviderLimits;
use crate::link::{Links, PublishError, RouterPeer};
use crate::memory::Memory;
use crate::metrics::FabricMetrics;
pub use crate::options::{Check, Probe, PublicationOptions};
use crate::pace::Paces;
use crate::quic::HostPort;
use crate::turns::Turns;
use crate::wire::Protocol;
use check::Checks;
pub use entrances::Entrances;
use publish::{At, Wanted};
use terminator::Terminator;

/// A service that is served here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Publication {
    /// Its name.
    pub service: ServiceId,
    /// The service's port, what consumers connect to.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where connections go.
    pub backend: HostPort,
    /// What else is said about it.
    pub options: PublicationOptions,
}

/// Where the flows of a publication go, and what is said about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) address: HostPort,
    pub(crate) options: PublicationOptions,
}

impl From<&Publication> for Backend {
    fn from(publication: &Publication) -> Self {
        Self {
            address: publication.backend.clone(),
            options: publication.options.clone(),
        }
    }
}

/// Limits of a provider.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// Deadlines and counts.
    pub limits: ProviderLimits,
    /// Buffers and resume window of flows.
    pub flow: FlowLimits,
    /// How long flows may go on after the stop before they are cut.
    pub grace: Grace,
    /// Bandwidth.
    pub paces: Arc<Paces>,
    /// The memory of the process.
    pub memory: Arc<Memory>,
    /// Where this process takes connections into the fabric.
    pub entrances: Entrances,
}

/// How a publication stands at a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishOutcome {
    /// It is published.
    Published,
    /// The router cannot be reached or did not answer; it is tried again.
    Unreachable(String),
    /// The router said no; it is tried again after a change of the list, and now and then.
    Refused(PublishError),
}

/// A publication at a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedAt {
    /// What.
    pub publication: Publication,
    /// Where.
    pub router: NodeName,
    /// How it stands.
    pub outcome: PublishOutcome,
}

/// How each publication stands at each router, and the number of the task that says so.
type Outcomes = BTreeMap<(Publication, NodeName), (u64, PublishOutcome)>;
type State = watch::Sender<Arc<Vec<PublishedAt>>>;

/// Serves backends of this machine through routers. Cheap to clone.
#[derive(Clone)]
pub struct Provider {
    inner: Arc<Inner>,
}

struct Inner {
    links: Links,
    live: LiveIdentity,
    config: ProviderConfig,
    metrics: Arc<FabricMetrics>,
    terminator: Arc<Terminator>,
    resumes: Turns,
    outcomes: Mutex<Outcomes>,
    state: State,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Provider {
    /// Publishes over `links` as `live`, which must be the identity that `links` dials with.
    #[must_use]
    pub fn new(
        links: Links,
        live: LiveIdentity,
        config: ProviderConfig,
        metrics: Arc<FabricMetrics>,
    ) -> Self {
        let terminator = Terminator::new(
            config.limits.clone(),
            config.flow,
            (Arc::clone(&config.paces), Arc::clone(&config.memory)),
            config.entrances.clone(),
            Arc::clone(&metrics),
        );
        let resumes = Turns::new(config.limits.resumes(), Arc::clone(&metrics));
        let (state, _) = watch::channel(Arc::new(Vec::new()));
        let outcomes = Mutex::default();
        Self {
            inner: Arc::new(Inner {
                links,
                live,
                config,
                metrics,
                terminator,
                resumes,
                outcomes,
                state,
            }),
        }
    }

    /// How each publication stands at each router, sorted.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<Vec<PublishedAt>>> {
        self.inner.state.subscribe()
    }

    /// Publishes everything in `publications` at every one of `routers` and serves what comes, until `stop`; then withdraws
    /// it, gives the flows their grace and cuts those that are left. Changes of either list take effect at once; running
    /// flows of a withdrawn publication go on, over other legs too. Backends are checked as their publications ask for, and
    /// routers hear of it.
    pub async fn serve(
        &self,
        publications: watch::Receiver<Arc<Vec<Publication>>>,
        mut routers: watch::Receiver<Arc<Vec<RouterPeer>>>,
        stop: CancellationToken,
    ) {
        let checks = Checks::new(Arc::clone(&self.inner.metrics));
        let healths = checks.healths();
        let mut checking = std::pin::pin!(checks.run(publications.clone()));
        let mut tasks: JoinSet<JoinSet<()>> = JoinSet::new();
        // They take legs for the flows that go on where nothing is published any more.
        let mut lingering = JoinSet::new();
        let mut linger = |ended: Result<JoinSet<()>, JoinError>| match ended {
            Ok(mut taking) => {
                while lingering.try_join_next().is_some() {}
                lingering.spawn(async move { while taking.join_next().await.is_some() {} });
            }
            Err(error) => tracing::error!(%error, "a publisher failed"),
        };
        let mut number = 0;
        let mut running: HashMap<NodeName, (RouterPeer, CancellationToken)> = HashMap::new();
        loop {
            let wanted = Arc::clone(&routers.borrow_and_update());
            running.retain(|node, (peer, cancel)| {
                let keep = wanted.iter().any(|router| router == peer);
                if !keep {
                    tracing::debug!(router = %node, "router is not published at any more");
                    cancel.cancel();
                }
                keep
            });
            for router in wanted.iter() {
                if running.contains_key(&router.node) {
                    continue;
                }
                let cancel = stop.child_token();
                running.insert(router.node.clone(), (router.clone(), cancel.clone()));
                number += 1;
                let at = At {
                    inner: Arc::clone(&self.inner),
                    router: router.clone(),
                    number,
                };
                let wanted = Wanted {
                    publications: publications.clone(),
                    healths: healths.clone(),
                };
                tasks.spawn(publish::at(at, wanted, cancel));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = &mut checking => {}
                changed = routers.changed() => if changed.is_err() { stop.cancelled().await; break },
                Some(ended) = tasks.join_next() => linger(ended),
            }
        }
        let terminator = &self.inner.terminator;
        terminator.drain();
        let hurry = &self.inner.config.grace.hurry;
        while let Some(Some(ended)) = hurry.run_until_cancelled(tasks.join_next()).await {
            linger(ended);
        }
        // Those that are not done by then are cut now.
        tokio::select! {
            () = terminator.idle() => {}
            () = self.inner.config.grace.over() => {}
        }
        terminator.shutdown().await;
    }
}

impl Inner {
    /// Notes how `publication` stands at the router of a task, unless a later task has taken the router over.
    fn note(&self, at: &At, publication: &Publication, outcome: PublishOutcome) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (publication.clone(), at.router.node.clone());
        let old = outcomes.get(&key);
        if old.is_some_and(|(number, _)| *number > at.number) {
            return;
        }
        let changed = old.is_none_or(|(_, old)| *old != outcome);
        outcomes.insert(key, (at.number, outcome));
        if changed {
            self.show(&outcomes);
        }
    }

    /// Forgets what a task has noted of other publications than `wanted`.
    fn keep_only(&self, at: &At, wanted: &[Publication]) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = outcomes.len();
        outcomes.retain(|(publication, node), (number, _)| {
            *node != at.router.node || *number != at.number || wanted.contains(publication)
        });
        if outcomes.len() != before {
            self.show(&outcomes);
        }
    }

    fn show(&self, outcomes: &Outcomes) {
        let list = outcomes
            .iter()
            .map(|((publication, router), (_, outcome))| PublishedAt {
                publication: publication.clone(),
                router: router.clone(),
                outcome: outcome.clone(),
            });
        self.state.send_replace(Arc::new(list.collect()));
    }
}
