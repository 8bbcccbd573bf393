//! Counters move while a flow runs, at its ends and at the router, and agree with it to the byte at its end.

use std::sync::Arc;
use std::time::Duration;

use keel_fabric::EndReason;
use keel_fabric::consumer::ConsumerFlow;
use keel_fabric::metrics::PairCounts;
use keel_fabric::router::Role;
use keel_fabric::udp::{self, Inbox};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::backend::{Backend, nobody, noise};
use crate::world::{World, end, publication, soon, target};

fn counts(world: &World, role: &str) -> Vec<PairCounts> {
    let mut all = world.metrics.pairs.counts();
    all.retain(|pair| pair.role == role);
    all
}

fn only(world: &World, role: &str) -> PairCounts {
    let mut all = counts(world, role);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

pub(crate) async fn until(what: impl Fn() -> bool) {
    let moved = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(moved).await;
}

/// What `value` is once it has stayed the same for 200 ms.
pub(crate) async fn settled(value: impl Fn() -> i64) -> i64 {
    let settled = async {
        let (mut seen, mut still) = (value(), 0);
        while still < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = value();
            still = if now == seen { still + 1 } else { 0 };
            seen = now;
        }
        seen
    };
    soon(settled).await
}

#[tokio::test]
async fn an_association_that_nobody_takes_is_counted_as_one() {
    let world = World::new();
    let client = udp::Client {
        inbox: Arc::new(Inbox::new(&world.limits)),
        socket: Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap()),
        address: nobody(),
    };
    let service = ("ntp.default".parse().unwrap(), 123);
    let flow = ConsumerFlow::udp(client, service, world.consumer().config);
    flow.unserved(EndReason::NoProvider);
    let pair = only(&world, "consumer");
    assert_eq!(pair.service, "ntp.default:123/udp");
    assert_eq!(pair.resets.len(), 1, "{pair:?}");
}

#[tokio::test]
async fn counters_move_while_a_flow_runs_and_agree_at_its_end() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let block = noise(7, 100_000);
    let mut back = vec![0; block.len()];
    for round in 1..=5_u64 {
        soon(client.write_all(&block)).await.unwrap();
        soon(client.read_exact(&mut back)).await.unwrap();
        let moved = round * 100_000;
        for role in ["consumer", "provider"] {
            until(|| {
                let pair = only(&world, role);
                (pair.bytes_up, pair.bytes_down) == (moved, moved)
            })
            .await;
        }
        let passed = |pair: &PairCounts| pair.bytes_up > moved && pair.bytes_down > moved;
        until(|| passed(&only(&world, "router"))).await;
    }
    let peers = [
        ("consumer", "/node/b/ns/default/pod/p"),
        ("provider", "/node/a/ns/default/pod/c"),
        ("router", "/node/a/ns/default/pod/c"),
    ];
    for (role, peer) in peers {
        let pair = only(&world, role);
        assert_eq!(
            (pair.service.as_str(), pair.peer.as_str()),
            ("echo.default:80", peer)
        );
        assert_eq!((pair.active, pair.started), (1, 1), "{role}");
    }
    // The router's report, which becomes the status of its Router, says so too.
    let view = router.shows(|view| view.totals.bytes_in > 500_000).await;
    for client in &view.services[0].clients {
        assert_eq!(client.connections, 1);
        let (up, down) = match client.role {
            Role::Consumer => (client.bytes_in, client.bytes_out),
            Role::Provider => (client.bytes_out, client.bytes_in),
        };
        assert!(up > 500_000 && down > 500_000, "{client:?}");
    }
    assert_eq!(view.totals.connections, 1);

    soon(client.write_all(b"last")).await.unwrap();
    client.shutdown().await.unwrap();
    soon(client.read_exact(&mut back[..4])).await.unwrap();
    assert_eq!(soon(client.read(&mut back)).await.unwrap(), 0);
    let end = end(&mut tasks).await.unwrap();
    assert_eq!((end.bytes_up, end.bytes_down), (500_004, 500_004));
    assert_eq!((end.resumes, end.stalls), (0, 0));
    for role in ["consumer", "provider"] {
        until(|| only(&world, role).active == 0).await;
        let pair = only(&world, role);
        assert_eq!((pair.bytes_up, pair.bytes_down), (500_004, 500_004));
        assert!(pair.resets.is_empty(), "{pair:?}");
    }
    until(|| only(&world, "router").active == 0).await;
}

#[tokio::test]
async fn a_flow_is_counted_with_the_provider_that_took_it_and_its_bytes_once() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, good) = world.echo(&router, backend.addr).await;
    let live = world.fabric.pod("x", "default", "p");
    let mut bad = world.provider(
        &live,
        &[&router],
        vec![publication("echo.default", 80, nobody())],
    );
    bad.published().await;
    let bad = target("echo.default", 80, live.identity().subject, &router);

    let consumer = world.consumer();
    let (mut client, mut flow) = consumer.flow().await;
    soon(client.write_all(b"early")).await.unwrap();
    soon(flow.open(&consumer.links, &bad)).await.unwrap_err();
    soon(flow.open(&consumer.links, &good)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(flow.carry());
    client.shutdown().await.unwrap();
    let mut back = Vec::new();
    soon(client.read_to_end(&mut back)).await.unwrap();
    assert_eq!(back, b"early");
    let end = soon(tasks.join_next()).await.unwrap().unwrap();
    assert_eq!(end.reason, EndReason::Done);

    let pairs = counts(&world, "consumer");
    let of = |peer: &str| pairs.iter().find(|pair| pair.peer.contains(peer)).unwrap();
    assert_eq!((of("/node/b/").bytes_up, of("/node/b/").bytes_down), (5, 5));
    assert_eq!((of("/node/x/").bytes_up, of("/node/x/").bytes_down), (0, 0));
    assert!(
        pairs
            .iter()
            .all(|pair| (pair.active, pair.started) == (0, 1))
    );
}

#[tokio::test]
async fn resets_are_counted_by_reason_where_they_happen() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    soon(client.write_all(b"hello")).await.unwrap();
    soon(client.read_exact(&mut [0; 5])).await.unwrap();
    crate::resets::reset(client);
    let end = end(&mut tasks).await.unwrap();
    for role in ["consumer", "provider"] {
        until(|| only(&world, role).active == 0).await;
        let resets = only(&world, role).resets;
        assert_eq!(resets.get(end.reason.name()), Some(&1), "{resets:?}");
        assert_eq!(resets.len(), 1);
    }
}

#[tokio::test]
async fn bytes_that_go_nowhere_are_a_stall_while_it_lasts() {
    let mut world = World::new();
    let router = world.router_to_kill("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    soon(client.write_all(b"hello")).await.unwrap();
    soon(client.read_exact(&mut [0; 5])).await.unwrap();
    world.kill().await;
    soon(client.write_all(b"nobody")).await.unwrap();
    until(|| only(&world, "consumer").stalls == 1).await;
    let before = only(&world, "consumer").stalled;
    assert!(before >= Duration::from_secs(1), "{before:?}");
    until(|| only(&world, "consumer").stalled > before).await;
    assert_eq!(only(&world, "consumer").stalls, 1);
    assert_eq!(only(&world, "consumer").active, 1);
}
