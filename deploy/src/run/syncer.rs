//! The Syncer of a node.

use std::sync::Arc;
use std::time::Duration;

use keel_certs::{LiveIdentity, NodeName};
use keel_control::api::Revision;
use keel_control::client::Client;
use keel_control::syncer::{Peer, PeerStates, STALE_AFTER, SyncMetrics, Syncer, SyncerConfig};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::peers::PeersSource;
use crate::settings::PeerArg;

/// How long the last status may take to reach the peers when the node stops.
const LAST_PUSH: Duration = Duration::from_secs(1);

/// A running Syncer.
pub(super) struct SyncerPart {
    states: watch::Receiver<PeerStates>,
    task: JoinSet<()>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl SyncerPart {
    pub(super) fn start(
        node: NodeName,
        (peers, source): (&[PeerArg], PeersSource),
        live: LiveIdentity,
        local: Client,
        metrics: Arc<SyncMetrics>,
    ) -> Self {
        let (sender, receiver) = watch::channel(listed(peers));
        let syncer = Syncer::new(SyncerConfig {
            node,
            peers: receiver,
            local,
            live,
            metrics,
            stale_after: STALE_AFTER,
        });
        let states = syncer.peers_state();
        let stop = CancellationToken::new();
        let stop_follow = stop.clone();
        let mut task = JoinSet::new();
        task.spawn(syncer.run(stop.clone()));
        let follow = source.follow(peers.to_vec(), move |peers| {
            sender.send_replace(listed(&peers));
        });
        task.spawn(async move {
            stop_follow.run_until_cancelled(follow).await;
        });
        Self {
            states,
            task,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }
    }

    /// How it goes with each peer.
    pub(super) fn states(&self) -> watch::Receiver<PeerStates> {
        self.states.clone()
    }

    /// Ends only by itself.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        let _ = self.task.join_next().await;
        anyhow::anyhow!("the syncer ended by itself")
    }

    /// Gives the own status of revision `last` a moment to reach the peers that are pushed to, then stops. Peers that fetch it
    /// are told by their watch at once.
    pub(super) async fn stop(mut self, last: Option<Revision>) {
        if let Some(last) = last {
            let told = |states: &PeerStates| {
                states
                    .iter()
                    .all(|peer| !peer.connected || peer.pushed.is_none_or(|pushed| pushed >= last))
            };
            // Whoever was not told finds out by the heartbeat.
            let _ = timeout(LAST_PUSH, self.states.wait_for(told)).await;
        }
        self.stop.cancel();
        while self.task.join_next().await.is_some() {}
    }
}

fn listed(peers: &[PeerArg]) -> Arc<Vec<Peer>> {
    let peer = |peer: &PeerArg| Peer {
        node: peer.node.clone(),
        server: peer.server.clone(),
    };
    Arc::new(peers.iter().map(peer).collect())
}
