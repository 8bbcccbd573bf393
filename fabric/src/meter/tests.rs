use super::*;
use crate::wire::Protocol;

const MS: Duration = Duration::from_millis(1);

#[test]
fn bytes_that_make_no_progress_for_a_second_are_a_stall_as_long_as_it_lasts() {
    let mut stall = Stall::default();
    let start = Instant::now();
    assert_eq!(stall.follow(true, 0, start), None);
    assert_eq!(stall.look, Some(start + STALL));
    assert_eq!(stall.follow(true, 0, start + 999 * MS), None);
    assert_eq!(
        stall.follow(true, 0, start + 1000 * MS),
        Some((true, 1000 * MS))
    );
    assert_eq!(stall.look, Some(start + 2000 * MS));
    assert_eq!(
        stall.follow(true, 0, start + 2500 * MS),
        Some((false, 1500 * MS))
    );
    assert_eq!(
        stall.follow(true, 9, start + 2600 * MS),
        Some((false, 100 * MS))
    );
    assert_eq!((stall.count, stall.time), (1, 2600 * MS));
    assert_eq!(stall.follow(false, 10, start + 9000 * MS), None);
    assert_eq!(stall.follow(true, 10, start + 9001 * MS), None);
    assert_eq!(
        stall.follow(true, 10, start + 11_000 * MS),
        Some((true, 1999 * MS))
    );
    assert_eq!(stall.count, 2);
}

#[test]
fn a_flow_that_moves_or_is_idle_never_stalls() {
    let mut stall = Stall::default();
    let start = Instant::now();
    for step in 0..100 {
        assert_eq!(
            stall.follow(true, step.into(), start + 900 * MS * step),
            None
        );
    }
    assert_eq!(stall.follow(false, 100, start + 90_000 * MS), None);
    assert_eq!(stall.follow(false, 100, start + 200_000 * MS), None);
    assert_eq!((stall.count, stall.look), (0, None));
}

fn passing(metrics: &FabricMetrics, service: At<'_>) -> (Passing, Arc<AtomicU64>) {
    let bytes: Arc<AtomicU64> = Arc::default();
    let up = Meter {
        counters: vec![Arc::clone(&bytes)],
        metric: Counter::default(),
    };
    let pair = metrics.pairs.start("router", service, &"/node/a");
    let passing = Passing::new(vec![Arc::default()], up, Meter::default(), pair);
    (passing, bytes)
}

#[test]
fn a_flow_is_counted_where_its_newest_leg_is() {
    let metrics = Arc::default();
    let name = "mysql.default".parse().unwrap();
    let service = At(&name, 3306, Protocol::Tcp);
    let (first, before) = passing(&metrics, service);
    let (second, after) = passing(&metrics, service);
    let mut meter = FlowMeter::new(&metrics, Side::provider, service, &"/node/a", Some(first));
    let mut stats = FlowStats {
        accepted: true,
        delivered: 10,
        ..FlowStats::default()
    };
    meter.follow(&stats, Instant::now());
    meter.pass(Some(second));
    stats.delivered = 15;
    stats.resumes = 1;
    meter.follow(&stats, Instant::now());
    let of = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
    assert_eq!((of(&before), of(&after)), (10, 5));
    let counts = metrics.pairs.counts();
    let own = counts.iter().find(|pair| pair.role == "provider").unwrap();
    assert_eq!((own.bytes_up, own.resumes, own.active), (15, 1, 1));
}

#[test]
fn early_bytes_are_counted_once_somebody_took_the_flow() {
    let metrics: Arc<FabricMetrics> = Arc::default();
    let name = "mysql.default".parse().unwrap();
    let service = At(&name, 3306, Protocol::Tcp);
    let mut meter = FlowMeter::new(&metrics, Side::consumer, service, &"/node/a", None);
    let mut stats = FlowStats {
        written: 10,
        ..FlowStats::default()
    };
    meter.follow(&stats, Instant::now());
    assert_eq!(metrics.pairs.counts()[0].bytes_up, 0);
    stats.accepted = true;
    meter.follow(&stats, Instant::now());
    assert_eq!(metrics.pairs.counts()[0].bytes_up, 10);
}
