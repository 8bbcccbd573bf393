//! Whether a node that is about to be made could listen, asked before it is made: founding a trust domain and using up a token
//! cannot be undone.

use std::io;
use std::net::SocketAddr;

use anyhow::Context as _;
use keel_control::routes::DEFAULT_PORT;
use keel_control::transport;
use keel_fabric::quic::{self, ListenAddr};
use socket2::{Domain, Socket, Type};

use crate::settings::{NodeSettings, Part};

/// Takes every address of a new node and gives it back. Who takes one in the meantime makes the later bind fail, with the same words.
///
/// # Errors
/// The first address that cannot be had.
pub(super) fn check(settings: &NodeSettings, part: Part) -> anyhow::Result<()> {
    let api = settings.apiserver_listen;
    for_each(api, |addr| match bind(addr, Type::STREAM) {
        Ok(()) => Ok(()),
        Err(source) => Err(match source.kind() {
            io::ErrorKind::AddrInUse => transport::BindError::Taken { addr },
            io::ErrorKind::PermissionDenied => transport::BindError::NotPermitted { addr },
            _ => transport::BindError::Io { addr, source },
        }),
    })
    .context(API)?;
    for_each(api, udp).context(API)?;
    // A new node has no spec that could say otherwise.
    if part != Part::Node {
        return Ok(());
    }
    let router = settings
        .router_listen
        .unwrap_or(ListenAddr::any(DEFAULT_PORT));
    for_each(router, udp).with_context(|| router_cannot_listen(router, "--router-listen"))
}

/// What the APIServer says if it cannot listen.
pub(super) const API: &str = "the APIServer cannot listen (--apiserver-listen)";

/// What the router says if it cannot; `place` is where the address comes from.
pub(super) fn router_cannot_listen(on: ListenAddr, place: &str) -> String {
    format!("the router cannot listen on {on} ({place})")
}

fn udp(addr: SocketAddr) -> Result<(), quic::BindError> {
    bind(addr, Type::DGRAM).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => quic::BindError::Taken { addr },
        io::ErrorKind::PermissionDenied => quic::BindError::NotPermitted { addr },
        _ => quic::BindError::Io { addr, source },
    })
}

/// Port 0 can always be had; a host without IPv6 is served over IPv4 alone.
fn for_each<E>(
    listen: ListenAddr,
    mut check: impl FnMut(SocketAddr) -> Result<(), E>,
) -> Result<(), E> {
    let has_ipv6 = || bind((std::net::Ipv6Addr::UNSPECIFIED, 0).into(), Type::DGRAM).is_ok();
    let optional = |addr: &SocketAddr| listen.ip().is_none() && addr.is_ipv6();
    listen
        .sockets()
        .into_iter()
        .filter(|addr| addr.port() != 0 && (!optional(addr) || has_ipv6()))
        .try_for_each(&mut check)
}

fn bind(addr: SocketAddr, kind: Type) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(addr), kind, None)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // As the APIServer itself: connections of a former one that linger are not in the way.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&addr.into())?;
    if kind == Type::STREAM {
        socket.listen(1)?;
    }
    Ok(())
}
