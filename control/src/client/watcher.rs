//! What a watch must do next, without any I/O: list, watch from a revision, and what each event means.

use keel_certs::NodeName;
use serde::Deserialize;
use serde_json::Value;

use super::routers::router;
use super::{Class, ClientError, WatchEvent, WatchFrom};
use crate::api::{ObjectMeta, Revision, Status};

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
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
pub(super) struct Watcher {
    next: Step,
}

impl Watcher {
    pub(super) fn new(from: WatchFrom) -> Self {
        Self {
            next: match from {
                WatchFrom::Snapshot => Step::List,
                WatchFrom::Revision(after) => Step::Watch(after),
            },
        }
    }

    pub(super) fn next(&self) -> Step {
        self.next
    }

    /// A snapshot of this revision was read.
    pub(super) fn listed(&mut self, revision: Revision) {
        self.next = Step::Watch(revision);
    }

    /// A call or the watch failed: what the server can no longer give must be listed anew.
    pub(super) fn failed(&mut self, class: Class) {
        if matches!(class, Class::Gone | Class::Ahead) {
            self.next = Step::List;
        }
    }

    /// The watch cannot get past its next event: the current state must be read instead.
    pub(super) fn relist(&mut self) {
        self.next = Step::List;
    }

    /// Takes one line of a watch. `None` if it brings nothing new.
    ///
    /// # Errors
    /// The error that the server sent in the line, or that the line cannot be read. [`failed`](Self::failed) must follow.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<Option<WatchEvent>, ClientError> {
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
        let new = match self.next {
            Step::Watch(seen) => revision > seen,
            Step::List => true,
        };
        if !new {
            // A server that repeats itself, or a peer that lies: what was seen stays seen.
            return Ok(None);
        }
        self.next = Step::Watch(revision);
        Ok(match event.kind.as_str() {
            "ADDED" | "MODIFIED" => match router(event.object) {
                Ok(router) => Some(WatchEvent::Applied(router)),
                // One bad object must not stop the others: it stays as it was until it can be read.
                Err(error) => {
                    tracing::warn!(name = %head.metadata.name, %error, "skipped an event of a watch");
                    None
                }
            },
            "DELETED" => NodeName::new(&head.metadata.name)
                .ok()
                .map(WatchEvent::Deleted),
            "BOOKMARK" => Some(WatchEvent::Synced(revision)),
            // Kinds of events that come later.
            _ => None,
        })
    }
}
