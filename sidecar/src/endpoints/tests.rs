use std::sync::Arc;

use keel_fabric::link::RouterPeer;
use keel_fabric::wire::{Offer, Protocol};

use super::*;

fn way(router: &str, provider: &str) -> Candidate {
    Candidate {
        router: Arc::new(RouterPeer {
            node: router.parse().unwrap(),
            addresses: vec!["10.0.0.1:7000".parse().unwrap()],
        }),
        provider: provider.parse().unwrap(),
        offer: Offer::default(),
        draining: false,
        doubted: false,
        cluster: "default".parse().unwrap(),
    }
}

fn key(port: u16) -> PortKey {
    PortKey::new("web.default".parse().unwrap(), port, Protocol::Tcp)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn ejections_begin_at_the_third_failure_in_a_row_double_and_end() {
    let start = Instant::now();
    let mut streak = Streak::default();
    let asked = start - SECOND;
    assert_eq!(streak.failed(1, asked, start, 0.0), None);
    assert_eq!(streak.failed(1, asked, start, 0.0), None);
    assert!(!streak.is_ejected(start));
    assert_eq!(streak.failed(1, asked, start, 0.0), Some(EJECTED.0));
    // Connections that were under way with those say nothing more.
    assert_eq!(streak.failed(1, asked, start, 0.0), None);
    assert_eq!(streak.failed(FAILURES, start, start, 0.0), None);
    assert!(streak.is_ejected(start + EJECTED.0 - SECOND / 100));
    assert!(!streak.is_ejected(start + EJECTED.0));
    // Nor do those that are asked meanwhile, for want of another one.
    let last = start + EJECTED.0 - SECOND / 100;
    assert_eq!(streak.failed(FAILURES, last, last, 0.0), None);
    // Afterwards each failure ejects, for twice as long, up to a minute; luck takes up to a quarter off.
    let mut now = start + EJECTED.0;
    let mut next = |luck| {
        let pause = streak.failed(1, now, now, luck);
        now += pause.unwrap_or_default();
        pause
    };
    assert_eq!(next(0.0), Some(EJECTED.0 * 2));
    assert_eq!(next(1.0), Some(EJECTED.0 * 3));
    for _ in 0..100 {
        next(0.0);
    }
    assert_eq!(next(0.0), Some(EJECTED.1));
    // One that said nothing is ejected at once.
    assert!(
        Streak::default()
            .failed(FAILURES, asked, start, 0.5)
            .is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn a_failing_provider_is_avoided_tried_by_one_and_restored_by_one_success() {
    let endpoints = Endpoints::default();
    let (key, other) = (key(80), key(81));
    let ways = [
        way("r", "/node/p"),
        way("s", "/node/p"),
        way("r", "/node/q"),
    ];
    let avoided = |key| ways.each_ref().map(|way| endpoints.of(key).avoided(way));
    let provider = &ways[0].provider;
    let failed = |failure| endpoints.failed(&key, provider, Instant::now(), failure);
    failed(Failure::Refused);
    failed(Failure::Refused);
    assert_eq!(avoided(&key), [false; 3]);
    let pause = failed(Failure::Refused).unwrap();
    // Over every router, but only for this service.
    assert_eq!(avoided(&key), [true, true, false]);
    assert_eq!(avoided(&other), [false; 3]);
    tokio::time::advance(pause).await;
    assert_eq!(avoided(&key), [false; 3]);
    // One tries; the others wait for what comes of it.
    drop(endpoints.asking(&key, &ways[0]));
    assert_eq!(avoided(&key), [true, true, false]);
    let next = failed(Failure::Refused).unwrap();
    assert!(next > pause, "{next:?} {pause:?}");
    tokio::time::advance(next).await;
    drop(endpoints.asking(&key, &ways[0]));
    endpoints.answered(&key, provider, &ways[0].router.node, SECOND);
    assert_eq!(avoided(&key), [false; 3]);
    failed(Failure::Refused);
    assert_eq!(avoided(&key), [false; 3]);
    failed(Failure::Silent);
    assert_eq!(avoided(&key), [true, true, false]);
}

#[tokio::test(start_paused = true)]
async fn a_router_is_away_for_a_while_or_until_it_is_back() {
    let endpoints = Endpoints::default();
    let key = key(80);
    let (one, other) = (way("r", "/node/p"), way("s", "/node/p"));
    endpoints.away(&one.router.node);
    assert!(endpoints.of(&key).avoided(&one) && !endpoints.of(&key).avoided(&other));
    endpoints.back(&one.router.node);
    assert!(!endpoints.of(&key).avoided(&one));
    endpoints.away(&one.router.node);
    tokio::time::advance(AWAY).await;
    assert!(!endpoints.of(&key).avoided(&one));
    assert!(endpoints.routers_away().is_empty());
}

#[tokio::test(start_paused = true)]
async fn answers_are_smoothed_per_router_and_say_less_with_time() {
    let endpoints = Endpoints::default();
    let key = key(80);
    let (one, other) = (way("r", "/node/p"), way("s", "/node/p"));
    assert_eq!(endpoints.of(&key).latency(&one), None);
    let answered = |time| endpoints.answered(&key, &one.provider, &one.router.node, time);
    answered(SECOND);
    assert_eq!(endpoints.of(&key).latency(&one), Some(SECOND));
    assert_eq!(endpoints.of(&key).latency(&other), None);
    answered(SECOND * 5);
    assert_eq!(endpoints.of(&key).latency(&one), Some(SECOND * 2));
    tokio::time::advance(HALF_LIFE).await;
    assert_eq!(endpoints.of(&key).latency(&one), Some(SECOND));
}

#[tokio::test(start_paused = true)]
async fn whoever_keeps_one_waiting_counts_as_that_slow_for_the_next() {
    let endpoints = Endpoints::default();
    let key = key(80);
    let (one, other) = (way("r", "/node/p"), way("s", "/node/p"));
    let latency = |way| endpoints.of(&key).latency(way);
    let first = endpoints.asking(&key, &one);
    assert_eq!(latency(&one), Some(Duration::ZERO));
    tokio::time::advance(SECOND).await;
    let second = endpoints.asking(&key, &one);
    tokio::time::advance(SECOND).await;
    assert_eq!((latency(&one), latency(&other)), (Some(SECOND * 2), None));
    assert_eq!(endpoints.of(&key).usual(&one), None, "no answer yet");
    drop(first);
    endpoints.answered(&key, &one.provider, &one.router.node, SECOND / 2);
    assert_eq!(latency(&one), Some(SECOND));
    drop(second);
    assert_eq!(latency(&one), Some(SECOND / 2));
    assert!(
        endpoints
            .known()
            .values()
            .all(|known| known.waiting.is_empty())
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_used_longest_ago_is_forgotten_first() {
    let endpoints = Endpoints::default();
    let provider = "/node/p".parse().unwrap();
    let router = "r".parse().unwrap();
    for port in 0..MOST as u16 {
        endpoints.answered(&key(port), &provider, &router, SECOND);
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    endpoints.answered(&key(0), &provider, &router, SECOND);
    endpoints.answered(&key(9999), &provider, &router, SECOND);
    let known = |port| {
        endpoints
            .known()
            .contains_key(&(key(port), provider.clone()))
    };
    assert!(known(0) && !known(1) && known(2) && known(9999));
    assert_eq!(endpoints.known().len(), MOST);
}
