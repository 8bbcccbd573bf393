//! Tests of the API, through its handler: no network, the real store.

mod access;
mod apply;
mod bad_input;
mod collections;
mod events;
mod fuzz;
mod kinds;
mod objects;
mod options;
mod pages;
mod reviews;
mod seeds;
mod status;
mod watch;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Api, ApiConfig};
use crate::http::{Body, Caller, Handler, Remote, full};
use crate::store::{Store, StoreConfig};

const ROUTERS: &str = "/apis/edge.example.com/v1/routers";
const ADMIN: &str = "/node/here/admin/root";
const HERE: &str = "/node/here";
const THERE: &str = "/node/there";
const POD: &str = "/node/here/ns/default/pod/p";
const MERGE: &str = "application/merge-patch+json";

/// Stands for the enrolment.
struct Enroll;

impl Handler for Enroll {
    fn handle(&self, _: Request<Body>, _: Caller) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async { Response::new(full("enroll")) })
    }
}

/// An API on a store of its own, whose node is called `here`.
struct Server {
    api: Api,
    store: Store,
    _folder: TempDir,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    code: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    fn text(&self, pointer: &str) -> String {
        self.json()
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }

    fn message(&self) -> String {
        self.text("/message")
    }

    /// The object, if the code is the expected one.
    #[track_caller]
    fn expect(self, code: u16) -> Value {
        assert_eq!(self.code.as_u16(), code, "{:?}", self.body);
        self.json()
    }

    fn warnings(&self) -> Vec<&str> {
        self.headers
            .get_all("warning")
            .into_iter()
            .map(|value| value.to_str().unwrap())
            .collect()
    }
}

impl Server {
    async fn new() -> Self {
        Self::with(StoreConfig {
            linger: std::time::Duration::ZERO,
            ..StoreConfig::default()
        })
        .await
    }

    async fn with(config: StoreConfig) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(&folder.path().join("store.db"), config)
            .await
            .unwrap();
        let api = Api::new(
            ApiConfig {
                node: "here".parse().unwrap(),
            },
            store.clone(),
            Arc::new(Enroll),
        );
        Self {
            api,
            store,
            _folder: folder,
        }
    }

    /// Sends a request as `who` (the path of an identity; empty for nobody).
    async fn send(&self, who: &str, request: Request<Body>) -> Response<Body> {
        let identity = (!who.is_empty()).then(|| format!("spiffe://test{who}").parse().unwrap());
        let remote = Remote::Tcp("127.0.0.1:1".parse().unwrap());
        self.api.handle(request, Caller { identity, remote }).await
    }

    async fn call(
        &self,
        who: &str,
        method: &str,
        path: &str,
        media: &str,
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !media.is_empty() {
            request = request.header("content-type", media);
        }
        let response = self.send(who, request.body(full(body)).unwrap()).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            code: parts.status,
            headers: parts.headers,
            body,
        }
    }

    async fn get(&self, who: &str, path: &str) -> Answer {
        self.call(who, "GET", path, "", "").await
    }

    async fn post(&self, who: &str, body: &Value) -> Answer {
        self.call(who, "POST", ROUTERS, "application/json", body.to_string())
            .await
    }

    async fn put(&self, who: &str, path: &str, body: &Value) -> Answer {
        self.call(
            who,
            "PUT",
            &format!("{ROUTERS}/{path}"),
            "application/json",
            body.to_string(),
        )
        .await
    }

    async fn patch(&self, who: &str, path: &str, media: &str, body: &Value) -> Answer {
        self.call(
            who,
            "PATCH",
            &format!("{ROUTERS}/{path}"),
            media,
            body.to_string(),
        )
        .await
    }

    async fn delete(&self, who: &str, path: &str, body: &str) -> Answer {
        self.call(
            who,
            "DELETE",
            &format!("{ROUTERS}/{path}"),
            "application/json",
            body.to_owned(),
        )
        .await
    }

    async fn router(&self, name: &str) -> Value {
        self.get(ADMIN, &format!("{ROUTERS}/{name}"))
            .await
            .expect(200)
    }
}

fn router(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": name}, "spec": spec})
}

fn with_status(name: &str, status: Value) -> Value {
    json!({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": name}, "status": status})
}

/// How the store calls a router.
fn key(name: &str) -> crate::store::Key {
    crate::store::Key {
        resource: "routers.edge.example.com".into(),
        name: name.into(),
    }
}

fn revision(object: &Value) -> u64 {
    object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .unwrap()
        .parse()
        .unwrap()
}
