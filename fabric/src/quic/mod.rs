//! QUIC endpoints, connections and streams behind our own types.
//!
//! Nothing outside this module names the QUIC implementation, so that its driver can be replaced. All data moves as
//! [`bytes::Bytes`] chunks without copying.
//!
//! Two traps of the implementation are guarded here: a packet size times ten segments above what one UDP send takes
//! (every send would fail and look like loss), and packets larger than the initial congestion window (they would never
//! leave). Both follow from [`Profile`], which fixes packet size and window together.

mod addr;
mod cid;
mod connection;
mod datagrams;
mod endpoint;
mod error;
mod keys;
mod network;
mod noting;
mod peers;
mod socket;
mod stream;
mod transport;
mod turn;
mod udp;

pub use addr::{AddrError, HostPort, ListenAddr};
pub use connection::{Connection, Incoming};
pub(crate) use connection::{StreamCount, Traffic};
pub(crate) use datagrams::{Datagrams, NotSent, Route, SAFE_DATAGRAM, Sender, Sink};
pub use endpoint::Endpoint;
pub use error::{BindError, ConnectError, Lost, ReadError, WriteError};
pub use keys::{KeysError, QuicKeys};
pub use stream::{RecvStream, SendStream};
pub use transport::{Profile, Windows};

#[cfg(test)]
pub(crate) mod tests;
