//! Flows under load while their routers stop and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keel_fabric::consumer::Target;
use keel_fabric::metrics::{LossLabels, Side};
use keel_fabric::{EndReason, FlowEnd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::backend::{Backend, noise};
use crate::world::{Consumer, RunningRouter, World, echoes, end, publication, soon, target};

/// What a stall may last in a test that runs beside many others. The whole-system test has the documented bound.
const STALL: Duration = Duration::from_secs(3);

/// Clients that write and read without a pause until they are told to end.
struct Load {
    enough: watch::Sender<bool>,
    clients: JoinSet<Duration>,
    ends: JoinSet<Result<FlowEnd, keel_fabric::consumer::OpenError>>,
}

impl Load {
    async fn start(consumer: &Consumer, target: &Target, flows: u32) -> Self {
        let (enough, told) = watch::channel(false);
        let (mut clients, mut ends) = (JoinSet::new(), JoinSet::new());
        for seed in 0..flows {
            let mut client = consumer.connect(&mut ends, target).await;
            // The flow stands before the load begins.
            exchange(&mut client, &noise(u64::from(seed), 8)).await;
            clients.spawn(carry(client, u64::from(seed), told.clone()));
        }
        Self {
            enough,
            clients,
            ends,
        }
    }

    /// Lets all end; every byte was right, and no flow was reset. Returns the longest stall.
    async fn end(mut self) -> Duration {
        self.enough.send_replace(true);
        let mut stall = Duration::ZERO;
        while let Some(client) = soon(self.clients.join_next()).await {
            stall = stall.max(client.unwrap());
        }
        while let Some(end) = soon(self.ends.join_next()).await {
            assert_eq!(end.unwrap().unwrap().reason, EndReason::Done);
        }
        stall
    }
}

async fn exchange(client: &mut TcpStream, bytes: &[u8]) {
    client.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    soon(client.read_exact(&mut back)).await.unwrap();
    assert!(back == bytes, "other bytes came back");
}

/// Sends and awaits one block after the other; the longest time that one took.
async fn carry(mut client: TcpStream, seed: u64, told: watch::Receiver<bool>) -> Duration {
    let mut longest = Duration::ZERO;
    let mut round = 0;
    while !*told.borrow() {
        round += 1;
        let begun = Instant::now();
        exchange(&mut client, &noise(seed << 32 | round, 2000)).await;
        longest = longest.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "a clean end");
    longest
}

/// `echo.default:80` at all of `routers`, which the consumer's flows may use.
async fn everywhere(
    world: &mut World,
    routers: &[&RunningRouter],
    backend: &Backend,
) -> (crate::world::RunningProvider, Target) {
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![publication("echo.default", 80, backend.addr)];
    let mut provider = world.provider(&live, routers, list);
    soon(provider.state.wait_for(|list| {
        let published = |at: &keel_fabric::provider::PublishedAt| {
            at.outcome == keel_fabric::provider::PublishOutcome::Published
        };
        list.len() == routers.len() && list.iter().all(published)
    }))
    .await
    .unwrap();
    world.ways = routers.iter().map(|router| router.peer.clone()).collect();
    let target = target("echo.default", 80, live.identity().subject, routers[0]);
    (provider, target)
}

fn legs(router: &RunningRouter) -> u64 {
    router.view.borrow().totals.connections
}

/// Legs that consumers lost with their connection, instead of leaving them.
fn lost(world: &World) -> u64 {
    let (role, cause) = (Side::consumer, "connection");
    let lost = world.metrics.legs_lost.get(&LossLabels { role, cause });
    lost.map_or(0, |lost| lost.get())
}

#[tokio::test]
async fn a_drained_router_hands_its_flows_over_before_it_ends() {
    let mut world = World::new();
    let mut first = world.router("r").await;
    let mut second = world.router("s").await;
    let backend = Backend::echo().await;
    let (_provider, target) = everywhere(&mut world, &[&first, &second], &backend).await;
    let consumer = world.consumer();
    let load = Load::start(&consumer, &target, 20).await;
    first.shows(|view| view.totals.connections == 20).await;
    assert_eq!(legs(&second), 0);

    let begun = Instant::now();
    first.stopped().await;
    let took = begun.elapsed();
    second.shows(|view| view.totals.connections == 20).await;
    let stall = load.end().await;
    println!("20 flows moved in {took:?}, longest stall {stall:?}");
    assert_eq!(
        lost(&world),
        0,
        "the new leg was there before the old one went"
    );
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(stall < STALL, "{stall:?}");
}

/// The provider's end asks for a leg elsewhere, and there is no elsewhere.
#[tokio::test]
async fn a_flow_that_was_asked_to_move_and_cannot_goes_on_where_it_was() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = everywhere(&mut world, &[&router], &backend).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().carried(&mut tasks, &target).await;
    for byte in 0..5 {
        router.stopped().await;
        router = world.router_at("r", router.addr.into());
        echoes(&mut client, byte).await;
    }
}

#[tokio::test]
async fn three_routers_restart_one_after_the_other_under_load() {
    let mut world = World::new();
    let mut routers = Vec::new();
    for node in ["r", "s", "t"] {
        routers.push(world.router(node).await);
    }
    let backend = Backend::echo().await;
    let all: Vec<&RunningRouter> = routers.iter().collect();
    let (mut provider, target) = everywhere(&mut world, &all, &backend).await;
    let consumer = world.consumer();
    let load = Load::start(&consumer, &target, 10).await;
    for router in &mut routers {
        let begun = Instant::now();
        router.stopped().await;
        println!("{} drained in {:?}", router.peer.node, begun.elapsed());
        *router = world.router_at(router.peer.node.as_str(), router.addr.into());
        provider.published().await;
        router.shows(|view| !view.services.is_empty()).await;
    }
    let stall = load.end().await;
    println!("longest stall {stall:?}");
    assert_eq!(
        lost(&world),
        0,
        "the new leg was there before the old one went"
    );
    assert!(stall < STALL, "{stall:?}");
}

#[tokio::test]
async fn with_a_single_router_flows_wait_until_it_is_back() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = everywhere(&mut world, &[&router], &backend).await;
    let consumer = world.consumer();
    let load = Load::start(&consumer, &target, 10).await;
    router.shows(|view| view.totals.connections == 10).await;
    let begun = Instant::now();
    router.stopped().await;
    let took = begun.elapsed();
    // Nobody can go anywhere, so there is nothing to wait for.
    assert!(took < Duration::from_secs(10), "{took:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut again = world.router_at("r", router.addr.into());
    again.shows(|view| view.totals.connections == 10).await;
    let stall = load.end().await;
    println!("drained in {took:?}; half a second without a router, longest stall {stall:?}");
    assert!(stall < STALL + Duration::from_millis(500), "{stall:?}");
}

/// Its old connection carries what ends in the router itself, and nothing else waits for that.
#[tokio::test]
async fn a_router_that_goes_to_another_address_is_used_there_at_once() {
    let mut world = World::new();
    let old = world.router("r").await;
    let backend = Backend::echo().await;
    let own: Arc<Vec<_>> = vec![publication("own.default", 80, backend.addr)].into();
    old.backends.send_replace(Arc::clone(&own));
    let of = |router: &RunningRouter| target("own.default", 80, "/node/r".parse().unwrap(), router);
    let (consumer, mut ends) = (world.consumer(), JoinSet::new());
    let mut client = consumer.carried(&mut ends, &of(&old)).await;
    let elsewhere = world.router_at("r", "127.0.0.1:0".parse().unwrap());
    elsewhere.backends.send_replace(own);
    old.stop.cancel();
    soon(async {
        while !consumer.links.draining(&old.peer.node) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let mut another = consumer.carried(&mut ends, &of(&elsewhere)).await;
    for byte in 0..20 {
        echoes(&mut client, byte).await;
        echoes(&mut another, byte).await;
    }
    assert!(!old.is_done(), "it waits for the flow that ends there");
    drop(client);
    end(&mut ends).await.unwrap();
    let mut old = old;
    old.stopped().await;
    echoes(&mut another, b'z').await;
}

#[tokio::test]
async fn a_withdrawn_service_keeps_its_flows_over_a_move() {
    let mut world = World::new();
    let mut first = world.router("r").await;
    let second = world.router("s").await;
    let backend = Backend::echo().await;
    let (mut provider, target) = everywhere(&mut world, &[&first, &second], &backend).await;
    let consumer = world.consumer();
    let load = Load::start(&consumer, &target, 3).await;
    provider.publications.send_replace(Arc::default());
    soon(provider.state.wait_for(|list| list.is_empty()))
        .await
        .unwrap();
    first.stopped().await;
    let stall = load.end().await;
    assert!(stall < STALL, "{stall:?}");
    drop(second);
}

/// An idle flow over a router that is killed and comes back: how long its end believes in the dead connection.
async fn noticed(forget: &[&str]) -> Duration {
    let mut world = World::new();
    let router = world.router_to_kill("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = everywhere(&mut world, &[&router], &backend).await;
    let consumer = world.consumer();
    let mut ends = JoinSet::new();
    let mut client = consumer.connect(&mut ends, &target).await;
    exchange(&mut client, b"before").await;
    let link = consumer.links.link(&router.peer).await.unwrap();
    let dir = world.quic_dir("r");
    soon(async {
        // One line for each of the two peers, and the title.
        while std::fs::read_to_string(dir.join("peers")).map_or(0, |text| text.lines().count()) < 3
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    world.kill().await;
    for file in forget {
        std::fs::remove_file(dir.join(file)).unwrap();
    }
    let _again = world.router_at("r", router.addr.into());
    let begun = Instant::now();
    soon(async {
        while link.is_alive() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let took = begun.elapsed();
    exchange(&mut client, b"after").await;
    client.shutdown().await.unwrap();
    let end = soon(ends.join_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(end.reason, EndReason::Done);
    took
}

#[tokio::test]
async fn idle_peers_hear_of_a_restart_at_once() {
    let took = noticed(&[]).await;
    println!("noticed {took:?} after the start");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

/// What the test before this one measures comes from the persisted keys: with others nobody believes the resets.
#[tokio::test]
async fn without_its_reset_key_idle_peers_notice_a_restart_late() {
    let took = noticed(&["reset.key"]).await;
    println!("noticed {took:?} after the start");
    assert!(took > Duration::from_secs(1), "{took:?}");
}
