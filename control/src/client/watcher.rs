//! What a watch must do next, without any I/O: list, watch from a revision, after what wait, and what each event means.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Backoff, Class, ClientError, WatchEvent, WatchFrom, Watched};
use crate::api::{ObjectMeta, Revision, Status};

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read the current state.
    List,
    /// Open a watch for what came after this revision.
    Watch(Revision),
}

/// Follows a collection over any number of connections.
///
/// Every change behind the last snapshot comes exactly once and in order, because a new watch starts behind the last revision that
/// was seen; if the server cannot do that, the next thing is a new snapshot.
#[derive(Debug)]
pub(crate) struct Watcher {
    next: Step,
    backoff: Backoff,
    wait: Duration,
}

impl Watcher {
    pub(crate) fn new(from: WatchFrom, backoff: Backoff) -> Self {
        Self {
            next: match from {
                WatchFrom::Snapshot => Step::List,
                WatchFrom::Revision(after) => Step::Watch(after),
            },
            backoff,
            wait: Duration::ZERO,
        }
    }

    pub(crate) fn next(&self) -> Step {
        self.next
    }

    /// How long to wait before it; nothing if asked again.
    pub(crate) fn wait(&mut self) -> Duration {
        std::mem::take(&mut self.wait)
    }

    /// A snapshot of this revision was read.
    pub(crate) fn listed(&mut self, revision: Revision) {
        self.next = Step::Watch(revision);
    }

    /// A call or the watch failed: what the server can no longer give must be listed anew. `jitter` is a random share from 0 to 1.
    pub(crate) fn failed(&mut self, class: Class, jitter: f64) {
        if matches!(class, Class::Gone | Class::Ahead) {
            self.next = Step::List;
        }
        self.ended(jitter);
    }

    /// The watch ended in order.
    pub(super) fn ended(&mut self, jitter: f64) {
        self.wait = self.backoff.failed_by(jitter);
    }

    /// The watch cannot get past its next event: the current state must be read instead.
    pub(super) fn relist(&mut self) {
        self.next = Step::List;
    }

    /// An event of this revision came; whether it is behind what was seen.
    pub(crate) fn came(&mut self, revision: Revision) -> bool {
        // Only what a watch brings shows that it works: a list and an opened watch alone may go on failing for ever.
        self.backoff.succeeded();
        let new = match self.next {
            Step::Watch(seen) => revision > seen,
            Step::List => true,
        };
        // A server that repeats itself, or a peer that lies: what was seen stays seen.
        if new {
            self.next = Step::Watch(revision);
        }
        new
    }

    /// Takes one line of a watch. `None` if it brings nothing new.
    ///
    /// # Errors
    /// The error that the server sent in the line, or that the line cannot be read. [`failed`](Self::failed) must follow.
    pub(super) fn line<T: Watched>(
        &mut self,
        line: &[u8],
    ) -> Result<Option<WatchEvent<T>>, ClientError> {
        #[derive(Deserialize)]
        struct Event {
            #[serde(rename = "type")]
            kind: String,
            #[serde(default)]
            object: Value,
        }
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            metadata: ObjectMeta,
        }
        let unreadable = |error: serde_json::Error| {
            ClientError::Answer(format!("a watch event cannot be read: {error}"))
        };
        let event: Event = serde_json::from_slice(line).map_err(unreadable)?;
        if event.kind == "ERROR" {
            let status = Status::deserialize(&event.object).map_err(unreadable)?;
            return Err(ClientError::Status(Box::new(status)));
        }
        let head = Head::deserialize(&event.object).map_err(unreadable)?;
        let Some(revision) = head.metadata.resource_version else {
            return Err(ClientError::Answer(
                "a watch event without metadata.resourceVersion".to_owned(),
            ));
        };
        let is_new = self.came(revision);
        // A bookmark of what was seen says that the server is there and has nothing newer.
        let is_current = event.kind == "BOOKMARK" && self.next == Step::Watch(revision);
        if !is_new && !is_current {
            return Ok(None);
        }
        Ok(match event.kind.as_str() {
            "ADDED" | "MODIFIED" => match T::read(event.object) {
                Ok(object) => Some(WatchEvent::Applied(object)),
                // One bad object must not stop the others: it stays as it was until it can be read.
                Err(error) => {
                    tracing::warn!(name = %head.metadata.name, %error, "skipped an event of a watch");
                    None
                }
            },
            "DELETED" => T::name(&head.metadata).map(WatchEvent::Deleted),
            "BOOKMARK" => Some(WatchEvent::Synced(revision)),
            // Kinds of events that come later.
            _ => None,
        })
    }
}
