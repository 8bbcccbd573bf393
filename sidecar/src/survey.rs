//! Which routers of others a provider publishes at: those that can be reached, lowest round trip first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use keel_certs::NodeName;
use keel_fabric::link::RouterPeer;
use tokio::time::{Instant, sleep_until};

/// Routers besides the own node's at which a service is published.
pub(crate) const OTHER_ROUTERS: usize = 4;

/// Routers that are measured, if there are more to choose from: each costs a connection that stays.
const MOST_MEASURED: usize = 12;

/// Routers that are dialled at a time to measure them.
const AT_ONCE: usize = 4;

/// How often a router that was not reached is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// What came of one router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Measured {
    /// The round trip; `None` if it was not reached.
    round_trip: Option<Duration>,
    at: Instant,
}

type Reach<'a> = BoxFuture<'a, Option<Duration>>;

/// Measures routers and chooses among them. Nobody is dialled where there is nothing to choose.
///
/// A round trip is measured once: choices that follow every change of it would move publications for nothing.
pub(crate) struct Survey<'a> {
    /// Dials a router and says how far it is; `None` if it cannot be reached. Must end by itself.
    reach: Box<dyn Fn(RouterPeer) -> Reach<'a> + Send + Sync + 'a>,
    routers: Vec<RouterPeer>,
    measured: BTreeMap<NodeName, Measured>,
    asked: BTreeSet<NodeName>,
    running: FuturesUnordered<BoxFuture<'a, (RouterPeer, Option<Duration>)>>,
}

impl<'a> Survey<'a> {
    pub(crate) fn new(reach: impl Fn(RouterPeer) -> Reach<'a> + Send + Sync + 'a) -> Self {
        Self {
            reach: Box::new(reach),
            routers: Vec::new(),
            measured: BTreeMap::new(),
            asked: BTreeSet::new(),
            running: FuturesUnordered::new(),
        }
    }

    /// These are the routers to choose from. What is known of one that has another address now is forgotten.
    pub(crate) fn among(&mut self, routers: Vec<RouterPeer>) {
        let same = |node: &NodeName| {
            let now = routers.iter().find(|router| router.node == *node);
            now.is_some() && now == self.routers.iter().find(|router| router.node == *node)
        };
        self.measured.retain(|node, _| same(node));
        self.routers = routers;
    }

    /// Somebody else found that this router cannot be reached.
    pub(crate) fn lost(&mut self, node: &NodeName) {
        let lost = Measured {
            round_trip: None,
            at: Instant::now(),
        };
        let known = self.measured.get(node);
        if known.is_none_or(|known| known.round_trip.is_some()) {
            self.measured.insert(node.clone(), lost);
        }
    }

    /// The best ones: the nearest first, then those that were not measured yet, last those that cannot be reached, so that
    /// these are tried as long as there is room.
    pub(crate) fn best(&self) -> Vec<RouterPeer> {
        let rank = |router: &&RouterPeer| match self.measured.get(&router.node) {
            Some(Measured {
                round_trip: Some(time),
                ..
            }) => (0, *time),
            None => (1, Duration::ZERO),
            Some(_) => (2, Duration::ZERO),
        };
        let mut all: Vec<&RouterPeer> = self.routers.iter().collect();
        // Stable: equals stay in the order of their names.
        all.sort_by_key(rank);
        let chosen = all.into_iter().take(OTHER_ROUTERS);
        chosen.cloned().collect()
    }

    /// Measures on; returns when something new is known. Cancel safe.
    pub(crate) async fn step(&mut self) {
        loop {
            let next = self.start();
            let next = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((router, round_trip)) = self.running.next() => {
                    self.asked.remove(&router.node);
                    // One that has gone or moved meanwhile is not what was measured.
                    if self.routers.contains(&router) {
                        self.measured.insert(router.node, Measured { round_trip, at: Instant::now() });
                        return;
                    }
                }
                () = next => {}
            }
        }
    }

    /// Dials what is due, and says when more is.
    fn start(&mut self) -> Option<Instant> {
        if self.routers.len() <= OTHER_ROUTERS {
            return None;
        }
        let mut later = None;
        let reached = |measured: &BTreeMap<NodeName, Measured>| {
            measured
                .values()
                .filter(|one| one.round_trip.is_some())
                .count()
        };
        for router in &self.routers {
            let room = self.asked.len() < AT_ONCE
                && reached(&self.measured) + self.asked.len() < MOST_MEASURED;
            if !room {
                return None;
            }
            if self.asked.contains(&router.node) {
                continue;
            }
            match self.measured.get(&router.node) {
                Some(known) if known.round_trip.is_some() => continue,
                Some(known) if known.at.elapsed() < AGAIN => {
                    let due = known.at + AGAIN;
                    later = Some(later.map_or(due, |other: Instant| other.min(due)));
                    continue;
                }
                _ => {}
            }
            self.asked.insert(router.node.clone());
            let reaching = (self.reach)(router.clone());
            let router = router.clone();
            self.running
                .push(Box::pin(async move { (router, reaching.await) }));
        }
        later
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::{sleep, timeout};

    use super::*;

    fn peers(names: &str) -> Vec<RouterPeer> {
        let peer = |name: char| RouterPeer {
            node: name.to_string().parse().unwrap(),
            addresses: vec![format!("{name}.example:7000").parse().unwrap()],
        };
        names.chars().map(peer).collect()
    }

    fn names(peers: &[RouterPeer]) -> String {
        peers.iter().map(|peer| peer.node.as_ref()).collect()
    }

    async fn settle(survey: &mut Survey<'_>, within: Duration) {
        let all = async {
            loop {
                survey.step().await;
            }
        };
        timeout(within, all).await.unwrap_err();
    }

    /// Routers whose names are further down the alphabet are nearer; those in `away` do not answer.
    fn survey<'a>(away: &'a Mutex<String>, dialled: &'a Mutex<String>) -> Survey<'a> {
        Survey::new(move |router: RouterPeer| {
            Box::pin(async move {
                let name = router.node.as_ref().chars().next().unwrap();
                dialled.lock().unwrap().push(name);
                let gone = away.lock().unwrap().contains(name);
                sleep(Duration::from_secs(if gone { 3 } else { 0 })).await;
                let far = u64::from(u32::from('z') - u32::from(name));
                (!gone).then(|| Duration::from_millis(far))
            })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn the_nearest_that_answer_are_chosen_and_those_that_go_are_replaced() {
        let (away, dialled) = (Mutex::new("bf".to_owned()), Mutex::default());
        let mut survey = survey(&away, &dialled);
        survey.among(peers("bcdefgh"));
        assert_eq!(names(&survey.best()), "bcde", "at once, before any answer");
        settle(&mut survey, Duration::from_secs(5)).await;
        assert_eq!(names(&survey.best()), "hged");
        survey.lost(&"g".parse().unwrap());
        assert_eq!(names(&survey.best()), "hedc");
        // It is back, and so is another one.
        *away.lock().unwrap() = "b".to_owned();
        settle(&mut survey, AGAIN * 2).await;
        assert_eq!(names(&survey.best()), "hgfe");
        // With less to choose from nobody is left out, those that do not answer last.
        survey.among(peers("beh"));
        assert_eq!(names(&survey.best()), "heb");
        dialled.lock().unwrap().clear();
        settle(&mut survey, AGAIN * 3).await;
        assert_eq!(
            *dialled.lock().unwrap(),
            "",
            "nobody is dialled for nothing"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn not_all_the_world_is_dialled() {
        let (away, dialled) = (Mutex::new("abc".to_owned()), Mutex::default());
        let mut survey = survey(&away, &dialled);
        survey.among(peers("abcdefghijklmnopqrstuvwxyz"));
        settle(&mut survey, Duration::from_secs(60)).await;
        assert_eq!(names(&survey.best()), "onml");
        assert!(!dialled.lock().unwrap().contains('p'));
    }
}
