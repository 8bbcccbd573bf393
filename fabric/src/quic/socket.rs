//! UDP sockets of an endpoint.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::ListenAddr;
use super::error::BindError;

/// Wished kernel buffer in each direction: at 10 Gbit/s it holds what arrives while the runtime is busy for 6 ms.
const KERNEL_BUFFER: usize = 8 << 20;
/// How often a free port is looked for when both families must share it.
const PORT_TRIES: usize = 16;

/// Binds the sockets of `listen`. With port 0 both families get the same free port.
pub(super) fn bind(listen: &ListenAddr) -> Result<Vec<UdpSocket>, BindError> {
    for _ in 1..PORT_TRIES {
        match bind_once(listen) {
            Err(BindError::Taken { .. }) if listen.port() == 0 => {}
            done => return done,
        }
    }
    bind_once(listen)
}

fn bind_once(listen: &ListenAddr) -> Result<Vec<UdpSocket>, BindError> {
    let mut sockets: Vec<UdpSocket> = Vec::new();
    let mut port = listen.port();
    for mut addr in listen.sockets() {
        addr.set_port(port);
        match bind_one(addr) {
            Ok(socket) => {
                if port == 0 {
                    port = socket
                        .local_addr()
                        .map_err(|source| BindError::Io { addr, source })?
                        .port();
                }
                sockets.push(socket);
            }
            // A host without IPv6 is served over IPv4 alone.
            Err(source) if addr.is_ipv6() && !sockets.is_empty() && no_ipv6(&source) => {
                tracing::debug!(%addr, error = %source, "this host has no IPv6");
            }
            Err(source) => return Err(describe(addr, source)),
        }
    }
    Ok(sockets)
}

fn describe(addr: SocketAddr, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken { addr },
        io::ErrorKind::PermissionDenied => BindError::NotPermitted { addr },
        _ => BindError::Io { addr, source },
    }
}

pub(super) fn no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT has no stable kind of its own.
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Binds without SO_REUSEADDR and SO_REUSEPORT, so that a taken port is an error.
pub(super) fn bind_one(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The kernel caps these silently at its own maximum.
    socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    socket.set_send_buffer_size(KERNEL_BUFFER)?;
    socket.bind(&addr.into())?;
    socket.set_nonblocking(true)?;
    tracing::debug!(%addr, receive = socket.recv_buffer_size().unwrap_or(0), "UDP socket bound");
    Ok(socket.into())
}
