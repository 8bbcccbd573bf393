//! Why a sidecar does not start, or ends by itself. Each says what to do.

use std::io;
use std::net::SocketAddr;

use keel_fabric::quic::BindError;
use thiserror::Error;

use crate::identity::IdentityError;
use crate::state::StateError;
use crate::vip::RangeError;

/// Why a sidecar does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The state directory that was named cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The range of addresses does not do.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// DNS cannot listen where the user wants it.
    #[error("DNS cannot listen on {address}: {source}; {}", dns_remedy(*.address, .source))]
    Dns {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Metrics and health cannot be served where the user wants them.
    #[error(
        "metrics cannot be served on {address}: {source}; choose another address with --metrics-addr, port 0 takes a free one"
    )]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// An upstream is the sidecar's own DNS.
    #[error(
        "the DNS upstream {0} is this sidecar itself; give the server that it should ask with --dns-upstream"
    )]
    Upstream(SocketAddr),
}

/// Why a sidecar ended by itself.
#[derive(Debug, Error)]
pub enum RunError {
    /// There is no identity, for good.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No UDP socket to reach routers or the APIServer with.
    #[error("there is no UDP socket to be had: {0}")]
    Socket(#[from] BindError),
    /// A part of the sidecar failed: a bug.
    #[error("a part of the sidecar failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// What helps if DNS cannot listen on `address`.
pub(crate) fn dns_remedy(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a permission: run `sudo sysctl net.ipv4.ip_unprivileged_port_start={port}`, or give the program \
             the capability with `sudo setcap cap_net_bind_service=+ep $(command -v keel-sidecar)`, or choose a higher port like \
             --dns-addr {}:5353",
            address.ip(),
            port = address.port()
        ),
        io::ErrorKind::AddrInUse => {
            "another program listens there; stop it, or choose another address, like --dns-addr 127.0.0.3:53".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has it; choose an address of 127.0.0.0/8, like --dns-addr 127.0.0.2:53".to_owned()
        }
        _ => "choose another address with --dns-addr".to_owned(),
    }
}
