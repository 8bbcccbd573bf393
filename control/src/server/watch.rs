//! A watch: a cursor over the store, read as a response body.
//!
//! There is no task and no queue: the transport polls the body, the body reads what is behind its cursor. A slow client costs a
//! cursor; when the client goes away, the body is dropped and that is all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::form::{Form, metadata};
use super::query::Include;
use super::read::parse;
use super::secret::Sight;
use super::selector::Selector;
use super::store_status;
use super::table::table;
use super::watches::{Admitted, Watches};
use crate::api::kind::Kind;
use crate::api::{Revision, Status};
use crate::http::{Body, BoxError, full};
use crate::store::{Event, EventKind, EventsError, Object, Store};

/// How often a watcher that asked for bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);
/// Watchers wake at most this often: under load, each wake-up takes many events at once.
const WAKE_EVERY: Duration = Duration::from_millis(10);
/// Events that one look at the store takes.
const PAGE: usize = 256;
/// Bytes after which a chunk is sent, though more is there.
const CHUNK: usize = 64 << 10;
/// Bytes of objects that one look at the store takes: a chunk of changed ones, which come with what they were before. A watcher that
/// is slow holds on to so much.
const READ: usize = 2 * CHUNK;
/// What is around an object in a line of a watch, in bytes.
const FRAME: usize = r#"{"type":"MODIFIED","object":}"#.len() + 1;
/// How long a watch waits for a revision that a list has seen and the hub has not told yet.
const CATCH_UP: Duration = Duration::from_secs(1);

/// How a watch is asked for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) kind: &'static Kind,
    pub(super) selector: Selector,
    /// Resume after this revision; `None`: begin with what is there.
    pub(super) after: Option<Revision>,
    /// Begin with what is there, not older than `after`.
    pub(super) initial_events: bool,
    /// Begin with what comes, if `after` is `None`.
    pub(super) only_new: bool,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
    pub(super) form: Form,
    pub(super) sight: Sight,
}

struct Watch {
    kind: &'static Kind,
    store: Store,
    hub: watch::Receiver<Revision>,
    /// Everything up to here was sent, or was not meant.
    cursor: Revision,
    /// Events behind the cursor that were read and are not sent yet.
    read: VecDeque<Arc<Event>>,
    selector: Selector,
    /// Objects of the beginning, and how many of them were dealt with; shared with whoever begins at the same revision.
    initial: Option<Arc<Vec<Object>>>,
    at: usize,
    /// Whether the end of the beginning is still to be told.
    initial_end: bool,
    form: Form,
    sight: Sight,
    /// Whether a Table's columns were sent.
    columns_sent: bool,
    bookmark_at: Option<Instant>,
    ends_at: Option<Instant>,
    woke: Instant,
    done: bool,
    _admitted: Admitted,
}

/// Starts a watch.
///
/// If the revision is compacted away, that is what the watch tells.
///
/// # Errors
/// `Timeout` with cause `ResourceVersionTooLarge` if the revision is ahead of the server.
pub(super) async fn start(
    store: Store,
    watches: &Watches,
    admitted: Admitted,
    request: Request,
) -> Result<Body, Status> {
    let mut hub = store.revision();
    if let Some(after) = request.after {
        reach(&mut hub, after).await?;
    }
    let (initial, cursor, initial_end) = match request.after {
        Some(after) if !request.initial_events => {
            // Only to be told now whether it can be resumed there.
            match store.events_since(after, 1).await {
                Ok(_) => (None, after, false),
                // As an event, as Kubernetes does: told by an HTTP status, kube-rs would ask for the same for ever.
                Err(error @ EventsError::Compacted { .. }) => {
                    return Ok(full(failure(&events_status(&error))));
                }
                Err(error) => return Err(events_status(&error)),
            }
        }
        None if request.only_new => (None, store.current(), false),
        _ => {
            let (objects, revision) = watches.state(&store, request.kind.about.kept()).await?;
            (
                Some(objects),
                revision,
                request.initial_events && request.bookmarks,
            )
        }
    };
    let now = Instant::now();
    let watch = Watch {
        kind: request.kind,
        store,
        hub,
        cursor,
        read: VecDeque::new(),
        selector: request.selector,
        initial,
        at: 0,
        initial_end,
        form: request.form,
        sight: request.sight,
        columns_sent: false,
        bookmark_at: request.bookmarks.then(|| now + BOOKMARK_EVERY),
        ends_at: request.timeout.map(|timeout| now + timeout),
        woke: now,
        done: false,
        _admitted: admitted,
    };
    let chunks = stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((Ok::<_, BoxError>(Frame::data(chunk)), watch))
    });
    Ok(StreamBody::new(chunks).boxed_unsync())
}

/// Waits until the store is at the revision. A list may be a moment ahead of the hub.
pub(super) async fn reach(
    hub: &mut watch::Receiver<Revision>,
    revision: Revision,
) -> Result<(), Status> {
    let reached = matches!(
        timeout_at(
            Instant::now() + CATCH_UP,
            hub.wait_for(|current| *current >= revision)
        )
        .await,
        Ok(Ok(_))
    );
    if reached {
        return Ok(());
    }
    Err(Status::too_large(revision, *hub.borrow()))
}

/// What a client is told if the events it wants cannot be had.
pub(super) fn events_status(error: &EventsError) -> Status {
    match error {
        EventsError::Ahead { asked, current } => Status::too_large(*asked, *current),
        EventsError::Compacted { asked, oldest } => {
            Status::expired(format!("too old resource version: {asked} ({oldest})"))
        }
        EventsError::Store(error) => store_status(error),
    }
}

impl Watch {
    /// The next chunk of whole lines; `None` at the end. Not cancel safe: only ever dropped together with the watch.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.done {
                return None;
            }
            if let Some(chunk) = self.beginning() {
                return Some(chunk);
            }
            if self.ends_at.is_some_and(|at| Instant::now() >= at) {
                self.done = true;
                // So that the next watch need not look again at what this one has looked at.
                return self.bookmark_at.is_some().then(|| self.bookmark(false));
            }
            if let Some(chunk) = self.chunk() {
                return Some(chunk);
            }
            // Marked as seen before the store is read, so that what comes in between wakes us again.
            let current = *self.hub.borrow_and_update();
            match self.store.events_within(self.cursor, PAGE, READ).await {
                Ok(events) if !events.is_empty() => {
                    self.read = events.into();
                    continue;
                }
                // Ahead: the list that this watch began with is a moment ahead of the hub.
                Ok(_) | Err(EventsError::Ahead { .. }) => {}
                Err(error) => return Some(self.fail(&events_status(&error))),
            }
            // Everything up to `current` was looked at, so the cursor can follow; it stays ahead of compaction that way.
            self.cursor = self.cursor.max(current);
            if self.bookmark_at.is_some_and(|at| Instant::now() >= at) {
                return Some(self.bookmark(false));
            }
            self.wait().await;
        }
    }

    /// Waits for news, for the next bookmark or for the end.
    async fn wait(&mut self) {
        let bookmark_at = self.bookmark_at;
        let ends_at = self.ends_at;
        let until = |at: Option<Instant>| async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = until(ends_at) => {}
            changed = self.hub.changed() => match changed {
                Ok(()) => {
                    sleep_until(self.woke + WAKE_EVERY).await;
                    self.woke = Instant::now();
                }
                Err(_) => self.done = true,
            },
            () = until(bookmark_at) => {}
        }
    }

    /// The next chunk of what was there when the watch began.
    fn beginning(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        while let Some(object) = self.initial.as_ref().and_then(|all| all.get(self.at)) {
            let object = object.clone();
            self.at += 1;
            if self.selects(&object.data) {
                self.line(&mut chunk, "ADDED", &object.data);
            }
            if chunk.len() >= CHUNK {
                return Some(chunk.freeze());
            }
        }
        self.initial = None;
        if std::mem::take(&mut self.initial_end) {
            chunk.put(self.bookmark(true));
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    /// The lines of the events that were read, or of the first of them; moves the cursor behind those that were taken. `None` if
    /// none of them is meant.
    fn chunk(&mut self) -> Option<Bytes> {
        if self.read.is_empty() {
            return None;
        }
        let mut room = 0;
        for event in &self.read {
            room += event.object.len() + FRAME;
            if room >= CHUNK {
                break;
            }
        }
        let mut chunk = BytesMut::with_capacity(room);
        while let Some(event) = self.read.pop_front() {
            self.cursor = event.revision;
            if event.key.resource == self.kind.about.kept()
                && let Some(kind) = self.meant(&event)
            {
                let object = self.shown(kind, &event);
                self.line(&mut chunk, kind, &object);
            }
            if chunk.len() >= CHUNK {
                break;
            }
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    /// What the event is to this watch: an object that begins or ceases to be selected is new or gone.
    fn meant(&self, event: &Event) -> Option<&'static str> {
        let before = event
            .previous
            .as_ref()
            .is_some_and(|previous| self.selects(previous));
        let after = event.kind != EventKind::Deleted && self.selects(&event.object);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some("ADDED"),
            (true, false) => Some("DELETED"),
            (true, true) => Some("MODIFIED"),
        }
    }

    /// What is shown of the event. What ceases to be selected is shown as it was when it was, with the number of its change.
    fn shown(&self, kind: &str, event: &Event) -> Bytes {
        let left = kind == "DELETED" && event.kind != EventKind::Deleted;
        let before = event.previous.as_ref().filter(|_| left);
        let before = before.and_then(|previous| {
            let mut object: Value = serde_json::from_slice(previous).ok()?;
            let meta = object.get_mut("metadata")?.as_object_mut()?;
            meta.insert("resourceVersion".into(), event.revision.to_string().into());
            Some(Bytes::from(object.to_string()))
        });
        before.unwrap_or_else(|| event.object.clone())
    }

    fn selects(&self, object: &[u8]) -> bool {
        self.selector.is_everything()
            || serde_json::from_slice::<Value>(object)
                .is_ok_and(|object| self.selector.matches(&object))
    }

    fn line(&mut self, chunk: &mut BytesMut, kind: &str, object: &Bytes) {
        let object = self.sight.show(&self.kind.about, object);
        chunk.put_slice(b"{\"type\":\"");
        chunk.put_slice(kind.as_bytes());
        chunk.put_slice(b"\",\"object\":");
        match self.form {
            Form::Metadata => chunk.put_slice(metadata(&parse(&object)).to_string().as_bytes()),
            Form::Table(include) => {
                chunk.put_slice(&self.rows(&[parse(&object)], None, include));
            }
            Form::Whole => chunk.put_slice(&object),
        }
        chunk.put_slice(b"}\n");
    }

    fn rows(&mut self, objects: &[Value], revision: Option<&str>, include: Include) -> Vec<u8> {
        let with_columns = !std::mem::replace(&mut self.columns_sent, true);
        let about = &self.kind.about;
        table(
            about,
            objects,
            revision,
            include,
            with_columns,
            SystemTime::now(),
        )
        .to_string()
        .into_bytes()
    }

    fn bookmark(&mut self, initial_end: bool) -> Bytes {
        self.bookmark_at = self.bookmark_at.map(|_| Instant::now() + BOOKMARK_EVERY);
        let revision = self.cursor.to_string();
        let mut place = json!({"resourceVersion": revision, "creationTimestamp": null});
        if initial_end {
            place["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let about = &self.kind.about;
        let object = match self.form {
            Form::Metadata => metadata(&json!({ "metadata": place })),
            Form::Whole => {
                json!({"kind": about.kind, "apiVersion": about.api_version(), "metadata": place})
            }
            Form::Table(include) => {
                let with_columns = !std::mem::replace(&mut self.columns_sent, true);
                let mut rows = table(
                    about,
                    &[],
                    Some(&revision),
                    include,
                    with_columns,
                    SystemTime::now(),
                );
                rows["metadata"] = place;
                rows
            }
        };
        Bytes::from(format!(
            "{}\n",
            json!({"type": "BOOKMARK", "object": object})
        ))
    }

    fn fail(&mut self, status: &Status) -> Bytes {
        self.done = true;
        failure(status)
    }
}

/// The last line of a watch that cannot go on.
fn failure(status: &Status) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status})))
}
