//! Which of several ways to a service is tried next. Pure: state and randomness come from the caller.

use std::time::Duration;

use keel_certs::{ClusterName, NodeName};
use rand::{Rng, RngExt};

use crate::directory::Candidate;

/// Where the choice is made.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// The own node.
    pub node: Option<&'a NodeName>,
    /// The own cluster.
    pub cluster: Option<&'a ClusterName>,
}

/// The next candidate to try, or `None` if all were tried.
///
/// Healthy ones come first, then those on the own node, then those in the own cluster; one whose router was just found
/// to be `away` counts as unhealthy. Among equals two are drawn and the one with the lower `latency` wins; one that was
/// not measured yet wins, so that it gets measured.
pub fn pick<'a>(
    candidates: impl IntoIterator<Item = &'a Candidate>,
    tried: &[Candidate],
    here: Here<'_>,
    away: impl Fn(&Candidate) -> bool,
    latency: impl Fn(&Candidate) -> Option<Duration>,
    rng: &mut impl Rng,
) -> Option<&'a Candidate> {
    let mut best: Vec<&Candidate> = Vec::new();
    let mut best_rank = None;
    for candidate in candidates
        .into_iter()
        .filter(|candidate| !tried.contains(candidate))
    {
        let rank = rank(candidate, away(candidate), here);
        if best_rank.is_none_or(|best| rank < best) {
            best_rank = Some(rank);
            best.clear();
        }
        if best_rank == Some(rank) {
            best.push(candidate);
        }
    }
    match best.as_slice() {
        [] => None,
        [one] => Some(one),
        many => {
            let first = rng.random_range(0..many.len());
            // Another one than the first: skip over its place.
            let second = (first + rng.random_range(1..many.len())) % many.len();
            let (first, second) = (many[first], many[second]);
            Some(if latency(second) < latency(first) {
                second
            } else {
                first
            })
        }
    }
}

/// Lower is better.
fn rank(candidate: &Candidate, away: bool, here: Here<'_>) -> (bool, bool, bool, bool) {
    let on_node = here.node.is_some() && candidate.provider.node() == here.node;
    let through_node = here.node == Some(&candidate.router.node);
    let in_cluster = here.cluster == Some(&candidate.cluster);
    (
        !candidate.healthy || away,
        !on_node,
        !in_cluster,
        !through_node,
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keel_fabric::link::RouterPeer;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn candidate(router: &str, provider: &str, cluster: &str, healthy: bool) -> Candidate {
        Candidate {
            router: Arc::new(RouterPeer {
                node: router.parse().unwrap(),
                addresses: vec!["10.0.0.1:7000".parse().unwrap()],
            }),
            provider: provider.parse().unwrap(),
            healthy,
            cluster: cluster.parse().unwrap(),
        }
    }

    fn choose<'a>(all: &'a [Candidate], tried: &[Candidate]) -> Option<&'a Candidate> {
        let (node, cluster) = ("a".parse().unwrap(), "home".parse().unwrap());
        let here = Here {
            node: Some(&node),
            cluster: Some(&cluster),
        };
        let mut rng = SmallRng::seed_from_u64(7);
        pick(all, tried, here, |_| false, |_| None, &mut rng)
    }

    #[test]
    fn health_beats_node_beats_cluster_and_the_next_one_follows() {
        let sick = candidate("a", "/node/a", "home", false);
        let near = candidate("a", "/node/a/ns/default/pod/p", "home", true);
        let own_router = candidate("a", "/node/b/ns/default/pod/p", "home", true);
        let cluster = candidate("b", "/node/b/ns/default/pod/p", "home", true);
        let far = candidate("c", "/node/c", "cloud", true);
        let all = [
            far.clone(),
            sick.clone(),
            cluster.clone(),
            own_router.clone(),
            near.clone(),
        ];
        let mut tried = Vec::new();
        while let Some(next) = choose(&all, &tried) {
            tried.push(next.clone());
        }
        assert_eq!(tried, [near, own_router, cluster, far, sick]);
    }

    #[test]
    fn among_equals_the_lower_latency_wins_of_two() {
        let all = [
            candidate("b", "/node/b", "cloud", true),
            candidate("c", "/node/c", "cloud", true),
        ];
        let latency = |c: &Candidate| {
            Some(Duration::from_millis(if c.router.node.as_ref() == "b" {
                50
            } else {
                5
            }))
        };
        for seed in 0..20 {
            let here = Here {
                node: None,
                cluster: None,
            };
            let chosen = pick(
                &all,
                &[],
                here,
                |_| false,
                latency,
                &mut SmallRng::seed_from_u64(seed),
            )
            .unwrap();
            assert_eq!(chosen.router.node.as_ref(), "c");
        }
    }

    #[test]
    fn a_router_that_is_away_comes_last() {
        let near = candidate("a", "/node/a/ns/default/pod/p", "home", true);
        let far = candidate("c", "/node/c", "cloud", true);
        let all = [near, far.clone()];
        let node = "a".parse().unwrap();
        let here = Here {
            node: Some(&node),
            cluster: None,
        };
        let away = |c: &Candidate| c.router.node == node;
        let mut rng = SmallRng::seed_from_u64(7);
        assert_eq!(pick(&all, &[], here, away, |_| None, &mut rng), Some(&far));
        assert!(pick(&all, &[far], here, away, |_| None, &mut rng).is_some());
    }

    #[test]
    fn unmeasured_equals_share_the_load() {
        let all: Vec<_> = ["b", "c", "d"]
            .map(|n| candidate(n, &format!("/node/{n}"), "cloud", true))
            .into();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut counts = [0; 3];
        for _ in 0..300 {
            let chosen = pick(
                &all,
                &[],
                Here {
                    node: None,
                    cluster: None,
                },
                |_| false,
                |_| None,
                &mut rng,
            )
            .unwrap();
            counts[all.iter().position(|c| c == chosen).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
    }

    proptest! {
        #[test]
        fn every_candidate_is_tried_once_healthy_ones_first(health in proptest::collection::vec(any::<bool>(), 0..8), seed in any::<u64>()) {
            let all: Vec<_> = health.iter().enumerate()
                .map(|(i, healthy)| candidate(&format!("n{i}"), &format!("/node/n{i}"), "cloud", *healthy)).collect();
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut tried: Vec<Candidate> = Vec::new();
            while let Some(next) = pick(&all, &tried, Here { node: None, cluster: None }, |_| false, |_| None, &mut rng) {
                tried.push(next.clone());
            }
            prop_assert_eq!(tried.len(), all.len());
            prop_assert!(tried.is_sorted_by_key(|c| !c.healthy));
        }
    }
}
