//! The provider's end: publishes at routers, takes legs from them, dials backends.

mod dial;
mod publish;
pub(crate) mod terminator;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use keel_certs::{LiveIdentity, NodeName, ServiceId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::flow::FlowLimits;
use crate::limits::ProviderLimits;
use crate::link::{Links, PublishError, RouterPeer};
use crate::metrics::FabricMetrics;
use crate::quic::HostPort;
use crate::wire::Protocol;
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
}

/// Limits of a provider.
#[derive(Debug, Clone, Default)]
pub struct ProviderConfig {
    /// Deadlines and counts.
    pub limits: ProviderLimits,
    /// Buffers and resume window of flows.
    pub flow: FlowLimits,
}

/// How a publication stands at a router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishOutcome {
    /// It is published.
    Published,
    /// The router cannot be reached or did not answer; it is tried again.
    Unreachable(String),
    /// The router said no; it is tried again when the connection is made again.
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
    outcomes: Mutex<BTreeMap<(Publication, NodeName), PublishOutcome>>,
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
        let terminator = Terminator::new(config.limits.clone(), config.flow, Arc::clone(&metrics));
        let (state, _) = watch::channel(Arc::new(Vec::new()));
        let outcomes = Mutex::default();
        Self {
            inner: Arc::new(Inner {
                links,
                live,
                config,
                metrics,
                terminator,
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

    /// Publishes everything in `publications` at every one of `routers` and serves what comes, until `stop`; then cuts
    /// the flows. Changes of either list take effect at once; running flows of a withdrawn publication go on.
    pub async fn serve(
        &self,
        publications: watch::Receiver<Arc<Vec<Publication>>>,
        mut routers: watch::Receiver<Arc<Vec<RouterPeer>>>,
        stop: CancellationToken,
    ) {
        let mut tasks: JoinSet<NodeName> = JoinSet::new();
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
                tasks.spawn(publish::at(
                    Arc::clone(&self.inner),
                    router.clone(),
                    publications.clone(),
                    cancel,
                ));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = routers.changed() => if changed.is_err() { stop.cancelled().await; break },
                Some(ended) = tasks.join_next() => match ended {
                    Ok(node) => tracing::trace!(router = %node, "publisher ended"),
                    Err(error) => tracing::error!(%error, "a publisher failed"),
                },
            }
        }
        while tasks.join_next().await.is_some() {}
        self.inner.terminator.shutdown().await;
    }
}

impl Inner {
    /// Notes how `publication` stands at `router`; `None`: it does not stand there any more.
    fn note(&self, publication: &Publication, router: &NodeName, outcome: Option<PublishOutcome>) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (publication.clone(), router.clone());
        let changed = match outcome {
            Some(outcome) => outcomes.insert(key, outcome.clone()).as_ref() != Some(&outcome),
            None => outcomes.remove(&key).is_some(),
        };
        if changed {
            self.show(&outcomes);
        }
    }

    /// Forgets a router.
    fn forget(&self, router: &NodeName) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.retain(|(_, node), _| node != router);
        self.show(&outcomes);
    }

    fn show(&self, outcomes: &BTreeMap<(Publication, NodeName), PublishOutcome>) {
        let list = outcomes
            .iter()
            .map(|((publication, router), outcome)| PublishedAt {
                publication: publication.clone(),
                router: router.clone(),
                outcome: outcome.clone(),
            });
        self.state.send_replace(Arc::new(list.collect()));
    }
}
