//! The DNS server of the mapped names, over UDP and TCP on one port.
//!
//! Wire format, sockets' loops and TCP framing are hickory's; what is answered is ours. The limits: [`handler::MAX_QUESTIONS`]
//! questions in work, over UDP and TCP together, and [`handler::MAX_FORWARDS`] of them waiting for an upstream. TCP connections are
//! hickory's to bound: not by number, but each ends after [`IDLE`] without a whole question, or without taking an answer.

pub mod forward;
pub mod handler;
pub mod names;
pub mod resolv;
#[cfg(test)]
mod tests;
pub mod view;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_server::Server;
#[cfg(target_os = "linux")]
use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use self::handler::Handler;

/// For how long a TCP connection may say nothing, or take no answer.
const IDLE: Duration = Duration::from_secs(10);

/// Answers that wait in a TCP connection: its questions are taken one after another, so there is never a second.
const TCP_ANSWERS: usize = 1;

/// Tries to find a port that is free for UDP and TCP alike.
const PORT_TRIES: usize = 16;

/// The two sockets of a DNS server, bound.
#[derive(Debug)]
pub struct DnsSockets {
    udp: UdpSocket,
    tcp: TcpListener,
    address: SocketAddr,
}

impl DnsSockets {
    /// Binds UDP and TCP at `address`; port 0 takes one that is free for both.
    ///
    /// # Errors
    /// The first error of a socket; with port 0 after some tries.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            let udp = UdpSocket::bind(address).await?;
            drop_answers(&udp);
            let bound = udp.local_addr()?;
            match TcpListener::bind(bound).await {
                Ok(tcp) => {
                    return Ok(Self {
                        udp,
                        tcp,
                        address: bound,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers questions until `stop`. Questions in work are abandoned then: a client asks again.
    pub async fn serve(self, handler: Handler, stop: CancellationToken) {
        let mut server = Server::new(handler);
        server.register_socket(self.udp);
        server.register_listener(self.tcp, IDLE, TCP_ANSWERS);
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => server.shutdown_gracefully().await,
            ended = server.block_until_done() => ended,
        };
        if let Err(error) = ended {
            tracing::error!(%error, "the DNS server ended; mapped names have no address until a restart");
        }
    }
}

/// Lets the kernel drop answers (QR=1) that come to a server's socket.
///
/// hickory drops those that it can read, but says FORMERR to the others; nothing sent in another's name may make us reply.
/// Best effort: without the filter such a packet gets an error that is no longer than itself.
#[cfg(target_os = "linux")]
fn drop_answers(udp: &UdpSocket) {
    // Behind the 8 bytes of the UDP header: the id, then the byte whose highest bit is QR. Too short for that is dropped too.
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, 8 + 2),
        SockFilter::new(JUMP_IF_SET, 0, 1, 0x80),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    if let Err(error) = SockRef::from(udp).attach_filter(&filter) {
        tracing::debug!(%error, "the kernel does not filter DNS answers");
    }
}

#[cfg(not(target_os = "linux"))]
fn drop_answers(_udp: &UdpSocket) {}

/// `BPF_LD | BPF_B | BPF_ABS`.
#[cfg(target_os = "linux")]
const LOAD_BYTE: u16 = 0x30;

/// `BPF_JMP | BPF_JSET | BPF_K`.
#[cfg(target_os = "linux")]
const JUMP_IF_SET: u16 = 0x45;

/// `BPF_RET | BPF_K`: keeps as many bytes as it says.
#[cfg(target_os = "linux")]
const RETURN: u16 = 0x06;
