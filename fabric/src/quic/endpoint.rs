//! Endpoints: one or two UDP sockets that make and take connections.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AsyncUdpSocket, EndpointConfig, Runtime as _, ServerConfig, VarInt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection::{Connection, Incoming, ServerConfigs};
use super::error::{BindError, ConnectError, Lost};
use super::network::Following;
use super::noting::Noting;
use super::peers::Peers;
use super::turn::Turns;
use super::{ListenAddr, Profile, QuicKeys, Windows, socket, transport};

/// Handshakes that wait at once; more are ignored.
const MAX_INCOMING: usize = 1024;

/// A QUIC endpoint over one IPv4 socket, one IPv6-only socket, or both.
///
/// Cheap to clone. Must be made inside the runtime that shall drive it; everything it does runs there.
#[derive(Debug, Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    v4: Option<quinn::Endpoint>,
    v6: Option<quinn::Endpoint>,
    profile: Profile,
    windows: Windows,
    server: Option<ServerConfigs>,
    /// Of an endpoint that only dials: its ports are nobody's business, so it may move to others.
    following: Option<Following>,
    /// Keeps the peers on disk; aborted with the endpoint. The lock only makes it shareable.
    _keeping: Mutex<JoinSet<()>>,
}

impl Endpoint {
    /// Binds an endpoint; with `server` it also takes connections.
    ///
    /// # Errors
    /// [`BindError`] names the address.
    pub fn bind(
        listen: &ListenAddr,
        server: Option<Arc<rustls::ServerConfig>>,
        keys: &QuicKeys,
        profile: Profile,
    ) -> Result<Self, BindError> {
        Self::bind_with(listen, server, keys, profile, Windows::default())
    }

    /// As [`Self::bind`], with windows of its own.
    ///
    /// # Errors
    /// As there.
    pub fn bind_with(
        listen: &ListenAddr,
        server: Option<Arc<rustls::ServerConfig>>,
        keys: &QuicKeys,
        profile: Profile,
        windows: Windows,
    ) -> Result<Self, BindError> {
        let server = server
            .map(|tls| server_configs(tls, keys, profile, windows))
            .transpose()?;
        let (mut v4, mut v6) = (None, None);
        let peers = keys.peers().map(|path| Peers::new(path.to_owned(), keys));
        let mut sockets = Vec::new();
        for socket in socket::bind(listen)? {
            let addr = socket.local_addr().map_err(|source| BindError::Io {
                addr: unspecified(),
                source,
            })?;
            let server = server.as_ref().map(|s| s.network.as_ref().clone());
            let endpoint = wrap(socket, peers.as_ref())
                .and_then(|socket| {
                    sockets.push(Arc::clone(&socket));
                    drive(socket, server, keys)
                })
                .map_err(|source| BindError::Io { addr, source })?;
            let slot = if addr.is_ipv4() { &mut v4 } else { &mut v6 };
            *slot = Some(endpoint);
        }
        let mut keeping = JoinSet::new();
        if let Some(peers) = peers {
            keeping.spawn(peers.keep(sockets));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                v4,
                v6,
                profile,
                windows,
                server,
                following: None,
                _keeping: Mutex::new(keeping),
            }),
        })
    }

    /// An endpoint that only dials, on free ports of both families.
    ///
    /// It follows the host's network: when addresses, routes or a cable change, it moves to new ports and its connections
    /// migrate at once.
    ///
    /// # Errors
    /// [`BindError`] if not even an IPv4 socket can be had.
    pub fn client(profile: Profile) -> Result<Self, BindError> {
        Self::client_with(profile, Windows::default())
    }

    /// As [`Self::client`], with windows of its own.
    ///
    /// # Errors
    /// As there.
    pub fn client_with(profile: Profile, windows: Windows) -> Result<Self, BindError> {
        let keys = QuicKeys::ephemeral();
        let v4_addr = unspecified();
        let v6_addr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let dial_from = |addr| -> io::Result<quinn::Endpoint> {
            drive(wrap(socket::bind_one(addr)?, None)?, None, &keys)
        };
        let v4 = dial_from(v4_addr).map_err(|source| BindError::Io {
            addr: v4_addr,
            source,
        })?;
        let v6 = dial_from(v6_addr)
            .inspect_err(
                |error| tracing::debug!(%error, "no IPv6 socket: IPv6 peers cannot be reached"),
            )
            .ok();
        let following = Some(Following::start(&v4, v6.as_ref()));
        Ok(Self {
            inner: Arc::new(Inner {
                v4: Some(v4),
                v6,
                profile,
                windows,
                server: None,
                following,
                _keeping: Mutex::default(),
            }),
        })
    }

    /// A number that rises when the way to a peer that was dialled has changed; `None` if this endpoint does not follow
    /// the network.
    #[must_use]
    pub fn network_changes(&self) -> Option<watch::Receiver<u64>> {
        self.inner.following.as_ref().map(Following::changes)
    }

    fn all(&self) -> impl Iterator<Item = &quinn::Endpoint> {
        self.inner.v4.iter().chain(self.inner.v6.iter())
    }

    /// The addresses really bound, IPv4 first.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.all()
            .filter_map(|endpoint| endpoint.local_addr().ok())
            .collect()
    }

    /// The next connection attempt, not yet handshaken; `None` once the endpoint is closed.
    ///
    /// Cancel safe.
    pub async fn accept(&self) -> Option<Incoming> {
        let server = self.inner.server.as_ref()?;
        let take = |endpoint: Option<&quinn::Endpoint>| {
            let endpoint = endpoint.cloned();
            async move {
                match endpoint {
                    Some(endpoint) => endpoint.accept().await,
                    None => std::future::pending().await,
                }
            }
        };
        let incoming = tokio::select! {
            incoming = take(self.inner.v4.as_ref()) => incoming,
            incoming = take(self.inner.v6.as_ref()) => incoming,
        }?;
        Some(Incoming::new(
            incoming,
            server.clone(),
            self.inner.profile,
            self.inner.windows,
        ))
    }

    /// Connects to `addr` and finishes the handshake. Dropping the future gives the attempt up.
    ///
    /// `server_name` goes into TLS; who the peer must be is decided by `tls`.
    ///
    /// # Errors
    /// [`ConnectError`]; how long a peer may stay silent is bounded by the idle time (15 s).
    pub async fn connect(
        &self,
        addr: SocketAddr,
        server_name: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Connection, ConnectError> {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let endpoint = if addr.is_ipv4() {
            &self.inner.v4
        } else {
            &self.inner.v6
        };
        let Some(endpoint) = endpoint else {
            return Err(ConnectError::Address {
                addr,
                why: "no socket of its family here".into(),
            });
        };
        if let Some(following) = &self.inner.following {
            following.watch(addr.ip());
        }
        let crypto = QuicClientConfig::try_from(tls)
            .map_err(|error| ConnectError::Tls(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(
            self.inner
                .profile
                .dialling(addr.ip().is_loopback(), self.inner.windows),
        );
        let connecting = endpoint
            .connect_with(config, addr, server_name)
            .map_err(|error| match error {
                quinn::ConnectError::EndpointStopping => ConnectError::Closed,
                other => ConnectError::Address {
                    addr,
                    why: other.to_string(),
                },
            })?;
        let connection = connecting.await.map_err(Lost::from)?;
        Ok(Connection::new(
            connection,
            self.inner.profile,
            self.inner.windows,
        ))
    }

    /// Closes all connections at once with an application code.
    pub fn close(&self, code: u64, reason: &[u8]) {
        let code = VarInt::from_u64(code).unwrap_or(VarInt::MAX);
        for endpoint in self.all() {
            endpoint.close(code, reason);
        }
    }

    /// Waits until the peers of all closed connections have been told.
    pub async fn wait_idle(&self) {
        for endpoint in self.all() {
            endpoint.wait_idle().await;
        }
    }
}

fn unspecified() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
}

/// The socket as the implementation wants it; with `peers` they are noted.
fn wrap(socket: UdpSocket, peers: Option<&Arc<Peers>>) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let inner = Turns.wrap_udp_socket(socket)?;
    Ok(match peers {
        Some(peers) => Arc::new(Noting {
            inner,
            peers: Arc::clone(peers),
        }),
        None => inner,
    })
}

fn drive(
    socket: Arc<dyn AsyncUdpSocket>,
    server: Option<ServerConfig>,
    keys: &QuicKeys,
) -> io::Result<quinn::Endpoint> {
    let mut config = EndpointConfig::new(keys.reset_key());
    let cids = keys.cids(0);
    config.cid_generator(move || Box::new(cids.clone()));
    // Ids carry a keyed tag, so only packets of former connections are answered with a reset, and those all at once.
    config.min_reset_interval(Duration::ZERO);
    config
        .max_udp_payload_size(transport::MAX_UDP_PAYLOAD)
        .map_err(io::Error::other)?;
    quinn::Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(Turns))
}

fn server_configs(
    tls: Arc<rustls::ServerConfig>,
    keys: &QuicKeys,
    profile: Profile,
    windows: Windows,
) -> Result<ServerConfigs, BindError> {
    let crypto =
        QuicServerConfig::try_from(tls).map_err(|error| BindError::Tls(error.to_string()))?;
    let mut network = ServerConfig::new(Arc::new(crypto), keys.token_key());
    network
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size_total(windows.incoming())
        .transport_config(profile.accepting(false, windows));
    let mut loopback = network.clone();
    loopback.transport_config(profile.accepting(true, windows));
    Ok(ServerConfigs {
        network: Arc::new(network),
        loopback: Arc::new(loopback),
    })
}
