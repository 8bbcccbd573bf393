//! The Kubernetes-shaped API over the store: from a request to its answer.
//!
//! One request, top to bottom: [`path`] (what it is about) -> [`access`] (whether the caller may) -> [`query`] (its options) ->
//! [`read`], [`write`] or [`watch`] -> [`reply`]. What a write makes of an object is decided by the pure functions of [`change`], inside
//! the store's writer. The API opens no socket: a transport hands it requests with the caller's verified identity.

mod access;
mod change;
mod discovery;
mod openapi;
mod patch;
mod path;
mod query;
mod read;
mod reply;
mod secret;
mod selector;
mod table;
mod watch;
mod watches;
mod write;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use keel_certs::{Identity, NodeName};
use prometheus_client::metrics::gauge::Gauge;
use tracing::{debug, error, info};

use crate::api::{GROUP, PLURAL, Reason, Status};
use crate::http::{Body, Caller, Handler, full};
use crate::store::{Key, Store, StoreError};
use access::{Action, Grant};
use path::Route;
use query::Options;
use watches::Watches;

/// How routers are called in the store.
const RESOURCE: &str = "routers.edge.example.com";

/// How much of a request's path is logged; a URI's characters are bytes.
const SHOWN_PATH: usize = 128;

/// What the API needs to know about its node.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// The node whose APIServer this is.
    pub node: NodeName,
}

/// The API of one node.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    config: ApiConfig,
    store: Store,
    enroll: Arc<dyn Handler>,
    watches: Arc<Watches>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// An API over the store; `enroll` answers what is below `/v1/`.
    pub fn new(config: ApiConfig, store: Store, enroll: Arc<dyn Handler>) -> Self {
        Self::counted(config, store, enroll, Gauge::default())
    }

    /// As [`Api::new`]; `watches` tells how many watches are open.
    pub fn counted(
        config: ApiConfig,
        store: Store,
        enroll: Arc<dyn Handler>,
        watches: Gauge,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                store,
                enroll,
                watches: Arc::new(Watches::counted(watches)),
            }),
        }
    }
}

impl Handler for Api {
    fn handle(&self, request: Request<Body>, caller: Caller) -> BoxFuture<'static, Response<Body>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move { inner.answer(request, caller).await })
    }
}

impl Inner {
    async fn answer(&self, request: Request<Body>, caller: Caller) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let who = caller
            .identity
            .as_ref()
            .map_or_else(|| "-".to_owned(), Identity::to_string);
        let (remote, named) = (caller.remote, caller.identity.is_some());
        let response = match self.dispatch(request, caller).await {
            Ok(response) => response,
            Err(status) => reply::status(&status),
        };
        let code = response.status().as_u16();
        // Bodies are never logged: a spec may hold a password. Refusals are for the operator to see, reads are not, and what
        // nobody sends, anybody can send.
        let path: String = path.chars().take(SHOWN_PATH).collect();
        if code == 403 || (code == 401 && named) {
            info!(%method, path, who, %remote, code, "request refused");
        } else {
            debug!(%method, path, who, %remote, code, "request");
        }
        response
    }

    async fn dispatch(
        &self,
        request: Request<Body>,
        caller: Caller,
    ) -> Result<Response<Body>, Status> {
        let route = path::route(request.uri().path());
        let Some(identity) = caller.identity.clone() else {
            // A joiner has no certificate yet. What it may do is the enrolment's business; everything else needs a name.
            if route == Some(Route::Enroll)
                && request.uri().path() == "/v1/enroll"
                && request.method() == Method::POST
            {
                return Ok(self.enroll.handle(request, caller).await);
            }
            return Err(Status::failure(
                Reason::Unauthorized,
                "a client certificate of this fabric is required",
            ));
        };
        let Some(route) = route else {
            return Err(reply::no_such_path());
        };
        if route == Route::Enroll {
            return Ok(self.enroll.handle(request, caller).await);
        }
        let options = Options::parse(request.uri().query().unwrap_or_default())?;
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match route {
            Route::Router(name) if !is_read => {
                self.write_router(&identity, &name, request, &options).await
            }
            Route::RouterStatus(name) if !is_read => {
                self.write_status(&identity, &name, request, &options).await
            }
            Route::Routers if *request.method() == Method::POST => {
                self.create_router(&identity, request, &options).await
            }
            _ if !is_read => Err(reply::method_not_allowed(request.method())),
            route => {
                self.check(&identity, Action::Read, "get", PLURAL, None)?;
                // There is no watch without its events.
                if options.watch && *request.method() == Method::HEAD {
                    return Err(reply::method_not_allowed(request.method()));
                }
                self.read(&identity, route, request.headers(), options)
                    .await
            }
        }
    }

    async fn read(
        &self,
        identity: &Identity,
        route: Route,
        headers: &HeaderMap,
        options: Options,
    ) -> Result<Response<Body>, Status> {
        Ok(match route {
            Route::Api | Route::Apis if discovery::wants_aggregated(headers) => {
                discovery::aggregated(route == Route::Apis)
            }
            Route::Api => discovery::api(),
            Route::Apis => discovery::apis(),
            Route::Group => discovery::group(),
            Route::GroupVersion => discovery::resources(),
            Route::Health if !self.store.is_open() => {
                return Err(store_status(&StoreError::Closed));
            }
            Route::Health => {
                let mut response = Response::new(full("ok"));
                response
                    .headers_mut()
                    .insert("content-type", http::HeaderValue::from_static("text/plain"));
                response
            }
            Route::OpenApi => openapi::index(),
            Route::OpenApiV2 => openapi::v2(),
            Route::OpenApiGroup => openapi::document(headers),
            Route::Version => discovery::version(),
            Route::Router(name) | Route::RouterStatus(name) => {
                self.get_router(identity, &name, headers, options).await?
            }
            Route::Routers => self.list_routers(identity, headers, options).await?,
            // Answered by its own handler before it comes here.
            Route::Enroll => return Err(reply::no_such_path()),
        })
    }

    /// Whether the caller may; the refusal is worded as Kubernetes does.
    fn check(
        &self,
        identity: &Identity,
        action: Action<'_>,
        verb: &str,
        resource: &str,
        name: Option<&str>,
    ) -> Result<Grant, Status> {
        match access::grant(&identity.subject, &self.config.node, action) {
            Grant::Denied => {
                let object = name.map(|name| format!(" {name:?}")).unwrap_or_default();
                let message = format!(
                    "{PLURAL}.{GROUP}{object} is forbidden: User \"{identity}\" cannot {verb} resource \"{resource}\" in API group \
                     \"{GROUP}\" at the cluster scope"
                );
                Err(Status::router(
                    Reason::Forbidden,
                    name.unwrap_or_default(),
                    message,
                ))
            }
            grant => Ok(grant),
        }
    }
}

fn key(name: &str) -> Key {
    Key {
        resource: RESOURCE.into(),
        name: name.into(),
    }
}

/// What a client is told if the store fails.
fn store_status(failure: &StoreError) -> Status {
    match failure {
        StoreError::Closed => Status::failure(
            Reason::ServiceUnavailable,
            "the APIServer's store is closed",
        ),
        StoreError::Full => Status::failure(Reason::ServiceUnavailable, failure.to_string()),
        StoreError::Panicked => Status::failure(Reason::InternalError, failure.to_string()),
        StoreError::Database { doing, source } | StoreError::Unknown { doing, source } => {
            error!(doing, error = %source, "the store failed");
            Status::failure(Reason::InternalError, failure.to_string())
        }
    }
}

fn ok(bytes: bytes::Bytes) -> Response<Body> {
    reply::bytes(StatusCode::OK, bytes)
}

#[cfg(test)]
mod tests;
