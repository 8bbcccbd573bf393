//! Later legs on their way to a flow.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use keel_certs::NodeName;
use tokio::sync::Notify;

use crate::leg::IncomingLeg;
use crate::link::Drain;
use crate::meter::Passing;

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
}

#[derive(Debug, Default)]
struct Waiting {
    legs: VecDeque<Box<Arrival>>,
    closed: bool,
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

    /// The next leg. For one waiter; cancel safe.
    pub(super) async fn next(&self) -> Box<Arrival> {
        loop {
            if let Some(arrival) = self.waiting().legs.pop_front() {
                return arrival;
            }
            self.came.notified().await;
        }
    }

    /// Takes no more; those that wait.
    pub(super) fn close(&self) -> VecDeque<Box<Arrival>> {
        let mut waiting = self.waiting();
        waiting.closed = true;
        std::mem::take(&mut waiting.legs)
    }
}
