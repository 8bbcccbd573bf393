//! The exchange with one peer.

use std::sync::Arc;
use std::time::Duration;

use keel_certs::{LiveIdentity, NodeName};
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep_until};

use super::Peer;
use super::plan::{Push, Sign};
use super::pull::Pull;
use super::push::Pusher;
use super::state::{Direction, Report};
use crate::api::RouterStatus;
use crate::client::{Backoff, Client, ClientConfig};

/// What one peer's tasks own.
#[derive(Clone)]
pub(super) struct Exchange {
    pub(super) peer: Peer,
    pub(super) node: NodeName,
    pub(super) local: Client,
    pub(super) live: LiveIdentity,
    pub(super) own: watch::Receiver<Option<Arc<RouterStatus>>>,
    pub(super) lost: broadcast::Sender<NodeName>,
    pub(super) report: Report,
    pub(super) stale_after: Duration,
}

impl Exchange {
    /// Pulls and pushes, for ever.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::remote();
        let client = loop {
            let config = ClientConfig {
                server: self.peer.server.clone(),
                expect: self.peer.node.clone(),
                live: self.live.clone(),
            };
            match Client::new(config) {
                Ok(client) => break client,
                Err(error) => self.report.broken(Direction::Pull, &error.to_string()),
            }
            tokio::time::sleep(backoff.failed()).await;
        };
        let Self {
            peer,
            node,
            local,
            own,
            lost,
            report,
            stale_after,
            ..
        } = self;
        let client = client.hurried_by(report.hurry());
        let (changes, haste) = (client.network_changes(), report.clone());
        let network = follow(changes, || haste.hurry_up(Sign::Network));
        let pull = Pull::new(peer.node, local.clone(), report.clone(), stale_after);
        let push = Pusher {
            node,
            local,
            client: client.clone(),
            own,
            report,
            plan: Push::new(),
            retry: Retry::new(),
            overtake_at: Instant::now(),
        };
        tokio::join!(pull.run(&client, lost.subscribe()), push.run(), network);
    }
}

/// Tells every change, as long as there can be one.
async fn follow(changes: Option<watch::Receiver<u64>>, tell: impl Fn()) {
    let Some(mut changes) = changes else { return };
    while changes.changed().await.is_ok() {
        tell();
    }
}

/// Attempts that failed, and when the next one is due.
pub(super) struct Retry {
    backoff: Backoff,
    pub(super) at: Option<Instant>,
}

impl Retry {
    pub(super) fn new() -> Self {
        Self {
            backoff: Backoff::remote(),
            at: None,
        }
    }

    pub(super) fn succeeded(&mut self) {
        self.backoff.succeeded();
        self.at = None;
    }

    pub(super) fn failed(&mut self) {
        self.at = Some(Instant::now() + self.backoff.failed());
    }

    /// Whether an attempt must still wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.at.is_some_and(|at| at > Instant::now())
    }
}

/// Completes at `at`; never without one.
pub(super) async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
