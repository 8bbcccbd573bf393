//! UDP services: one end of an association between the application's packets and a leg.
//!
//! An association is a flow whose packets travel in two ways. Those that fit go as QUIC datagrams beside the leg; the
//! others, and all of them before ACCEPT, go on the leg's stream with a length in front ([`packets`]), where the flow
//! machine carries them like any bytes. A packet is whole or lost: nothing here waits, every queue is bounded, and what
//! does not fit is dropped and counted.

mod end;
mod inbox;
mod local;
mod packets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;

pub(crate) use end::End;
pub use inbox::{Inbox, NotTaken};

/// Silence after which an association ends, if nothing else is said.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest packet that UDP carries over IPv4.
pub const MAX_PACKET: usize = 65_507;

/// The application's side of an association: one client address.
#[derive(Debug, Clone)]
pub struct Client {
    /// Packets of the client, put there by the owner of the socket.
    pub inbox: Arc<Inbox>,
    /// The socket that the client sent to; answers leave from its address.
    pub socket: Arc<UdpSocket>,
    /// The client.
    pub address: SocketAddr,
}
