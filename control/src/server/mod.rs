//! The Kubernetes-shaped API over the store: from a request to its answer.
//!
//! One request, top to bottom: [`path`] (what it is about) -> [`access`] (whether the caller may) -> [`query`] (its options) ->
//! [`read`], [`list`], [`write`] or [`watch`] -> [`reply`]. What a write makes of an object is decided by the pure functions of [`change`] and
//! [`ownership`], inside the store's writer. The API opens no socket: a transport hands it requests with the caller's verified identity.

mod accept;
mod access;
mod admit;
mod change;
mod delete;
mod discovery;
mod expiry;
mod form;
mod list;
mod name;
mod namespaces;
mod openapi;
mod ownership;
mod patch;
mod path;
mod pushes;
mod query;
mod read;
mod reply;
mod reviews;
mod secret;
mod selector;
mod status;
mod strategic;
mod table;
mod watch;
mod watches;
mod write;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use keel_certs::{Identity, NodeName};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tracing::{debug, error, info};

use crate::api::{Reason, Status};
use crate::http::{Body, Caller, Handler, full};
use crate::store::{Store, StoreError};
use access::{Grant, Wish};
pub use namespaces::prepare;
use path::{Named, Route};
use pushes::Pushes;
use query::Options;
pub use table::Columns;
use watches::Watches;

/// How much of a request's path is logged; a URI's characters are bytes.
const SHOWN_PATH: usize = 128;

/// What the API needs to know about its node.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// The node whose APIServer this is.
    pub node: NodeName,
}

/// What the API counts.
#[derive(Clone, Debug, Default)]
pub struct ApiMetrics {
    /// Open watches.
    pub watches: Gauge,
    /// Watches refused because their identity has as many as it may have.
    pub watches_refused: Counter,
    /// Statuses of other nodes refused because they come too often or are too much.
    pub pushes_refused: Counter,
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
    pushes: Pushes,
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
        Self::counted(config, store, enroll, ApiMetrics::default())
    }

    /// As [`Api::new`], counting into `metrics`.
    pub fn counted(
        config: ApiConfig,
        store: Store,
        enroll: Arc<dyn Handler>,
        metrics: ApiMetrics,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                store,
                enroll,
                watches: Arc::new(Watches::counted(metrics.watches, metrics.watches_refused)),
                pushes: Pushes::counted(metrics.pushes_refused),
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
        access::as_oneself(&identity, request.headers())?;
        let Some(route) = route else {
            return Err(reply::no_such_path());
        };
        if route == Route::Enroll {
            return Ok(self.enroll.handle(request, caller).await);
        }
        if !route.methods().contains(request.method()) {
            return Ok(reply::method_not_allowed(request.method(), route.methods()));
        }
        // Other documents have other forms.
        if !matches!(
            route,
            Route::Health
                | Route::Ready
                | Route::OpenApi
                | Route::OpenApiV2
                | Route::OpenApiGroup(_)
        ) {
            accept::accepted(request.headers())?;
        }
        let options = Options::parse(request.method(), request.uri().query().unwrap_or_default())?;
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match route {
            Route::Object(named) if *request.method() == Method::DELETE => {
                self.delete(&identity, &named, request, &options).await
            }
            Route::Object(named) if !is_read => {
                self.write(&identity, &named, request, &options).await
            }
            Route::Status(named) if !is_read => {
                self.write_status(&identity, &named, request, &options)
                    .await
            }
            Route::Collection(collection) if *request.method() == Method::POST => {
                self.create(&identity, &collection, request, &options).await
            }
            Route::Collection(collection) if *request.method() == Method::DELETE => {
                self.delete_collection(&identity, &collection, request, options)
                    .await
            }
            // There is no watch without its events.
            _ if options.watch && *request.method() == Method::HEAD => {
                Ok(reply::method_not_allowed(request.method(), &[Method::GET]))
            }
            Route::Collection(collection) => {
                let verb = if options.watch { "watch" } else { "list" };
                self.check(&identity, verb, &collection.named(""), "")?;
                let headers = request.headers();
                self.list(&identity, &collection, headers, options).await
            }
            Route::Object(named) => {
                let verb = if options.watch { "watch" } else { "get" };
                self.check(&identity, verb, &named, "")?;
                let headers = request.headers();
                self.get(&identity, &named, headers, options).await
            }
            Route::Status(named) => {
                self.check(&identity, "get", &named, "status")?;
                let headers = request.headers();
                self.get(&identity, &named, headers, options).await
            }
            route => self.describe(&identity, route, request.headers()),
        }
    }

    /// What describes the server.
    fn describe(
        &self,
        identity: &Identity,
        route: Route,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Status> {
        if !access::may_look(&identity.subject, &self.config.node) {
            return Err(Status::failure(
                Reason::Forbidden,
                format!("forbidden: User \"{identity}\" cannot get this path"),
            ));
        }
        let response = match route {
            Route::Api => discovery::api(headers),
            Route::Apis => discovery::apis(headers),
            Route::Group(group) => discovery::group(group),
            Route::GroupVersion(version) => discovery::resources(version),
            Route::Health | Route::Ready if !self.store.is_open() => {
                return Err(store_status(&StoreError::Closed));
            }
            Route::Ready if !*self.store.reachable().borrow() => {
                return Err(Status::failure(
                    Reason::ServiceUnavailable,
                    "the store's database does not answer, or its disk has failed",
                ));
            }
            Route::Health | Route::Ready => {
                let mut response = Response::new(full("ok"));
                response
                    .headers_mut()
                    .insert("content-type", http::HeaderValue::from_static("text/plain"));
                response
            }
            Route::OpenApi => openapi::index(),
            Route::OpenApiV2 => openapi::v2(),
            Route::OpenApiGroup(version) => {
                openapi::document(version).ok_or_else(reply::no_such_path)?
            }
            Route::Version => discovery::version(),
            // Answered before it comes here.
            Route::Collection(_) | Route::Enroll | Route::Object(_) | Route::Status(_) => {
                return Err(reply::no_such_path());
            }
        };
        Ok(reply::unless_known(response, headers))
    }

    /// Whether the caller may use the verb on the object (of an empty name: on one or all of them), or on its subresource; the refusal
    /// is worded as Kubernetes does.
    fn check(
        &self,
        identity: &Identity,
        verb: &str,
        named: &Named,
        subresource: &str,
    ) -> Result<Grant, Status> {
        let about = &named.kind.about;
        let behind = |resource: &str| match subresource {
            "" => resource.to_owned(),
            subresource => format!("{resource}/{subresource}"),
        };
        let wish = Wish {
            verb,
            resource: &behind(about.resource),
            name: (!named.name.is_empty()).then_some(named.name.as_str()),
        };
        if let Some(grant) = access::grant(&identity.subject, &self.config.node, wish) {
            return Ok(grant);
        }
        let object = wish
            .name
            .map(|name| format!(" {name:?}"))
            .unwrap_or_default();
        let place = match &named.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        let message = format!(
            "{}{object} is forbidden: User \"{identity}\" cannot {verb} resource \"{}\" in API group \"{}\" {place}",
            about.resource,
            behind(about.plural),
            about.group
        );
        Err(Status::about(
            about,
            Reason::Forbidden,
            &named.name,
            message,
        ))
    }
}

/// What a client is told if the store fails.
fn store_status(failure: &StoreError) -> Status {
    match failure {
        StoreError::Closed => Status::failure(
            Reason::ServiceUnavailable,
            "the APIServer's store is closed",
        ),
        // That it does not answer is in the log once, not for each request.
        StoreError::Full => Status::failure(Reason::ServiceUnavailable, failure.to_string()),
        StoreError::Away { .. } => Status::away(failure.to_string()),
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
