//! A bounded queue of packets for one association.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::time::Instant;

use crate::metrics::FabricMetrics;
use crate::quic::Sink;

/// Packets that wait at most.
const PACKETS: usize = 256;
/// Bytes that wait at most; one of the largest packets and as much again. Thousands of clients may wait for a provider.
const BYTES: usize = 128 << 10;

/// Packets that wait for one association. Whoever puts them in never waits; what does not fit is dropped.
#[derive(Debug)]
pub struct Inbox {
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
    /// There is no room.
    Full,
    /// The association has ended; the packet belongs to a new one.
    Closed,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                packets: VecDeque::new(),
                bytes: 0,
                waker: None,
                moved: Instant::now(),
                closed: false,
            }),
        }
    }
}

impl Inbox {
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
        if state.packets.len() >= PACKETS || state.bytes + packet.len() > BYTES {
            return Err(NotTaken::Full);
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
        if self.inbox.push(packet).is_err() {
            self.metrics.dropped("queue");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_exactly_its_bounds() {
        let mut cx = Context::from_waker(Waker::noop());
        let small = Inbox::default();
        let taken = (0..PACKETS + 1)
            .take_while(|_| small.push(Bytes::new()).is_ok())
            .count();
        assert_eq!(taken, PACKETS);
        let large = Inbox::default();
        for _ in 0..4 {
            assert_eq!(large.push(Bytes::from(vec![0; BYTES / 4])), Ok(()));
        }
        let one = Bytes::from_static(b"x");
        assert_eq!(large.push(one.clone()), Err(NotTaken::Full));
        assert!(large.poll_pop(&mut cx).is_ready());
        assert_eq!(large.push(one.clone()), Ok(()));
        large.close();
        assert_eq!(large.push(one), Err(NotTaken::Closed));
    }
}
