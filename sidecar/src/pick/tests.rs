use std::collections::BTreeMap;
use std::sync::Arc;

use keel_fabric::link::RouterPeer;
use keel_fabric::wire::Offer;
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
        offer: Offer {
            health: if healthy {
                Health::Healthy
            } else {
                Health::Unhealthy
            },
            ..Offer::default()
        },
        draining: false,
        doubted: false,
        cluster: cluster.parse().unwrap(),
    }
}

/// A healthy provider behind router `r` with this weight and priority.
fn offered(provider: &str, weight: u16, priority: u16) -> Candidate {
    let mut candidate = candidate("r", provider, "cloud", true);
    candidate.offer.weight = weight;
    candidate.offer.priority = priority;
    candidate
}

/// What was seen, by the provider's node and then by the router's.
#[derive(Default)]
struct Table {
    avoided: Vec<&'static str>,
    latency: BTreeMap<&'static str, u64>,
}

impl Table {
    fn names(way: &Candidate) -> [&str; 2] {
        [
            way.provider.node().unwrap().as_str(),
            way.router.node.as_str(),
        ]
    }
}

impl Seen for Table {
    fn avoided(&self, way: &Candidate) -> bool {
        Self::names(way)
            .iter()
            .any(|name| self.avoided.contains(name))
    }

    fn latency(&self, way: &Candidate) -> Option<Duration> {
        let known = Self::names(way)
            .into_iter()
            .find_map(|name| self.latency.get(name));
        known.map(|millis| Duration::from_millis(*millis))
    }
}

const NOWHERE: Here<'_> = Here {
    node: None,
    cluster: None,
};

fn tried(ways: &[Candidate]) -> Tried {
    let mut tried = Tried::default();
    ways.iter().for_each(|way| tried.way(way));
    tried
}

/// How often each provider's node is chosen in so many tries.
fn shares(all: &[Candidate], rules: Rules, seen: &Table, tries: u32) -> BTreeMap<String, u32> {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut counts = BTreeMap::new();
    for _ in 0..tries {
        let (way, _) = pick(all, &Tried::default(), NOWHERE, rules, seen, &mut rng).unwrap();
        *counts.entry(Table::names(way)[0].to_owned()).or_default() += 1;
    }
    counts
}

/// Fails if a share is further from its expectation than chance makes it once in a million.
fn assert_shares(counts: &BTreeMap<String, u32>, expected: &[(&str, f64)]) {
    let total = f64::from(counts.values().sum::<u32>());
    for (name, share) in expected {
        let count = f64::from(counts.get(*name).copied().unwrap_or(0));
        let deviation = (total * share * (1.0 - share)).sqrt();
        let off = (count - total * share).abs();
        assert!(
            off <= 5.0 * deviation,
            "{name}: {count} of {total}, expected {share}: {counts:?}"
        );
    }
}

#[test]
fn health_beats_node_beats_cluster_and_the_next_one_follows() {
    let sick = candidate("a", "/node/a", "home", false);
    let near = candidate("a", "/node/a/ns/default/pod/p", "home", true);
    let cluster = candidate("b", "/node/b/ns/default/pod/p", "home", true);
    let far = candidate("c", "/node/c", "cloud", true);
    let all = [far.clone(), sick.clone(), cluster.clone(), near.clone()];
    let (node, home) = ("a".parse().unwrap(), "home".parse().unwrap());
    let here = Here {
        node: Some(&node),
        cluster: Some(&home),
    };
    let mut rng = SmallRng::seed_from_u64(7);
    let mut order = Vec::new();
    while let Some((next, _)) = pick(
        &all,
        &tried(&order),
        here,
        Rules::default(),
        &Table::default(),
        &mut rng,
    ) {
        order.push(next.clone());
    }
    assert_eq!(order, [near, cluster, far, sick]);
}

#[test]
fn a_provider_that_any_router_doubts_comes_behind_those_that_none_does_and_before_the_sick() {
    let mut all = [
        candidate("r", "/node/p", "cloud", false),
        candidate("s", "/node/p", "cloud", true),
        candidate("r", "/node/q", "cloud", true),
    ];
    for way in &mut all[..2] {
        way.doubted = true;
    }
    // It was never asked over that router, and would win as such.
    let seen = Table {
        latency: [("q", 5)].into(),
        ..Table::default()
    };
    let mut tried = Tried::default();
    for expected in ["/node/q over r", "/node/p over s", "/node/p over r"] {
        let mut rng = SmallRng::seed_from_u64(1);
        let (way, _) = pick(&all, &tried, NOWHERE, Rules::default(), &seen, &mut rng).unwrap();
        assert_eq!(
            format!("{} over {}", way.provider, way.router.node),
            expected
        );
        tried.way(way);
    }
}

#[test]
fn priority_fails_over_when_the_first_is_sick_and_back_when_it_is_well() {
    let mut all = [
        offered("/node/b", 1, 0),
        offered("/node/c", 1, 1),
        offered("/node/d", 1, 1),
    ];
    let only = |all: &[Candidate], seen: &Table| shares(all, Rules::default(), seen, 100);
    assert_eq!(
        only(&all, &Table::default()),
        BTreeMap::from([("b".to_owned(), 100)])
    );
    all[0].offer.health = Health::Unhealthy;
    assert!(!only(&all, &Table::default()).contains_key("b"));
    assert_eq!(only(&all, &Table::default()).len(), 2);
    all[0].offer.health = Health::Unknown;
    assert_eq!(
        only(&all, &Table::default()),
        BTreeMap::from([("b".to_owned(), 100)])
    );
    let ejected = Table {
        avoided: vec!["b"],
        ..Table::default()
    };
    assert!(!only(&all, &ejected).contains_key("b"));
    // The consumer's word wins: all are of one priority.
    let rules = Rules {
        priority: Some(5),
        ..Rules::default()
    };
    assert_eq!(shares(&all, rules, &Table::default(), 300).len(), 3);
    // Where all are ejected they are used all the same, the best first.
    let ejected = Table {
        avoided: vec!["b", "c", "d"],
        ..Table::default()
    };
    assert_eq!(
        only(&all, &ejected),
        BTreeMap::from([("b".to_owned(), 100)])
    );
}

#[test]
fn equally_fast_providers_share_by_weight_however_many_routers_list_them() {
    let mut all = vec![
        offered("/node/b", 1, 0),
        offered("/node/c", 3, 0),
        offered("/node/d", 6, 0),
    ];
    let seen = Table {
        latency: BTreeMap::from([("b", 20), ("c", 21), ("d", 19)]),
        ..Table::default()
    };
    let expected = [("b", 0.1), ("c", 0.3), ("d", 0.6)];
    assert_shares(&shares(&all, Rules::default(), &seen, 20_000), &expected);
    for router in ["s", "t", "u"] {
        let mut way = all[0].clone();
        way.router = candidate(router, "/node/b", "cloud", true).router;
        all.push(way);
    }
    assert_shares(&shares(&all, Rules::default(), &seen, 20_000), &expected);
    let rules = Rules {
        weight: Some(7),
        ..Rules::default()
    };
    let third = 1.0 / 3.0;
    assert_shares(
        &shares(&all, rules, &seen, 20_000),
        &[("b", third), ("c", third), ("d", third)],
    );
}

#[test]
fn a_weight_of_nothing_takes_nothing_while_another_one_can() {
    let all = [offered("/node/b", 0, 0), offered("/node/c", 1, 9)];
    assert!(!shares(&all, Rules::default(), &Table::default(), 100).contains_key("b"));
    let none = [offered("/node/b", 0, 0), offered("/node/c", 0, 0)];
    assert_eq!(
        shares(&none, Rules::default(), &Table::default(), 100).len(),
        2
    );
}

#[test]
fn the_clearly_faster_of_two_wins_and_one_that_was_not_measured_does_too() {
    let all = ["/node/b", "/node/c"].map(|provider| candidate("r", provider, "cloud", true));
    let share = |b: Option<u64>, c: Option<u64>| {
        let latency = [("b", b), ("c", c)]
            .into_iter()
            .filter_map(|(name, time)| Some((name, time?)));
        let seen = Table {
            latency: latency.collect(),
            ..Table::default()
        };
        shares(&all, Rules::default(), &seen, 1000)
            .get("c")
            .copied()
            .unwrap_or(0)
    };
    assert_eq!(share(Some(50), Some(5)), 1000);
    assert_eq!(share(Some(5), Some(50)), 0);
    assert_eq!(share(Some(5), None), 1000);
    assert!((400..600).contains(&share(Some(10), Some(11))));
    assert!((400..600).contains(&share(None, None)));
    // Of many, the slow one is left with the draws in which nothing is faster: none of distinct two.
    let many: Vec<_> = ["b", "c", "d", "e"]
        .map(|n| candidate("r", &format!("/node/{n}"), "cloud", true))
        .into();
    let seen = Table {
        latency: BTreeMap::from([("b", 90), ("c", 9), ("d", 9), ("e", 9)]),
        ..Table::default()
    };
    let counts = shares(&many, Rules::default(), &seen, 3000);
    assert!(!counts.contains_key("b"), "{counts:?}");
    // A weight keeps a share for a slow one: that of being drawn twice.
    let weighted = [offered("/node/b", 3, 0), offered("/node/c", 1, 0)];
    let seen = Table {
        latency: BTreeMap::from([("b", 90), ("c", 9)]),
        ..Table::default()
    };
    assert_shares(
        &shares(&weighted, Rules::default(), &seen, 20_000),
        &[("b", 9.0 / 16.0), ("c", 7.0 / 16.0)],
    );
}

#[test]
fn of_the_routers_the_own_nodes_comes_first_then_the_faster_one() {
    let all = ["a", "r", "s"].map(|router| candidate(router, "/node/p", "cloud", true));
    let seen = Table {
        latency: BTreeMap::from([("a", 90), ("r", 30), ("s", 10)]),
        ..Table::default()
    };
    let node = "a".parse().unwrap();
    let here = Here {
        node: Some(&node),
        cluster: None,
    };
    let choose = |all: &[Candidate], seen: &Table| {
        let mut rng = SmallRng::seed_from_u64(7);
        let chosen = pick(
            all,
            &Tried::default(),
            here,
            Rules::default(),
            seen,
            &mut rng,
        )
        .unwrap();
        chosen.0.router.node.to_string()
    };
    assert_eq!(choose(&all, &seen), "a");
    assert_eq!(choose(&all[1..], &seen), "s");
    let mut draining = all.clone();
    draining[0].draining = true;
    assert_eq!(choose(&draining, &seen), "s");
    let away = Table {
        avoided: vec!["a"],
        ..seen
    };
    assert_eq!(choose(&all, &away), "s");
    assert_eq!(choose(&all[..1], &away), "a");
}

#[test]
fn what_was_tried_is_a_way_or_a_router_or_a_provider() {
    let all = [
        ("r", "/node/p"),
        ("s", "/node/p"),
        ("r", "/node/q"),
        ("s", "/node/q"),
    ]
    .map(|(router, provider)| candidate(router, provider, "cloud", true));
    let left = |tried: &Tried| all.iter().filter(|way| !tried.contains(way)).count();
    let mut tried = Tried::default();
    assert!(tried.is_empty());
    tried.way(&all[0]);
    assert_eq!(left(&tried), 3);
    tried.router(&all[1].router.node);
    assert_eq!(left(&tried), 1);
    tried.provider(&all[2].provider);
    assert_eq!(left(&tried), 0);
}

/// The provider's node of each of `clients` clients.
fn homes(all: &[Candidate], clients: u16) -> Vec<String> {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut home = |client: u16| {
        let [high, low] = client.to_be_bytes();
        let rules = Rules {
            sticky: Some([10, 0, high, low].into()),
            ..Rules::default()
        };
        let (way, _) = pick(
            all,
            &Tried::default(),
            NOWHERE,
            rules,
            &Table::default(),
            &mut rng,
        )
        .unwrap();
        Table::names(way)[0].to_owned()
    };
    (0..clients).map(&mut home).collect()
}

#[test]
fn a_sticky_client_moves_only_with_its_provider() {
    let all: Vec<_> = ["b", "c", "d", "e"]
        .map(|n| offered(&format!("/node/{n}"), 1, 0))
        .into();
    let before = homes(&all, 4000);
    assert_eq!(homes(&all, 4000), before);
    let mut shares = BTreeMap::new();
    before
        .iter()
        .for_each(|home| *shares.entry(home.clone()).or_default() += 1);
    assert_shares(
        &shares,
        &[("b", 0.25), ("c", 0.25), ("d", 0.25), ("e", 0.25)],
    );
    // Gone, sick or ejected: its clients move, nobody else.
    let mut sick = all.clone();
    sick[1].offer.health = Health::Unhealthy;
    for without in [vec![all[3].clone(), all[2].clone(), all[0].clone()], sick] {
        for (old, new) in before.iter().zip(homes(&without, 4000)) {
            assert!(new != "c" && (*old == "c" || *old == new), "{old} {new}");
        }
    }
    // A new one takes its share from the others and moves nobody between them.
    let more = [&all[..], &[offered("/node/f", 1, 0)]].concat();
    let moved: Vec<_> = before
        .iter()
        .zip(homes(&more, 4000))
        .filter(|(old, new)| *old != new)
        .collect();
    assert!(moved.iter().all(|(_, new)| new == "f"));
    assert_shares(
        &BTreeMap::from([
            ("f".to_owned(), moved.len() as u32),
            ("rest".to_owned(), 4000 - moved.len() as u32),
        ]),
        &[("f", 0.2)],
    );
}

#[test]
fn sticky_clients_are_shared_out_by_weight() {
    let all = [offered("/node/b", 1, 0), offered("/node/c", 4, 0)];
    let mut shares = BTreeMap::new();
    homes(&all, 10_000)
        .into_iter()
        .for_each(|home| *shares.entry(home).or_default() += 1);
    assert_shares(&shares, &[("b", 0.2), ("c", 0.8)]);
}

#[test]
fn an_ipv4_client_is_the_same_however_it_is_written() {
    let all: Vec<_> = ["b", "c", "d", "e"]
        .map(|n| offered(&format!("/node/{n}"), 1, 0))
        .into();
    let mut rng = SmallRng::seed_from_u64(7);
    let mut home = |client: &str| {
        let rules = Rules {
            sticky: Some(client.parse().unwrap()),
            ..Rules::default()
        };
        pick(
            &all,
            &Tried::default(),
            NOWHERE,
            rules,
            &Table::default(),
            &mut rng,
        )
        .unwrap()
        .0
        .clone()
    };
    for last in 0..50 {
        assert_eq!(
            home(&format!("10.1.2.{last}")),
            home(&format!("::ffff:10.1.2.{last}"))
        );
    }
}

proptest! {
    #[test]
    fn every_candidate_is_tried_once_healthy_ones_first(
        health in proptest::collection::vec((any::<bool>(), 0_u16..3, 0_u16..3), 0..8),
        sticky in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let all: Vec<_> = health.iter().enumerate().map(|(i, (healthy, weight, priority))| {
            let mut one = candidate(&format!("n{i}"), &format!("/node/n{i}"), "cloud", *healthy);
            (one.offer.weight, one.offer.priority) = (*weight, *priority);
            one
        }).collect();
        let rules = Rules { sticky: sticky.then(|| [127, 0, 0, 1].into()), ..Rules::default() };
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut order: Vec<Candidate> = Vec::new();
        while let Some((next, _)) = pick(&all, &tried(&order), NOWHERE, rules, &Table::default(), &mut rng) {
            order.push(next.clone());
        }
        prop_assert_eq!(order.len(), all.len());
        let class = |c: &Candidate| (c.offer.health == Health::Unhealthy, c.offer.weight == 0, c.offer.priority);
        prop_assert!(order.is_sorted_by_key(class));
    }
}
