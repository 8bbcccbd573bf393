//! Binding the API's port for TCP and QUIC alike.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use keel_fabric::quic::{self, Endpoint, ListenAddr, Profile, QuicKeys};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// How often another free port is tried if the one that TCP got is taken for UDP.
const TRIES: usize = 32;

/// Why the API's port could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error(
        "TCP {addr} is taken by another process: stop it, or give another address with --apiserver-listen"
    )]
    Taken {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The port is below 1024, or the system forbids it otherwise.
    #[error(
        "not permitted to bind TCP {addr}: take a port of 1024 or more, or grant CAP_NET_BIND_SERVICE"
    )]
    NotPermitted {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// Any other error of the system.
    #[error("cannot listen on TCP {addr}: {source}")]
    Io {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The QUIC side.
    #[error(transparent)]
    Quic(#[from] quic::BindError),
}

/// The two sides of one port.
pub(super) struct Bound {
    pub(super) tcp: Vec<TcpListener>,
    pub(super) quic: Endpoint,
}

/// Binds `listen` for TCP and for QUIC. Port 0 finds one that is free for both.
pub(super) fn bind(
    listen: &ListenAddr,
    tls: &Arc<rustls::ServerConfig>,
    keys: &QuicKeys,
) -> Result<Bound, BindError> {
    let mut tries = if listen.port() == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        match bind_once(listen, tls, keys) {
            Err(BindError::Taken { .. } | BindError::Quic(quic::BindError::Taken { .. }))
                if tries > 0 => {}
            bound => return bound,
        }
    }
}

fn bind_once(
    listen: &ListenAddr,
    tls: &Arc<rustls::ServerConfig>,
    keys: &QuicKeys,
) -> Result<Bound, BindError> {
    let mut tcp: Vec<TcpListener> = Vec::new();
    let mut port = listen.port();
    for addr in listen.sockets() {
        let addr = SocketAddr::new(addr.ip(), port);
        match bind_tcp(addr) {
            Ok(listener) => {
                port = listener
                    .local_addr()
                    .map_err(|source| BindError::Io { addr, source })?
                    .port();
                tcp.push(listener);
            }
            // A host without IPv6 still has an API: only "all addresses" asks for more than one socket.
            Err(error) if !tcp.is_empty() && no_such_family(&error) => {}
            Err(source) => {
                return Err(match source.kind() {
                    io::ErrorKind::AddrInUse => BindError::Taken { addr },
                    io::ErrorKind::PermissionDenied => BindError::NotPermitted { addr },
                    _ => BindError::Io { addr, source },
                });
            }
        }
    }
    let quic = Endpoint::bind(
        &listen.with_port(port),
        Some(tls.clone()),
        keys,
        Profile::Control,
    )?;
    Ok(Bound { tcp, quic })
}

fn no_such_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn bind_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restarted server may have its port back while old connections linger; two servers on one port stay an error.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
