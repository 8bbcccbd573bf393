//! The sending half of a flow: bytes that the application wrote and the other end does not own yet.

use bytes::Bytes;

use super::Violation;
use super::queue::{Cursor, Queue};
use crate::wire::{EARLY, MAX_PAYLOAD};

/// Offsets, all from the start of the direction: `acked <= sent <= written`, and `written <= limit`.
#[derive(Debug)]
pub(crate) struct SendHalf {
    /// `[acked, written)`: what may have to be sent again, and what was not sent yet. Without `keep`, `acked` is `sent`.
    queue: Queue,
    cursor: Cursor,
    acked: u64,
    sent: u64,
    limit: u64,
    /// The last acknowledgement, the FIN counted as one byte.
    told: u64,
    /// Whether what was sent is kept until it is acknowledged.
    keep: bool,
    fin: Fin,
    /// Most bytes held; grows towards `max` when it, and not the credit, held the application back.
    cap: usize,
    max: usize,
    held_back: bool,
}

/// The end of the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fin {
    Open,
    Written,
    Sent,
    Acked,
}

impl SendHalf {
    pub(crate) fn new(limit: u64, cap: usize, max: usize) -> Self {
        Self {
            queue: Queue::default(),
            cursor: Cursor::default(),
            acked: 0,
            sent: 0,
            limit,
            told: 0,
            keep: true,
            fin: Fin::Open,
            cap: cap.min(max),
            max,
            held_back: false,
        }
    }

    pub(crate) fn written(&self) -> u64 {
        self.acked + self.queue.len() as u64
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    pub(crate) fn buffered(&self) -> usize {
        self.queue.len()
    }

    /// From here on what was sent is forgotten at once.
    pub(crate) fn keep_nothing(&mut self) {
        self.keep = false;
        self.forget_sent();
    }

    fn forget_sent(&mut self) {
        self.queue
            .advance((self.sent - self.acked) as usize, &mut self.cursor);
        self.acked = self.sent;
    }

    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max;
        self.cap = self.cap.min(max);
    }

    pub(crate) fn writable(&self) -> usize {
        if self.fin != Fin::Open {
            return 0;
        }
        let credit =
            usize::try_from(self.limit.saturating_sub(self.written())).unwrap_or(usize::MAX);
        self.cap.saturating_sub(self.queue.len()).min(credit)
    }

    pub(crate) fn write(&mut self, bytes: Bytes) {
        self.queue.push(bytes, &mut self.cursor);
        self.held_back |= self.queue.len() >= self.cap && self.limit > self.written();
    }

    /// Whether the application has said anything, its end of file included.
    pub(crate) fn is_begun(&self) -> bool {
        self.written() > 0 || self.fin != Fin::Open
    }

    pub(crate) fn finish(&mut self) {
        if self.fin == Fin::Open {
            self.fin = Fin::Written;
        }
    }

    /// Whether [`next_data`](Self::next_data) or [`next_fin`](Self::next_fin) has something.
    pub(crate) fn is_pending(&self) -> bool {
        self.has_data() || self.fin == Fin::Written
    }

    pub(crate) fn has_data(&self) -> bool {
        !self.queue.is_empty() && self.sent < self.written().min(self.limit)
    }

    pub(crate) fn next_data(&mut self) -> Option<(u64, Bytes)> {
        let credit = usize::try_from(self.limit.saturating_sub(self.sent)).unwrap_or(usize::MAX);
        let bytes = self
            .queue
            .piece(credit.min(MAX_PAYLOAD), &mut self.cursor)?;
        let offset = self.sent;
        self.sent += bytes.len() as u64;
        if !self.keep {
            self.forget_sent();
        }
        Some((offset, bytes))
    }

    pub(crate) fn next_fin(&mut self) -> Option<u64> {
        if self.fin != Fin::Written || self.sent != self.written() {
            return None;
        }
        self.fin = Fin::Sent;
        Some(self.sent)
    }

    /// The other end owns everything up to `recv` (the FIN counts as one byte): frees it.
    pub(crate) fn ack(&mut self, recv: u64) -> Result<(), Violation> {
        self.check(recv)?;
        self.told = recv;
        if recv > self.written() {
            self.fin = Fin::Acked;
        }
        let acked = recv.min(self.written()).max(self.acked);
        let count = (acked - self.acked) as usize;
        if count > 0 {
            self.queue.advance(count, &mut self.cursor);
            self.acked = acked;
            if std::mem::take(&mut self.held_back) {
                self.cap = self.cap.saturating_mul(2).min(self.max);
            }
        }
        Ok(())
    }

    /// Goes on from `recv` on a new leg. With `free`, what is behind is freed; without it everything stays, because the
    /// other end may still refuse the flow.
    pub(crate) fn resume_at(&mut self, recv: u64, free: bool) -> Result<(), Violation> {
        self.check(recv)?;
        if recv < self.acked {
            // Sent, not kept, and lost.
            let (low, high) = (self.acked, self.sent);
            return Err(Violation::Acknowledged { recv, low, high });
        }
        if free {
            self.ack(recv)?;
        }
        self.rewind(recv.min(self.written()));
        if recv > self.written() {
            // Owned by the other end, acknowledged for good once it may be freed.
            self.fin = if free { Fin::Acked } else { Fin::Sent };
        }
        Ok(())
    }

    /// Everything is written anew, to another provider.
    pub(crate) fn restart(&mut self) {
        self.rewind(self.acked);
        self.limit = EARLY;
    }

    pub(crate) fn raise(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// Whether the other end owes an acknowledgement.
    pub(crate) fn is_outstanding(&self) -> bool {
        self.sent > self.acked || self.fin == Fin::Sent
    }

    /// Whether all bytes and the FIN were sent.
    pub(crate) fn is_sent(&self) -> bool {
        matches!(self.fin, Fin::Sent | Fin::Acked)
    }

    /// Whether the other end owns all bytes and the FIN.
    pub(crate) fn is_acked(&self) -> bool {
        self.fin == Fin::Acked
    }

    /// Drops all bytes, nothing can be sent any more.
    pub(crate) fn clear(&mut self) {
        self.acked = self.written();
        self.queue.clear();
        self.cursor = Cursor::default();
    }

    /// Never clamped: a number outside of what was sent means that the ends disagree about the bytes.
    fn check(&self, recv: u64) -> Result<(), Violation> {
        let low = self.told;
        let high = self.sent + u64::from(self.is_sent());
        if (low..=high).contains(&recv) {
            Ok(())
        } else {
            Err(Violation::Acknowledged { recv, low, high })
        }
    }

    fn rewind(&mut self, position: u64) {
        self.sent = position;
        self.cursor = self.queue.seek((position - self.acked) as usize);
        if self.fin == Fin::Sent {
            self.fin = Fin::Written;
        }
    }
}
