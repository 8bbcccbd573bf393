//! Bugs that can be planted in the server: between its API and its transport, so that everything else is as it always is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use keel_control::api::Revision;
use keel_control::http::{Body, Caller, Handler, full, read};
use keel_control::store::Store;
use serde_json::{Value, json};

use super::history::WRITE;

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    Nothing,
    /// Sends two changes in the wrong order.
    Swaps,
    /// Sends a change twice.
    Repeats,
    /// Leaves a change out.
    LeavesOut,
    /// Leaves an object out of a list.
    Tears,
    /// Goes on with what is new, wherever the client was.
    SkipsAhead,
    /// Says that what the client asks for is forgotten.
    Refuses,
    /// Says that everything was sent up to a revision that is still to come.
    MarksAhead,
    /// Answers a write that it does not do.
    Forgets,
    /// Answers with an old list.
    Lags,
}

impl Bug {
    /// All bugs, and the promises that they break.
    pub(crate) const ALL: [(Self, &'static str); 9] = [
        (Self::Swaps, "ordered"),
        (Self::Repeats, "unique"),
        (Self::LeavesOut, "gap-free"),
        (Self::Tears, "atomic"),
        (Self::SkipsAhead, "resumable"),
        (Self::Refuses, "resumable"),
        (Self::MarksAhead, "bookmarkable"),
        (Self::Forgets, "durable"),
        (Self::Lags, "fresh"),
    ];

    pub(crate) fn name(self) -> String {
        format!("{self:?}")
    }

    pub(crate) fn named(name: &str) -> Self {
        let mut bugs = Self::ALL.into_iter().map(|(bug, _)| bug);
        bugs.find(|bug| bug.name() == name).unwrap_or(Self::Nothing)
    }
}

/// The API with a bug, and with a way to compact the store.
pub(crate) struct Planted {
    inner: Arc<Inner>,
}

struct Inner {
    api: Arc<dyn Handler>,
    store: Store,
    bug: Bug,
    requests: AtomicUsize,
    /// The list that is shown for ever.
    list: Mutex<Option<Bytes>>,
}

impl Planted {
    pub(crate) fn new(api: Arc<dyn Handler>, store: Store, bug: Bug) -> Self {
        Self {
            inner: Arc::new(Inner {
                api,
                store,
                bug,
                requests: AtomicUsize::new(0),
                list: Mutex::new(None),
            }),
        }
    }
}

/// Where a compaction is asked for: `?` and the revision.
pub(crate) const COMPACT: &str = "/test/compact";

impl Handler for Planted {
    fn handle(&self, request: Request<Body>, caller: Caller) -> BoxFuture<'static, Response<Body>> {
        let inner = self.inner.clone();
        async move { inner.answer(request, caller).await }.boxed()
    }
}

impl Inner {
    async fn answer(&self, request: Request<Body>, caller: Caller) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        if request.uri().path() == COMPACT {
            let upto = Revision(query.parse().unwrap());
            self.store.compact(upto).await.unwrap();
            return Response::new(full("done"));
        }
        let watches = query.contains("watch=1");
        let resumes = watches && query.contains("resourceVersion=");
        let lists = *request.method() == Method::GET && !watches;
        let count = self.requests.fetch_add(1, Ordering::Relaxed);
        let third = count.is_multiple_of(3);
        let now = self.store.current().0;
        match self.bug {
            Bug::Refuses if resumes && third => {
                let mut response = Response::new(full(json!({"code": 410}).to_string()));
                *response.status_mut() = StatusCode::GONE;
                return response;
            }
            Bug::Forgets if third && *request.method() == Method::PATCH => {
                return self.forget(request, now).await;
            }
            _ => {}
        }
        let response = self.api.handle(request, caller).await;
        match self.bug {
            bug if watches => response.map(|body| {
                let wrong = move |frame: Frame<Bytes>| match frame.into_data() {
                    Ok(data) => Frame::data(lines(bug, resumes.then_some(now), &data)),
                    Err(frame) => frame,
                };
                body.map_frame(wrong).boxed_unsync()
            }),
            Bug::Tears if lists => {
                let (parts, body) = response.into_parts();
                let mut list: Value = parse(&read(body, usize::MAX).await.unwrap());
                if let Some(items) = list["items"].as_array_mut() {
                    items.pop();
                }
                Response::from_parts(parts, full(list.to_string()))
            }
            Bug::Lags if lists && query.is_empty() => {
                let (parts, body) = response.into_parts();
                let new = read(body, usize::MAX).await.unwrap();
                let old = self.list.lock().unwrap().get_or_insert(new).clone();
                Response::from_parts(parts, full(old))
            }
            _ => response,
        }
    }

    /// Answers a merge patch as if it had made an object of what it says.
    async fn forget(&self, request: Request<Body>, now: u64) -> Response<Body> {
        let name = request.uri().path().rsplit('/').next().map(str::to_owned);
        let mut object = parse(&read(request.into_body(), usize::MAX).await.unwrap());
        assert!(
            object
                .pointer(&format!("/metadata/labels/{WRITE}"))
                .is_some()
        );
        object["metadata"]["name"] = name.into();
        object["metadata"]["resourceVersion"] = (now + 1).to_string().into();
        Response::new(full(object.to_string()))
    }
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn revision(line: &Value) -> u64 {
    let revision = line.pointer("/object/metadata/resourceVersion");
    revision.and_then(Value::as_str).unwrap().parse().unwrap()
}

/// What becomes of the lines of a watch; one that resumes was asked for at the revision `now`.
fn lines(bug: Bug, now: Option<u64>, data: &[u8]) -> Bytes {
    let lines = data
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let mut lines: Vec<Value> = lines.map(parse).collect();
    // What a watch begins with is left as it is.
    let begins = lines.iter().any(|line| line["type"] == "BOOKMARK") || now.is_none();
    match bug {
        Bug::Swaps if lines.len() > 1 && !begins => lines.swap(0, 1),
        Bug::Repeats if !begins => lines.extend(lines.last().cloned()),
        Bug::LeavesOut if lines.len() > 2 && !begins => drop(lines.remove(1)),
        Bug::SkipsAhead => lines.retain(|line| {
            line["type"] == "BOOKMARK" || now.is_none_or(|now| revision(line) > now)
        }),
        Bug::MarksAhead if !lines.is_empty() && !begins => {
            let ahead = (revision(&lines[lines.len() - 1]) + 3).to_string();
            let object = json!({"metadata": {"resourceVersion": ahead}});
            lines.push(json!({"type": "BOOKMARK", "object": object}));
        }
        _ => {}
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    Bytes::from(text)
}
