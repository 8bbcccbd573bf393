use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::*;

fn start(pairs: &Pairs, number: usize) -> Running {
    let service = format!("s{number}.default").parse().unwrap();
    pairs.start("consumer", At(&service, 80, Protocol::Tcp), &"/node/a")
}

#[test]
fn pairs_beyond_the_bound_are_counted_together() {
    let pairs = Pairs::default();
    let all: Vec<Running> = (0..1000).map(|number| start(&pairs, number)).collect();
    for running in &all {
        running.up.fetch_add(1, Ordering::Relaxed);
    }
    let counts = pairs.counts();
    assert_eq!(counts.len(), MAX_PAIRS + 1);
    let other = counts.last().unwrap();
    let rest = (1000 - MAX_PAIRS) as u64;
    assert_eq!(
        (other.service.as_str(), other.peer.as_str()),
        (OTHER, OTHER)
    );
    assert_eq!(
        (other.active, other.started, other.bytes_up),
        (rest, rest, rest)
    );
    assert_eq!(counts.iter().map(|pair| pair.bytes_up).sum::<u64>(), 1000);
    drop(all);
    assert!(pairs.counts().iter().all(|pair| pair.active == 0));
}

#[test]
fn a_pair_that_was_idle_for_long_gives_way_and_one_in_use_never() {
    let mut role = Role::default();
    let pair = |number: usize| (format!("s{number}"), String::new());
    let now = Instant::now();
    let used = Running::new(role.series(pair(0), now));
    for number in 1..MAX_PAIRS {
        drop(Running::new(role.series(pair(number), now)));
    }
    drop(Running::new(role.series(pair(5000), now)));
    assert!(role.other.is_some() && !role.pairs.contains_key(&pair(5000)));
    let later = Instant::now() + IDLE;
    drop(Running::new(role.series(pair(5000), later)));
    assert!(role.pairs.contains_key(&pair(5000)) && role.pairs.contains_key(&pair(0)));
    assert_eq!(role.pairs.len(), MAX_PAIRS);
    drop(used);
}

#[test]
fn a_scraper_sees_every_counter_with_its_labels() {
    let pairs = Arc::new(Pairs::default());
    let mut registry = Registry::default();
    registry.register_collector(Box::new(PairsCollector(Arc::clone(&pairs))));
    let service = "dns.default".parse().unwrap();
    let running = pairs.start("router", At(&service, 53, Protocol::Udp), &"/node/a");
    running.up.fetch_add(7, Ordering::Relaxed);
    running.resumed(2);
    running.stalled(true, Duration::from_millis(1500));
    running.reset("LEG_LOST");
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let labels = r#"role="router",service="dns.default:53/udp",peer="/node/a""#;
    for line in [
        format!("service_flows{{{labels}}} 1\n"),
        format!("service_flows_started_total{{{labels}}} 1\n"),
        format!("service_bytes_total{{{labels},direction=\"up\"}} 7\n"),
        format!("service_bytes_total{{{labels},direction=\"down\"}} 0\n"),
        format!("service_resumes_total{{{labels}}} 2\n"),
        format!("service_stalls_total{{{labels}}} 1\n"),
        format!("service_stalled_seconds_total{{{labels}}} 1.5\n"),
        format!("service_resets_total{{{labels},code=\"LEG_LOST\"}} 1\n"),
    ] {
        assert!(text.contains(&line), "{line}: {text}");
    }
}
