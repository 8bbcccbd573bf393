//! The UDP socket of an endpoint, with as few calls into the kernel as the packets allow.
//!
//! A read that found less than it had room for has emptied the socket, so nobody asks again before the kernel says that
//! there is more. And the runtime follows only whether the socket can be read: followed for writing as well, it would be
//! woken by every packet that leaves. That begins when a send finds the socket full for the first time.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A socket that drivers share.
#[derive(Debug)]
pub(super) struct Udp {
    state: UdpSocketState,
    socket: AsyncFd<UdpSocket>,
    /// Set by a send that found the socket full.
    full: AtomicBool,
    /// Follows the socket for writing, from the first time that it was full. A second descriptor of the same socket,
    /// because one can be followed only once.
    room: OnceLock<AsyncFd<UdpSocket>>,
    registering: Mutex<()>,
}

impl Udp {
    /// Must be called inside the runtime that drives the endpoint.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        Ok(Self {
            state: UdpSocketState::new((&socket).into())?,
            socket: follow(socket, Interest::READABLE)?,
            full: AtomicBool::new(false),
            room: OnceLock::new(),
            registering: Mutex::new(()),
        })
    }

    /// Follows the socket for writing from now on.
    fn follow_room(&self) -> io::Result<&AsyncFd<UdpSocket>> {
        let _one = self
            .registering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = self.room.get() {
            return Ok(room);
        }
        let room = follow(self.socket.get_ref().try_clone()?, Interest::WRITABLE)?;
        Ok(self.room.get_or_init(|| room))
    }
}

#[allow(unsafe_code, reason = "no safe call follows reading alone")]
fn follow(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: the descriptor is the socket's, which the registration owns: it stays open and the same until both are gone.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

impl AsyncUdpSocket for Udp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            socket: self,
            wait: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Errors other than a full socket are those of a lossy network; they are only logged.
        let send = || self.state.send(self.socket.get_ref().into(), transmit);
        let sent = match self.room.get() {
            // What is known of the socket must be older than the send that finds it full.
            Some(room) => room.try_io(Interest::WRITABLE, |_| send()),
            None => send(),
        };
        if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.full.store(true, Ordering::Release);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            match self.state.recv(self.socket.get_ref().into(), bufs, meta) {
                Ok(count) => {
                    if count < bufs.len() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                // An error of an earlier send that the kernel tells now, and only once.
                Err(error) => tracing::debug!(%error, "a UDP socket reports"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

type Wait = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Waits until a socket that was full has room.
struct Poller {
    socket: Arc<Udp>,
    wait: Option<Wait>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wait.is_none() && !self.socket.full.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        let socket = Arc::clone(&self.socket);
        let wait = self.wait.get_or_insert_with(|| {
            Box::pin(async move {
                // It stays ready until a send finds the socket full again.
                let _ready = socket.follow_room()?.writable().await?;
                socket.full.store(false, Ordering::Release);
                Ok(())
            })
        });
        let waited = ready!(wait.as_mut().poll(cx));
        self.wait = None;
        Poll::Ready(waited)
    }
}
