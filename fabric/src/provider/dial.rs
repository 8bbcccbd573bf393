//! Connections to backends.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::pump::tcp;
use crate::quic::HostPort;
use crate::wire::RefuseCode;

/// Head start of one address before the next is tried too (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to the first address of the backend that answers, within `time`.
///
/// Dropped, a connection that is just there ends with RST: a backend never sees a clean end of a flow that was cut.
///
/// # Errors
/// The refusal that the initiator gets.
pub(super) async fn dial(
    backend: &HostPort,
    time: Duration,
) -> Result<TcpStream, (RefuseCode, String)> {
    let attempt = async { race(backend.resolve().await?.into()).await };
    match tokio::time::timeout(time, attempt).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => {
            let code = if error.kind() == io::ErrorKind::ConnectionRefused {
                RefuseCode::BackendRefused
            } else {
                RefuseCode::BackendUnreachable
            };
            Err((code, format!("{backend}: {error}")))
        }
        Err(_) => Err((
            RefuseCode::BackendTimeout,
            format!("{backend} did not answer within {time:?}"),
        )),
    }
}

/// The first connection wins; a failed attempt lets the next one start at once.
async fn race(mut addrs: VecDeque<SocketAddr>) -> io::Result<TcpStream> {
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        if let Some(addr) = addrs.pop_front() {
            running.push(connect(addr));
        } else if running.is_empty() {
            return Err(last);
        }
        tokio::select! {
            biased;
            Some(done) = running.next() => match done {
                Ok(socket) => {
                    tcp::prepare(&socket)?;
                    return Ok(socket);
                }
                Err(error) => last = error,
            },
            () = tokio::time::sleep(STAGGER), if !addrs.is_empty() => {}
        }
    }
}

async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    socket.connect(addr).await
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_deaf_address_does_not_hold_up_the_next_one() {
        // A full queue: further SYNs are dropped.
        let deaf =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        deaf.bind(&any.into()).unwrap();
        deaf.listen(0).unwrap();
        let silent = deaf.local_addr().unwrap().as_socket().unwrap();
        let _fill = TcpStream::connect(silent).await.unwrap();
        let listener = TcpListener::bind(any).await.unwrap();
        let good = listener.local_addr().unwrap();
        let socket = tokio::time::timeout(Duration::from_secs(10), race([silent, good].into()))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(socket.peer_addr().unwrap(), good);
    }

    #[tokio::test]
    async fn an_abandoned_dial_is_no_clean_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut dialling = Box::pin(race([listener.local_addr().unwrap()].into()));
        // The kernel connects without being asked again.
        assert!(dialling.as_mut().now_or_never().is_none());
        let (mut accepted, _) = listener.accept().await.unwrap();
        drop(dialling);
        let error = accepted.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
