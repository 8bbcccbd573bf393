//! Backends of both protocols.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::dial::{Dialled, dial};
use super::terminator::Terminator;
use crate::quic::HostPort;
use crate::wire::{Open, Protocol, RefuseCode};

/// A backend.
#[derive(Debug)]
pub(super) enum Reached {
    /// It took a connection.
    Tcp(Dialled),
    /// Packets can be sent to it; whether anybody takes them is not known yet.
    Udp(UdpSocket),
}

/// Reaches the backend of a flow, within the time for that.
///
/// # Errors
/// The refusal that the initiator gets.
pub(super) async fn reach(
    terminator: &Terminator,
    open: &Open,
    backend: &HostPort,
) -> Result<Reached, (RefuseCode, String)> {
    let time = terminator.limits.dial_time;
    let addrs = terminator
        .entrances
        .outside(backend, (&open.service, open.port));
    if open.protocol == Protocol::Tcp {
        return dial(backend, addrs, time).await.map(Reached::Tcp);
    }
    let attempt = async { connect(addrs.await?).await };
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
