//! The DNS server of the mapped names, over UDP and TCP on one port.
//!
//! The wire format is hickory's; the sockets are our own, because every queue here has a limit: [`MAX_TASKS`] questions,
//! [`handler::MAX_FORWARDS`] of them waiting for an upstream, [`MAX_CONNECTIONS`] TCP connections of at most [`IDLE`] each.

pub mod forward;
pub mod handler;
pub mod names;
pub mod resolv;
#[cfg(test)]
mod tests;
pub mod view;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::handler::{Handler, Transport};

/// Questions in work at a time over UDP; beyond it packets wait in the socket's buffer, and the kernel drops what it cannot hold.
const MAX_TASKS: usize = 512;

/// TCP connections at a time; beyond it they wait in the backlog.
const MAX_CONNECTIONS: usize = 64;

/// For how long a TCP connection may say nothing, or take no answer.
const IDLE: Duration = Duration::from_secs(10);

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
    pub async fn serve(self, handler: Arc<Handler>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = serve_udp(self.udp, handler.clone()) => {}
            () = serve_tcp(self.tcp, handler) => {}
        }
    }
}

async fn serve_udp(socket: UdpSocket, handler: Arc<Handler>) {
    let socket = Arc::new(socket);
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            biased;
            Some(_) = tasks.join_next() => {}
            received = socket.recv_from(&mut buffer), if tasks.len() < MAX_TASKS => match received {
                Ok((length, from)) => {
                    let (packet, handler, socket) = (buffer[..length].to_vec(), handler.clone(), socket.clone());
                    tasks.spawn(async move {
                        if let Some(answer) = handler.answer(&packet, Transport::Udp).await {
                            // The client may be gone; nobody is left to tell.
                            let _ = socket.send_to(&answer, from).await;
                        }
                    });
                }
                // An ICMP error of an earlier answer, or no memory for a moment.
                Err(error) => {
                    tracing::debug!(%error, "receiving a DNS question failed");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
        }
    }
}

async fn serve_tcp(listener: TcpListener, handler: Arc<Handler>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = tasks.join_next() => {}
            accepted = accept(&listener, &permits) => match accepted {
                Ok((stream, permit)) => {
                    let handler = handler.clone();
                    tasks.spawn(async move {
                        if let Err(error) = serve_connection(stream, &handler).await {
                            tracing::debug!(%error, "a DNS connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a DNS connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// The next connection, once there is room for one. Cancel safe: a permit without a connection is given back.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

/// Questions and answers in turn, each with two bytes of length in front (RFC 1035 section 4.2.2).
async fn serve_connection(mut stream: TcpStream, handler: &Handler) -> io::Result<()> {
    loop {
        let mut packet = Vec::new();
        let read = async {
            let length = stream.read_u16().await?;
            packet.resize(usize::from(length), 0);
            stream.read_exact(&mut packet).await.map(|_| ())
        };
        match timeout(IDLE, read).await {
            Err(_) => return Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(result) => result?,
        }
        let Some(answer) = handler.answer(&packet, Transport::Tcp).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let bytes = [&length.to_be_bytes(), answer.as_slice()].concat();
        timeout(IDLE, stream.write_all(&bytes)).await??;
    }
}
