//! A router may go and come back; the flow goes on.

use std::time::{Duration, Instant};

use keel_fabric::EndReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::backend::{Backend, noise};
use crate::counters::until;
use crate::limits::hits;
use crate::world::{World, echoes, end, publication, soon};

#[tokio::test]
async fn a_flow_survives_the_restart_of_its_router() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let bytes = noise(11, 8 << 20);
    let (mut read, mut write) = client.split();
    let sent = bytes.clone();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = async {
        let mut answer = vec![0; 1 << 20];
        read.read_exact(&mut answer).await.unwrap();
        // In the middle of the transfer.
        router.stopped().await;
        let again = world.router_at("r", router.addr.into());
        read.read_to_end(&mut answer).await.unwrap();
        (answer, again)
    };
    let ((), (answer, _again)) = soon(async { tokio::join!(send, receive) }).await;
    assert!(
        answer == bytes,
        "{} of {} bytes, or others",
        answer.len(),
        bytes.len()
    );
    let end = end(&mut tasks).await.unwrap();
    assert_eq!(end.reason, EndReason::Done);
    assert!(end.resumes >= 1);
}

#[tokio::test]
async fn an_idle_flow_notices_the_restart_and_goes_on() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().carried(&mut tasks, &target).await;
    router.stopped().await;
    let _again = world.router_at("r", router.addr.into());
    echoes(&mut client, b'b').await;
    drop(client);
    assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
}

#[tokio::test]
async fn a_flow_whose_router_stays_away_ends_in_a_reset_at_both_ends() {
    let mut world = World::new();
    world.limits.resume_window = Duration::from_millis(300);
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().carried(&mut tasks, &target).await;
    router.stopped().await;
    let error = soon(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let end = end(&mut tasks).await.unwrap();
    assert_eq!(end.reason.name(), "WINDOW_EXPIRED");
}

#[tokio::test]
async fn a_new_connection_of_the_same_identity_takes_new_flows() {
    let mut world = World::new();
    let router = world.router("r").await;
    let name = |name: &'static [u8]| {
        Backend::new(move |mut socket| async move {
            socket.write_all(name).await.ok();
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.ok();
        })
    };
    let (first, second) = (name(b"1").await, name(b"2").await);
    let (_old, target) = world.echo(&router, first.addr).await;
    let consumer = world.consumer();
    let mut tasks = JoinSet::new();
    let mut before = consumer.connect(&mut tasks, &target).await;
    assert_eq!(soon(before.read_u8()).await.unwrap(), b'1');
    let live = world.fabric.pod("b", "default", "p");
    let mut new = world.provider(
        &live,
        &[&router],
        vec![publication("echo.default", 80, second.addr)],
    );
    new.published().await;
    let mut after = consumer.connect(&mut tasks, &target).await;
    assert_eq!(soon(after.read_u8()).await.unwrap(), b'2');
    // What ran before runs on.
    before.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(before.read_to_end(&mut rest)).await.unwrap();
}

#[tokio::test]
async fn a_flow_survives_the_kill_of_its_router() {
    let mut world = World::new();
    let router = world.router_to_kill("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let bytes = noise(12, 8 << 20);
    let (mut read, mut write) = client.split();
    let sent = bytes.clone();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = async {
        let mut answer = vec![0; 1 << 20];
        read.read_exact(&mut answer).await.unwrap();
        world.kill().await;
        let again = world.router_at("r", router.addr.into());
        read.read_to_end(&mut answer).await.unwrap();
        (answer, again)
    };
    let ((), (answer, _again)) = soon(async { tokio::join!(send, receive) }).await;
    assert!(
        answer == bytes,
        "{} of {} bytes, or others",
        answer.len(),
        bytes.len()
    );
    assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
}

#[tokio::test]
async fn a_client_that_resets_while_its_router_is_away_leaves_nothing_behind() {
    let mut world = World::new();
    world.limits.resume_window = Duration::from_millis(500);
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let client = world.consumer().carried(&mut tasks, &target).await;
    router.stopped().await;
    socket2::SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    assert!(matches!(
        end(&mut tasks).await.unwrap().reason,
        EndReason::Aborted(_)
    ));
}

/// So many flows over a router that dies and is back; says how long it took until all carried again.
async fn come_back(world: &mut World, flows: usize) -> Duration {
    let router = world.router_to_kill("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..flows {
        clients.push(consumer.carried(&mut tasks, &target).await);
    }
    // From then on a router that is killed is missed at once, by idle peers too.
    let peers = world.quic_dir("r").join("peers");
    let known = || std::fs::read_to_string(&peers).is_ok_and(|peers| peers.lines().count() > 2);
    until(known).await;
    world.kill().await;
    let began = Instant::now();
    let _again = world.router_at("r", router.addr.into());
    for client in &mut clients {
        echoes(client, b'b').await;
    }
    let took = began.elapsed();
    drop(clients);
    while let Some(ended) = soon(tasks.join_next()).await {
        assert_eq!(ended.unwrap().unwrap().reason, EndReason::Done);
    }
    took
}

#[tokio::test]
async fn a_hundred_flows_are_back_within_three_seconds_of_their_routers_death() {
    let mut world = World::new();
    let took = come_back(&mut world, 100).await;
    println!("100 flows were back after {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(!hits(&world).iter().any(|(name, _)| *name == "resumes"));
}

#[tokio::test]
async fn flows_that_find_too_many_others_before_them_come_back_later() {
    let mut world = World::new();
    world.router_limits.resumes_per_second = 50;
    world.router_limits.resumes_burst = 10;
    let took = come_back(&mut world, 60).await;
    println!("60 flows were back after {took:?} at 50 a second");
    assert!(took > Duration::from_millis(900), "{took:?}");
    assert!(hits(&world).iter().any(|(name, _)| *name == "resumes"));
}
