//! Legs that die in every way: the flow goes on over another one, and soon.

use std::time::Duration;

use keel_fabric::consumer::{OpenError, Target};
use keel_fabric::metrics::{RoleLabels, Side};
use keel_fabric::wire::AbortCode;
use keel_fabric::{EndReason, FlowEnd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::{Backend, exchange, noise};
use crate::relay::Relay;
use crate::world::{
    Consumer, RunningProvider, RunningRouter, World, end, publication, soon, target,
};

/// Longest stall when a router is gone or silent and another one is there; QUIC alone needs 15 s.
const STALL: Duration = Duration::from_secs(5);

/// Two routers that list one provider of an echo service; the consumer dials the first through a relay.
struct Two {
    world: World,
    _backend: Backend,
    first: RunningRouter,
    second: RunningRouter,
    relay: Relay,
    _provider: RunningProvider,
    consumer: Consumer,
    target: Target,
}

async fn two(backend: Backend) -> Two {
    let mut world = World::new();
    let first = world.router("r").await;
    let second = world.router("q").await;
    let relay = Relay::to(&first).await;
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![publication("echo.default", 80, backend.addr)];
    let mut provider = world.provider(&live, &[&first, &second], list);
    provider.published().await;
    world.ways = vec![relay.peer.clone(), second.peer.clone()];
    let consumer = world.consumer();
    let mut target = target("echo.default", 80, live.identity().subject, &first);
    target.router = relay.peer.clone();
    Two {
        world,
        _backend: backend,
        first,
        second,
        relay,
        _provider: provider,
        consumer,
        target,
    }
}

/// Sends and gets back small blocks for some time; the longest time that one took.
async fn rounds(client: &mut TcpStream, seed: u64, time: Duration) -> Duration {
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    let mut round = 0;
    while start.elapsed() < time {
        round += 1;
        let block = noise(seed + round, 200);
        let sent = Instant::now();
        soon(client.write_all(&block)).await.unwrap();
        let mut back = vec![0; block.len()];
        soon(client.read_exact(&mut back)).await.unwrap();
        assert!(back == block, "round {round} of seed {seed}");
        longest = longest.max(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    longest
}

async fn clean(mut client: TcpStream, tasks: &mut JoinSet<Result<FlowEnd, OpenError>>) -> FlowEnd {
    assert!(exchange(&mut client, b"last words").await.unwrap() == b"last words");
    let end = end(tasks).await.unwrap();
    assert_eq!(end.reason, EndReason::Done);
    end
}

/// What becomes of a flow of small blocks when the relay loses packets; the longest stall is printed.
async fn partition(up: bool, down: bool) {
    let mut two = two(Backend::echo().await).await;
    let mut tasks = JoinSet::new();
    let mut client = two.consumer.connect(&mut tasks, &two.target).await;
    rounds(&mut client, 1, Duration::from_millis(300)).await;
    two.relay.pass(up, down);
    let stall = rounds(&mut client, 1000, Duration::from_secs(6)).await;
    println!("up {up}, down {down}: stalled for {stall:?}");
    assert!(stall < STALL, "stalled for {stall:?}");
    two.second.shows(|view| view.totals.connections == 1).await;
    // The old leg comes back, and is fenced.
    two.relay.pass(true, true);
    rounds(&mut client, 2000, Duration::from_secs(2)).await;
    let end = clean(client, &mut tasks).await;
    assert!((1..3).contains(&end.resumes), "{} resumes", end.resumes);
}

#[tokio::test]
async fn a_flow_leaves_a_router_that_falls_silent() {
    partition(false, false).await;
}

#[tokio::test]
async fn a_flow_leaves_a_router_that_hears_nothing() {
    partition(false, true).await;
}

#[tokio::test]
async fn a_flow_leaves_a_router_that_is_not_heard() {
    partition(true, false).await;
}

/// The consumer sends nothing of its own, so nothing of the flow is outstanding.
#[tokio::test]
async fn a_download_leaves_a_router_that_falls_silent() {
    for (up, down) in [(false, false), (false, true)] {
        let bytes = noise(5, 512 << 20 >> 4);
        let served = bytes.clone();
        let backend = Backend::new(move |mut socket| {
            let bytes = served.clone();
            async move {
                for piece in bytes.chunks(64 << 10) {
                    if socket.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        })
        .await;
        let two = two(backend).await;
        let mut tasks = JoinSet::new();
        let mut client = two.consumer.connect(&mut tasks, &two.target).await;
        let mut got = Vec::new();
        let mut longest = Duration::ZERO;
        let mut piece = vec![0; 64 << 10];
        loop {
            if got.len() > 4 << 20 {
                two.relay.pass(up, down);
            }
            let asked = Instant::now();
            let count = soon(client.read(&mut piece)).await.unwrap();
            longest = longest.max(asked.elapsed());
            if count == 0 {
                break;
            }
            got.extend_from_slice(&piece[..count]);
        }
        println!("up {up}, down {down}: stalled for {longest:?}");
        assert!(
            got == bytes,
            "{} of {} bytes, or others",
            got.len(),
            bytes.len()
        );
        assert!(longest < STALL, "stalled for {longest:?}");
        drop(client);
        assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
    }
}

#[tokio::test]
async fn another_router_takes_over_for_one_that_is_killed_for_good() {
    let mut world = World::new();
    let first = world.router_to_kill("r").await;
    let second = world.router("q").await;
    let backend = Backend::echo().await;
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![publication("echo.default", 80, backend.addr)];
    let mut provider = world.provider(&live, &[&first, &second], list);
    provider.published().await;
    world.ways = vec![first.peer.clone(), second.peer.clone()];
    let consumer = world.consumer();
    let target = target("echo.default", 80, live.identity().subject, &first);
    let mut tasks = JoinSet::new();
    let mut client = consumer.connect(&mut tasks, &target).await;
    rounds(&mut client, 1, Duration::from_millis(300)).await;
    let bytes = noise(12, 8 << 20);
    world.kill().await;
    let stall = rounds(&mut client, 1000, Duration::from_secs(2)).await;
    println!("stalled for {stall:?}");
    assert!(stall < STALL, "stalled for {stall:?}");
    assert!(soon(exchange(&mut client, &bytes)).await.unwrap() == bytes);
    let end = end(&mut tasks).await.unwrap();
    assert_eq!(end.reason, EndReason::Done);
    assert!((1..3).contains(&end.resumes), "{} resumes", end.resumes);
}

/// The connection's own timers have backed off far by the end of the outage; a fresh one has not.
#[tokio::test]
async fn an_outage_ends_for_the_flow_when_it_ends() {
    let mut two = two(Backend::echo().await).await;
    two.world.ways = vec![two.relay.peer.clone()];
    two.consumer = two.world.consumer();
    let mut tasks = JoinSet::new();
    let mut client = two.consumer.connect(&mut tasks, &two.target).await;
    rounds(&mut client, 1, Duration::from_millis(300)).await;
    two.relay.pass(false, false);
    client.write_all(b"over?").await.unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    two.relay.pass(true, true);
    let back = Instant::now();
    let mut answer = [0; 5];
    soon(client.read_exact(&mut answer)).await.unwrap();
    println!("continued after {:?}", back.elapsed());
    assert!(answer == *b"over?" && back.elapsed() < Duration::from_secs(3));
    rounds(&mut client, 1000, Duration::from_secs(1)).await;
    clean(client, &mut tasks).await;
}

/// The consumer's link is in best health; it is the provider's that is dead.
#[tokio::test]
async fn a_flow_leaves_a_router_that_cannot_reach_the_provider() {
    let mut world = World::new();
    let (first, second) = (world.router("r").await, world.router("q").await);
    let relay = Relay::to(&first).await;
    let backend = Backend::echo().await;
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![publication("echo.default", 80, backend.addr)];
    let links = world.links(&live);
    let peers = vec![relay.peer.clone(), second.peer.clone()];
    let mut provider = world.provider_over(links, &live, peers, list);
    provider.published().await;
    world.ways = vec![first.peer.clone(), second.peer.clone()];
    let consumer = world.consumer();
    let target = target("echo.default", 80, live.identity().subject, &first);
    let mut tasks = JoinSet::new();
    let mut client = consumer.connect(&mut tasks, &target).await;
    rounds(&mut client, 1, Duration::from_millis(300)).await;
    relay.pass(false, false);
    let stall = rounds(&mut client, 1000, Duration::from_secs(6)).await;
    println!("stalled for {stall:?}");
    assert!(stall < Duration::from_secs(6), "stalled for {stall:?}");
    clean(client, &mut tasks).await;
}

/// The second router takes the stream and can do nothing with it.
#[tokio::test]
async fn a_resume_without_an_answer_is_made_again_elsewhere() {
    let mut world = World::new();
    let (first, half, third) = (
        world.router("r").await,
        world.router("h").await,
        world.router("q").await,
    );
    let near = Relay::to(&first).await;
    let far = Relay::to(&half).await;
    let backend = Backend::echo().await;
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![publication("echo.default", 80, backend.addr)];
    let links = world.links(&live);
    let peers = vec![first.peer.clone(), far.peer.clone(), third.peer.clone()];
    let mut provider = world.provider_over(links, &live, peers, list);
    provider.published().await;
    world.ways = vec![near.peer.clone(), half.peer.clone(), third.peer.clone()];
    let consumer = world.consumer();
    let mut target = target("echo.default", 80, live.identity().subject, &first);
    target.router = near.peer.clone();
    let mut tasks = JoinSet::new();
    let mut client = consumer.connect(&mut tasks, &target).await;
    rounds(&mut client, 1, Duration::from_millis(300)).await;
    far.pass(false, false);
    near.pass(false, false);
    let stall = rounds(&mut client, 1000, Duration::from_secs(6)).await;
    println!("stalled for {stall:?}");
    assert!(
        stall < STALL + Duration::from_secs(1),
        "stalled for {stall:?}"
    );
    clean(client, &mut tasks).await;
}

fn resumes(world: &World) -> u64 {
    let role = Side::consumer;
    world
        .metrics
        .flow_resumes
        .get_or_create(&RoleLabels { role })
        .get()
}

#[tokio::test]
async fn flows_that_are_busy_or_stalled_are_never_suspected() {
    let mut two = two(Backend::echo().await).await;
    two.target.router = two.first.peer.clone();
    let mut tasks = JoinSet::new();
    let mut stalled = two.consumer.connect(&mut tasks, &two.target).await;
    // Written as far as it goes, and nothing is read for the whole test.
    let full = async {
        let piece = noise(3, 64 << 10);
        while tokio::time::timeout(Duration::from_millis(500), stalled.write_all(&piece))
            .await
            .is_ok()
        {}
    };
    full.await;
    let mut clients = JoinSet::new();
    for seed in 0..64 {
        let mut client = two.consumer.connect(&mut tasks, &two.target).await;
        clients.spawn(async move {
            let bytes = noise(seed, 512 << 10);
            assert!(soon(exchange(&mut client, &bytes)).await.unwrap() == bytes);
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    for _ in 0..64 {
        let end = end(&mut tasks).await.unwrap();
        assert_eq!((end.reason, end.resumes), (EndReason::Done, 0));
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(resumes(&two.world), 0);
    assert!(two.first.view.borrow().totals.connections >= 1);
    drop(stalled);
}

#[tokio::test]
async fn a_change_of_the_network_costs_no_flow_its_bytes() {
    let two = two(Backend::echo().await).await;
    let mut tasks = JoinSet::new();
    let mut client = two.consumer.connect(&mut tasks, &two.target).await;
    for seed in 1..4 {
        rounds(&mut client, seed * 1000, Duration::from_millis(300)).await;
        two.consumer.links.network_changed();
        let stall = rounds(&mut client, seed * 1000 + 500, Duration::from_millis(300)).await;
        assert!(stall < Duration::from_secs(2), "stalled for {stall:?}");
    }
    clean(client, &mut tasks).await;
}

/// Both applications see the cut at once, and nothing is looked for.
#[tokio::test]
async fn without_a_resume_window_a_lost_leg_is_a_reset() {
    let mut world = World::new();
    world.limits.resume_window = Duration::ZERO;
    let router = world.router_to_kill("r").await;
    let (seen, mut cut) = tokio::sync::mpsc::channel(1);
    let backend = Backend::new(move |mut socket| {
        let seen = seen.clone();
        async move {
            let mut byte = [0];
            while socket.read_exact(&mut byte).await.is_ok() {
                socket.write_all(&byte).await.ok();
            }
            let error = socket.read(&mut byte).await;
            seen.send(error.map(|_| ()).map_err(|error| error.kind()))
                .await
                .ok();
        }
    })
    .await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    world.ways = vec![router.peer.clone()];
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().carried(&mut tasks, &target).await;
    world.kill().await;
    let _again = world.router_at("r", router.addr.into());
    let error = soon(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    soon(cut.recv()).await.unwrap().ok();
    assert_eq!(
        end(&mut tasks).await.unwrap().reason.name(),
        "WINDOW_EXPIRED"
    );
}

/// The provider's process is another one after the outage: it knows nothing of the flow, and says so.
#[tokio::test]
async fn a_flow_whose_other_end_died_is_reset() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (provider, target) = world.echo(&router, backend.addr).await;
    world.ways = vec![router.peer.clone()];
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().carried(&mut tasks, &target).await;
    router.stopped().await;
    provider.stop.cancel();
    let mut done = provider.done.clone();
    soon(done.wait_for(|done| *done)).await.unwrap();
    let again = world.router_at("r", router.addr.into());
    let (_provider, _) = world.echo(&again, backend.addr).await;
    let error = soon(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(end(&mut tasks).await.unwrap().reason.name(), "PEER_GONE");
}

/// The flow is accepted and cut in one go; what is said of it is the truth.
#[tokio::test]
async fn a_backend_that_resets_at_once_is_called_by_its_name() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::new(|socket| async move {
        socket2::SockRef::from(&socket)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let mut client = consumer.connect(&mut tasks, &target).await;
        let error = soon(client.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        match end(&mut tasks).await {
            Ok(end) => assert_eq!(end.reason.name(), "BACKEND_RESET"),
            Err(error) => assert!(
                matches!(
                    error,
                    OpenError::Cut(AbortCode::BackendReset) | OpenError::Refused { .. }
                ),
                "{error}"
            ),
        }
    }
}
