//! A watch that goes on over broken connections, restarted servers and compacted history.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use keel_certs::NodeName;
use tokio::time::timeout;

use super::lines::{LineError, Lines};
use super::routers::Selection;
use super::watcher::{Step, Watcher};
use super::{Backoff, Client, ClientError};
use crate::api::{Revision, Router};

/// Bookmarks come every 10 s; a server that is silent for longer than this has lost us.
const SILENCE: Duration = Duration::from_secs(35);

/// Where a watch starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFrom {
    /// With the current state as a [`WatchEvent::Snapshot`].
    Snapshot,
    /// With what came after this revision.
    Revision(Revision),
}

/// What a watch brings.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every event is the large one, and each is looked at once"
)]
pub enum WatchEvent {
    /// The whole state: what is not in it is gone. Comes first, and again whenever the server cannot go on from where we were.
    Snapshot {
        /// All Routers of the watch.
        routers: Vec<Router>,
        /// The revision that they are of.
        revision: Revision,
    },
    /// A Router is new or has changed.
    Applied(Router),
    /// A Router is gone.
    Deleted(NodeName),
    /// Everything up to this revision was seen.
    Synced(Revision),
    /// Nothing comes at the moment, for this reason; the watch goes on by itself, and nothing is lost.
    Interrupted(ClientError),
}

/// The events of a watch; never ends. Dropping it cancels the watch at the server.
pub type WatchStream = BoxStream<'static, WatchEvent>;

impl Client {
    /// Follows all Routers.
    #[must_use]
    pub fn watch_routers(&self, from: WatchFrom) -> WatchStream {
        self.watch(Selection::all(), from)
    }

    /// Follows one Router; the server sends nothing else, and more than 1 MiB of it is not taken.
    #[must_use]
    pub fn watch_router(&self, name: NodeName, from: WatchFrom) -> WatchStream {
        self.watch(Selection::one(name), from)
    }

    fn watch(&self, selection: Selection, from: WatchFrom) -> WatchStream {
        let local = self
            .server()
            .addr()
            .is_some_and(|address| address.ip().is_loopback());
        let follow = Follow {
            client: self.clone(),
            selection,
            watcher: Watcher::new(from),
            backoff: if local {
                Backoff::local()
            } else {
                Backoff::remote()
            },
            open: None,
            wait: Duration::ZERO,
        };
        stream::unfold(follow, |mut follow| async {
            Some((follow.next().await, follow))
        })
        .boxed()
    }
}

struct Follow {
    client: Client,
    selection: Selection,
    watcher: Watcher,
    backoff: Backoff,
    open: Option<Lines>,
    wait: Duration,
}

impl Follow {
    async fn next(&mut self) -> WatchEvent {
        loop {
            let stepped = match &mut self.open {
                Some(_) => self.read().await,
                None => self.begin().await,
            };
            match stepped {
                Ok(Some(event)) => return event,
                Ok(None) => {}
                Err(error) => {
                    self.open = None;
                    self.watcher.failed(error.class());
                    self.wait = self.backoff.failed();
                    return WatchEvent::Interrupted(error);
                }
            }
        }
    }

    async fn begin(&mut self) -> Result<Option<WatchEvent>, ClientError> {
        tokio::time::sleep(std::mem::take(&mut self.wait)).await;
        match self.watcher.next() {
            Step::List => {
                let list = self.client.list(&self.selection).await?;
                self.watcher.listed(list.revision);
                Ok(Some(WatchEvent::Snapshot {
                    routers: list.routers,
                    revision: list.revision,
                }))
            }
            Step::Watch(after) => {
                let body = self.client.open_watch(&self.selection, after).await?;
                self.open = Some(Lines::new(body, self.selection.max_event));
                Ok(None)
            }
        }
    }

    async fn read(&mut self) -> Result<Option<WatchEvent>, ClientError> {
        let Some(lines) = &mut self.open else {
            return Ok(None);
        };
        let server = self.client.server().clone();
        match timeout(SILENCE, lines.next()).await {
            Ok(Ok(Some(line))) => {
                let event = self.watcher.line(&line)?;
                // Only what a watch brings shows that it works: a list and an opened watch alone may go on failing for ever.
                self.backoff.succeeded();
                Ok(event)
            }
            // A clean end between two events: the server stops, or has a limit on the length of a watch.
            Ok(Ok(None)) => {
                self.open = None;
                self.wait = self.backoff.failed();
                Ok(None)
            }
            // An object that is larger than a server should keep. Watched again from here it would come again, for ever, and
            // hold up all others; a list may be longer than an event.
            Ok(Err(error @ LineError::TooLong(_))) => {
                self.watcher.relist();
                Err(ClientError::Answer(error.to_string()))
            }
            Ok(Err(error)) => Err(ClientError::Interrupted {
                server,
                why: error.to_string(),
            }),
            Err(_) => Err(ClientError::Slow {
                server,
                seconds: SILENCE.as_secs(),
            }),
        }
    }
}
