//! The packets of a connection that wait to leave.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::limits::WindowLimits;

/// How much may wait to leave on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::quic) struct QueueLimits {
    /// Packets of one flow.
    packets: usize,
    /// Bytes of all flows.
    bytes: usize,
}

impl QueueLimits {
    pub(in crate::quic) fn of(limits: &WindowLimits) -> Self {
        Self {
            packets: limits.packets,
            bytes: usize::try_from(limits.packet_bytes).unwrap_or(usize::MAX),
        }
    }
}

impl QueueLimits {
    pub(in crate::quic) const fn bytes(self) -> usize {
        self.bytes
    }
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self::of(&WindowLimits::default())
    }
}

/// Datagrams that wait, by stream; the streams take turns.
#[derive(Debug)]
pub(super) struct Queue {
    limits: QueueLimits,
    flows: HashMap<u64, VecDeque<Bytes>>,
    /// The streams that have something, in the order of their turns.
    turns: VecDeque<u64>,
    bytes: usize,
    /// One was taken out and may still wait for the connection: none may overtake it.
    sending: bool,
}

impl Queue {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            flows: HashMap::new(),
            turns: VecDeque::new(),
            bytes: 0,
            sending: false,
        }
    }

    /// Takes no more than so many bytes from now on.
    pub(super) const fn set_bytes(&mut self, bytes: usize) {
        self.limits.bytes = bytes;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.turns.is_empty() && !self.sending
    }

    /// Queues a datagram.
    ///
    /// # Errors
    /// The limit that was hit: there is no room.
    pub(super) fn push(&mut self, stream: u64, datagram: Bytes) -> Result<(), &'static str> {
        if self.bytes + datagram.len() > self.limits.bytes {
            return Err("queued_packet_bytes");
        }
        let flow = self.flows.entry(stream).or_default();
        if flow.len() >= self.limits.packets {
            return Err("queued_packets");
        }
        if flow.is_empty() {
            self.turns.push_back(stream);
        }
        self.bytes += datagram.len();
        flow.push_back(datagram);
        Ok(())
    }

    /// The datagram whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let next = self.turns.pop_front().and_then(|stream| {
            let flow = self.flows.get_mut(&stream)?;
            let datagram = flow.pop_front()?;
            if flow.is_empty() {
                self.flows.remove(&stream);
            } else {
                self.turns.push_back(stream);
            }
            self.bytes -= datagram.len();
            Some(datagram)
        });
        self.sending = next.is_some();
        next
    }

    pub(super) fn forget(&mut self, stream: u64) {
        if let Some(flow) = self.flows.remove(&stream) {
            self.bytes -= flow.iter().map(Bytes::len).sum::<usize>();
            self.turns.retain(|other| *other != stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: QueueLimits = QueueLimits {
        packets: 3,
        bytes: 1 << 20,
    };

    fn packet(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn flows_take_turns_and_a_flood_waits_behind_itself() {
        let mut queue = Queue::new(BOUNDS);
        let mut taken = 0;
        let full = loop {
            match queue.push(1, packet("flood")) {
                Ok(()) => taken += 1,
                Err(limit) => break limit,
            }
        };
        assert_eq!((taken, full), (BOUNDS.packets, "queued_packets"));
        queue.push(2, packet("a")).unwrap();
        queue.push(2, packet("b")).unwrap();
        let first: Vec<Bytes> = (0..4).filter_map(|_| queue.pop()).collect();
        assert_eq!(first, ["flood", "a", "flood", "b"]);
        assert!(!queue.is_idle());
    }

    #[test]
    fn what_was_taken_out_is_not_overtaken_and_what_is_forgotten_is_gone() {
        let mut queue = Queue::new(BOUNDS);
        assert!(queue.is_idle());
        queue.push(1, packet("a")).unwrap();
        queue.push(2, packet("b")).unwrap();
        queue.forget(1);
        assert_eq!(queue.pop(), Some(packet("b")));
        assert!(!queue.is_idle(), "it may still wait for the connection");
        assert_eq!(queue.pop(), None);
        assert!(queue.is_idle());
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn a_connection_holds_no_more_than_its_bound() {
        let mut queue = Queue::new(BOUNDS);
        let big = Bytes::from(vec![0; 64 << 10]);
        let mut stream = 0;
        let full = loop {
            match queue.push(stream, big.clone()) {
                Ok(()) => stream += 1,
                Err(limit) => break limit,
            }
        };
        let most = (BOUNDS.bytes / big.len()) as u64;
        assert_eq!((stream, full), (most, "queued_packet_bytes"));
    }
}
