//! Later legs on their way to a flow.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use keel_certs::NodeName;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::leg::IncomingLeg;
use crate::link::Drain;
use crate::meter::Passing;
use crate::udp::Inbox;

/// A leg on its way to its flow. Boxed wherever a flow's task holds it: the flow outlives it by far.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) leg: IncomingLeg,
    /// The router that it came over, and what is known of that router's stop.
    pub(super) router: NodeName,
    pub(super) drain: Option<Drain>,
    /// Where a router counts it.
    pub(super) passing: Option<Passing>,
}

/// The legs that wait for one flow, in the order in which they came.
///
/// Not a channel: nearly every flow waits for a second leg all its life and never sees one, and an empty channel takes a
/// kilobyte.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    waiting: Mutex<Waiting>,
    came: Notify,
    /// The packets of an association.
    packets: OnceLock<Arc<Inbox>>,
}

#[derive(Debug, Default)]
struct Waiting {
    legs: VecDeque<Box<Arrival>>,
    closed: bool,
    /// It makes room for another flow.
    displaced: bool,
}

/// Why a leg cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turned {
    /// As many as may do so wait already.
    Full,
    /// The flow is over.
    Over,
}

impl Arrivals {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing is left half changed here, so a panic elsewhere does not spoil it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a leg wait, unless `most` do.
    ///
    /// # Errors
    /// The leg, and why it cannot.
    pub(super) fn push(
        &self,
        arrival: Box<Arrival>,
        most: usize,
    ) -> Result<(), (Box<Arrival>, Turned)> {
        let mut waiting = self.waiting();
        if waiting.closed {
            return Err((arrival, Turned::Over));
        }
        if waiting.legs.len() >= most {
            return Err((arrival, Turned::Full));
        }
        waiting.legs.push_back(arrival);
        drop(waiting);
        self.came.notify_one();
        Ok(())
    }

    /// The next leg; `None` if the flow has to make room. For one waiter; cancel safe.
    pub(super) async fn next(&self) -> Option<Box<Arrival>> {
        loop {
            {
                let mut waiting = self.waiting();
                if waiting.displaced {
                    return None;
                }
                if let Some(arrival) = waiting.legs.pop_front() {
                    return Some(arrival);
                }
            }
            self.came.notified().await;
        }
    }

    /// The flow is an association, with these packets.
    pub(super) fn associate(&self, packets: Arc<Inbox>) {
        // A flow has one end here, and that one inbox.
        let _ = self.packets.set(packets);
    }

    /// When the last packet went either way, if it is an association that is not to make room already.
    pub(super) fn moved(&self) -> Option<Instant> {
        let packets = self.packets.get()?;
        (!self.waiting().displaced).then(|| packets.moved())
    }

    /// It has to make room.
    pub(super) fn displace(&self) {
        self.waiting().displaced = true;
        self.came.notify_one();
    }

    /// Whether it had to make room; once.
    pub(super) fn take_displaced(&self) -> bool {
        std::mem::take(&mut self.waiting().displaced)
    }

    /// Takes no more; those that wait.
    pub(super) fn close(&self) -> VecDeque<Box<Arrival>> {
        let mut waiting = self.waiting();
        waiting.closed = true;
        std::mem::take(&mut waiting.legs)
    }
}
