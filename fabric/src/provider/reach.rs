//! Backends of both protocols.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

use super::dial::{Dialled, dial};
use crate::quic::HostPort;
use crate::wire::{Protocol, RefuseCode};

/// A backend.
#[derive(Debug)]
pub(super) enum Reached {
    /// It took a connection.
    Tcp(Dialled),
    /// Packets can be sent to it; whether anybody takes them is not known yet.
    Udp(UdpSocket),
}

/// Reaches a backend within `time`.
///
/// # Errors
/// The refusal that the initiator gets.
pub(super) async fn reach(
    backend: &HostPort,
    protocol: Protocol,
    time: Duration,
) -> Result<Reached, (RefuseCode, String)> {
    if protocol == Protocol::Tcp {
        return dial(backend, time).await.map(Reached::Tcp);
    }
    let attempt = async { connect(backend.resolve().await?).await };
    match tokio::time::timeout(time, attempt).await {
        Ok(Ok(socket)) => Ok(Reached::Udp(socket)),
        Ok(Err(error)) => Err((
            RefuseCode::BackendUnreachable,
            format!("{backend}: {error}"),
        )),
        Err(_) => Err((
            RefuseCode::BackendTimeout,
            format!("{backend} was not found within {time:?}"),
        )),
    }
}

/// A socket to the first address that there is a route to.
async fn connect(addrs: Vec<SocketAddr>) -> io::Result<UdpSocket> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for addr in addrs {
        let any: SocketAddr = if addr.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any).await?;
        match socket.connect(addr).await {
            Ok(()) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}
