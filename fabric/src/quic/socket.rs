//! UDP sockets of an endpoint.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Once;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::ListenAddr;
use super::error::BindError;

/// Wished kernel buffer in each direction: at 10 Gbit/s it holds what arrives while the runtime is busy for 6 ms.
const KERNEL_BUFFER: usize = 8 << 20;
/// With less in the receiving direction packets are lost at a few Gbit/s. The kernel reports twice what was asked for.
const ENOUGH: usize = 2 << 20;
/// It is said once in a process.
static SMALL: Once = Once::new();
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

/// Asks for large kernel buffers. The host's maximum is usually 212 KiB, which three full batches of packets fill: what comes
/// then is lost, and loss makes the sender slow. Whoever may administer the network need not keep to it.
fn enlarge(socket: &Socket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &KERNEL_BUFFER).is_err() {
        // Capped silently.
        socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &KERNEL_BUFFER).is_err() {
        socket.set_send_buffer_size(KERNEL_BUFFER)?;
    }
    let got = socket.recv_buffer_size()?;
    if got < ENOUGH {
        SMALL.call_once(|| {
            tracing::info!(
                bytes = got,
                "the host allows small UDP buffers only, so fast connections lose packets: sysctl -w net.core.rmem_max={KERNEL_BUFFER} helps"
            );
        });
    }
    Ok(())
}

/// Binds without SO_REUSEADDR and SO_REUSEPORT, so that a taken port is an error.
pub(super) fn bind_one(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    enlarge(&socket)?;
    socket.bind(&addr.into())?;
    socket.set_nonblocking(true)?;
    tracing::debug!(%addr, receive = socket.recv_buffer_size().unwrap_or(0), "UDP socket bound");
    Ok(socket.into())
}
