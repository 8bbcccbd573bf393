//! Exchange of Router statuses with the APIServers of other nodes.
//!
//! Only `routers/<peer>` is pulled from a peer and only `routers/<own node>` is pushed to it, in both directions the status alone,
//! and only if its `source.revision` is higher than the one held. Each peer has tasks, a connection and limits of its own, so one
//! that is gone, slow or lies takes nothing from the others.

mod peer;
mod plan;
mod state;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use keel_certs::{LiveIdentity, NodeName};
use keel_fabric::quic::HostPort;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::api::{Router, RouterStatus};
use crate::client::{Client, WatchEvent, WatchFrom};

pub use state::{PeerState, PeerStates, SyncMetrics};

/// How long a task that panicked waits before it starts again.
const RESTART: Duration = Duration::from_secs(5);

/// A node to exchange with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its name; an APIServer that belongs to another node is refused.
    pub node: NodeName,
    /// Where its APIServer is.
    pub server: HostPort,
}

/// What a [`Syncer`] works with.
pub struct SyncerConfig {
    /// This node.
    pub node: NodeName,
    /// The peers; changes start and stop only what changed.
    pub peers: watch::Receiver<Arc<Vec<Peer>>>,
    /// This node's APIServer, as the node itself.
    pub local: Client,
    /// The node's identity, shown to the peers.
    pub live: LiveIdentity,
    /// Where it counts.
    pub metrics: Arc<SyncMetrics>,
}

/// Exchanges Router statuses with all peers.
pub struct Syncer {
    config: SyncerConfig,
    states: watch::Sender<PeerStates>,
}

impl Syncer {
    /// A syncer that does nothing yet.
    #[must_use]
    pub fn new(config: SyncerConfig) -> Self {
        Self {
            config,
            states: watch::Sender::new(PeerStates::default()),
        }
    }

    /// How it goes with each peer, now and from now on.
    #[must_use]
    pub fn peers_state(&self) -> watch::Receiver<PeerStates> {
        self.states.subscribe()
    }

    /// Exchanges until `stop` is requested. Not cancel safe: dropped, it cuts what runs, which the next start repeats.
    pub async fn run(self, stop: CancellationToken) {
        let Self { config, states } = self;
        let SyncerConfig {
            node,
            mut peers,
            local,
            live,
            metrics,
        } = config;
        let (own, own_status) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let following = {
            let (local, node) = (local.clone(), node.clone());
            again(move || follow_own(local.clone(), node.clone(), own.clone()))
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(following));
        let mut running: HashMap<Peer, CancellationToken> = HashMap::new();
        loop {
            let wanted: Vec<Peer> = peers
                .borrow_and_update()
                .iter()
                .filter(|peer| is_other(&node, peer))
                .cloned()
                .collect();
            state::follow_peers(&states, &wanted);
            running.retain(|peer, token| {
                let stays = wanted.contains(peer);
                if !stays {
                    debug!(peer = %peer.node, server = %peer.server, "no longer a peer");
                    token.cancel();
                }
                stays
            });
            for peer in wanted {
                running.entry(peer).or_insert_with_key(|peer| {
                    let token = stop.child_token();
                    let exchange = peer::Exchange {
                        peer: peer.clone(),
                        node: node.clone(),
                        local: local.clone(),
                        live: live.clone(),
                        own: own_status.clone(),
                        report: state::Report::new(peer.clone(), states.clone(), metrics.clone()),
                    };
                    let exchange = again(move || exchange.clone().run());
                    tasks.spawn(token.clone().run_until_cancelled_owned(exchange));
                    token
                });
            }
            loop {
                tokio::select! {
                    changed = peers.changed() => match changed {
                        Ok(()) => break,
                        // Nobody can change the peers any more: they stay as they are.
                        Err(_) => {
                            stop.cancelled().await;
                        }
                    },
                    Some(ended) = tasks.join_next() => if let Err(error) = ended {
                        warn!(%error, "a task of the syncer failed");
                    },
                    () = stop.cancelled() => {}
                }
                if stop.is_cancelled() {
                    while tasks.join_next().await.is_some() {}
                    return;
                }
            }
        }
    }
}

/// Runs what `start` makes, and once more whenever that panics: what one peer sends must not end the exchange for good.
async fn again<F: Future<Output = ()>>(start: impl Fn() -> F) {
    // Safe to assert: nothing of the future that panicked is used again, and what it shares is only ever replaced whole.
    while AssertUnwindSafe(start()).catch_unwind().await.is_err() {
        error!(
            "a task of the syncer panicked; it starts again in {} s",
            RESTART.as_secs()
        );
        tokio::time::sleep(RESTART).await;
    }
}

fn is_other(node: &NodeName, peer: &Peer) -> bool {
    let other = peer.node != *node;
    if !other {
        warn!(server = %peer.server, "this node is listed as its own peer: ignored");
    }
    other
}

/// Keeps `own` at the status of this node's Router.
async fn follow_own(local: Client, node: NodeName, own: watch::Sender<Option<Arc<RouterStatus>>>) {
    let mut events = local.watch_router(node.clone(), WatchFrom::Snapshot);
    let status = |router: Router| router.status.map(Arc::new);
    while let Some(event) = events.next().await {
        match event {
            WatchEvent::Snapshot { routers, .. } => {
                let router = routers
                    .into_iter()
                    .find(|router| router.name() == node.as_ref());
                own.send_replace(router.and_then(status));
            }
            WatchEvent::Applied(router) if router.name() == node.as_ref() => {
                own.send_replace(status(router));
            }
            WatchEvent::Deleted(name) if name == node => {
                own.send_replace(None);
            }
            WatchEvent::Interrupted(error) => {
                debug!(%error, "own Router not watched at the moment")
            }
            WatchEvent::Applied(_) | WatchEvent::Deleted(_) | WatchEvent::Synced(_) => {}
        }
    }
}
