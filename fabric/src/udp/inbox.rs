//! A bounded queue of packets for one association.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::time::Instant;

use crate::flow::FlowLimits;
use crate::metrics::FabricMetrics;
use crate::quic::Sink;

/// Packets that wait for one association. Whoever puts them in never waits; what does not fit is dropped.
#[derive(Debug)]
pub struct Inbox {
    /// Packets and bytes.
    most: (usize, usize),
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    packets: VecDeque<Bytes>,
    bytes: usize,
    waker: Option<Waker>,
    /// When a packet last went either way.
    moved: Instant,
    closed: bool,
}

/// Why a packet was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// There is no room; the limit that was hit.
    Full(&'static str),
    /// The association has ended; the packet belongs to a new one.
    Closed,
}

impl Inbox {
    /// With room for what waits at one end of an association.
    #[must_use]
    pub fn new(limits: &FlowLimits) -> Self {
        Self {
            most: (limits.packets, limits.packet_bytes),
            state: Mutex::new(State {
                packets: VecDeque::new(),
                bytes: 0,
                waker: None,
                moved: Instant::now(),
                closed: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half changed here, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a packet in.
    ///
    /// # Errors
    /// [`NotTaken`]; the packet is not in.
    pub fn push(&self, packet: Bytes) -> Result<(), NotTaken> {
        let mut state = self.state();
        if state.closed {
            return Err(NotTaken::Closed);
        }
        state.moved = Instant::now();
        let (packets, bytes) = self.most;
        if state.packets.len() >= packets {
            return Err(NotTaken::Full("waiting_packets"));
        }
        if state.bytes + packet.len() > bytes {
            return Err(NotTaken::Full("waiting_packet_bytes"));
        }
        state.bytes += packet.len();
        state.packets.push_back(packet);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Takes nothing more; what waits is dropped.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.packets = VecDeque::new();
        state.bytes = 0;
    }

    /// Takes the first packet out.
    pub(crate) fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let mut state = self.state();
        match state.packets.pop_front() {
            Some(packet) => {
                state.bytes -= packet.len();
                if state.packets.is_empty() {
                    // Idle associations hold nothing.
                    state.packets = VecDeque::new();
                }
                Poll::Ready(packet)
            }
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Notes that a packet went the other way.
    pub(crate) fn touch(&self) {
        self.state().moved = Instant::now();
    }

    /// When a packet last went either way.
    #[must_use]
    pub fn moved(&self) -> Instant {
        self.state().moved
    }
}

/// Takes the datagrams of a leg.
#[derive(Debug)]
pub(super) struct Arrivals {
    pub(super) inbox: Arc<Inbox>,
    pub(super) metrics: Arc<FabricMetrics>,
}

impl Sink for Arrivals {
    fn take(&self, packet: Bytes) {
        match self.inbox.push(packet) {
            Ok(()) => {}
            Err(NotTaken::Full(limit)) => self.metrics.queue_full(limit),
            Err(NotTaken::Closed) => self.metrics.dropped("queue"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_exactly_its_bounds() {
        let mut cx = Context::from_waker(Waker::noop());
        let limits = FlowLimits {
            packets: 5,
            packet_bytes: 400,
            ..FlowLimits::default()
        };
        let small = Inbox::new(&limits);
        let taken = (0..6).map(|_| small.push(Bytes::new()));
        let mut expected = vec![Ok(()); 5];
        expected.push(Err(NotTaken::Full("waiting_packets")));
        assert_eq!(taken.collect::<Vec<_>>(), expected);
        let large = Inbox::new(&limits);
        for _ in 0..4 {
            assert_eq!(large.push(Bytes::from(vec![0; 100])), Ok(()));
        }
        let one = Bytes::from_static(b"x");
        let full = Err(NotTaken::Full("waiting_packet_bytes"));
        assert_eq!(large.push(one.clone()), full);
        assert!(large.poll_pop(&mut cx).is_ready());
        assert_eq!(large.push(one.clone()), Ok(()));
        large.close();
        assert_eq!(large.push(one), Err(NotTaken::Closed));
    }
}
