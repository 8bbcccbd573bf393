//! The receiving half of a flow: bytes that this end owns and the application has not taken yet.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Violation;
use super::queue::{Cursor, Queue};

/// Offsets, all from the start of the direction: `consumed <= received <= limit`.
#[derive(Debug)]
pub(crate) struct RecvHalf {
    /// `[consumed, received)`.
    queue: Queue,
    consumed: u64,
    received: u64,
    fin: bool,
    /// Credit that the other end was told.
    limit: u64,
    /// What the other end was told that this end owns.
    told: u64,
    window: usize,
    max: usize,
    /// The other end used up its credit, so the window may be too small.
    starved: bool,
    narrow: Narrow,
    /// Whether the other end is told what is owned, and not only of credit and of the FIN.
    acks: bool,
    ack: AckWhen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AckWhen {
    Idle,
    At(Instant),
    Now,
}

/// Whether the largest window held the other end back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Narrow {
    No,
    Due,
    Told,
}

impl RecvHalf {
    /// `limit` is the credit that the other end has from the start.
    pub(crate) fn new(limit: u64, window: usize, max: usize, acks: bool) -> Self {
        Self {
            queue: Queue::default(),
            consumed: 0,
            received: 0,
            fin: false,
            limit,
            told: 0,
            window: window.min(max),
            max,
            starved: false,
            narrow: Narrow::No,
            acks,
            ack: AckWhen::Idle,
        }
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Bytes> + Clone {
        self.queue.chunks()
    }

    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    pub(crate) fn buffered(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max;
        self.window = self.window.min(max);
    }

    /// Bytes owned, and one more if the FIN is.
    pub(crate) fn owned(&self) -> u64 {
        self.received + u64::from(self.fin)
    }

    /// Whether everything up to the FIN arrived.
    pub(crate) fn is_finished(&self) -> bool {
        self.fin
    }

    /// Whether everything up to the FIN was taken.
    pub(crate) fn is_consumed(&self) -> bool {
        self.fin && self.queue.is_empty()
    }

    pub(crate) fn data(
        &mut self,
        offset: u64,
        bytes: Bytes,
        now: Instant,
    ) -> Result<(), Violation> {
        self.at_end(offset)?;
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.limit {
            return Err(Violation::Credit {
                end,
                limit: self.limit,
            });
        }
        self.received = end;
        self.starved |= end == self.limit;
        self.queue.push(bytes, &mut Cursor::default());
        if self.acks && self.ack == AckWhen::Idle {
            self.ack = AckWhen::At(now + ACK_DELAY);
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self, offset: u64) -> Result<(), Violation> {
        self.at_end(offset)?;
        self.fin = true;
        self.ack = AckWhen::Now;
        Ok(())
    }

    pub(crate) fn take(&mut self, count: usize) {
        let count = count.min(self.queue.len());
        self.queue.advance(count, &mut Cursor::default());
        self.consumed += count as u64;
        if self.starved && self.queue.is_empty() {
            // The application keeps up and the sender ran dry: the window is what limits the rate.
            self.starved = false;
            if self.window == self.max && self.narrow == Narrow::No {
                self.narrow = Narrow::Due;
            }
            self.window = self.window.saturating_mul(2).min(self.max);
        }
    }

    /// Whether the largest window held the other end back. Said once.
    pub(crate) fn take_narrow(&mut self) -> bool {
        let due = self.narrow == Narrow::Due;
        if due {
            self.narrow = Narrow::Told;
        }
        due
    }

    /// What has arrived and is not taken stays; it keeps nothing else.
    pub(crate) fn part(&mut self) {
        self.queue.part();
    }

    /// An ACK whose delay has passed goes with the next frame that can.
    pub(crate) fn tick(&mut self, now: Instant) {
        if matches!(self.ack, AckWhen::At(at) if at <= now) {
            self.ack = AckWhen::Now;
        }
    }

    pub(crate) fn ack_at_once(&mut self) {
        self.ack = AckWhen::Now;
    }

    /// Whether an ACK has to go now; `piggyback` if a packet leaves anyway. Starts the delay of one that can wait.
    pub(crate) fn ack_due(&mut self, piggyback: bool, now: Instant) -> bool {
        let unacked = if self.acks {
            self.owned() - self.told
        } else {
            0
        };
        let credit = self.credit() - self.limit;
        let step = (self.window as u64 / 8)
            .clamp(ACK_BYTES, MAX_ACK_BYTES)
            .min(self.window as u64 / 2)
            .max(1);
        // Credit alone is worth an ACK only when the sender is getting short of it.
        let short = credit > 0 && self.limit - self.received < self.window as u64 / 2;
        match self.ack {
            AckWhen::Now => true,
            _ if unacked >= step || (short && credit >= step) => true,
            _ if unacked == 0 && !short => {
                self.ack = AckWhen::Idle;
                false
            }
            AckWhen::At(at) => piggyback || at <= now,
            AckWhen::Idle => {
                self.ack = AckWhen::At(now + ACK_DELAY);
                piggyback
            }
        }
    }

    /// What to tell the other end, as (recv, limit). From here on it counts as told.
    pub(crate) fn report(&mut self) -> (u64, u64) {
        self.told = self.owned();
        self.limit = self.credit();
        self.ack = AckWhen::Idle;
        (self.told, self.limit)
    }

    /// Raises the credit as [`report`](Self::report) does, for ACCEPT, which says nothing of what is owned.
    pub(crate) fn grant(&mut self) -> u64 {
        self.limit = self.credit();
        // The early bytes have a bound of their own: using it up says nothing about the window.
        self.starved = false;
        self.limit
    }

    /// No ACK is due without a leg; the next leg's header says everything.
    pub(crate) fn hold_ack(&mut self) {
        self.ack = AckWhen::Idle;
    }

    /// The credit that the other end has.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn ack_timeout(&self) -> Option<Instant> {
        match self.ack {
            AckWhen::At(at) => Some(at),
            AckWhen::Idle | AckWhen::Now => None,
        }
    }

    /// Drops all bytes, nothing can be taken any more.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.ack = AckWhen::Idle;
    }

    fn credit(&self) -> u64 {
        // Credit once given is never taken back, also if the window was lowered meanwhile.
        self.limit.max(self.consumed + self.window as u64)
    }

    fn at_end(&self, offset: u64) -> Result<(), Violation> {
        if self.fin {
            Err(Violation::AfterFin)
        } else if offset != self.received {
            Err(Violation::Offset {
                offset,
                expected: self.received,
            })
        } else {
            Ok(())
        }
    }
}

/// An ACK leaves at the latest when this much is unacknowledged: a quarter of the initial window, so that the sender
/// never waits for credit while the receiver keeps up;
const ACK_BYTES: u64 = 64 * 1024;

/// and this much once the window has grown. Half of what a sender keeps whose memory is tight, see [`crate::memory`].
const MAX_ACK_BYTES: u64 = 128 * 1024;

/// An ACK waits at most this long for bytes to travel with: about the delayed acknowledgement of a TCP stack.
const ACK_DELAY: Duration = Duration::from_millis(20);
