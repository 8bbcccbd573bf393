//! The application's side of an association: a client behind a shared socket, or a backend.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{Interest, ReadBuf};
use tokio::net::UdpSocket;
use tokio::time::Sleep;

use super::Client;

/// How long a backend may take to answer or refuse the first packets before the flow is accepted anyway: it may never
/// answer, and one that refuses is nearly always next to us.
pub(super) const PROBE: Duration = Duration::from_millis(20);

thread_local! {
    /// One read buffer for all associations of the thread: idle ones hold none.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; 1 << 16]);
}

/// The application's side.
#[derive(Debug)]
pub(super) enum Local {
    /// The backend is not there yet.
    None,
    Client(Client),
    Backend(Backend),
}

impl Local {
    /// Takes nothing more of the client.
    pub(super) fn close(&self) {
        if let Self::Client(client) = self {
            client.inbox.close();
        }
    }
}

pub(super) struct Backend {
    socket: Arc<UdpSocket>,
    /// Waits for an error: what an ICMP message says does not make the socket readable.
    error: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Until the flow is accepted.
    pub(super) probe: Option<Probe>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

/// The first packets are shown to the backend before the flow is accepted, so that a refused one may go elsewhere.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) until: Pin<Box<Sleep>>,
    /// Bytes of the flow that the backend has seen.
    pub(super) shown: usize,
}

impl Local {
    pub(super) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        match self {
            Self::None => Poll::Pending,
            Self::Client(client) => client.inbox.poll_pop(cx).map(Ok),
            Self::Backend(backend) => {
                if let Poll::Ready(error) = backend.poll_error(cx) {
                    return Poll::Ready(Err(error));
                }
                READ.with_borrow_mut(|buffer| {
                    let mut buffer = ReadBuf::new(buffer);
                    ready!(backend.socket.poll_recv(cx, &mut buffer))?;
                    Poll::Ready(Ok(Bytes::copy_from_slice(buffer.filled())))
                })
            }
        }
    }

    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        packet: &[u8],
    ) -> Poll<io::Result<()>> {
        match self {
            Self::None => Poll::Pending,
            // Many associations share this socket, and it has room for one waker: what it does not take is lost.
            Self::Client(client) => Poll::Ready(
                client
                    .socket
                    .try_send_to(packet, client.address)
                    .map(|_| client.inbox.touch()),
            ),
            Self::Backend(backend) => backend.socket.poll_send(cx, packet).map_ok(|_| ()),
        }
    }
}

impl Backend {
    pub(super) fn new(socket: UdpSocket) -> Self {
        Self {
            socket: Arc::new(socket),
            error: None,
            probe: Some(Probe {
                until: Box::pin(tokio::time::sleep(PROBE)),
                shown: 0,
            }),
        }
    }

    /// An error that no call has reported.
    fn poll_error(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let socket = &self.socket;
            let error = self.error.get_or_insert_with(|| {
                let socket = Arc::clone(socket);
                Box::pin(async move {
                    // An error here says that the runtime ends.
                    let _ = socket.ready(Interest::ERROR).await;
                })
            });
            ready!(error.as_mut().poll(cx));
            self.error = None;
            // Cleared before it is looked at, so that another one behind it is not missed.
            let clear = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.socket.try_io(Interest::ERROR, clear);
            if let Ok(Some(error)) = self.socket.take_error() {
                return Poll::Ready(error);
            }
        }
    }
}
