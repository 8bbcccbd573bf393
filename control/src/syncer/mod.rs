//! Exchange of Router statuses with the APIServers of other nodes.
//!
//! Only `routers/<peer>` is pulled from a peer and only `routers/<own node>` is pushed to it, in both directions the status alone,
//! and only if its `source.revision` is higher than the one held. Each peer has tasks, a connection and limits of its own, so one
//! that is gone, slow or lies takes nothing from the others.
//!
//! What a peer can do is bounded: it is asked for one Router, of at most 1 MiB, whose events are read at a pace and written here at
//! most ten times a second; of a flood only the newest counts. There is one number for each status and no epoch beside it, because a
//! store that is new, restored or set aside goes on at the current time in milliseconds.
//!
//! # Size
//! In a full mesh of n nodes everybody watches n - 1 others, twice (what they are, and what they hold of us): a change costs two
//! messages for each of the others, and everything that happens is of order n². `tests/simulation.rs` plays nodes with the code
//! that is used here (`Watcher`, `Taking`, `Push`, `Hurry`) under a clock of its own, and prints what they said: with 1,000 nodes
//! 2.4 million messages for a change of each, and 6 s from the end of a partition until all are in sync.
//!
//! For 10,000 nodes a full mesh is not it: half a minute of heartbeats alone would be 10⁸ events. The plan is order n: a few nodes (the
//! ones that are public) are hubs, every other node has the hubs as its only peers, and pulls from one of them what all others are. What
//! stands in the way is trust and not code: today a node believes about a Router only the node that it belongs to, so a hub could not
//! pass it on. With statuses that are signed by their node (`source` grows a signature) a hub can: then a change is one message to each
//! hub and one from a hub to each node, and a node has as many connections as there are hubs. Until then, larger sites share one store
//! (`--store postgres://…`): its APIServers see each other's writes without a Syncer.

mod peer;
mod plan;
mod pull;
mod push;
mod stale;
mod state;
mod taking;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use keel_certs::{LiveIdentity, NodeName};
use keel_fabric::quic::HostPort;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::api::{Router, RouterStatus};
use crate::client::{Client, WatchEvent, WatchFrom};

pub use state::{PeerState, PeerStates, SyncMetrics};

/// After this long a Router whose node is not heard is marked as old: three of the usual status intervals.
pub const STALE_AFTER: Duration = Duration::from_secs(90);
/// Routers that went and that a peer's task has not heard of yet; one that is told less looks by itself.
const LOST: usize = 64;
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
    /// Where it counts; of this Syncer alone.
    pub metrics: Arc<SyncMetrics>,
    /// How long a node may be unheard before its Router here is marked as old; usually [`STALE_AFTER`].
    pub stale_after: Duration,
}

/// Exchanges Router statuses with all peers.
pub struct Syncer {
    config: SyncerConfig,
}

impl Syncer {
    /// A syncer that does nothing yet.
    #[must_use]
    pub fn new(config: SyncerConfig) -> Self {
        Self { config }
    }

    /// How it goes with each peer, now and from now on.
    #[must_use]
    pub fn peers_state(&self) -> watch::Receiver<PeerStates> {
        self.config.metrics.states.subscribe()
    }

    /// Exchanges until `stop` is requested. Not cancel safe: dropped, it cuts what runs, which the next start repeats.
    pub async fn run(self, stop: CancellationToken) {
        let SyncerConfig {
            node,
            mut peers,
            local,
            live,
            metrics,
            stale_after,
        } = self.config;
        let hurry = watch::Sender::default();
        let (own, own_status) = watch::channel(None);
        let (lost, _) = broadcast::channel(LOST);
        let mut tasks = JoinSet::new();
        let following = {
            let (local, node) = (local.clone(), node.clone());
            again(move || follow_own(local.clone(), node.clone(), own.clone()))
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(following));
        let pushed = stale::Pushed {
            own: node.clone(),
            local: local.clone(),
            peers: peers.clone(),
            stale_after,
            lost: lost.clone(),
        };
        let pushed = again(move || pushed.clone().run());
        tasks.spawn(stop.clone().run_until_cancelled_owned(pushed));
        let mut running: HashMap<Peer, CancellationToken> = HashMap::new();
        loop {
            let wanted: Vec<Peer> = peers
                .borrow_and_update()
                .iter()
                .filter(|peer| is_other(&node, peer))
                .cloned()
                .collect();
            running.retain(|peer, token| {
                let stays = wanted.contains(peer);
                if !stays {
                    debug!(peer = %peer.node, server = %peer.server, "no longer a peer");
                    token.cancel();
                }
                stays
            });
            metrics.follow_peers(&wanted);
            for peer in wanted {
                running.entry(peer).or_insert_with_key(|peer| {
                    let token = stop.child_token();
                    let exchange = peer::Exchange {
                        peer: peer.clone(),
                        node: node.clone(),
                        local: local.clone(),
                        live: live.clone(),
                        own: own_status.clone(),
                        lost: lost.clone(),
                        report: state::Report::new(peer.clone(), metrics.clone(), hurry.clone()),
                        stale_after,
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
