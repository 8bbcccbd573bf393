//! The order in which the bytes of one limit may go. Pure but for its lock: time comes in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Counts;

/// How much time that was not used may be made up for: a timer that is late must not cost bandwidth, and what comes at
/// once must stay small beside any window in which a rate is measured.
pub(super) const SLACK: Duration = Duration::from_millis(25);

/// A turn is this much time at the rate, within bounds: below the least a turn is not worth its wake-up, above the most it
/// is not worth its delay to others.
const TURN: Duration = Duration::from_millis(5);
const LEAST: usize = 256;
const MOST: usize = 64 << 10;

/// The turns of one direction of one limit.
#[derive(Debug)]
pub(crate) struct Line {
    /// Bytes per second; 0 is no limit.
    rate: AtomicU64,
    queue: Mutex<Queue>,
    /// There once a rate was set: what is never limited has no place in the metrics.
    pub(super) counts: OnceLock<Counts>,
}

#[derive(Debug)]
struct Queue {
    /// When the next turn begins.
    next: Instant,
    /// When the last turn begins that a stream took. While that lies ahead, streams want more than there is.
    streamed: Instant,
    /// When the next packet may go.
    packet: Instant,
    /// Counts changes of the rate.
    epoch: u64,
}

/// A turn at a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) at: Instant,
    epoch: u64,
}

impl Line {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rate: AtomicU64::new(0),
            queue: Mutex::new(Queue {
                next: now,
                streamed: now,
                packet: now,
                epoch: 0,
            }),
            counts: OnceLock::new(),
        }
    }

    pub(super) fn is_limited(&self) -> bool {
        self.rate.load(Ordering::Relaxed) > 0
    }

    /// Changes the rate; turns that were given are void. Says whether it changed.
    pub(super) fn set(&self, rate: u64) -> bool {
        let mut queue = self.lock();
        if self.rate.swap(rate, Ordering::Relaxed) == rate {
            return false;
        }
        queue.epoch += 1;
        // Whoever waits at the old rate must not wait behind its own void turn.
        let now = Instant::now();
        queue.next = queue.next.min(now);
        queue.streamed = queue.streamed.min(now);
        queue.packet = queue.packet.min(now);
        true
    }

    /// Bytes of one turn.
    pub(super) fn quantum(&self) -> usize {
        let bytes = u128::from(self.rate.load(Ordering::Relaxed)) * TURN.as_micros() / 1_000_000;
        usize::try_from(bytes).unwrap_or(MOST).clamp(LEAST, MOST)
    }

    /// Takes the next turn, for so many bytes.
    pub(super) fn reserve(&self, bytes: usize, now: Instant) -> Slot {
        let mut queue = self.lock();
        let at = queue.next.max(earliest(now));
        queue.next = at + self.time(bytes);
        queue.streamed = at;
        Slot {
            at,
            epoch: queue.epoch,
        }
    }

    /// Whether a packet may go now.
    pub(super) fn takes_packet(&self, now: Instant) -> bool {
        self.lock().packet <= now
    }

    /// A packet of so many bytes goes, and does not wait for a turn: streams that want more than there is always have one
    /// ahead. They pay for it, and all packets together have half while they do.
    pub(super) fn packet(&self, bytes: usize, now: Instant) {
        let mut queue = self.lock();
        let time = self.time(bytes);
        let share = if queue.streamed > now { 2 } else { 1 };
        queue.packet = queue.packet.max(earliest(now)) + time * share;
        queue.next = queue.next.max(earliest(now)) + time;
    }

    /// Whether a turn still counts.
    pub(super) fn stands(&self, slot: &Slot) -> bool {
        self.lock().epoch == slot.epoch
    }

    /// A turn for `reserved` bytes was used for `used`: what was not used is free again, what was too much is paid later.
    pub(super) fn settle(&self, slot: &Slot, reserved: usize, used: usize) {
        let mut queue = self.lock();
        if queue.epoch != slot.epoch {
            return;
        }
        if used > reserved {
            queue.next += self.time(used - reserved);
        } else if let Some(earlier) = queue.next.checked_sub(self.time(reserved - used)) {
            queue.next = earlier;
        }
    }

    fn time(&self, bytes: usize) -> Duration {
        let rate = self.rate.load(Ordering::Relaxed).max(1);
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing is left half changed here, so a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From when on unused time counts.
fn earliest(now: Instant) -> Instant {
    now.checked_sub(SLACK).unwrap_or(now)
}
