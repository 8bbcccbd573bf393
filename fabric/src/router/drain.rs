//! What a stopping router still waits for: the legs that may yet leave it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The legs that pass, by the connection that opened them: its end is the one that can open them elsewhere.
#[derive(Debug, Default)]
pub(super) struct Drain {
    begun: CancellationToken,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    passing: HashMap<u64, usize>,
    /// Connections whose ends have answered: the legs that are left are of no more use, or have nowhere else to go.
    answered: HashSet<u64>,
}

impl Drain {
    /// Nothing new from now on.
    pub(super) fn begin(&self) {
        self.begun.cancel();
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Waits for the beginning. Cancel safe.
    pub(super) async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Counts a leg of the connection called `client` for as long as the answer lives.
    pub(super) fn leg(&self, client: u64) -> Passage<'_> {
        *self.state().passing.entry(client).or_default() += 1;
        Passage {
            drain: self,
            client,
        }
    }

    /// The end of that connection has moved what it could.
    pub(super) fn answered(&self, client: u64) {
        // Only an answer to DRAIN counts: afterwards nothing new comes.
        if self.has_begun() {
            self.state().answered.insert(client);
            self.changed.notify_one();
        }
    }

    /// The connection has ended.
    pub(super) fn forget(&self, client: u64) {
        self.state().answered.remove(&client);
    }

    /// How many legs could still move, as far as their ends have answered.
    pub(super) fn movable(&self) -> usize {
        let state = self.state();
        let movable = state.passing.iter();
        movable
            .filter(|(client, _)| !state.answered.contains(client))
            .map(|(_, legs)| legs)
            .sum()
    }

    /// Waits until there is no such leg. For one waiter; cancel safe.
    pub(super) async fn left(&self) {
        while self.movable() > 0 {
            self.changed.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half changed here, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One leg that passes.
pub(super) struct Passage<'a> {
    drain: &'a Drain,
    client: u64,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        let mut state = self.drain.state();
        if let Some(legs) = state.passing.get_mut(&self.client) {
            *legs -= 1;
            if *legs == 0 {
                state.passing.remove(&self.client);
            }
        }
        drop(state);
        if self.drain.has_begun() {
            self.drain.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_router_waits_for_legs_until_they_have_left_or_have_nowhere_to_go() {
        let drain = Drain::default();
        let (first, second, third) = (drain.leg(1), drain.leg(1), drain.leg(2));
        drain.answered(2);
        assert_eq!(drain.movable(), 3, "nobody was asked");
        drain.begin();
        drain.answered(2);
        assert_eq!(drain.movable(), 2);
        assert_eq!(drain.left().now_or_never(), None);
        drop(first);
        assert_eq!(drain.left().now_or_never(), None);
        drop(second);
        assert_eq!(drain.left().now_or_never(), Some(()));
        // A connection that comes after it has another number.
        drain.forget(2);
        assert_eq!(drain.movable(), 1);
        drop(third);
        assert_eq!(drain.left().now_or_never(), Some(()));
        assert!(drain.state().passing.is_empty());
    }
}
