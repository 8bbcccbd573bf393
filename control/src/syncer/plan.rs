//! What to take over from a peer and what to give it; pure.

use std::time::Duration;

use keel_certs::NodeName;
use tokio::time::Instant;

use crate::api::{Revision, Router, RouterStatus};

/// How long a peer that pulls gets to fetch a change before it is pushed.
const PULL_FIRST: Duration = Duration::from_secs(2);

/// The number that orders the statuses of one node; none if a status was not written by its node.
pub(super) fn source(status: &RouterStatus) -> Option<Revision> {
    status.source.as_ref().map(|source| source.revision)
}

/// What to do with a Router that came from a peer.
#[derive(Debug, PartialEq)]
pub(super) enum Pulled<'a> {
    /// Take its status over.
    Apply(&'a RouterStatus, Revision),
    /// Nothing newer than what is held.
    Known,
    /// There is no status yet.
    Nothing,
    /// The peer sent what is not its own to send.
    Refuse(&'static str),
}

/// Judges a Router that `peer` sent, while the status held here is of `held`. Numbers above `latest` cannot be.
pub(super) fn pulled<'a>(
    peer: &NodeName,
    router: &'a Router,
    held: Option<Revision>,
    latest: Revision,
) -> Pulled<'a> {
    if router.name() != peer.as_ref() {
        return Pulled::Refuse("it sent the Router of another node");
    }
    let Some(status) = &router.status else {
        return Pulled::Nothing;
    };
    match source(status) {
        None => Pulled::Refuse("its status has no source.revision"),
        Some(revision) if revision > latest => Pulled::Refuse(
            "its status is more than a day ahead of our clock: check both nodes' clocks",
        ),
        Some(revision) if held.is_some_and(|held| revision <= held && held <= latest) => {
            Pulled::Known
        }
        Some(revision) => Pulled::Apply(status, revision),
    }
}

/// Decides when our own status is pushed to one peer.
#[derive(Debug)]
pub(super) struct Push {
    /// Our own revision and since when it is that.
    own: Option<(Revision, Instant)>,
    /// What the peer holds of ours; `None` while that is not known.
    held: Option<Option<Revision>>,
    /// What we pushed last.
    sent: Option<Revision>,
    /// Whether the peer fetches our status by itself; believed until it fails to.
    pulls: bool,
}

/// When to push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Nothing to do until something changes.
    Idle,
    /// At this moment, unless the peer has it by then.
    At(Instant),
    /// Now.
    Now,
}

impl Push {
    pub(super) fn new() -> Self {
        Self {
            own: None,
            held: None,
            sent: None,
            pulls: true,
        }
    }

    /// Our own status is of this revision now.
    pub(super) fn own(&mut self, revision: Option<Revision>, now: Instant) {
        if self.own.map(|(own, _)| own) != revision {
            self.own = revision.map(|revision| (revision, now));
        }
    }

    /// The peer holds our status of this revision, or none of ours.
    pub(super) fn held(&mut self, revision: Option<Revision>) {
        if revision > self.held.flatten() && self.held.is_some() {
            // It came to something newer that we did not send: it fetches.
            self.pulls |= revision > self.sent;
        }
        self.held = Some(revision);
    }

    /// We pushed this revision, so the peer did not fetch it in time.
    pub(super) fn sent(&mut self, revision: Revision) {
        self.pulls = false;
        self.sent = self.sent.max(Some(revision));
        self.held = Some(self.held.flatten().max(Some(revision)));
    }

    /// What the peer holds of ours, if that is later than what we are: our store has lost it, or does not know it yet.
    pub(super) fn ahead(&self) -> Option<Revision> {
        let (own, _) = self.own?;
        self.held.flatten().filter(|held| *held > own)
    }

    /// When to push next.
    pub(super) fn when(&self, now: Instant) -> When {
        let (Some((own, since)), Some(held)) = (self.own, self.held) else {
            return When::Idle;
        };
        if held >= Some(own) {
            return When::Idle;
        }
        let due = since + PULL_FIRST;
        if self.pulls && now < due {
            When::At(due)
        } else {
            When::Now
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Source;

    fn router(name: &str, revision: Option<u64>) -> Router {
        let source = revision.map(|revision| Source {
            revision: Revision(revision),
        });
        Router {
            status: Some(RouterStatus {
                source,
                ..RouterStatus::default()
            }),
            ..Router::named(name)
        }
    }

    #[test]
    fn only_a_newer_status_of_the_peer_itself_is_taken() {
        fn judge<'a>(router: &'a Router, held: Option<Revision>) -> Pulled<'a> {
            pulled(&NodeName::new("b").unwrap(), router, held, Revision(100))
        }
        assert!(matches!(
            judge(&router("b", Some(5)), None),
            Pulled::Apply(_, Revision(5))
        ));
        assert!(matches!(
            judge(&router("b", Some(5)), Some(Revision(4))),
            Pulled::Apply(_, Revision(5))
        ));
        assert_eq!(
            judge(&router("b", Some(5)), Some(Revision(5))),
            Pulled::Known
        );
        assert_eq!(
            judge(&router("b", Some(4)), Some(Revision(5))),
            Pulled::Known
        );
        assert_eq!(judge(&Router::named("b"), None), Pulled::Nothing);
        assert!(matches!(judge(&router("b", None), None), Pulled::Refuse(_)));
        assert!(matches!(
            judge(&router("a", Some(5)), None),
            Pulled::Refuse(_)
        ));
        assert!(matches!(
            judge(&router("b", Some(101)), None),
            Pulled::Refuse(_)
        ));
        assert!(
            matches!(
                judge(&router("b", Some(5)), Some(Revision(101))),
                Pulled::Apply(_, Revision(5))
            ),
            "what cannot be keeps nothing out"
        );
    }

    #[test]
    fn a_peer_that_pulls_is_never_pushed_to() {
        let now = Instant::now();
        let mut push = Push::new();
        push.own(Some(Revision(10)), now);
        assert_eq!(
            push.when(now),
            When::Idle,
            "not before it is known what the peer holds"
        );
        push.held(None);
        assert_eq!(push.when(now), When::At(now + PULL_FIRST));
        push.held(Some(Revision(10)));
        assert_eq!(push.when(now), When::Idle);
        let later = now + Duration::from_secs(60);
        push.own(Some(Revision(20)), later);
        assert_eq!(push.when(later), When::At(later + PULL_FIRST));
        push.held(Some(Revision(20)));
        assert_eq!(push.when(later), When::Idle);
    }

    #[test]
    fn a_peer_that_cannot_pull_waits_once_only() {
        let now = Instant::now();
        let mut push = Push::new();
        push.own(Some(Revision(10)), now);
        push.held(None);
        let due = now + PULL_FIRST;
        assert_eq!(push.when(due), When::Now);
        push.sent(Revision(10));
        assert_eq!(push.when(due), When::Idle);
        push.held(Some(Revision(10)));
        push.own(Some(Revision(11)), due);
        assert_eq!(push.when(due), When::Now);
        push.sent(Revision(11));
        push.held(Some(Revision(11)));
        // The peer has found a way to us.
        push.own(Some(Revision(12)), due);
        push.held(Some(Revision(12)));
        push.own(Some(Revision(13)), due);
        assert_eq!(push.when(due), When::At(due + PULL_FIRST));
    }
}
