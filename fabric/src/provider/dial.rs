//! Connections to backends.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use crate::pump::tcp;
use crate::quic::HostPort;
use crate::wire::RefuseCode;

/// Head start of one address before the next is tried too (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// A connection to a backend.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) socket: TcpStream,
    /// The backend took the connection and has reset it already.
    pub(super) reset: Option<Reset>,
}

/// What a backend sent before it reset a connection that it had just taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    /// Bytes, perhaps.
    Open,
    /// Bytes, perhaps, and its end of file.
    Ended,
}

/// Connects to the first of the backend's addresses that answers; finding them and that together take `time` at most.
///
/// Dropped, a connection that is just there ends with RST: a backend never sees a clean end of a flow that was cut.
///
/// # Errors
/// The refusal that the initiator gets.
pub(super) async fn dial(
    backend: &HostPort,
    addrs: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    time: Duration,
) -> Result<Dialled, (RefuseCode, String)> {
    let attempt = async { race(addrs.await?.into()).await };
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
async fn race(mut addrs: VecDeque<SocketAddr>) -> io::Result<Dialled> {
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
                Ok(dialled) => {
                    match tcp::prepare(&dialled.socket) {
                        Err(error) if dialled.reset.is_none() => return Err(error),
                        _ => return Ok(dialled),
                    }
                }
                Err(error) => last = error,
            },
            () = tokio::time::sleep(STAGGER), if !addrs.is_empty() => {}
        }
    }
}

/// A backend that takes the connection and resets it at once was reached: what it said has to get through, and nobody else
/// may be asked. Tokio's own connect takes that for a failure, so this looks itself: before a connection stands, its reset
/// is `ECONNREFUSED`.
async fn connect(addr: SocketAddr) -> io::Result<Dialled> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    // An urgent byte that comes before this is set wakes nobody.
    socket.set_out_of_band_inline(true)?;
    match socket.connect(&addr.into()) {
        Err(error) if !is_in_progress(&error) => return Err(error),
        _ => {}
    }
    let socket = TcpStream::from_std(socket.into())?;
    socket.writable().await?;
    let reset = match socket.take_error()? {
        None => None,
        Some(error) if error.kind() == io::ErrorKind::ConnectionReset => Some(Reset::Open),
        // The end of file came first.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Some(Reset::Ended),
        Some(error) => return Err(error),
    };
    Ok(Dialled { socket, reset })
}

fn is_in_progress(error: &io::Error) -> bool {
    /// Linux.
    const EINPROGRESS: i32 = 115;
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(EINPROGRESS)
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
        let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
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
        assert_eq!(socket.socket.peer_addr().unwrap(), good);
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
