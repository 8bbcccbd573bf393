//! Limits under virtual time: what went when, with timers that are late.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

fn rate(text: &str) -> Option<Rate> {
    Some(text.parse().unwrap())
}

fn limit(name: &str, text: &str) -> Arc<Limit> {
    Limit::new(name.to_owned(), rate(text), &Arc::default())
}

fn gate(limits: &[&Arc<Limit>]) -> Gate {
    let mut all = [None, None];
    for (slot, limit) in all.iter_mut().zip(limits) {
        *slot = Some(Arc::clone(limit));
    }
    Gate::new(all, Way::Up)
}

/// A flow that always wants to send this much, and what it sent when.
struct Greedy {
    gate: Gate,
    want: usize,
    wake: Instant,
    sent: Vec<(Instant, usize)>,
}

impl Greedy {
    fn new(gate: Gate, want: usize, start: Instant) -> Self {
        Self {
            gate,
            want,
            wake: start,
            sent: Vec::new(),
        }
    }

    fn total(&self) -> usize {
        self.sent.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Lets the flows run until `end`; timers are up to `late` late.
fn run(flows: &mut [Greedy], end: Instant, late: Duration, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    while let Some(flow) = flows.iter_mut().min_by_key(|flow| flow.wake) {
        let now = flow.wake;
        if now >= end {
            break;
        }
        match flow.gate.ask(flow.want, now) {
            Ok(bytes) => {
                flow.gate.used_at(bytes, now);
                flow.sent.push((now, bytes));
            }
            Err(at) => flow.wake = at + late.mul_f64(random.random_range(0.0..=1.0)),
        }
    }
}

/// The most that went in any window of this length.
fn peak(flows: &[Greedy], window: Duration) -> usize {
    let mut sent: Vec<_> = flows.iter().flat_map(|flow| flow.sent.clone()).collect();
    sent.sort_unstable();
    let (mut first, mut held, mut most) = (0, 0, 0);
    for &(at, bytes) in &sent {
        held += bytes;
        while at.duration_since(sent[first].0) >= window {
            held -= sent[first].1;
            first += 1;
        }
        most = most.max(held);
    }
    most
}

const SECONDS: u64 = 5;

#[test]
fn the_rate_is_kept_smoothly_and_shared_evenly() {
    for (text, count) in [
        ("10MB/s", 1),
        ("10MB/s", 2),
        ("1MB/s", 20),
        ("100Mbit/s", 7),
        ("1GB/s", 2),
        ("100kB/s", 3),
    ] {
        for seed in 0..4 {
            println!("{text}, {count} flows, seed {seed}");
            let limit = limit("a", text);
            let start = Instant::now();
            let mut flows: Vec<_> = (0..count)
                .map(|_| Greedy::new(gate(&[&limit]), 256 << 10, start))
                .collect();
            let late = Duration::from_millis(4);
            run(&mut flows, start + Duration::from_secs(SECONDS), late, seed);
            let wanted = rate(text).unwrap().bytes_per_second() as f64;
            let total: usize = flows.iter().map(Greedy::total).sum();
            let share = total as f64 / (wanted * SECONDS as f64);
            assert!((0.95..=1.05).contains(&share), "{share}");
            let most = peak(&flows, Duration::from_millis(100)) as f64 / (wanted / 10.0);
            assert!(most <= 1.5, "{most} times the rate in 100 ms");
            for flow in &flows {
                let part = flow.total() as f64 * count as f64 / total as f64;
                assert!((0.9..=1.1).contains(&part), "{part} of a fair share");
            }
        }
    }
}

#[test]
fn a_flow_alone_gets_everything_and_one_that_comes_gets_its_half_at_once() {
    let limit = limit("a", "1MB/s");
    let start = Instant::now();
    let mut flows = vec![
        Greedy::new(gate(&[&limit]), 64 << 10, start),
        Greedy::new(gate(&[&limit]), 64 << 10, start + Duration::from_secs(1)),
    ];
    run(
        &mut flows,
        start + Duration::from_secs(2),
        Duration::ZERO,
        0,
    );
    let (first, second) = (flows[0].total() as f64, flows[1].total() as f64);
    assert!((1.45e6..=1.6e6).contains(&first), "{first}");
    assert!((0.45e6..=0.55e6).contains(&second), "{second}");
    let waited = flows[1].sent[0].0 - (start + Duration::from_secs(1));
    assert!(waited < Duration::from_millis(50), "{waited:?}");
}

#[test]
fn the_narrower_of_two_limits_counts_and_the_other_is_not_used_up() {
    let (all, slow) = (limit("all", "4MB/s"), limit("slow", "1MB/s"));
    let start = Instant::now();
    let mut flows = vec![
        Greedy::new(gate(&[&all, &slow]), 64 << 10, start),
        Greedy::new(gate(&[&all]), 64 << 10, start),
    ];
    run(
        &mut flows,
        start + Duration::from_secs(2),
        Duration::from_millis(2),
        1,
    );
    let share = flows[0].total() as f64 / 2e6;
    assert!((0.93..=1.05).contains(&share), "{share}");
    let share = (flows[0].total() + flows[1].total()) as f64 / 8e6;
    assert!((0.93..=1.05).contains(&share), "{share}");
}

#[test]
fn what_is_not_used_is_free_again() {
    let limit = limit("a", "1MB/s");
    let start = Instant::now();
    let mut gate = gate(&[&limit]);
    for _ in 0..1000 {
        assert!(gate.ask(5_000, start).is_ok());
        gate.used_at(0, start);
    }
    let mut others: Vec<_> = (0..100).map(|_| self::gate(&[&limit])).collect();
    for other in &mut others {
        let _ = other.ask(5_000, start);
    }
    drop(others);
    assert_eq!(gate.ask(5_000, start), Ok(5_000));
}

#[test]
fn a_change_counts_at_once_and_its_end_too() {
    let limit = limit("a", "1kB/s");
    let start = Instant::now();
    let mut gates: Vec<_> = (0..50).map(|_| gate(&[&limit])).collect();
    for gate in &mut gates {
        let _ = gate.ask(1000, start);
    }
    let last = gates.last_mut().unwrap();
    assert_eq!(
        last.ask(1000, start),
        Err(start + LOOK),
        "it looks now and then"
    );
    limit.set(rate("1MB/s"));
    let soon = start + LOOK;
    assert!(last.ask(1000, soon).is_ok());
    limit.set(None);
    assert_eq!(last.ask(1 << 20, soon), Ok(1 << 20));
    assert!(!last.waits());
}

#[test]
fn packets_over_the_rate_are_not_allowed() {
    let limit = limit("a", "100kB/s");
    let start = Instant::now();
    let mut gate = gate(&[&limit]);
    let mut passed = 0;
    for millis in 0..2000 {
        let now = start + Duration::from_millis(millis);
        passed += usize::from(gate.try_take(1000, now));
    }
    assert!((190..=210).contains(&passed), "{passed}");
}

/// Packets and a stream on one line: neither is shut out.
#[test]
fn packets_have_half_beside_a_stream_that_wants_everything_and_all_that_they_need_if_that_is_less()
{
    let start = Instant::now();
    let end = start + Duration::from_secs(10);
    for (every, least, most) in [
        // A tenth of the rate, and twice the rate.
        (Duration::from_millis(10), 0.099, 0.101),
        (Duration::from_micros(500), 0.45, 0.55),
    ] {
        let all = limit("all", "1MB/s");
        let mut stream = [Greedy::new(gate(&[&all]), 64 << 10, start)];
        let mut packets = gate(&[&all]);
        let (mut now, mut went) = (start, 0);
        while now < end {
            run(&mut stream, now, Duration::from_millis(2), 7);
            went += usize::from(packets.try_take(1000, now));
            now += every;
        }
        let share = went as f64 * 1000.0 / 10e6;
        let rest = stream[0].total() as f64 / 10e6;
        assert!((least..=most).contains(&share), "{share} for {every:?}");
        assert!(
            (0.97..=1.03).contains(&(share + rest)),
            "{share} and {rest}"
        );
    }
}

#[test]
fn limits_follow_the_services_and_metrics_follow_the_limits() {
    let metrics = Arc::<FabricMetrics>::default();
    let paces = Paces::new(None, Arc::clone(&metrics));
    let web: ServicePort = ("web.default".parse().unwrap(), 80, Protocol::Tcp);
    let other: ServicePort = ("other.default".parse().unwrap(), 80, Protocol::Tcp);
    let options = |limit| PublicationOptions {
        limit,
        ..PublicationOptions::default()
    };
    let gauge = |limit: &str| {
        let labels = RateLabels {
            limit: limit.to_owned(),
        };
        metrics.rate_limit.get(&labels).map(|gauge| gauge.get())
    };
    let pace = paces.pace(web.clone(), None, Side::provider);
    assert!(!pace.read.is_limited() && gauge("web.default:80").is_none());
    let limited = options(rate("1MB/s"));
    paces.set([(web.clone(), &limited)].into_iter());
    assert!(pace.read.is_limited() && pace.write.is_limited());
    assert_eq!(gauge("web.default:80"), Some(1_000_000));
    let consumer = paces.pace(other, rate("2MB/s"), Side::consumer);
    // Its flow still runs, and hears of the limit when the service is there again.
    paces.set(std::iter::empty());
    assert!(pace.read.is_limited() && consumer.read.is_limited());
    paces.set([(web, &options(rate("3MB/s")))].into_iter());
    assert_eq!(gauge("web.default:80"), Some(3_000_000));
    assert!(pace.read.is_limited());
    paces.set(std::iter::empty());
    drop(pace);
    paces.set(std::iter::empty());
    assert_eq!(gauge("web.default:80"), None);
}
