//! Handing out identities.
//!
//! Three doors, each with its own rule of who gets what:
//!
//! | door | who | gets |
//! |---|---|---|
//! | `POST /v1/enroll` on the APIServer's port | anybody with a join token | what the token is for |
//! | `POST /v1/renew` there | a node, a pod of this node (mutual TLS) | its own identity again |
//! | `admin.sock` | the node's owner and root | node and admin certificates, tokens, what the node counts |
//! | `workload.sock` | local workloads | the leaf of a sidecar |
//!
//! A private key is in none of these conversations: whoever wants a certificate sends a signing request.
//! [`Enrolment`] answers, [`LocalSockets`] opens the two sockets; [`join`], [`local`] and [`issuers`] are the other ends.

mod admin;
pub mod issuers;
pub mod join;
pub mod local;
mod names;
mod refusals;
mod server;
mod sockets;
mod tokens;
pub mod wire;
mod workload;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{Method, Response, header};
use keel_certs::{Hosts, Namespace, NodeAuthority, NodeName, RootAuthority};
use keel_fabric::metrics::Pairs;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Mutex, watch};

use crate::api::{Reason, Status};
use crate::http::{Body, Caller, Handler, ReadError, full, read};
use crate::store::Store;

pub use issuers::{
    AdminSocketIssuer, LocalIssuer, NodeSocketIssuer, RemoteIssuer, SocketIssuer,
    renew_intermediate,
};
pub use join::JoinError;
pub use local::LocalError;
pub use sockets::{BindSocketError, LocalSockets};
pub use tokens::{MAX_LIFE as MAX_TOKEN_LIFE, MAX_USES as MAX_TOKEN_USES};
pub use wire::{NodeInfo, TokenInfo};

/// Largest body that any of these paths takes, in bytes: a request is a few kilobytes.
const MAX_BODY: usize = 64 * 1024;

/// What the enrolment of a node goes by.
#[derive(Clone, Debug)]
pub struct EnrolmentConfig {
    /// What the node tells about itself; followed, because addresses change.
    pub info: watch::Receiver<Arc<NodeInfo>>,
    /// Names and addresses that the node's own leaf carries.
    pub hosts: Hosts,
    /// Life of leaves.
    pub leaf_life: Duration,
    /// Life of intermediates.
    pub intermediate_life: Duration,
    /// Namespaces besides `default` that every local user may ask for.
    pub local_namespaces: BTreeSet<Namespace>,
    /// User id of the node's owner: the process's own.
    pub owner: u32,
    /// The node that holds the root key, if it is another and known.
    pub root_node: Option<NodeName>,
    /// What this process counts of flows; none if another one is the node's router.
    pub flows: Option<Arc<Pairs>>,
}

/// Hands out the identities of one node. Clones share everything.
#[derive(Clone, Debug)]
pub struct Enrolment {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: EnrolmentConfig,
    authority: NodeAuthority,
    root: Option<RootAuthority>,
    store: Store,
    /// One use of a token at a time, so that a retry that overtakes its first attempt gets the same certificate.
    joining: Mutex<()>,
    refusals: refusals::Refusals,
}

/// What an answer is made of: a JSON value, or a failure in Kubernetes' form.
type Answer<T> = Result<T, Box<Status>>;

impl Enrolment {
    /// The enrolment of the node whose authority this is. `root` only where the root key is.
    #[must_use]
    pub fn new(
        config: EnrolmentConfig,
        authority: NodeAuthority,
        root: Option<RootAuthority>,
        store: Store,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                authority,
                root,
                store,
                joining: Mutex::new(()),
                refusals: refusals::Refusals::default(),
            }),
        }
    }

    /// Answers on `admin.sock`.
    pub fn handle_admin(
        &self,
        request: http::Request<Body>,
        caller: Caller,
    ) -> BoxFuture<'static, Response<Body>> {
        let inner = self.inner.clone();
        Box::pin(async move { admin::handle(&inner, request, &caller).await })
    }

    /// Answers on `workload.sock`.
    pub fn handle_workload(
        &self,
        request: http::Request<Body>,
        caller: Caller,
    ) -> BoxFuture<'static, Response<Body>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            match (request.method().clone(), request.uri().path()) {
                (Method::POST, "/v1/workload") => {
                    answer(workload::issue(&inner, request, &caller).await)
                }
                (_, path) => answer::<()>(Err(no_path(path))),
            }
        })
    }
}

/// `/v1/enroll` and `/v1/renew` on the APIServer's port.
impl Handler for Enrolment {
    fn handle(
        &self,
        request: http::Request<Body>,
        caller: Caller,
    ) -> BoxFuture<'static, Response<Body>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            match (request.method().clone(), request.uri().path()) {
                (Method::POST, "/v1/enroll") => {
                    answer(server::enroll(&inner, request, &caller).await)
                }
                (Method::POST, "/v1/renew") => {
                    answer(server::renew(&inner, request, &caller).await)
                }
                (_, path @ ("/v1/enroll" | "/v1/renew")) => answer::<()>(Err(failure(
                    Reason::MethodNotAllowed,
                    format!("{path} takes POST only"),
                ))),
                (_, path) => answer::<()>(Err(no_path(path))),
            }
        })
    }
}

fn no_path(path: &str) -> Box<Status> {
    let path: String = path.chars().take(100).collect();
    failure(
        Reason::NotFound,
        format!("there is no {path:?} here with that method"),
    )
}

/// The body as JSON.
async fn body<T: DeserializeOwned>(request: http::Request<Body>) -> Answer<T> {
    let bytes = read(request.into_body(), MAX_BODY)
        .await
        .map_err(|error| match error {
            ReadError::TooLarge { .. } => failure(Reason::RequestEntityTooLarge, error.to_string()),
            ReadError::Broken(_) => failure(Reason::BadRequest, error.to_string()),
        })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| bad_request(format!("the request's body: {error}")))
}

fn answer<T: Serialize>(answer: Answer<T>) -> Response<Body> {
    let (code, body) = match answer {
        Ok(value) => (http::StatusCode::OK, serde_json::to_vec(&value)),
        Err(status) => (
            http::StatusCode::from_u16(status.code)
                .unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR),
            serde_json::to_vec(&status),
        ),
    };
    // Only maps with keys that are not strings fail to become JSON, and there are none here.
    let mut response = Response::new(full(body.unwrap_or_default()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    response
}

fn failure(reason: Reason, message: impl Into<String>) -> Box<Status> {
    Box::new(Status::failure(reason, message))
}

fn bad_request(message: impl Into<String>) -> Box<Status> {
    failure(Reason::BadRequest, message)
}

fn forbidden(message: impl Into<String>) -> Box<Status> {
    failure(Reason::Forbidden, message)
}

/// An error that is not the caller's: logged whole, told in short.
fn internal(error: &dyn std::error::Error) -> Box<Status> {
    tracing::error!(%error, cause = error.source(), "enrolment failed");
    failure(
        Reason::InternalError,
        format!("this node could not do it: {error}"),
    )
}

#[cfg(test)]
mod tests;
