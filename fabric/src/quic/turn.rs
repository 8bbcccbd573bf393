//! Joins what a driver sends in one turn into larger sends.
//!
//! The implementation hands the socket at most ten datagrams at a time, and twenty in a turn. The kernel takes up to 64 in
//! one call, for nearly the cost of one. So while a driver has its turn, datagrams of one size to one address are gathered;
//! they leave when no more fit, or at the end of the turn: nothing waits for a timer or for another task. A driver that was
//! stopped by its own bound, and not for want of data, goes on in the same turn.
//!
//! Each thread has one buffer of 64 KiB for this. A batch that finds the socket full stays with its driver, which is woken
//! when there is room.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

use super::transport::UDP_MAX;
use super::udp::Udp;

/// Datagrams after which the implementation ends a driver's poll though there may be more.
const DRIVER_BOUND: usize = 20;
/// Polls of a driver in one turn at most; other tasks want theirs.
const POLLS: usize = 4;

thread_local! {
    static OUTBOX: RefCell<Outbox> = const { RefCell::new(Outbox::new()) };
}

/// Tokio, with turns.
#[derive(Debug)]
pub(super) struct Turns;

impl Runtime for Turns {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(Box::pin(Turn {
            driver: future,
            unsent: None,
        }));
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Joining(Arc::new(Udp::new(socket)?))))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// A socket whose sends are joined in a turn; outside of one they leave at once.
#[derive(Debug)]
struct Joining(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Joining {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    /// `WouldBlock` if the socket is full and this has no room in the batch that waits; nothing of it was taken then.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        OUTBOX.with_borrow_mut(|outbox| {
            if outbox.in_turn {
                outbox.push(&self.0, transmit)
            } else {
                self.0.try_send(transmit)
            }
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

/// What the driver that has its turn on this thread has sent.
#[derive(Debug)]
struct Outbox {
    in_turn: bool,
    /// Datagrams in this poll of the driver.
    handed: usize,
    batch: Option<Batch>,
    /// A buffer without a batch.
    spare: Vec<u8>,
}

/// Datagrams that leave in one send. All but the last one are of the segment's size.
#[derive(Debug)]
struct Batch {
    socket: Arc<dyn AsyncUdpSocket>,
    destination: SocketAddr,
    source: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    segment: usize,
    bytes: Vec<u8>,
}

impl Outbox {
    const fn new() -> Self {
        Self {
            in_turn: false,
            handed: 0,
            batch: None,
            spare: Vec::new(),
        }
    }

    fn push(
        &mut self,
        socket: &Arc<dyn AsyncUdpSocket>,
        transmit: &Transmit<'_>,
    ) -> io::Result<()> {
        let size = transmit.contents.len();
        let segment = transmit.segment_size.unwrap_or(size).max(1);
        if !self
            .batch
            .as_ref()
            .is_some_and(|batch| batch.takes(socket, transmit, segment))
        {
            self.flush()?;
        }
        self.handed += size.div_ceil(segment);
        let batch = self.batch.get_or_insert_with(|| Batch {
            socket: Arc::clone(socket),
            destination: transmit.destination,
            source: transmit.src_ip,
            ecn: transmit.ecn,
            segment,
            bytes: std::mem::take(&mut self.spare),
        });
        batch.bytes.extend_from_slice(transmit.contents);
        Ok(())
    }

    /// Sends what is gathered; if that is impossible now, it stays.
    fn flush(&mut self) -> io::Result<()> {
        if let Some(batch) = &self.batch {
            batch.send()?;
        }
        if let Some(batch) = self.batch.take() {
            self.spare = batch.bytes;
            self.spare.clear();
        }
        Ok(())
    }
}

impl Batch {
    fn takes(
        &self,
        socket: &Arc<dyn AsyncUdpSocket>,
        transmit: &Transmit<'_>,
        segment: usize,
    ) -> bool {
        let size = self.bytes.len() + transmit.contents.len();
        // Only the last datagram may be shorter than the others, and none longer.
        let alike =
            segment == self.segment || (transmit.segment_size.is_none() && segment < self.segment);
        alike
            && self.bytes.len().is_multiple_of(self.segment)
            && size <= usize::from(UDP_MAX)
            && size.div_ceil(self.segment) <= socket.max_transmit_segments()
            && transmit.destination == self.destination
            && transmit.src_ip == self.source
            && transmit.ecn == self.ecn
            && Arc::ptr_eq(socket, &self.socket)
    }

    fn send(&self) -> io::Result<()> {
        self.socket.try_send(&Transmit {
            destination: self.destination,
            ecn: self.ecn,
            contents: &self.bytes,
            segment_size: (self.bytes.len() > self.segment).then_some(self.segment),
            src_ip: self.source,
        })
    }
}

/// A driver's future; each poll of it is a turn.
struct Turn {
    driver: Pin<Box<dyn Future<Output = ()> + Send>>,
    unsent: Option<Unsent>,
}

/// A batch that found its socket full, and what wakes its driver.
struct Unsent {
    batch: Batch,
    _room: Pin<Box<dyn UdpPoller>>,
}

impl Future for Turn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let begun = Begun::new(this.unsent.take().map(|unsent| unsent.batch));
        let mut polled = Poll::Pending;
        for _ in 0..POLLS {
            polled = this.driver.as_mut().poll(cx);
            let handed = OUTBOX.with_borrow_mut(|outbox| std::mem::take(&mut outbox.handed));
            if polled.is_ready() || handed < DRIVER_BOUND {
                break;
            }
        }
        if let Some(batch) = begun.end() {
            let mut room = Arc::clone(&batch.socket).create_io_poller();
            if room.as_mut().poll_writable(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            this.unsent = Some(Unsent { batch, _room: room });
        }
        polled
    }
}

/// The turn under way. If the driver panics, what it sent is dropped, and others go on.
struct Begun;

impl Begun {
    fn new(unsent: Option<Batch>) -> Self {
        OUTBOX.with_borrow_mut(|outbox| {
            outbox.in_turn = true;
            outbox.handed = 0;
            outbox.batch = unsent;
        });
        Self
    }

    /// What could not be sent.
    fn end(self) -> Option<Batch> {
        OUTBOX.with_borrow_mut(|outbox| match outbox.flush() {
            Ok(()) => None,
            Err(_) => outbox.batch.take(),
        })
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        OUTBOX.with_borrow_mut(|outbox| {
            outbox.in_turn = false;
            outbox.batch = None;
        });
    }
}

#[cfg(test)]
mod tests;
