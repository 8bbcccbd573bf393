//! Our own status on its way to one peer: only what the peer does not fetch by itself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use keel_certs::NodeName;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::peer::{Retry, due};
use super::plan::{Push, When, source};
use super::state::{Direction, Report};
use crate::api::{Revision, Router, RouterStatus};
use crate::client::{Client, WatchEvent, WatchFrom};

/// How long until our store is raised once more.
const OVERTAKE_AGAIN: Duration = Duration::from_secs(10);

/// What the task that pushes to one peer owns.
pub(super) struct Pusher {
    pub(super) node: NodeName,
    pub(super) local: Client,
    pub(super) client: Client,
    pub(super) own: watch::Receiver<Option<Arc<RouterStatus>>>,
    pub(super) report: Report,
    pub(super) plan: Push,
    pub(super) retry: Retry,
    /// When our store may be raised next: not at the pace of a peer that lies.
    pub(super) overtake_at: Instant,
}

impl Pusher {
    /// Follows what the peer holds of ours and what we are, and pushes when the plan says so.
    pub(super) async fn run(mut self) {
        let mut events = self
            .client
            .watch_router(self.node.clone(), WatchFrom::Snapshot);
        let mut own_known = true;
        loop {
            let own = self.own.borrow_and_update().clone();
            self.plan
                .own(own.as_deref().and_then(source), Instant::now());
            let at = match self.plan.when(Instant::now()) {
                When::Now if !self.retry.is_waiting() => {
                    if let Some(status) = own {
                        self.push(&status).await;
                    }
                    continue;
                }
                When::Now => self.retry.at,
                When::At(at) => Some(at),
                When::Idle => match self.plan.ahead() {
                    Some(held) if self.overtake_at <= Instant::now() => {
                        self.overtake(held).await;
                        continue;
                    }
                    Some(_) => Some(self.overtake_at),
                    None => {
                        self.report.ahead(None);
                        None
                    }
                },
            };
            tokio::select! {
                Some(event) = events.next() => self.event(event),
                changed = self.own.changed(), if own_known => own_known = changed.is_ok(),
                () = due(at) => {}
            }
        }
    }

    fn event(&mut self, event: WatchEvent) {
        let held = |router: &Router| router.status.as_ref().and_then(source);
        match event {
            WatchEvent::Snapshot { routers, .. } => {
                self.plan.held(
                    routers
                        .iter()
                        .find(|router| router.name() == self.node.as_ref())
                        .and_then(held),
                    Instant::now(),
                );
            }
            WatchEvent::Applied(router) if router.name() == self.node.as_ref() => {
                self.plan.held(held(&router), Instant::now())
            }
            WatchEvent::Deleted(name) if name == self.node => {
                self.plan.held(None, Instant::now());
            }
            // The watch goes on exactly where it was, so what the peer holds is as known as before.
            WatchEvent::Interrupted(_)
            | WatchEvent::Applied(_)
            | WatchEvent::Deleted(_)
            | WatchEvent::Synced(_) => {}
        }
    }

    /// Lets our store go on behind `held`, the number of a status of ours that the peer holds: as long as ours is lower, the peer
    /// takes nothing from us.
    async fn overtake(&mut self, held: Revision) {
        self.overtake_at = Instant::now() + OVERTAKE_AGAIN;
        match self.local.raise_status(&self.node, held).await {
            Ok(own) => match own.status.as_ref().and_then(source) {
                // Only we were behind: the peer has pulled what our own watch has yet to tell.
                Some(own) if own == held => {}
                Some(own) if own > held => {
                    warn!(peer = %self.client.node(), %held, %own, "the peer held a later status of ours than our store: the store goes on behind it");
                }
                _ => self.report.ahead(Some(held)),
            },
            Err(error) => {
                debug!(%error, "our store could not be raised, trying again");
                self.report.ahead(Some(held));
            }
        }
    }

    async fn push(&mut self, status: &RouterStatus) {
        let Some(revision) = source(status) else {
            return;
        };
        match self.client.apply_status(&self.node, status).await {
            Ok(stored) => {
                self.retry.succeeded();
                match stored.status.as_ref().and_then(source) {
                    // It kept what it had: something newer of ours came by another way.
                    Some(held) if held > revision => self.plan.held(Some(held), Instant::now()),
                    _ => {
                        self.plan.sent(revision, Instant::now());
                        self.report.applied(Direction::Push, revision);
                    }
                }
            }
            Err(error) => {
                debug!(peer = %self.client.node(), %error, "our status could not be pushed, trying again");
                self.report.failed(Direction::Push);
                self.retry.failed();
            }
        }
    }
}
