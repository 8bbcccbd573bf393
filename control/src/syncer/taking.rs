//! What becomes of the statuses that one peer sends: pure.
//!
//! Only the newest one counts, so nothing is queued: while one cannot be written here, the next takes its place.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use keel_certs::NodeName;
use tokio::time::Instant;

use super::plan::{Pulled, pulled};
use crate::api::{Revision, Router, RouterStatus};
use crate::client::Backoff;
use crate::pace::{Pace, STATUS, STATUS_BURST, status_bytes};

/// Two statuses are told apart by this; the keys are drawn anew in every process.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// What to do next with what a peer sent.
#[derive(Debug, PartialEq)]
pub(super) enum Do {
    /// Nothing, until something comes.
    Nothing,
    /// Ask again at this moment.
    Wait(Instant),
    /// Find out what is held here, then say so.
    ReadHeld,
    /// Write this one's status, which has this number, then say how it went.
    Write(Arc<Router>, Revision),
    /// It is held already.
    Known,
    /// Tell that the peer sent what is not its own to send.
    Refuse(&'static str),
}

/// The newest status of one peer on its way into our APIServer.
#[derive(Debug)]
pub(super) struct Taking {
    /// `source.revision` of what our APIServer holds; `None` while that is not known.
    held: Option<Option<Revision>>,
    /// What came last and is not yet dealt with.
    waiting: Option<Arc<Router>>,
    /// What came last.
    last: Option<Arc<Router>>,
    /// The last one that was written, and what it said.
    written: Option<(Revision, u64)>,
    backoff: Backoff,
    retry_at: Option<Instant>,
    pace: Pace,
    open_at: Option<Instant>,
    /// When the write that is under way began.
    began: Option<Instant>,
}

impl Taking {
    pub(super) fn new() -> Self {
        Self {
            held: None,
            waiting: None,
            last: None,
            written: None,
            backoff: Backoff::remote(),
            retry_at: None,
            pace: Pace::new(STATUS_BURST),
            open_at: None,
            began: None,
        }
    }

    /// A Router came from the peer.
    pub(super) fn came(&mut self, router: Arc<Router>) {
        self.last = Some(Arc::clone(&router));
        self.waiting = Some(router);
    }

    /// What was held here may be gone: what came last is looked at once more. Whether there is any.
    pub(super) fn lost(&mut self) -> bool {
        self.held = None;
        self.waiting = self.waiting.take().or_else(|| self.last.clone());
        self.waiting.is_some()
    }

    /// What is held here, as far as that is known.
    pub(super) fn held_now(&self) -> Option<Option<Revision>> {
        self.held
    }

    /// What to do next. Asked again until it is nothing, or a moment.
    pub(super) fn next(&mut self, peer: &NodeName, now: Instant, latest: Revision) -> Do {
        let Some(router) = &self.waiting else {
            return Do::Nothing;
        };
        if let Some(at) = self.retry_at.filter(|at| *at > now) {
            return Do::Wait(at);
        }
        let Some(held) = self.held else {
            return Do::ReadHeld;
        };
        let revision = match pulled(peer, router, held, latest) {
            Pulled::Apply(_, revision) => revision,
            other => {
                let answer = match other {
                    Pulled::Refuse(why) => Do::Refuse(why),
                    Pulled::Nothing => Do::Nothing,
                    _ if self.contradicts(router) => {
                        Do::Refuse("it sends different statuses under one number")
                    }
                    _ => Do::Known,
                };
                self.waiting = None;
                return answer;
            }
        };
        if let Some(at) = self.open_at.filter(|at| *at > now) {
            return Do::Wait(at);
        }
        self.open_at = Some(self.pace.take(now, STATUS));
        self.began = Some(now);
        match self.waiting.take() {
            Some(router) => Do::Write(router, revision),
            None => Do::Nothing,
        }
    }

    /// This is what our APIServer holds.
    pub(super) fn held(&mut self, revision: Option<Revision>) {
        self.held = Some(revision);
    }

    /// `router` was written, and our APIServer holds this now.
    pub(super) fn wrote(&mut self, router: &Router, held: Option<Revision>, now: Instant) {
        // As long as it took, others have their turn: a slow store must not keep us from hearing what is newer.
        let took = self
            .began
            .take()
            .map_or(Duration::ZERO, |began| now - began);
        self.open_at = self.open_at.max(Some(now + took));
        let stamped = stamp(router);
        if let Some((_, _, bytes)) = stamped {
            self.open_at = self
                .open_at
                .max(Some(self.pace.take(now, status_bytes(bytes))));
        }
        self.backoff.succeeded();
        self.retry_at = None;
        self.held = Some(held);
        self.written = stamped.map(|(number, said, _)| (number, said));
    }

    /// Writing it makes no sense: the next one may be better.
    pub(super) fn gave_up(&mut self) {
        self.backoff.succeeded();
        self.retry_at = None;
    }

    /// Our APIServer was not asked, or did not answer; `router` is what should have been written. `jitter` is a random share from 0 to 1.
    pub(super) fn failed(&mut self, router: Option<Arc<Router>>, now: Instant, jitter: f64) {
        self.retry_at = Some(now + self.backoff.failed_by(jitter));
        if self.waiting.is_none() {
            self.waiting = router;
        }
    }

    /// Whether it says something else than what was written under the same number.
    fn contradicts(&self, router: &Router) -> bool {
        match (self.written, stamp(router)) {
            (Some((number, said)), Some((now, says, _))) => number == now && said != says,
            _ => false,
        }
    }
}

/// The number of a Router's status, a hash of what it says, and how long that is.
fn stamp(router: &Router) -> Option<(Revision, u64, usize)> {
    let status: &RouterStatus = router.status.as_ref()?;
    let revision = status.source.as_ref()?.revision;
    let said = serde_json::to_vec(status).ok()?;
    Some((revision, HASHES.hash_one(&said), said.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Source;

    fn router(revision: u64, cluster: &str) -> Arc<Router> {
        Arc::new(Router {
            status: Some(RouterStatus {
                cluster: Some(cluster.to_owned()),
                source: Some(Source {
                    revision: Revision(revision),
                }),
                ..RouterStatus::default()
            }),
            ..Router::named("b")
        })
    }

    struct Case {
        taking: Taking,
        now: Instant,
    }

    impl Case {
        fn new(held: u64) -> Self {
            let mut taking = Taking::new();
            taking.held(Some(Revision(held)));
            let now = Instant::now();
            Self { taking, now }
        }

        fn next(&mut self) -> Do {
            let peer = NodeName::new("b").unwrap();
            self.taking.next(&peer, self.now, Revision::MAX)
        }

        /// Whether it is written, as which number.
        fn written(&mut self) -> Option<u64> {
            match self.next() {
                Do::Write(router, revision) => {
                    self.taking.wrote(&router, Some(revision), self.now);
                    Some(revision.0)
                }
                _ => None,
            }
        }
    }

    #[test]
    fn the_newest_is_written_once_it_can_be() {
        let mut case = Case::new(1);
        case.taking.held = None;
        case.taking.came(router(5, "x"));
        assert_eq!(case.next(), Do::ReadHeld);
        case.taking.held(Some(Revision(3)));
        let Do::Write(tried, Revision(5)) = case.next() else {
            panic!()
        };
        case.taking.failed(Some(tried), case.now, 1.0);
        assert!(matches!(case.next(), Do::Wait(at) if at > case.now));
        case.taking.came(router(6, "y"));
        case.now += Duration::from_secs(1);
        assert_eq!(case.written(), Some(6));
        assert_eq!(case.next(), Do::Nothing);
    }

    #[test]
    fn a_peer_that_floods_is_written_ten_times_a_second() {
        let mut case = Case::new(0);
        let mut written = 0;
        for step in 1..=10_000 {
            case.now += Duration::from_millis(1);
            case.taking.came(router(step, "x"));
            written += usize::from(case.written().is_some());
        }
        assert!((115..=125).contains(&written), "{written} in 10 s");
        // What came last is not lost.
        case.now += Duration::from_secs(1);
        case.taking.came(router(10_001, "x"));
        assert_eq!(case.written(), Some(10_001));
    }

    #[test]
    fn a_slow_store_gets_half_of_the_time() {
        let mut case = Case::new(0);
        case.taking.came(router(5, "x"));
        let Do::Write(slow, revision) = case.next() else {
            panic!()
        };
        case.now += Duration::from_secs(1);
        case.taking.wrote(&slow, Some(revision), case.now);
        case.taking.came(router(6, "x"));
        assert_eq!(case.next(), Do::Wait(case.now + Duration::from_secs(1)));
        case.now += Duration::from_secs(1);
        assert_eq!(case.written(), Some(6));
    }

    #[test]
    fn nothing_goes_back_and_one_number_has_one_meaning() {
        let mut case = Case::new(0);
        case.taking.came(router(5, "x"));
        assert_eq!(case.written(), Some(5));
        case.taking.came(router(4, "older"));
        assert_eq!(case.next(), Do::Known);
        case.taking.came(router(5, "x"));
        assert_eq!(case.next(), Do::Known);
        case.taking.came(router(5, "y"));
        assert!(matches!(case.next(), Do::Refuse(why) if why.contains("one number")));
        case.taking.came(router(6, "y"));
        assert_eq!(case.written(), Some(6));
    }
}
