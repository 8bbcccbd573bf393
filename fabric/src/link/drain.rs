//! A router that stops says so on the control stream; this end answers once it knows what becomes of its flows there.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::wire::{Message, Place};

/// What one link knows of its router's stop, and of another link that takes its place. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drain {
    begun: CancellationToken,
    /// The flows that end here should have another leg, for the one reason or the other.
    leave: CancellationToken,
    riders: Arc<watch::Sender<Riders>>,
}

/// The flows whose newest leg goes over the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Riders {
    all: usize,
    /// Those that have no other router.
    stuck: usize,
}

impl Riders {
    /// What the router is told, once it drains.
    const fn answer(self) -> Option<Answer> {
        if self.all == 0 {
            Some(Answer::Moved)
        } else if self.all == self.stuck {
            Some(Answer::Nowhere)
        } else {
            None
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Moved,
    Nowhere,
}

impl Drain {
    /// The router has said that it stops.
    pub(super) fn begin(&self) {
        self.begun.cancel();
        self.leave.cancel();
    }

    /// All that was published over the link is published over a newer one: legs that come from now on come there.
    pub(crate) fn replace(&self) {
        self.leave.cancel();
    }

    /// Whether flows were asked to leave a router that goes on: who comes over the link nevertheless has no better way.
    pub(crate) fn is_replaced(&self) -> bool {
        self.leave.is_cancelled() && !self.has_begun()
    }

    /// Waits until the flows that end here should have another leg; where. Cancel safe.
    pub(crate) async fn leave(&self) -> Place {
        self.leave.cancelled().await;
        match self.has_begun() {
            true => Place::Elsewhere,
            false => Place::Anywhere,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Waits until the router says that it stops; for ever if it never does. Keeps nothing of the link alive.
    pub(crate) fn begun(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.begun.clone().cancelled_owned()
    }

    /// Counts a flow that opens its newest leg over the link.
    pub(super) fn rider(&self) -> Rider {
        self.riders.send_modify(|riders| riders.all += 1);
        Rider {
            riders: Arc::clone(&self.riders),
            stuck: false,
        }
    }

    /// The answers that the router is owed.
    pub(super) fn answers(&self) -> Answers {
        Answers {
            drain: self.clone(),
            riders: self.riders.subscribe(),
            told: None,
        }
    }
}

/// A flow whose newest leg goes over a link; drop it when the flow has left the link.
#[derive(Debug)]
pub(crate) struct Rider {
    riders: Arc<watch::Sender<Riders>>,
    stuck: bool,
}

impl Rider {
    /// Says whether the flow has no other router to go on at: a router that stops does not wait for such a flow.
    pub(crate) fn set_stuck(&mut self, stuck: bool) {
        if std::mem::replace(&mut self.stuck, stuck) == stuck {
            return;
        }
        self.riders.send_modify(|riders| match stuck {
            true => riders.stuck += 1,
            false => riders.stuck -= 1,
        });
    }

    /// How many flows ride with this one.
    pub(crate) fn crowd(&self) -> usize {
        self.riders.borrow().all
    }
}

impl Drop for Rider {
    fn drop(&mut self) {
        self.set_stuck(false);
        self.riders.send_modify(|riders| riders.all -= 1);
    }
}

/// What the router has to be told, one change at a time.
pub(super) struct Answers {
    drain: Drain,
    riders: watch::Receiver<Riders>,
    told: Option<Answer>,
}

impl Answers {
    /// The next answer; none before the router drains. Cancel safe.
    pub(super) async fn next(&mut self) -> Message {
        self.drain.begun.cancelled().await;
        let told = self.told;
        let new = |riders: &Riders| riders.answer().is_some_and(|answer| Some(answer) != told);
        // Never an error: this end holds the sender itself.
        let answer = self
            .riders
            .wait_for(new)
            .await
            .map(|riders| riders.answer());
        self.told = answer.unwrap_or_default();
        match self.told {
            Some(Answer::Nowhere) => Message::Nowhere,
            Some(Answer::Moved) | None => Message::Moved,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_router_hears_when_all_have_left_and_when_the_rest_cannot() {
        let drain = Drain::default();
        let mut answers = drain.answers();
        let (mut first, second) = (drain.rider(), drain.rider());
        first.set_stuck(true);
        assert_eq!(answers.next().now_or_never(), None, "nobody asked");
        drain.begin();
        assert_eq!(
            answers.next().now_or_never(),
            None,
            "the second may still go"
        );
        drop(second);
        assert_eq!(answers.next().now_or_never(), Some(Message::Nowhere));
        assert_eq!(answers.next().now_or_never(), None, "said once");
        // Another router has come.
        first.set_stuck(false);
        assert_eq!(answers.next().now_or_never(), None);
        drop(first);
        assert_eq!(answers.next().now_or_never(), Some(Message::Moved));
        assert_eq!(answers.next().now_or_never(), None);
    }

    #[test]
    fn a_link_without_flows_answers_at_once() {
        let drain = Drain::default();
        drain.begin();
        assert_eq!(drain.answers().next().now_or_never(), Some(Message::Moved));
    }
}
