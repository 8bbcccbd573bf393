//! A client of the API over HTTP/3: one connection for all clones and calls, typed calls for Routers, a watch that never ends.

mod backoff;
mod connection;
mod error;
#[cfg(test)]
mod fuzz;
mod lines;
mod post;
mod routers;
#[cfg(test)]
mod tests;
mod watch;
pub(crate) mod watcher;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Uri, header};
use keel_certs::{LiveIdentity, NodeName};
use keel_fabric::attempt::Attempt;
use keel_fabric::quic::{BindError, Endpoint, HostPort, Profile};
use tokio::sync::watch::Receiver;
use tracing::info;

use crate::http::Body;
use crate::transport::ALPN_H3;
use connection::{Connection, Failed};

pub use backoff::{Backoff, Hurry};
pub use error::{Class, ClientError};
pub use post::post;
pub use routers::RouterList;
pub use watch::{WatchEvent, WatchFrom, WatchStream, Watched};

/// Which server a [`Client`] talks to, and as whom.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where the APIServer is.
    pub server: HostPort,
    /// The node that it must belong to; every other one is refused in the handshake.
    pub expect: NodeName,
    /// Who we are. New connections use the certificate that is current then.
    pub live: LiveIdentity,
}

/// A client of one APIServer; clones share its connection.
///
/// The connection is made at the first call and made anew whenever it is gone. A call fails at once if the server cannot be reached:
/// whoever wants to try for long (as the watch does) waits with a [`Backoff`] in between.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    /// When its watches need not wait for long.
    hurry: Option<Receiver<Option<Hurry>>>,
}

/// Finds out where a server is now that is not where it was.
pub type Finder = Box<dyn Fn() -> BoxFuture<'static, Option<HostPort>> + Send + Sync>;

struct Shared {
    config: ClientConfig,
    /// Where it was found since.
    moved: RwLock<Option<HostPort>>,
    finder: OnceLock<Finder>,
    tls: Arc<rustls::ClientConfig>,
    endpoint: Endpoint,
    slot: Mutex<Slot>,
}

/// The connection in use, and the attempt at one.
#[derive(Default)]
struct Slot {
    connection: Option<Arc<Connection>>,
    opening: Attempt<Result<Arc<Connection>, ClientError>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Client({} = {})",
            self.shared.config.expect,
            self.shared.server()
        )
    }
}

impl Client {
    /// A client with a UDP socket of its own and no connection yet. Must be called inside the runtime that uses it.
    ///
    /// # Errors
    /// [`BindError`] if there is no socket to be had.
    pub fn new(config: ClientConfig) -> Result<Self, BindError> {
        let tls = config.live.client_config(&[ALPN_H3], &config.expect);
        let endpoint = Endpoint::client(Profile::Control)?;
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                moved: RwLock::default(),
                finder: OnceLock::new(),
                tls,
                endpoint,
                slot: Mutex::default(),
            }),
            hurry: None,
        })
    }

    /// The same client, whose watches come back sooner whenever there is a hurry.
    #[must_use]
    pub fn hurried_by(self, hurry: Receiver<Option<Hurry>>) -> Self {
        Self {
            hurry: Some(hurry),
            ..self
        }
    }

    /// A number that rises when the way to the APIServer has changed; `None` if that is not followed here.
    #[must_use]
    pub fn network_changes(&self) -> Option<Receiver<u64>> {
        self.shared.endpoint.network_changes()
    }

    /// The same client, which asks `finder` where the APIServer is whenever it cannot be reached: it may have been started again
    /// elsewhere. For one of this machine, which a socket can be asked for.
    #[must_use]
    pub fn found_by(self, finder: Finder) -> Self {
        // Only the first one counts.
        let _ = self.shared.finder.set(finder);
        self
    }

    /// Where the APIServer is.
    #[must_use]
    pub fn server(&self) -> HostPort {
        self.shared.server()
    }

    /// The node that the APIServer belongs to.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.shared.config.expect
    }

    /// Sends a request; scheme and authority are filled in. The answer's body comes as the server sends it; dropping it cancels
    /// the request.
    ///
    /// Sent again only if the server has not processed it or if it is a GET that was cut.
    ///
    /// # Errors
    /// [`ClientError`] if there is no answer; an answer with an error status is an answer.
    pub async fn request(
        &self,
        mut request: http::Request<Bytes>,
    ) -> Result<http::Response<Body>, ClientError> {
        *request.uri_mut() = self.absolute(request.uri())?;
        let mut last = None;
        // The first attempt may meet a connection that is just going; a fresh one that fails says something.
        for _ in 0..2 {
            let connection = self.connection().await?;
            match connection.clone().request(copy(&request)).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => {
                    let repeat = match &failed {
                        Failed::NotSent(_) => true,
                        Failed::Sent(error) => {
                            request.method() == Method::GET
                                && matches!(error, ClientError::Interrupted { .. })
                        }
                    };
                    // A connection on which nothing comes back is not used for new calls; what runs on it may go on.
                    self.forget(&connection);
                    let error = failed.into();
                    if !repeat {
                        return Err(error);
                    }
                    last = Some(error);
                }
            }
        }
        // invariant: the loop ran, and each round either returned or set it.
        Err(last.unwrap_or_else(|| ClientError::Request("no attempt was made".to_owned())))
    }

    fn absolute(&self, uri: &Uri) -> Result<Uri, ClientError> {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Uri::builder()
            .scheme("https")
            .authority(self.server().to_string())
            .path_and_query(path)
            .build()
            .map_err(|error| ClientError::Request(error.to_string()))
    }

    /// The connection in use, or what comes of an attempt at one.
    async fn connection(&self) -> Result<Arc<Connection>, ClientError> {
        let opening = {
            let mut slot = self.shared.lock_slot();
            if let Some(connection) = slot.connection.as_ref().filter(|held| !held.is_gone()) {
                return Ok(connection.clone());
            }
            let shared = Arc::clone(&self.shared);
            slot.opening.join(|| async move { shared.open().await })
        };
        opening.await
    }

    /// The connection is not used for new calls any more.
    fn forget(&self, connection: &Arc<Connection>) {
        let mut slot = self.shared.lock_slot();
        slot.connection
            .take_if(|held| Arc::ptr_eq(held, connection));
    }
}

impl Shared {
    async fn open(&self) -> Result<Arc<Connection>, ClientError> {
        let server = self.server();
        let connect = |server| Connection::open(&self.endpoint, server, self.tls.clone());
        let mut opened = connect(&server).await;
        if opened.is_err()
            && let Some(finder) = self.finder.get()
            && let Some(now) = finder().await.filter(|now| *now != server)
        {
            opened = connect(&now).await;
            if opened.is_ok() {
                info!(node = %self.config.expect, before = %server, server = %now, "the APIServer is elsewhere now");
                *self.moved.write().unwrap_or_else(PoisonError::into_inner) = Some(now);
            }
        }
        let connection = Arc::new(opened?);
        self.lock_slot().connection = Some(connection.clone());
        Ok(connection)
    }

    fn server(&self) -> HostPort {
        let moved = self.moved.read().unwrap_or_else(PoisonError::into_inner);
        moved.as_ref().unwrap_or(&self.config.server).clone()
    }

    fn lock_slot(&self) -> MutexGuard<'_, Slot> {
        // Never left half changed, so a panic elsewhere does not spoil it.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request once more: everything that we send, without the extensions, which cannot be copied.
fn copy(request: &http::Request<Bytes>) -> http::Request<Bytes> {
    let mut copy = http::Request::new(request.body().clone());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy.headers_mut()
        .entry(header::USER_AGENT)
        .or_insert(header::HeaderValue::from_static("keel"));
    copy
}
