//! How the exchange with each peer goes: for `keel status`, the start block and the metrics.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keel_certs::NodeName;
use keel_fabric::quic::HostPort;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Peer;
use super::plan::{Sign, hurry};
use crate::api::Revision;
use crate::client::Hurry;

/// How the exchange with one peer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// The peer's node.
    pub node: NodeName,
    /// Where its APIServer is.
    pub server: HostPort,
    /// Whether the last thing that was heard is good news.
    pub connected: bool,
    /// When the peer was last heard, for people.
    pub last_contact: Option<SystemTime>,
    /// Since when a status of the peer that we know of is not taken over here; `None` in sync.
    pub behind_since: Option<Instant>,
    /// `source.revision` of the peer's status that is held here.
    pub pulled: Option<Revision>,
    /// `source.revision` of our own status that we pushed last; `None` if the peer pulls.
    pub pushed: Option<Revision>,
    /// `source.revision` of a status of ours that the peer holds, if our store's numbers are behind it: until they are not, the
    /// peer takes nothing from us.
    pub ahead: Option<Revision>,
    /// What goes wrong.
    pub error: Option<String>,
    /// When the peer was last heard, or became one: whether it is silent must not depend on the clock, which may be set.
    pub(super) heard: Instant,
}

/// Bookmarks come every 10 s: a peer that is silent for longer may be gone, although nothing says so yet.
const SILENT: Duration = Duration::from_secs(15);

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
            heard: Instant::now(),
        }
    }

    /// Since when what is held here of the peer may differ from what the peer is; `None` in sync.
    #[must_use]
    pub fn behind(&self, now: Instant) -> Option<Instant> {
        if self.connected && now.duration_since(self.heard) <= SILENT {
            return self.behind_since;
        }
        let since = self.behind_since.unwrap_or(self.heard);
        Some(since.min(self.heard))
    }

    /// How far what is held here may be behind the peer; zero in sync.
    #[must_use]
    pub fn lag(&self, now: Instant) -> Duration {
        self.behind(now)
            .map_or(Duration::ZERO, |since| now.duration_since(since))
    }
}

/// The states of all peers, in the order of the peers.
pub type PeerStates = Arc<Vec<PeerState>>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

impl PeerLabel {
    fn of(node: &NodeName) -> Self {
        Self {
            peer: node.to_string(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    peer: String,
    direction: &'static str,
}

impl DirectionLabel {
    fn of(node: &NodeName, direction: Direction) -> Self {
        Self {
            peer: node.to_string(),
            direction: direction.label(),
        }
    }
}

/// Counters of the exchange.
#[derive(Debug, Default)]
pub struct SyncMetrics {
    connected: Family<PeerLabel, Gauge>,
    contact: Family<PeerLabel, Gauge>,
    applied: Family<DirectionLabel, Counter>,
    errors: Family<DirectionLabel, Counter>,
    refused: Family<PeerLabel, Counter>,
    /// How it goes with each peer, from which the lag is told.
    pub(super) states: watch::Sender<PeerStates>,
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
        registry.register_collector(Box::new(Lag(metrics.states.subscribe())));
        Arc::new(metrics)
    }

    /// Keeps the states and series of these peers, and forgets all others.
    pub(super) fn follow_peers(&self, peers: &[Peer]) {
        let before = self.states.borrow().clone();
        for gone in before
            .iter()
            .filter(|old| peers.iter().all(|peer| peer.node != old.node))
        {
            let label = PeerLabel::of(&gone.node);
            self.connected.remove(&label);
            self.contact.remove(&label);
            self.refused.remove(&label);
            for direction in [Direction::Pull, Direction::Push] {
                let label = DirectionLabel::of(&gone.node, direction);
                self.applied.remove(&label);
                self.errors.remove(&label);
            }
        }
        let kept = peers.iter().map(|peer| {
            let old = before
                .iter()
                .find(|state| state.node == peer.node && state.server == peer.server);
            old.cloned().unwrap_or_else(|| PeerState::new(peer))
        });
        self.states.send_replace(Arc::new(kept.collect()));
    }
}

/// Tells at each scrape how far what is held here of each peer may be behind.
#[derive(Debug)]
struct Lag(watch::Receiver<PeerStates>);

impl Collector for Lag {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let states = self.0.borrow().clone();
        let now = Instant::now();
        let mut family = encoder.encode_descriptor(
            "keel_sync_lag",
            "How long what is held here of the peer may differ from what it is; 0 in sync",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for state in states.iter() {
            let lag = ConstGauge::new(state.lag(now).as_secs_f64());
            lag.encode(family.encode_family(&[("peer", state.node.as_str())])?)?;
        }
        Ok(())
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
    metrics: Arc<SyncMetrics>,
    /// Told to all peers when one is heard again.
    hurry: watch::Sender<Option<Hurry>>,
}

impl Report {
    pub(super) fn new(
        peer: Peer,
        metrics: Arc<SyncMetrics>,
        hurry: watch::Sender<Option<Hurry>>,
    ) -> Self {
        Self {
            peer,
            metrics,
            hurry,
        }
    }

    /// When those that are away are tried sooner than they would be.
    pub(super) fn hurry(&self) -> watch::Receiver<Option<Hurry>> {
        self.hurry.subscribe()
    }

    /// Whether the peer still is one. A task that is being ended must not bring back the series of one that is gone.
    fn is_current(&self) -> bool {
        let states = self.metrics.states.borrow();
        states.iter().any(|state| state.node == self.peer.node)
    }

    /// The peer was heard.
    pub(super) fn contact(&self) {
        if !self.is_current() {
            return;
        }
        let now = SystemTime::now();
        let unix = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        self.metrics
            .contact
            .get_or_create(&self.label())
            .set(i64::try_from(unix).unwrap_or(i64::MAX));
        self.metrics.connected.get_or_create(&self.label()).set(1);
        let mut back = false;
        self.update(|state| {
            back = !state.connected && state.error.is_some();
            if !state.connected {
                tracing::info!(peer = %state.node, server = %state.server, "peer is in sync");
            }
            state.connected = true;
            state.last_contact = Some(now);
            state.heard = Instant::now();
            state.error = state.ahead.map(ahead);
        });
        if back {
            self.hurry_up(Sign::Heard);
        }
    }

    /// Has all that are away tried soon, if there are any.
    pub(super) fn hurry_up(&self, sign: Sign) {
        let away = {
            let states = self.metrics.states.borrow();
            states.iter().filter(|state| !state.connected).count()
        };
        self.hurry
            .send_if_modified(|last| match hurry(sign, *last, away, Instant::now()) {
                Some(now) => last.replace(now).is_none_or(|last| last != now),
                None => false,
            });
    }

    /// The exchange is broken.
    pub(super) fn broken(&self, direction: Direction, error: &str) {
        if !self.is_current() {
            return;
        }
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
        if !self.is_current() {
            return;
        }
        self.metrics
            .errors
            .get_or_create(&self.direction(direction))
            .inc();
    }

    /// A status was taken over.
    pub(super) fn applied(&self, direction: Direction, revision: Revision) {
        if !self.is_current() {
            return;
        }
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
            (true, None) => state.behind_since = Some(Instant::now()),
            (true, Some(_)) => {}
            (false, _) => state.behind_since = None,
        });
    }

    /// The peer sent what is not its own to send.
    pub(super) fn refused(&self, why: &'static str) {
        if !self.is_current() {
            return;
        }
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
        PeerLabel::of(&self.peer.node)
    }

    fn direction(&self, direction: Direction) -> DirectionLabel {
        DirectionLabel::of(&self.peer.node, direction)
    }

    fn update(&self, change: impl FnOnce(&mut PeerState)) {
        self.metrics.states.send_if_modified(|states| {
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
         check both nodes' clocks and whether another machine was joined under this node's name, or delete our Router there"
    )
}
