//! One peer's status on its way to our APIServer, and the mark on it that it may be old.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt as _, StreamExt as _};
use keel_certs::NodeName;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tracing::debug;

use super::peer::due;
use super::plan::source;
use super::stale::{MARK_AGAIN, is_marked, mark};
use super::state::{Direction, Report};
use super::taking::{Do, Taking};
use crate::api::{Revision, Router, RouterStatus, SYNCED};
use crate::client::{Class, Client, ClientError, WatchEvent, WatchFrom};

/// Events that are taken before anything is done about them.
const AT_ONCE: usize = 64;

/// What the task that pulls from one peer owns.
pub(super) struct Pull {
    peer: NodeName,
    local: Client,
    report: Report,
    taking: Taking,
    /// When the peer was last heard, or since when it is listened to.
    heard: (Instant, SystemTime),
    /// Whether the Router held here says that it may be old.
    marked: bool,
    /// When the mark is next looked at.
    mark_at: Option<Instant>,
    stale_after: Duration,
}

impl Pull {
    pub(super) fn new(
        peer: NodeName,
        local: Client,
        report: Report,
        stale_after: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            peer,
            local,
            report,
            taking: Taking::new(),
            heard: (now, SystemTime::now()),
            marked: false,
            mark_at: Some(now + stale_after),
            stale_after,
        }
    }

    /// Follows the peer's Router and takes its status over, for ever; `lost` tells whose Router is here no longer.
    pub(super) async fn run(mut self, client: &Client, mut lost: broadcast::Receiver<NodeName>) {
        let mut events = client.watch_router(self.peer.clone(), WatchFrom::Snapshot);
        loop {
            let wake = self.act().await;
            tokio::select! {
                Some(event) = events.next() => {
                    self.event(event);
                    // What is there already is newer, and only the newest counts.
                    for _ in 0..AT_ONCE {
                        match events.next().now_or_never() {
                            Some(Some(event)) => self.event(event),
                            _ => break,
                        }
                    }
                }
                lost = lost.recv() => match lost {
                    Ok(node) if node != self.peer => {}
                    Err(RecvError::Closed) => return std::future::pending().await,
                    Ok(_) | Err(RecvError::Lagged(_)) => self.lost(),
                },
                () = due(wake) => {}
                () = due(self.mark_at) => self.look().await,
            }
        }
    }

    fn event(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Snapshot { mut routers, .. } => {
                self.hear();
                // The server was asked for this one only; a liar's others are left out.
                if let Some(at) = routers
                    .iter()
                    .position(|router| router.name() == self.peer.as_ref())
                {
                    self.taking.came(Arc::new(routers.swap_remove(at)));
                } else if !routers.is_empty() {
                    self.report.refused("it sent the Router of another node");
                }
            }
            WatchEvent::Applied(router) => {
                self.hear();
                self.taking.came(Arc::new(router));
            }
            // What a node was stays visible, with its age.
            WatchEvent::Synced(_) | WatchEvent::Deleted(_) => self.hear(),
            WatchEvent::Interrupted(error) => match error.class() {
                // The watch starts anew by itself; the peer is there.
                Class::Gone | Class::Ahead => self.hear(),
                _ => self.report.broken(Direction::Pull, &error.to_string()),
            },
        }
    }

    /// What was taken over is not here any more, or may not be.
    fn lost(&mut self) {
        if self.taking.lost() {
            self.report.behind(true);
        }
    }

    fn hear(&mut self) {
        let now = Instant::now();
        self.heard = (now, SystemTime::now());
        // A mark is taken off at once, unless a newer status takes it along; one that nobody set is looked for no earlier than it is due.
        self.mark_at = Some(if self.marked {
            now
        } else {
            now + self.stale_after
        });
        self.report.contact();
    }

    /// Does all that can be done now with what came; when to ask again, if nothing comes.
    async fn act(&mut self) -> Option<Instant> {
        loop {
            match self
                .taking
                .next(&self.peer, Instant::now(), Revision::latest())
            {
                Do::Nothing => return None,
                Do::Wait(at) => return Some(at),
                Do::ReadHeld => match self.read_held().await {
                    Ok(_) => {}
                    Err(error) => self.failed(None, &error),
                },
                Do::Write(router, revision) => self.write(router, revision).await,
                Do::Known => self.report.behind(false),
                Do::Refuse(why) => self.report.refused(why),
            }
        }
    }

    async fn write(&mut self, router: Arc<Router>, revision: Revision) {
        let Some(status) = &router.status else {
            return;
        };
        match self.local.apply_status(&self.peer, status).await {
            Ok(stored) => {
                // A push may have come first: then what is held is newer than this.
                let held = stored.status.as_ref().and_then(source);
                self.taking.wrote(&router, held, Instant::now());
                self.marked = false;
                match held {
                    Some(held) if held > revision => self.report.behind(false),
                    _ => self.report.applied(Direction::Pull, revision),
                }
            }
            Err(error) if matches!(error.class(), Class::Invalid) => {
                // Sending it again changes nothing; the next status may be better.
                self.taking.gave_up();
                self.report
                    .refused("our APIServer does not take its status");
                debug!(peer = %self.peer, %error, "our APIServer does not take the peer's status");
            }
            Err(error) => self.failed(Some(router), &error),
        }
    }

    fn failed(&mut self, router: Option<Arc<Router>>, error: &ClientError) {
        debug!(peer = %self.peer, %error, "the peer's status could not be taken over, trying again");
        self.report.failed(Direction::Pull);
        self.report.behind(true);
        self.taking.failed(router, Instant::now(), rand::random());
    }

    async fn read_held(&mut self) -> Result<Option<RouterStatus>, ClientError> {
        let held = match self.local.get_router(&self.peer).await {
            Ok(router) => router.status,
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        self.taking.held(held.as_ref().and_then(source));
        self.marked = held.as_ref().is_some_and(is_marked);
        if self.marked {
            // Of a process before this one.
            self.mark_at = self.mark_at.min(Some(self.heard.0));
        }
        Ok(held)
    }

    /// Marks what is held here as old, or takes the mark off, whichever is true now.
    async fn look(&mut self) {
        match self.mark().await {
            Ok(next) => self.mark_at = next,
            Err(error) => {
                debug!(peer = %self.peer, %error, "the peer's Router could not be marked, trying again");
                self.mark_at = Some(Instant::now() + MARK_AGAIN);
            }
        }
    }

    /// When to look again.
    async fn mark(&mut self) -> Result<Option<Instant>, ClientError> {
        let known = self.taking.held_now();
        let held = self.read_held().await?;
        let stale_at = self.heard.0 + self.stale_after;
        let is_stale = Instant::now() >= stale_at;
        let Some(mut status) = held.filter(|status| source(status).is_some()) else {
            return Ok(Some(Instant::now() + self.stale_after));
        };
        if is_stale && known.is_some_and(|known| source(&status) != known) {
            // It still pushes, so it is there, though it cannot be called.
            self.heard = (Instant::now(), SystemTime::now());
            return Ok(Some(self.heard.0 + self.stale_after));
        }
        if is_stale != self.marked {
            status.conditions.retain(|one| one.kind != SYNCED);
            if is_stale {
                status.conditions.push(mark(&self.peer, self.heard.1));
            }
            self.local.apply_status(&self.peer, &status).await?;
            self.marked = is_stale;
        }
        Ok(Some(match is_stale {
            true => Instant::now() + self.stale_after,
            false => stale_at,
        }))
    }
}
