//! The exchange with one peer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use keel_certs::{LiveIdentity, NodeName};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::Peer;
use super::plan::{Pulled, Push, When, pulled, source};
use super::state::{Direction, Report};
use crate::api::{Revision, Router, RouterStatus};
use crate::client::{Backoff, Class, Client, ClientConfig, ClientError, WatchEvent, WatchFrom};

/// How long until our store is raised once more.
const OVERTAKE_AGAIN: Duration = Duration::from_secs(10);

/// What one peer's tasks own.
#[derive(Clone)]
pub(super) struct Exchange {
    pub(super) peer: Peer,
    pub(super) node: NodeName,
    pub(super) local: Client,
    pub(super) live: LiveIdentity,
    pub(super) own: watch::Receiver<Option<Arc<RouterStatus>>>,
    pub(super) report: Report,
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
            report,
            ..
        } = self;
        let pull = Pull {
            peer: peer.node,
            local: local.clone(),
            report: report.clone(),
            held: None,
            waiting: None,
            retry: Retry::new(),
        };
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
        tokio::join!(pull.run(&client), push.run());
    }
}

/// Attempts that failed, and when the next one is due.
struct Retry {
    backoff: Backoff,
    at: Option<Instant>,
}

impl Retry {
    fn new() -> Self {
        Self {
            backoff: Backoff::remote(),
            at: None,
        }
    }

    fn succeeded(&mut self) {
        self.backoff.succeeded();
        self.at = None;
    }

    fn failed(&mut self) {
        self.at = Some(Instant::now() + self.backoff.failed());
    }

    /// Whether an attempt must still wait.
    fn is_waiting(&self) -> bool {
        self.at.is_some_and(|at| at > Instant::now())
    }
}

/// Completes at `at`; never without one.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Pull {
    peer: NodeName,
    local: Client,
    report: Report,
    /// `source.revision` of what our APIServer holds; `None` while that is not known.
    held: Option<Option<Revision>>,
    /// The newest Router of the peer that is not yet taken over. A newer one replaces it: what is behind needs no history.
    waiting: Option<Router>,
    retry: Retry,
}

impl Pull {
    async fn run(mut self, client: &Client) {
        let mut events = client.watch_router(self.peer.clone(), WatchFrom::Snapshot);
        loop {
            tokio::select! {
                Some(event) = events.next() => self.event(event),
                () = due(self.retry.at), if self.waiting.is_some() => self.retry.at = None,
            }
            if self.waiting.is_some() && !self.retry.is_waiting() {
                self.apply().await;
            }
        }
    }

    fn event(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Snapshot { mut routers, .. } => {
                self.report.contact();
                // The server was asked for this one only; a liar's others are left out.
                if let Some(at) = routers
                    .iter()
                    .position(|router| router.name() == self.peer.as_ref())
                {
                    self.waiting = Some(routers.swap_remove(at));
                } else if !routers.is_empty() {
                    self.report.refused("it sent the Router of another node");
                }
            }
            WatchEvent::Applied(router) => {
                self.report.contact();
                self.waiting = Some(router);
            }
            WatchEvent::Synced(_) => self.report.contact(),
            // What a node was stays visible, with its age.
            WatchEvent::Deleted(_) => self.report.contact(),
            WatchEvent::Interrupted(error) => match error.class() {
                // The watch starts anew by itself; the peer is there.
                Class::Gone | Class::Ahead => self.report.contact(),
                _ => self.report.broken(Direction::Pull, &error.to_string()),
            },
        }
    }

    /// Takes the waiting status over, if it is newer.
    async fn apply(&mut self) {
        let Some(router) = self.waiting.take() else {
            return;
        };
        match self.take_over(&router).await {
            Ok(()) => self.retry.succeeded(),
            Err(error) => {
                debug!(peer = %self.peer, %error, "the peer's status could not be taken over, trying again");
                self.report.failed(Direction::Pull);
                self.report.behind(true);
                self.waiting = Some(router);
                self.retry.failed();
            }
        }
    }

    async fn take_over(&mut self, router: &Router) -> Result<(), ClientError> {
        let held = match self.held {
            Some(held) => held,
            None => self.read_held().await?,
        };
        match pulled(&self.peer, router, held, Revision::latest()) {
            Pulled::Apply(status, revision) => {
                match self.local.apply_status(&self.peer, status).await {
                    Ok(stored) => {
                        // A push may have come first: then what is held is newer than this.
                        let held = stored.status.as_ref().and_then(source);
                        self.held = Some(held);
                        match held {
                            Some(held) if held > revision => self.report.behind(false),
                            _ => self.report.applied(Direction::Pull, revision),
                        }
                    }
                    Err(error) if matches!(error.class(), Class::Invalid) => {
                        // Sending it again changes nothing; the next status may be better.
                        self.report
                            .refused("our APIServer does not take its status");
                        debug!(peer = %self.peer, %error, "our APIServer does not take the peer's status");
                    }
                    Err(error) => return Err(error),
                }
            }
            Pulled::Known => self.report.behind(false),
            Pulled::Nothing => {}
            Pulled::Refuse(why) => self.report.refused(why),
        }
        Ok(())
    }

    async fn read_held(&mut self) -> Result<Option<Revision>, ClientError> {
        let held = match self.local.get_router(&self.peer).await {
            Ok(router) => router.status.as_ref().and_then(source),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        self.held = Some(held);
        Ok(held)
    }
}

struct Pusher {
    node: NodeName,
    local: Client,
    client: Client,
    own: watch::Receiver<Option<Arc<RouterStatus>>>,
    report: Report,
    plan: Push,
    retry: Retry,
    /// When our store may be raised next: not at the pace of a peer that lies.
    overtake_at: Instant,
}

impl Pusher {
    /// Follows what the peer holds of ours and what we are, and pushes when the plan says so.
    async fn run(mut self) {
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
                );
            }
            WatchEvent::Applied(router) if router.name() == self.node.as_ref() => {
                self.plan.held(held(&router))
            }
            WatchEvent::Deleted(name) if name == self.node => self.plan.held(None),
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
                    Some(held) if held > revision => self.plan.held(Some(held)),
                    _ => {
                        self.plan.sent(revision);
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
