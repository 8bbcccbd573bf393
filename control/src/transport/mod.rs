//! Serving the API: HTTP/3 over QUIC and, on the same port number over TCP, HTTP/2 and HTTP/1.1, all with TLS.
//!
//! A client certificate is optional here, because a joining node has none yet; who may do what is the handler's business. A
//! certificate that is shown but not of this trust domain fails the handshake. A listener only takes connections; each handshake
//! runs in its connection's own task under a deadline, so a silent peer costs nobody else anything.

pub(crate) mod adapter;
mod arrivals;
pub(crate) mod body;
mod heads;
mod http3;
mod listen;
mod metrics;
mod stall;
mod tcp;
#[cfg(test)]
pub(crate) mod tests;
mod unread;

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use keel_certs::{Clients, Identity, LiveIdentity};
use keel_fabric::quic::{Endpoint, Incoming, ListenAddr, QuicKeys};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::arrivals::Arrivals;
use self::heads::Heads;
use crate::http::{Caller, Handler, Remote};

pub use listen::BindError;
pub use metrics::TransportMetrics;

/// The application protocol of HTTP/3.
pub(crate) const ALPN_H3: &[u8] = b"h3";
const ALPN_TCP: &[&[u8]] = &[b"h2", b"http/1.1"];

/// What [`Limits::handshakes_per_second`] is made of: about half of what a core can do, as measured with both ends on it
/// (`cargo bench -p keel-control --bench watches -- --herd 2000`).
const HANDSHAKES_PER_CORE: u32 = 100;

fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// What one client may take of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, over TCP and over QUIC each; more are turned away.
    pub connections: usize,
    /// Connections without a client certificate at once, over TCP and QUIC together: they only join, and must not take the others'
    /// places.
    pub anonymous: usize,
    /// QUIC handshakes that begin in a second. More wait for up to two seconds, and what does not fit there is not answered: a client
    /// asks again by itself after a second. A share of the machine, so that a herd that comes back leaves time for who is connected.
    pub handshakes_per_second: u32,
    /// How long a TLS or QUIC handshake may take.
    pub handshake: Duration,
    /// How long the header of a request may take.
    pub header: Duration,
    /// How long the body of a request may take.
    pub body: Duration,
    /// How long 16 KiB of an answer may wait for their reader before the answer is cut, and over HTTP/1.1 the connection. A client whose
    /// QUIC or HTTP/2 does not say either that it is still there is cut sooner.
    pub unread: Duration,
    /// How long running requests may take to end once the server stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            anonymous: 64,
            handshakes_per_second: HANDSHAKES_PER_CORE.saturating_mul(cores()),
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(5),
            body: Duration::from_secs(30),
            unread: Duration::from_secs(60),
            drain: Duration::from_secs(10),
        }
    }
}

/// The API's listeners, bound and not yet serving.
pub struct ApiServer {
    tcp: Vec<TcpListener>,
    quic: Endpoint,
    acceptor: TlsAcceptor,
    handler: Arc<dyn Handler>,
    limits: Limits,
    metrics: Arc<TransportMetrics>,
    alt_svc: HeaderValue,
}

impl ApiServer {
    /// Binds `listen` for TCP and UDP; port 0 finds one that is free for both. Clients that come before [`run`](Self::run) wait.
    ///
    /// Certificates follow `live`. Must be called inside the runtime that runs the server.
    ///
    /// # Errors
    /// [`BindError`] names the address and what to do about it.
    pub fn bind(
        listen: &ListenAddr,
        live: &LiveIdentity,
        keys: &QuicKeys,
        handler: Arc<dyn Handler>,
        limits: Limits,
        metrics: Arc<TransportMetrics>,
    ) -> Result<Self, BindError> {
        let bound = listen::bind(
            listen,
            &live.server_config(&[ALPN_H3], Clients::Optional),
            keys,
        )?;
        let port = bound
            .tcp
            .iter()
            .find_map(|listener| listener.local_addr().ok())
            .map_or(listen.port(), |addr| addr.port());
        // invariant: digits and ASCII punctuation are a valid header value.
        let alt_svc =
            HeaderValue::from_str(&format!("h3=\":{port}\"; ma=86400")).expect("visible ASCII");
        Ok(Self {
            tcp: bound.tcp,
            quic: bound.quic,
            acceptor: TlsAcceptor::from(live.server_config(ALPN_TCP, Clients::Optional)),
            handler: Arc::new(Heads(handler)),
            limits,
            metrics,
            alt_svc,
        })
    }

    /// The addresses that are really bound, for TCP and UDP alike; the IPv4 one first.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.tcp
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }

    /// Serves until `stop` is requested, then takes nothing new, ends watches, finishes what runs ([`Limits::drain`] at most) and
    /// tells every client.
    ///
    /// Not cancel safe: dropped, it cuts all connections.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            tcp,
            quic,
            acceptor,
            handler,
            limits,
            metrics,
            alt_svc,
        } = self;
        let common = Common {
            handler,
            limits,
            metrics,
            anonymous: Arc::new(Semaphore::new(limits.anonymous)),
        };
        let mut listeners = JoinSet::new();
        for listener in tcp {
            let server = Tcp {
                acceptor: acceptor.clone(),
                common: common.clone(),
                alt_svc: alt_svc.clone(),
                permits: Arc::new(Semaphore::new(limits.connections)),
            };
            listeners.spawn(server.run(listener, stop.clone()));
        }
        let server = Quic {
            common,
            permits: Arc::new(Semaphore::new(limits.connections)),
        };
        listeners.spawn(server.run(quic.clone(), stop));
        while listeners.join_next().await.is_some() {}
        quic.close(h3::error::Code::H3_NO_ERROR.value(), b"");
        // The last packets are only a courtesy to the peers.
        let _ = timeout(Duration::from_secs(1), quic.wait_idle()).await;
    }
}

/// What every connection gets, whatever carries it.
#[derive(Clone)]
struct Common {
    handler: Arc<dyn Handler>,
    limits: Limits,
    metrics: Arc<TransportMetrics>,
    anonymous: Arc<Semaphore>,
}

impl Common {
    /// A place for a client that has shown who it is, or not. `None`: all places of those who have not are taken.
    fn admit(&self, identity: Option<&Identity>) -> Option<Option<OwnedSemaphorePermit>> {
        if identity.is_some() {
            return Some(None);
        }
        let permit = self.anonymous.clone().try_acquire_owned();
        if permit.is_err() {
            self.metrics.limit_hit("anonymous");
        }
        permit.ok().map(Some)
    }
}

struct Tcp {
    acceptor: TlsAcceptor,
    common: Common,
    alt_svc: HeaderValue,
    permits: Arc<Semaphore>,
}

impl Tcp {
    async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, remote)) => {
                    let Ok(permit) = self.permits.clone().try_acquire_owned() else {
                        self.common.metrics.limit_hit("connections");
                        debug!(%remote, "too many connections: one more over TCP was turned away");
                        continue;
                    };
                    let guard = (permit, self.common.metrics.connection("tcp"));
                    let serve = tcp::serve(
                        stream,
                        self.acceptor.clone(),
                        self.common.clone(),
                        self.alt_svc.clone(),
                        stop.clone(),
                    );
                    connections.spawn(async move {
                        serve.await;
                        drop(guard);
                    });
                }
                // Out of descriptors, most likely: the error comes again at once, so it must not be asked for in a tight loop.
                Err(error) => {
                    warn!(%error, "cannot accept a connection, trying again in 100 ms");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }
}

struct Quic {
    common: Common,
    permits: Arc<Semaphore>,
}

impl Quic {
    async fn run(self, endpoint: Endpoint, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let mut arrivals = Arrivals::new(self.common.limits.handshakes_per_second);
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                arrived = arrivals.next() => {
                    match self.permits.clone().try_acquire_owned() {
                        Ok(permit) => _ = connections.spawn(self.serve(arrived, permit, stop.clone())),
                        Err(_) => {
                            self.common.metrics.limit_hit("connections");
                            arrived.refuse();
                        }
                    }
                    continue;
                }
                Some(_) = connections.join_next() => continue,
                () = stop.cancelled() => break,
            };
            let Some(incoming) = incoming else { break };
            // Half full: whoever comes now must show first that it receives at its address.
            let crowded = arrivals.is_crowded()
                || self.permits.available_permits() < self.common.limits.connections / 2;
            if crowded && !incoming.is_validated() {
                self.common.metrics.limit_hit("unvalidated");
                incoming.retry();
                continue;
            }
            if let Err(incoming) = arrivals.push(incoming) {
                self.common.metrics.limit_hit("handshakes_per_second");
                incoming.ignore();
            }
        }
        drop(arrivals);
        // New connections are refused while the old ones end, so that clients go elsewhere at once.
        loop {
            tokio::select! {
                Some(incoming) = endpoint.accept() => incoming.refuse(),
                ended = connections.join_next() => if ended.is_none() { break },
            }
        }
    }

    fn serve(
        &self,
        incoming: Incoming,
        permit: OwnedSemaphorePermit,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let common = self.common.clone();
        let (limits, metrics) = (common.limits, common.metrics.clone());
        async move {
            let remote = Remote::Quic(incoming.remote_address());
            let _counted = (permit, metrics.connection("quic"));
            let connection = match timeout(limits.handshake, incoming.handshake()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return debug!(%remote, %error, "QUIC handshake failed"),
                Err(_) => {
                    metrics.limit_hit("handshake_time");
                    return debug!(%remote, "QUIC handshake not done in time");
                }
            };
            let (identity, not_after) = match connection.peer() {
                Ok(None) => (None, None),
                Ok(Some(peer)) => (Some(peer.identity.clone()), Some(peer.not_after)),
                Err(error) => {
                    debug!(%remote, %error, "client certificate names nobody");
                    return connection.close(
                        h3::error::Code::H3_GENERAL_PROTOCOL_ERROR.value(),
                        b"certificate names nobody",
                    );
                }
            };
            let Some(_place) = common.admit(identity.as_ref()) else {
                debug!(%remote, "too many connections without a certificate: one more was turned away");
                return connection.close(
                    h3::error::Code::H3_EXCESSIVE_LOAD.value(),
                    b"too many connections without a certificate",
                );
            };
            let caller = Caller { identity, remote };
            http3::serve(
                connection,
                caller,
                common.handler,
                limits,
                metrics,
                expiry(not_after),
                stop,
            )
            .await;
        }
    }
}

/// How long before the end of its certificate a peer is told to come back with a new one.
const BEFORE_EXPIRY: Duration = Duration::from_secs(5);
/// How long a connection without a certificate may last: long enough to join, too short to hold a place.
const NOBODY: Duration = Duration::from_secs(60);

/// When to drain the connection of a peer whose certificate ends at `not_after`, or that has none.
fn expiry(not_after: Option<SystemTime>) -> Instant {
    /// Timers have a range.
    const FAR: Duration = Duration::from_secs(30 * 24 * 3600);
    let left = match not_after {
        Some(end) => end
            .duration_since(SystemTime::now())
            .unwrap_or_default()
            .saturating_sub(BEFORE_EXPIRY),
        None => NOBODY,
    };
    Instant::now() + left.min(FAR)
}
