//! Bandwidth limits end to end: measured at the application's sockets, in real time.

use std::time::{Duration, Instant};

use keel_fabric::metrics::PaceLabels;
use keel_fabric::provider::PublicationOptions;
use keel_fabric::units::Rate;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::world::{World, publication, soon};

const RATE: u64 = 2_000_000;
const TIME: Duration = Duration::from_secs(3);
/// A busy machine may be slower than the limit now and then, and never faster.
const LEAST: f64 = 0.85;
const MOST: f64 = 1.1;

fn rate() -> Option<Rate> {
    Some(format!("{RATE}B/s").parse().unwrap())
}

/// Who sends as much as goes, to everybody who connects.
async fn source() -> (std::net::SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut served = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            served.spawn(both(stream));
        }
    });
    (addr, tasks)
}

/// Sends and takes as much as goes.
async fn both(stream: TcpStream) {
    let (mut read, mut write) = stream.into_split();
    let zeros = vec![0; 64 << 10];
    let send = async { while write.write_all(&zeros).await.is_ok() {} };
    let mut buffer = vec![0; 64 << 10];
    let take = async { while read.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
    tokio::join!(send, take);
}

/// What each of these receives within the time, after a moment in which the first bytes have come.
async fn received(clients: &mut [TcpStream]) -> Vec<f64> {
    let started = Instant::now() + Duration::from_millis(300);
    let end = started + TIME;
    let all = clients.iter_mut().map(|client| async move {
        let mut buffer = vec![0; 64 << 10];
        let mut bytes = 0;
        // Around all reads: a deadline around each of them is not looked at while there is always something to read.
        let reads = async {
            while let Ok(count @ 1..) = client.read(&mut buffer).await {
                if Instant::now() > started {
                    bytes += count;
                }
            }
        };
        let ended = tokio::time::timeout_at(end.into(), reads).await.is_ok();
        assert!(!ended, "the flow ended");
        bytes as f64 / TIME.as_secs_f64() / RATE as f64
    });
    futures_util::future::join_all(all).await
}

/// Where the limit is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Consumer,
    Provider,
    Router,
}

async fn shares(at: At, flows: usize) -> Vec<f64> {
    let mut world = World::new();
    if at == At::Router {
        world.identity_limit.send_replace(rate());
    }
    let router = world.router("r").await;
    let (addr, _serving) = source().await;
    let (provider, mut target) = world.echo(&router, addr).await;
    if at == At::Provider {
        let mut limited = publication("echo.default", 80, addr);
        limited.options.limit = rate();
        provider
            .publications
            .send_replace(std::sync::Arc::new(vec![limited]));
    }
    if at == At::Consumer {
        target.options.limit = rate();
    }
    let consumer = world.consumer();
    let (mut clients, mut tasks) = (Vec::new(), JoinSet::new());
    for _ in 0..flows {
        let (client, mut flow) = consumer.flow().await;
        soon(flow.open(&consumer.links, &target)).await.unwrap();
        tasks.spawn(flow.carry());
        clients.push(client);
    }
    let shares = received(&mut clients).await;
    let limit = match at {
        At::Consumer | At::Provider => "echo.default:80",
        At::Router => "identity",
    };
    let labels = PaceLabels {
        limit: limit.to_owned(),
        direction: "down",
    };
    let delayed = world.metrics.limited.get_or_create(&labels).get();
    assert!(delayed as f64 > RATE as f64, "{delayed} bytes were delayed");
    shares
}

async fn check(at: At) {
    let shares = shares(at, 2).await;
    println!("{at:?}: {shares:?}");
    let all: f64 = shares.iter().sum();
    assert!((LEAST..=MOST).contains(&all), "{shares:?}");
    let even = shares[0] / shares[1];
    assert!((0.75..=1.33).contains(&even), "{shares:?}");
}

#[tokio::test]
async fn the_consumers_end_keeps_the_rate_of_a_service() {
    check(At::Consumer).await;
}

#[tokio::test]
async fn the_providers_end_keeps_the_rate_of_a_service() {
    check(At::Provider).await;
}

#[tokio::test]
async fn a_router_keeps_the_rate_of_an_identity() {
    check(At::Router).await;
}

#[tokio::test]
async fn the_rate_of_an_identity_comes_and_goes_while_a_flow_runs() {
    let mut world = World::new();
    let router = world.router("r").await;
    let (addr, _serving) = source().await;
    let (_provider, target) = world.echo(&router, addr).await;
    let consumer = world.consumer();
    let (client, mut flow) = consumer.flow().await;
    soon(flow.open(&consumer.links, &target)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(flow.carry());
    let mut clients = [client];
    let free = received(&mut clients).await[0];
    world.identity_limit.send_replace(rate());
    // What was on its way comes first.
    let _ = received(&mut clients).await;
    let held = received(&mut clients).await[0];
    world.identity_limit.send_replace(None);
    let freed = received(&mut clients).await[0];
    println!("without {free}, with {held}, without again {freed}");
    assert!((LEAST..=MOST).contains(&held), "{held}");
    assert!(free > 2.0 && freed > 2.0, "{free} {freed}");
}

#[tokio::test]
async fn a_limit_comes_and_goes_while_a_flow_runs() {
    let mut world = World::new();
    let router = world.router("r").await;
    let (addr, _serving) = source().await;
    let plain = publication("echo.default", 80, addr);
    let mut limited = plain.clone();
    limited.options = PublicationOptions {
        limit: rate(),
        ..PublicationOptions::default()
    };
    router
        .backends
        .send_replace(std::sync::Arc::new(vec![plain.clone()]));
    let target = crate::world::target("echo.default", 80, "/node/r".parse().unwrap(), &router);
    let consumer = world.consumer();
    let mut router = router;
    router.shows(|view| !view.services.is_empty()).await;
    let (client, mut flow) = consumer.flow().await;
    soon(flow.open(&consumer.links, &target)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(flow.carry());
    let mut clients = [client];
    let free = received(&mut clients).await[0];
    router
        .backends
        .send_replace(std::sync::Arc::new(vec![limited]));
    // What was on its way comes first.
    let _ = received(&mut clients).await;
    let held = received(&mut clients).await[0];
    router
        .backends
        .send_replace(std::sync::Arc::new(vec![plain]));
    let freed = received(&mut clients).await[0];
    println!("without {free}, with {held}, without again {freed}");
    assert!((LEAST..=MOST).contains(&held), "{held}");
    assert!(free > 2.0 && freed > 2.0, "{free} {freed}");
}
