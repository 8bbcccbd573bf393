//! How the exchange with each peer goes: for `keel status`, the start block and the metrics.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keel_certs::NodeName;
use keel_fabric::quic::HostPort;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::Peer;
use crate::api::Revision;

/// How the exchange with one peer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// The peer's node.
    pub node: NodeName,
    /// Where its APIServer is.
    pub server: HostPort,
    /// Whether the last thing that was heard is good news.
    pub connected: bool,
    /// When the peer was last heard.
    pub last_contact: Option<SystemTime>,
    /// Since when a status of the peer that we know of is not taken over here; `None` in sync.
    pub behind_since: Option<SystemTime>,
    /// `source.revision` of the peer's status that is held here.
    pub pulled: Option<Revision>,
    /// `source.revision` of our own status that we pushed last; `None` if the peer pulls.
    pub pushed: Option<Revision>,
    /// `source.revision` of a status of ours that the peer holds, if our store's numbers are behind it: until they are not, the
    /// peer takes nothing from us.
    pub ahead: Option<Revision>,
    /// What goes wrong.
    pub error: Option<String>,
}

impl PeerState {
    fn new(peer: &Peer) -> Self {
        Self {
            node: peer.node.clone(),
            server: peer.server.clone(),
            connected: false,
            last_contact: None,
            behind_since: None,
            pulled: None,
            pushed: None,
            ahead: None,
            error: None,
        }
    }

    /// How far the status held here is behind the peer's; zero in sync.
    #[must_use]
    pub fn lag(&self) -> Duration {
        self.behind_since
            .map_or(Duration::ZERO, |since| since.elapsed().unwrap_or_default())
    }
}

/// The states of all peers, in the order of the peers.
pub type PeerStates = Arc<Vec<PeerState>>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    peer: String,
    direction: &'static str,
}

/// Counters of the exchange.
#[derive(Debug, Default)]
pub struct SyncMetrics {
    connected: Family<PeerLabel, Gauge>,
    contact: Family<PeerLabel, Gauge>,
    applied: Family<DirectionLabel, Counter>,
    errors: Family<DirectionLabel, Counter>,
    refused: Family<PeerLabel, Counter>,
}

impl SyncMetrics {
    /// Registers the metrics `keel_sync_*`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self::default();
        registry.register(
            "keel_sync_connected",
            "Whether the peer is reached (1) or not (0)",
            metrics.connected.clone(),
        );
        registry.register(
            "keel_sync_last_contact_timestamp_seconds",
            "When the peer was last heard, as Unix time",
            metrics.contact.clone(),
        );
        registry.register(
            "keel_sync_applied",
            "Statuses taken over, by direction",
            metrics.applied.clone(),
        );
        registry.register(
            "keel_sync_errors",
            "Failed attempts, by direction",
            metrics.errors.clone(),
        );
        registry.register(
            "keel_sync_refused",
            "Routers that a peer sent and that are not its own to send",
            metrics.refused.clone(),
        );
        Arc::new(metrics)
    }
}

/// Which way a status goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the peer to us.
    Pull,
    /// From us to the peer.
    Push,
}

impl Direction {
    fn label(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
        }
    }
}

/// Writes the state of one peer.
#[derive(Clone)]
pub(super) struct Report {
    peer: Peer,
    states: watch::Sender<PeerStates>,
    metrics: Arc<SyncMetrics>,
}

impl Report {
    pub(super) fn new(
        peer: Peer,
        states: watch::Sender<PeerStates>,
        metrics: Arc<SyncMetrics>,
    ) -> Self {
        Self {
            peer,
            states,
            metrics,
        }
    }

    /// The peer was heard.
    pub(super) fn contact(&self) {
        let now = SystemTime::now();
        let unix = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        self.metrics
            .contact
            .get_or_create(&self.label())
            .set(i64::try_from(unix).unwrap_or(i64::MAX));
        self.metrics.connected.get_or_create(&self.label()).set(1);
        self.update(|state| {
            if !state.connected {
                tracing::info!(peer = %state.node, server = %state.server, "peer is in sync");
            }
            state.connected = true;
            state.last_contact = Some(now);
            state.error = state.ahead.map(ahead);
        });
    }

    /// The exchange is broken.
    pub(super) fn broken(&self, direction: Direction, error: &str) {
        self.failed(direction);
        self.metrics.connected.get_or_create(&self.label()).set(0);
        self.update(|state| {
            // Said once, not at every attempt.
            if state.connected || state.error.is_none() {
                tracing::warn!(peer = %state.node, server = %state.server, error, "cannot exchange with the peer, trying on");
            }
            state.connected = false;
            state.error = Some(error.to_owned());
        });
    }

    /// One status could not be taken over; the peer is there all the same.
    pub(super) fn failed(&self, direction: Direction) {
        self.metrics
            .errors
            .get_or_create(&self.direction(direction))
            .inc();
    }

    /// A status was taken over.
    pub(super) fn applied(&self, direction: Direction, revision: Revision) {
        self.metrics
            .applied
            .get_or_create(&self.direction(direction))
            .inc();
        self.update(|state| match direction {
            Direction::Pull => {
                state.pulled = Some(revision);
                state.behind_since = None;
            }
            Direction::Push => state.pushed = Some(revision),
        });
    }

    /// The peer holds a status of ours with this number, which our store's are behind.
    pub(super) fn ahead(&self, held: Option<Revision>) {
        self.update(|state| {
            if state.ahead == held {
                return;
            }
            if state.ahead.is_some() {
                state.error = None;
            }
            if let Some(held) = held {
                let error = ahead(held);
                tracing::warn!(peer = %state.node, error, "the peer takes nothing from us");
                state.error = Some(error);
            }
            state.ahead = held;
        });
    }

    /// A status of the peer is known and not taken over.
    pub(super) fn behind(&self, behind: bool) {
        self.update(|state| match (behind, state.behind_since) {
            (true, None) => state.behind_since = Some(SystemTime::now()),
            (true, Some(_)) => {}
            (false, _) => state.behind_since = None,
        });
    }

    /// The peer sent what is not its own to send.
    pub(super) fn refused(&self, why: &'static str) {
        self.metrics.refused.get_or_create(&self.label()).inc();
        self.update(|state| {
            let error = format!("refused what the peer sent: {why}");
            if state.error.as_ref() != Some(&error) {
                tracing::warn!(peer = %state.node, why, "refused what the peer sent");
            }
            state.error = Some(error);
        });
    }

    fn label(&self) -> PeerLabel {
        PeerLabel {
            peer: self.peer.node.to_string(),
        }
    }

    fn direction(&self, direction: Direction) -> DirectionLabel {
        DirectionLabel {
            peer: self.peer.node.to_string(),
            direction: direction.label(),
        }
    }

    fn update(&self, change: impl FnOnce(&mut PeerState)) {
        self.states.send_if_modified(|states| {
            let Some(at) = states
                .iter()
                .position(|state| state.node == self.peer.node && state.server == self.peer.server)
            else {
                return false;
            };
            let before = states[at].clone();
            let state = &mut Arc::make_mut(states)[at];
            change(state);
            *state != before
        });
    }
}

fn ahead(held: Revision) -> String {
    format!(
        "it holds a status of ours of revision {held}, which our store is behind and cannot be raised to: \
         check both nodes' clocks, or delete our Router there"
    )
}

/// The states for these peers: those that stay are kept.
pub(super) fn follow_peers(states: &watch::Sender<PeerStates>, peers: &[Peer]) {
    states.send_modify(|states| {
        let kept = peers.iter().map(|peer| {
            let old = states
                .iter()
                .find(|state| state.node == peer.node && state.server == peer.server);
            old.cloned().unwrap_or_else(|| PeerState::new(peer))
        });
        *states = Arc::new(kept.collect());
    });
}
