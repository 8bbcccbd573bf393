//! Connections that come to nothing leave nothing: port scanners, health checks, clients that changed their mind.

use std::time::Duration;

use keel_fabric::consumer::OpenError;
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::alone::alone;
use crate::backend::Backend;
use crate::long;
use crate::scrape::Scraper;
use crate::world::{PATIENCE, RunningRouter, World, echoes, end, soon};

/// Connections beside each other.
const AT_ONCE: usize = 10;

/// What the whole process has.
#[derive(Debug, Clone, Copy)]
struct Kept {
    files: usize,
    tasks: usize,
}

impl Kept {
    fn now() -> Self {
        Self {
            files: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            tasks: Handle::current().metrics().num_alive_tasks(),
        }
    }

    /// Less is none of ours: what tests before this one had may still go.
    fn is_no_more_than(&self, before: &Self) -> bool {
        self.files <= before.files && self.tasks <= before.tasks
    }
}

/// Everything that is not as it is where no flow runs.
fn remains(scraper: &Scraper, router: &RunningRouter) -> Vec<String> {
    let mut found = Vec::new();
    for role in ["consumer", "provider"] {
        let label = format!("role=\"{role}\"");
        let started = scraper.sum("keel_fabric_flows_started_total", &label);
        let ended = scraper.sum("keel_fabric_flows_ended_total", &label);
        if started != ended {
            found.push(format!("{role}: {started} started, {ended} ended"));
        }
    }
    for gauge in [
        "router_legs",
        "router_legs_parked",
        "router_held_bytes",
        "flow_buffered_bytes",
        "service_flows",
    ] {
        let value = scraper.sum(&format!("keel_fabric_{gauge}"), "");
        if value != 0 {
            found.push(format!("{gauge}: {value}"));
        }
    }
    let seen = router.view.borrow().totals.connections;
    if seen != 0 {
        found.push(format!("connections in the router's report: {seen}"));
    }
    found
}

/// Waits until `found` finds nothing, but not for ever.
async fn gone(mut found: impl FnMut() -> Vec<String>) {
    let nothing = async {
        while !found().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, nothing).await;
    assert!(in_time.is_ok(), "{:?}", found());
}

/// Goes away in one of four manners.
async fn leave(mut client: TcpStream, manner: usize) {
    match manner % 4 {
        0 => {}
        // The echo is not waited for.
        1 => client.write_all(b"?").await.unwrap(),
        2 => client.shutdown().await.unwrap(),
        _ => {
            echoes(&mut client, b'!').await;
            SockRef::from(&client)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
    }
}

#[tokio::test]
async fn connections_that_are_closed_at_once_leave_nothing_behind() {
    let _turn = alone().await;
    let mut world = World::new();
    let scraper = Scraper::new(&mut world);
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    // The first flow makes what stays: the consumer's link, and the task that tidies the provider's table.
    let mut flows = JoinSet::new();
    drop(consumer.carried(&mut flows, &target).await);
    end(&mut flows).await.unwrap();
    gone(|| remains(&scraper, &router)).await;
    let before = Kept::now();

    let count = if long() { 10_000 } else { 1_000 };
    for round in 0..count / AT_ONCE {
        for number in 0..AT_ONCE {
            let client = consumer.connect(&mut flows, &target).await;
            leave(client, round + number).await;
        }
        while let Some(ended) = soon(flows.join_next()).await {
            let ended = ended.unwrap();
            assert!(
                matches!(ended, Ok(_) | Err(OpenError::ClientGone)),
                "{ended:?}"
            );
        }
    }
    gone(|| {
        let mut found = remains(&scraper, &router);
        let now = Kept::now();
        if !now.is_no_more_than(&before) {
            found.push(format!("{before:?} before, {now:?} now"));
        }
        found
    })
    .await;
    let started = scraper.sum("keel_fabric_flows_started_total", "consumer");
    assert_eq!(started, 1 + count as i64);
    let reached = scraper.sum("keel_fabric_flows_started_total", "provider");
    println!(
        "{count} connections, {reached} flows reached the provider; {before:?} before, {:?} now",
        Kept::now()
    );
}
