//! What to take over from a peer and what to give it; pure.

use std::time::Duration;

use keel_certs::NodeName;
use tokio::time::Instant;

use crate::api::{Revision, Router, RouterStatus};
use crate::client::Hurry;

/// How long a peer that pulls gets to fetch a change before it is pushed.
const PULL_FIRST: Duration = Duration::from_secs(2);
/// How long a peer that did not fetch in time is pushed to at once, before it gets that long again: by then it may have found a way.
const TRUST_AGAIN: Duration = Duration::from_secs(600);

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

/// What a handshake takes of a small machine, both ends together: the share of a core that a node gives to those who come back.
const HANDSHAKE: Duration = Duration::from_millis(8);
/// Fewer peers than this spread allows are not slowed down by it.
const LEAST_SPREAD: Duration = Duration::from_secs(1);
/// An attempt that began while the network was away fails after this, and is then made once more in the same hurry.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two hurries, so that peers that come and go do not have all others dialled without end.
const CALM: Duration = Duration::from_secs(30);

/// Why those that are away may be back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// One that was away is heard again: most outages are of a network, and end for all of it at once.
    Heard,
    /// This node's own network has changed, which others cannot bring about.
    Network,
}

/// Whether those that are away are tried again soon, because of a sign. `last` is the hurry before; `away` peers are still away.
pub(super) fn hurry(sign: Sign, last: Option<Hurry>, away: usize, now: Instant) -> Option<Hurry> {
    let calm = match sign {
        Sign::Heard => CALM,
        Sign::Network => Duration::ZERO,
    };
    if away == 0 || last.is_some_and(|last| now < last.until + calm) {
        return None;
    }
    let away = u32::try_from(away).unwrap_or(u32::MAX);
    let spread = HANDSHAKE.saturating_mul(away).max(LEAST_SPREAD);
    Some(Hurry {
        spread,
        until: now + ATTEMPT + spread,
    })
}

/// Decides when our own status is pushed to one peer.
#[derive(Debug)]
pub(super) struct Push {
    /// Our own revision, and since when the peer has had time to fetch it or one before it.
    own: Option<(Revision, Instant)>,
    /// What the peer holds of ours; `None` while that is not known.
    held: Option<Option<Revision>>,
    /// When that became known: a peer that just came has not had its time yet.
    known: Option<Instant>,
    /// What we pushed last.
    sent: Option<Revision>,
    /// Whether the peer fetches our status by itself; believed until it fails to.
    pulls: bool,
    /// When it failed to.
    failed: Option<Instant>,
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
            known: None,
            sent: None,
            pulls: true,
            failed: None,
        }
    }

    /// Our own status is of this revision now.
    pub(super) fn own(&mut self, revision: Option<Revision>, now: Instant) {
        if self.own.map(|(own, _)| own) != revision {
            // The time of a peer that has not come to the one before does not begin anew, or it would never be over.
            let since = match self.own {
                Some((before, since)) if self.held.flatten() < Some(before) => since,
                _ => now,
            };
            self.own = revision.map(|revision| (revision, since));
            self.pulls |= self.failed.is_some_and(|at| now >= at + TRUST_AGAIN);
        }
    }

    /// The peer holds our status of this revision, or none of ours.
    pub(super) fn held(&mut self, revision: Option<Revision>, now: Instant) {
        if revision > self.held.flatten() && self.held.is_some() {
            // It came to something newer that we did not send: it fetches.
            self.pulls |= revision > self.sent;
        }
        self.held = Some(revision);
        self.known.get_or_insert(now);
    }

    /// We pushed this revision, so the peer did not fetch it in time.
    pub(super) fn sent(&mut self, revision: Revision, now: Instant) {
        if std::mem::take(&mut self.pulls) {
            self.failed = Some(now);
        }
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
        let due = since.max(self.known.unwrap_or(since)) + PULL_FIRST;
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
    fn who_is_away_is_tried_soon_but_not_without_end() {
        let now = Instant::now();
        let heard = |last, away, now| hurry(Sign::Heard, last, away, now);
        assert_eq!(heard(None, 0, now), None);
        let few = heard(None, 3, now).unwrap();
        assert_eq!(few.spread, Duration::from_secs(1));
        let many = heard(None, 500, now).unwrap();
        assert_eq!(many.spread, Duration::from_secs(4));
        assert!(many.until > now + many.spread);
        let later = now + Duration::from_secs(20);
        assert_eq!(heard(Some(many), 400, later), None);
        assert!(heard(Some(many), 400, now + Duration::from_secs(40)).is_some());
        // A cable that was out is in again.
        let network = |away, now| hurry(Sign::Network, Some(many), away, now);
        assert!(network(400, later).is_some());
        assert_eq!(network(0, later), None);
        assert_eq!(network(400, now), None);
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
        push.held(None, now);
        assert_eq!(push.when(now), When::At(now + PULL_FIRST));
        push.held(Some(Revision(10)), now);
        assert_eq!(push.when(now), When::Idle);
        let later = now + Duration::from_secs(60);
        push.own(Some(Revision(20)), later);
        assert_eq!(push.when(later), When::At(later + PULL_FIRST));
        push.held(Some(Revision(20)), now);
        assert_eq!(push.when(later), When::Idle);
    }

    #[test]
    fn a_status_that_changes_all_the_time_is_pushed_none_the_less() {
        let now = Instant::now();
        let mut push = Push::new();
        push.held(None, now);
        for step in 0..8 {
            push.own(
                Some(Revision(u64::from(step) + 1)),
                now + PULL_FIRST / 4 * step,
            );
        }
        assert_eq!(push.when(now + PULL_FIRST), When::Now);
        // One that does fetch has its time for each.
        push.held(Some(Revision(8)), now);
        let later = now + PULL_FIRST * 2;
        push.own(Some(Revision(9)), later);
        assert_eq!(push.when(later), When::At(later + PULL_FIRST));
    }

    #[test]
    fn a_peer_that_cannot_pull_waits_once_only() {
        let now = Instant::now();
        let mut push = Push::new();
        push.own(Some(Revision(10)), now);
        push.held(None, now);
        let due = now + PULL_FIRST;
        assert_eq!(push.when(due), When::Now);
        push.sent(Revision(10), now);
        assert_eq!(push.when(due), When::Idle);
        push.held(Some(Revision(10)), now);
        push.own(Some(Revision(11)), due);
        assert_eq!(push.when(due), When::Now);
        push.sent(Revision(11), now);
        push.held(Some(Revision(11)), now);
        // The peer has found a way to us.
        push.own(Some(Revision(12)), due);
        push.held(Some(Revision(12)), now);
        push.own(Some(Revision(13)), due);
        assert_eq!(push.when(due), When::At(due + PULL_FIRST));
    }

    #[test]
    fn a_peer_has_its_time_when_it_comes_and_again_after_a_while() {
        let now = Instant::now();
        let mut push = Push::new();
        push.own(Some(Revision(10)), now);
        let came = now + Duration::from_secs(60);
        push.held(None, came);
        let due = came + PULL_FIRST;
        assert_eq!(push.when(came), When::At(due));
        push.sent(Revision(10), due);
        push.own(Some(Revision(11)), due + TRUST_AGAIN / 2);
        assert_eq!(push.when(due + TRUST_AGAIN / 2), When::Now);
        push.sent(Revision(11), due + TRUST_AGAIN / 2);
        let later = due + TRUST_AGAIN;
        push.own(Some(Revision(12)), later);
        assert_eq!(push.when(later), When::At(later + PULL_FIRST));
    }
}
