//! Clients over HTTP/3 that write down what they are told: writers and listers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::select_all;
use http::{Method, Response};
use keel_certs::LiveIdentity;
use keel_control::client::Client;
use keel_control::http::{Body, read};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::history::{At, List, Object, Outcome, SELECTED, SIDE, WRITE, Write};
use super::process::Life;

pub(crate) const ROUTERS: &str = "/apis/edge.example.com/v1/routers";
/// Objects that everybody writes to.
const OBJECTS: usize = 10;
/// Objects in a page of a list that comes in pages.
const PAGE: usize = 4;

/// What all clients of a run share.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) servers: Vec<watch::Receiver<Option<Arc<Life>>>>,
    pub(crate) live: LiveIdentity,
    pub(crate) began: Instant,
    /// Writers and listers stop.
    pub(crate) stop: CancellationToken,
    /// Writes that were answered.
    pub(crate) answered: watch::Sender<usize>,
    /// The revision at which watchers have seen everything.
    pub(crate) last: watch::Receiver<Option<u64>>,
    /// How far each watcher is.
    pub(crate) reached: watch::Sender<BTreeMap<String, u64>>,
}

impl Desk {
    pub(crate) fn now(&self) -> At {
        self.began.elapsed()
    }

    /// A connection to one of the servers that run; waits until there is one.
    pub(crate) async fn connect(&self, random: &mut StdRng) -> Link {
        let mut servers = self.servers.clone();
        let first = random.random_range(0..servers.len());
        servers.rotate_left(first);
        let up = servers.iter_mut().map(|server| {
            Box::pin(async move {
                let life = server.wait_for(Option::is_some).await.ok();
                life.and_then(|life| life.clone())
            })
        });
        let (life, _, _) = select_all(up).await;
        let life = life.expect("the servers outlive their clients");
        Link {
            client: life.client(&self.live),
            gone: life.gone.clone(),
        }
    }
}

/// A connection to one life of one server.
pub(crate) struct Link {
    client: Client,
    pub(crate) gone: CancellationToken,
}

impl Link {
    /// The answer to a request. `None`: it is not known what became of it.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Option<Response<Body>> {
        let media = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = body.map(|body| Bytes::from(body.to_string()));
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media)
            .body(body.unwrap_or_default())
            .unwrap();
        tokio::select! {
            answer = self.client.request(request) => answer.ok(),
            () = self.gone.cancelled() => None,
        }
    }

    /// Code and body of the answer to a request.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        let (parts, body) = self.send(method, path, body).await?.into_parts();
        let bytes = tokio::select! {
            bytes = read(body, 64 << 20) => bytes.ok()?,
            () = self.gone.cancelled() => return None,
        };
        Some((parts.status.as_u16(), serde_json::from_slice(&bytes).ok()?))
    }
}

/// Writes until it is told to stop.
pub(crate) async fn write(desk: Desk, number: usize, seed: u64) -> Vec<Write> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut writes = Vec::new();
    // What this writer made last, and nobody may have written since.
    let mut mine: BTreeMap<String, u64> = BTreeMap::new();
    while !desk.stop.is_cancelled() {
        let link = desk.connect(&mut random).await;
        while !desk.stop.is_cancelled() && !link.gone.is_cancelled() {
            let name = format!("node-{}", random.random_range(0..OBJECTS));
            let write = format!("write-{number}-{}", writes.len());
            let outcome = match mine.remove(&name) {
                Some(revision) if random.random_ratio(1, 4) => delete(&link, &name, revision).await,
                _ => put(&link, &name, &write, &mut random).await,
            };
            if let Outcome::Done(object) = &outcome {
                mine.insert(name.clone(), object.revision);
            }
            if !matches!(outcome, Outcome::Refused | Outcome::Unknown) {
                desk.answered.send_modify(|count| *count += 1);
            }
            writes.push(Write {
                name,
                write,
                answered: desk.now(),
                outcome,
            });
            // A few hundred writes per second and writer, in no rhythm.
            tokio::time::sleep(Duration::from_micros(random.random_range(0..6000))).await;
        }
    }
    writes
}

/// Makes the object new if it is there, and makes it if it is not.
async fn put(link: &Link, name: &str, write: &str, random: &mut StdRng) -> Outcome {
    let side = if random.random() { SELECTED } else { "right" };
    let filler = "x".repeat(random.random_range(0..8192));
    let object = object(name, write, side, &filler);
    let path = format!("{ROUTERS}/{name}");
    match link.ask(Method::PATCH, &path, Some(&object)).await {
        Some((404, _)) => outcome(link.ask(Method::POST, ROUTERS, Some(&object)).await),
        answer => outcome(answer),
    }
}

pub(crate) fn object(name: &str, write: &str, side: &str, filler: &str) -> Value {
    json!({
        "apiVersion": "edge.example.com/v1",
        "kind": "Router",
        "metadata": {
            "name": name,
            "labels": {WRITE: write, SIDE: side},
            "annotations": {WRITE: write, "filler": filler},
        },
    })
}

async fn delete(link: &Link, name: &str, revision: u64) -> Outcome {
    let options = json!({"preconditions": {"resourceVersion": revision.to_string()}});
    let path = format!("{ROUTERS}/{name}");
    match link.ask(Method::DELETE, &path, Some(&options)).await {
        Some((200, _)) => Outcome::Gone { revision },
        answer => outcome(answer),
    }
}

pub(crate) fn outcome(answer: Option<(u16, Value)>) -> Outcome {
    match answer {
        Some((200 | 201, object)) => Outcome::Done(Object::read(&object)),
        Some((400..500, _)) => Outcome::Refused,
        // A store that failed does not always know.
        Some(_) | None => Outcome::Unknown,
    }
}

/// Lists until it is told to stop, at once and in pages.
pub(crate) async fn list(desk: Desk, number: usize, seed: u64) -> Vec<List> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut lists = Vec::new();
    while !desk.stop.is_cancelled() {
        let link = desk.connect(&mut random).await;
        while !desk.stop.is_cancelled() && !link.gone.is_cancelled() {
            let (selects, pages) = (random.random_ratio(1, 3), random.random_ratio(1, 3));
            let limit = if pages { PAGE } else { 0 };
            lists.extend(listed(&desk, &link, &format!("lister {number}"), selects, limit).await);
            tokio::time::sleep(Duration::from_micros(random.random_range(0..40_000))).await;
        }
    }
    lists
}

/// A list, in pages if there is a limit. `None` if it did not come to its end.
pub(crate) async fn listed(
    desk: &Desk,
    link: &Link,
    lister: &str,
    selects: bool,
    limit: usize,
) -> Option<List> {
    let mut list = List {
        lister: lister.to_owned(),
        selects,
        asked: desk.now(),
        answered: At::ZERO,
        revision: 0,
        objects: Vec::new(),
    };
    let mut from = String::new();
    loop {
        let mut query = Vec::new();
        if selects {
            query.push(format!("labelSelector={SIDE}%3D{SELECTED}"));
        }
        if limit > 0 {
            query.push(format!("limit={limit}"));
        }
        if !from.is_empty() {
            query.push(format!("continue={from}"));
        }
        let path = format!("{ROUTERS}?{}", query.join("&"));
        let (200, page) = link.ask(Method::GET, &path, None).await? else {
            return None;
        };
        let text = |pointer: &str| page.pointer(pointer).and_then(Value::as_str);
        list.revision = text("/metadata/resourceVersion").unwrap().parse().unwrap();
        let items = page["items"].as_array().unwrap();
        list.objects.extend(items.iter().map(Object::read));
        from = text("/metadata/continue").unwrap_or_default().to_owned();
        if from.is_empty() {
            list.answered = desk.now();
            return Some(list);
        }
    }
}
