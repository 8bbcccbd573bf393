//! A watch that goes on over broken connections, restarted servers and compacted history.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use keel_certs::NodeName;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::backoff::Hurry;
use super::lines::{LineError, Lines};
use super::routers::{Selection, router};
use super::watcher::{Step, Watcher};
use super::{Backoff, Client, ClientError};
use crate::api::{FrpServer, ObjectMeta, Revision, Router};
use crate::pace::Pace;

/// Bookmarks come every 10 s; a server that is silent for longer than this has lost us.
const SILENCE: Duration = Duration::from_secs(35);

/// What a byte of a paced watch costs: 1 MiB of events a second.
const EVENT_BYTE: Duration = Duration::from_nanos(954);
/// What an event costs at least, in bytes: 1,024 events a second.
const SMALL_EVENT: usize = 1024;
/// A timer is a millisecond coarse: a shorter debt than this waits for more.
const WORTH_SLEEPING: Duration = Duration::from_millis(20);
/// What may come at once: the missed events of a long cut.
pub(super) const EVENTS_AT_ONCE: Duration = Duration::from_secs(8);

fn saturating(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

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
pub enum WatchEvent<T: Watched = Router> {
    /// The whole state: what is not in it is gone. Comes first, and again whenever the server cannot go on from where we were.
    Snapshot {
        /// All objects of the watch.
        routers: Vec<T>,
        /// The revision that they are of.
        revision: Revision,
    },
    /// An object is new or has changed.
    Applied(T),
    /// An object is gone.
    Deleted(T::Name),
    /// Everything up to this revision was seen.
    Synced(Revision),
    /// Nothing comes at the moment, for this reason; the watch goes on by itself, and nothing is lost.
    Interrupted(ClientError),
}

/// The events of a watch; never ends. Dropping it cancels the watch at the server.
pub type WatchStream<T = Router> = BoxStream<'static, WatchEvent<T>>;

/// What can be watched.
pub trait Watched: Sized + Send + 'static {
    /// What tells one from another.
    type Name: Send;

    /// Reads an object as the server sends it.
    ///
    /// # Errors
    /// [`ClientError::Answer`] if it is none.
    fn read(value: Value) -> Result<Self, ClientError>;

    /// The name of an object that is gone; none if it is no name.
    fn name(meta: &ObjectMeta) -> Option<Self::Name>;
}

impl Watched for Router {
    type Name = NodeName;

    fn read(value: Value) -> Result<Self, ClientError> {
        router(value)
    }

    fn name(meta: &ObjectMeta) -> Option<NodeName> {
        NodeName::new(&meta.name).ok()
    }
}

impl Watched for FrpServer {
    type Name = String;

    fn read(value: Value) -> Result<Self, ClientError> {
        Self::deserialize(value)
            .map_err(|error| ClientError::Answer(format!("an FRPServer cannot be read: {error}")))
    }

    fn name(meta: &ObjectMeta) -> Option<String> {
        Some(meta.name.clone())
    }
}

/// Any object, unread.
impl Watched for Value {
    type Name = ObjectMeta;

    fn read(value: Value) -> Result<Self, ClientError> {
        Ok(value)
    }

    fn name(meta: &ObjectMeta) -> Option<ObjectMeta> {
        Some(meta.clone())
    }
}

impl Client {
    /// Follows all Routers.
    #[must_use]
    pub fn watch_routers(&self, from: WatchFrom) -> WatchStream {
        self.watch(Selection::all(), from)
    }

    /// Follows one Router; the server sends nothing else, and more than 1 MiB of it is not taken. Events are read at no more than 1 MiB
    /// and 1,024 of them a second, but for 8 s worth at once: a server that floods is slowed down.
    #[must_use]
    pub fn watch_router(&self, name: NodeName, from: WatchFrom) -> WatchStream {
        self.watch(Selection::one(name), from)
    }

    /// Follows the FRPServer of this name.
    #[must_use]
    pub fn watch_frpserver(&self, name: &str) -> WatchStream<FrpServer> {
        let selection = Selection::frpserver(name);
        self.watch(selection, WatchFrom::Snapshot)
    }

    /// Follows the objects of a collection, whose path this is, as they are sent.
    #[must_use]
    pub fn watch_objects(&self, collection: &str) -> WatchStream<Value> {
        let selection = Selection {
            collection: collection.to_owned(),
            ..Selection::all()
        };
        self.watch(selection, WatchFrom::Snapshot)
    }

    fn watch<T: Watched>(&self, selection: Selection, from: WatchFrom) -> WatchStream<T> {
        let local = self
            .server()
            .addr()
            .is_some_and(|address| address.ip().is_loopback());
        let backoff = if local {
            Backoff::local()
        } else {
            Backoff::remote()
        };
        let follow = Follow {
            hurry: self.hurry.clone(),
            client: self.clone(),
            pace: selection.pace,
            selection,
            watcher: Watcher::new(from, backoff),
            open: None,
            read_at: Instant::now(),
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
    hurry: Option<watch::Receiver<Option<Hurry>>>,
    pace: Option<Pace>,
    open: Option<Lines>,
    /// When the next event may be read.
    read_at: Instant,
}

impl Follow {
    async fn next<T: Watched>(&mut self) -> WatchEvent<T> {
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
                    self.watcher.failed(error.class(), rand::random());
                    return WatchEvent::Interrupted(error);
                }
            }
        }
    }

    /// Waits until the next attempt is due, or a hurry makes it due.
    async fn rest(&mut self) {
        let mut due = Instant::now() + self.watcher.wait();
        loop {
            if let Some(hurry) = &mut self.hurry
                && let Some(hurry) = *hurry.borrow_and_update()
            {
                let now = Instant::now();
                let left = due.saturating_duration_since(now);
                due = now + hurry.shorten(left, now, rand::random());
            }
            let hurried = async {
                match &mut self.hurry {
                    Some(hurry) => hurry.changed().await.is_ok(),
                    None => false,
                }
            };
            tokio::select! {
                biased;
                () = sleep_until(due) => return,
                true = hurried => {}
            }
        }
    }

    async fn begin<T: Watched>(&mut self) -> Result<Option<WatchEvent<T>>, ClientError> {
        self.rest().await;
        match self.watcher.next() {
            Step::List => {
                let (routers, revision) = self.client.list(&self.selection).await?;
                self.watcher.listed(revision);
                Ok(Some(WatchEvent::Snapshot { routers, revision }))
            }
            Step::Watch(after) => {
                let body = self.client.open_watch(&self.selection, after).await?;
                self.open = Some(Lines::new(body, self.selection.max_event));
                Ok(None)
            }
        }
    }

    async fn read<T: Watched>(&mut self) -> Result<Option<WatchEvent<T>>, ClientError> {
        let Some(lines) = &mut self.open else {
            return Ok(None);
        };
        let server = self.client.server();
        if self.read_at.saturating_duration_since(Instant::now()) >= WORTH_SLEEPING {
            sleep_until(self.read_at).await;
        }
        match timeout(SILENCE, lines.next()).await {
            Ok(Ok(Some(line))) => {
                if let Some(pace) = &mut self.pace {
                    let size = line.len().max(SMALL_EVENT);
                    self.read_at = pace.take(Instant::now(), EVENT_BYTE * saturating(size));
                }
                self.watcher.line(&line)
            }
            // A clean end between two events: the server stops, or has a limit on the length of a watch.
            Ok(Ok(None)) => {
                self.open = None;
                self.watcher.ended(rand::random());
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
