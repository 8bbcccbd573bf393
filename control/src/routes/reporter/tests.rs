use std::sync::Mutex;

use keel_fabric::router::Totals;

use super::super::compile::{RouterFlags, compile};
use keel_certs::ClusterName;

use super::*;
use crate::api::RouterSpec;

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<RouterStatus>>>);

impl StatusSink for Written {
    async fn write(&self, _: &NodeName, status: &RouterStatus) -> Result<(), ClientError> {
        self.0.lock().unwrap().push(status.clone());
        Ok(())
    }
}

impl Written {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    async fn reach(&self, count: usize) {
        while self.count() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn view(connections: u64, services: &[&str]) -> Arc<RouterView> {
    Arc::new(RouterView {
        started: SystemTime::UNIX_EPOCH,
        services: services
            .iter()
            .map(|name| keel_fabric::router::ServiceView {
                service: name.parse().unwrap(),
                port: 80,
                protocol: keel_fabric::wire::Protocol::Tcp,
                providers: Vec::new(),
                clients: Vec::new(),
                counts: Vec::new(),
            })
            .collect(),
        totals: Totals {
            connections,
            ..Totals::default()
        },
    })
}

fn context() -> watch::Receiver<Arc<ReportContext>> {
    watch::channel(Arc::new(ReportContext {
        cluster: ClusterName::default_cluster(),
        plan: compile(&RouterSpec::default(), None, &RouterFlags::default()),
        node_addresses: Vec::new(),
        trouble: None,
    }))
    .1
}

/// A store that takes a while, and keeps when each status became readable.
#[derive(Clone, Default)]
struct Slow(Arc<Mutex<Vec<(Instant, RouterStatus)>>>);

impl StatusSink for Slow {
    async fn write(&self, _: &NodeName, status: &RouterStatus) -> Result<(), ClientError> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let written = (Instant::now(), status.clone());
        self.0.lock().unwrap().push(written);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_be_read_is_never_older_than_the_interval() {
    let interval = Duration::from_secs(30);
    let (slow, (views, view_rx)) = (Slow::default(), watch::channel(view(0, &[])));
    let (_reported, reported) = watch::channel(true);
    let config = ReporterConfig {
        node: "a".parse().unwrap(),
        interval,
    };
    let begun = Instant::now();
    let reporter = Reporter::new(config, slow.clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(reporter.run(view_rx, context(), reported, CancellationToken::new()));
    // A counter that says how many milliseconds have passed, seen by the router once a second.
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        views.send_replace(view(begun.elapsed().as_millis() as u64, &[]));
    }
    let written = slow.0.lock().unwrap().clone();
    let counted = |status: &RouterStatus| {
        let all = status.service_status.as_ref().unwrap();
        begun + Duration::from_millis(all.total_connections)
    };
    for pair in written.windows(2) {
        let age = pair[1].0 - counted(&pair[0].1);
        assert!(age <= interval, "{age:?}");
    }
    assert!(
        (10..=11).contains(&(written.len() - 1)),
        "{}",
        written.len()
    );
    tasks.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn state_is_written_at_once_and_ticks_once_per_interval() {
    let written = Written::default();
    let (reported_tx, reported) = watch::channel(false);
    let (views, view_rx) = watch::channel(view(0, &[]));
    let stop = CancellationToken::new();
    let config = ReporterConfig {
        node: "a".parse().unwrap(),
        interval: Duration::from_secs(30),
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(Reporter::new(config, written.clone()).run(
        view_rx,
        context(),
        reported,
        stop.clone(),
    ));
    written.reach(1).await;

    let start = Instant::now();
    views.send_replace(view(1, &["web.default"]));
    written.reach(2).await;
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "state waits for nothing"
    );

    let start = Instant::now();
    for connections in 2..100 {
        views.send_replace(view(connections, &["web.default"]));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        written.count(),
        2,
        "counters alone are not written before their time"
    );
    written.reach(3).await;
    assert!(start.elapsed() >= Duration::from_secs(28));

    let start = Instant::now();
    reported_tx.send_replace(true);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        written.count(),
        3,
        "nothing to do about a status that is there"
    );
    reported_tx.send_replace(false);
    written.reach(4).await;
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "a deleted Router is reported again at once"
    );

    let mut long_up = view(100, &["web.default"]);
    Arc::make_mut(&mut long_up).started = SystemTime::now() - Duration::from_secs(90);
    views.send_replace(long_up);
    stop.cancel();
    written.reach(5).await;
    let draining = written.0.lock().unwrap().last().unwrap().clone();
    assert!(draining.active_services.is_empty());
    assert_eq!(draining.conditions[0].reason, "Draining");
    drop(views);
    tasks.join_next().await.unwrap().unwrap();
    let last = written.0.lock().unwrap().last().unwrap().clone();
    assert_eq!(last.conditions[0].reason, "Stopped");
    assert!(last.active_services.is_empty());
    let uptime = &last.service_status.as_ref().unwrap().uptime;
    assert!(uptime.starts_with("1m"), "{uptime}");
    assert_eq!(
        (
            last.conditions[0].kind.as_str(),
            last.conditions[0].status.as_str()
        ),
        ("Ready", "False")
    );
}

#[tokio::test(start_paused = true)]
async fn what_changes_without_end_is_written_at_once_for_a_while_and_then_once_a_second() {
    let interval = Duration::from_secs(600);
    let (written, (views, view_rx)) = (Written::default(), watch::channel(view(0, &[])));
    let config = ReporterConfig {
        node: "edge1".parse().unwrap(),
        interval,
    };
    let stop = CancellationToken::new();
    let reporter = Reporter::new(config, written.clone());
    let (_reported, reported) = watch::channel(true);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(reporter.run(view_rx, context(), reported, stop.clone()));
    written.reach(1).await;
    let flap = async |seconds: u64| {
        let before = written.count();
        for step in 0..seconds * 20 {
            let services: &[&str] = if step % 2 == 0 { &["a.default"] } else { &[] };
            views.send_replace(view(0, services));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        written.count() - before
    };
    let burst = BURST as usize;
    let first = flap(60).await;
    assert!((burst + 55..burst + 65).contains(&first), "{first}");
    assert!((55..65).contains(&flap(60).await));
    // What comes after a rest is written at once, and the last word is the one that stands.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = written.count();
    views.send_replace(view(0, &["b.default"]));
    tokio::time::sleep(GATHER * 2).await;
    assert_eq!(written.count(), before + 1);
    let last = written.0.lock().unwrap().last().unwrap().clone();
    assert_eq!(last.active_services.len(), 1);
    stop.cancel();
    drop(views);
    tasks.join_next().await.unwrap().unwrap();
}
