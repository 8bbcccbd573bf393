//! A UDP socket that notes whose packets come in.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::peers::Peers;

/// Passes everything on.
#[derive(Debug)]
pub(super) struct Noting {
    pub(super) inner: Arc<dyn AsyncUdpSocket>,
    pub(super) peers: Arc<Peers>,
}

impl AsyncUdpSocket for Noting {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        let now = Instant::now();
        for (buf, meta) in bufs.iter().zip(meta.iter()).take(count) {
            // Those behind the first one of a batch come from the same peer.
            let first = &buf[..meta.len.min(meta.stride).min(buf.len())];
            self.peers.note(first, meta.addr, meta.dst_ip, now);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
