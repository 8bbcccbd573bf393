//! Bytes get through, whole and in order, and ends end.

use std::sync::Arc;

use keel_fabric::EndReason;
use keel_fabric::consumer::OpenError;
use keel_fabric::wire::{AbortCode, Frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::admission::connect;
use crate::backend::{Backend, exchange, noise, sha256};
use crate::headers;
use crate::limits::answer;
use crate::resets::reset;
use crate::world::{World, echoes, end, publication, soon, target};

#[tokio::test]
async fn a_flow_carries_bytes_both_ways_and_ends_clean() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    assert_eq!(
        soon(exchange(&mut client, b"hello")).await.unwrap(),
        b"hello"
    );
    let end = end(&mut tasks).await.unwrap();
    assert_eq!(
        (end.reason, end.bytes_up, end.bytes_down),
        (EndReason::Done, 5, 5)
    );
}

#[tokio::test]
async fn sixty_four_flows_at_once_do_not_mix() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let mut ends = JoinSet::new();
    let mut clients = JoinSet::new();
    for seed in 0..64 {
        let mut client = consumer.connect(&mut ends, &target).await;
        clients.spawn(async move {
            let bytes = noise(seed, 100_000 + seed as usize);
            assert!(
                exchange(&mut client, &bytes).await.unwrap() == bytes,
                "flow {seed}"
            );
        });
    }
    while let Some(done) = soon(clients.join_next()).await {
        done.unwrap();
    }
    while let Some(done) = soon(ends.join_next()).await {
        assert_eq!(done.unwrap().unwrap().reason, EndReason::Done);
    }
}

#[tokio::test]
async fn sixty_four_mebibytes_come_back_unchanged() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let bytes = noise(1, 64 << 20);
    let answer = tokio::time::timeout(4 * crate::world::PATIENCE, exchange(&mut client, &bytes))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (answer.len(), sha256(&answer)),
        (bytes.len(), sha256(&bytes))
    );
    assert_eq!(end(&mut tasks).await.unwrap().bytes_up, 64 << 20);
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::new(|mut socket| async move {
        socket.write_all(b"220 ready\r\n").await.unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.ok();
    })
    .await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let mut banner = [0; 11];
    soon(client.read_exact(&mut banner)).await.unwrap();
    assert_eq!(&banner, b"220 ready\r\n");
}

#[tokio::test]
async fn a_half_closed_client_still_gets_a_long_answer() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::new(|mut socket| async move {
        let mut request = Vec::new();
        socket.read_to_end(&mut request).await.unwrap();
        socket.write_all(&noise(7, 3 << 20)).await.unwrap();
    })
    .await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let answer = soon(exchange(&mut client, b"request")).await.unwrap();
    assert!(answer == noise(7, 3 << 20));
    assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
}

#[tokio::test]
async fn a_server_may_close_its_side_first() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::new(|mut socket| async move {
        socket.write_all(b"bye").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"late");
    })
    .await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let mut answer = Vec::new();
    soon(client.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"bye");
    client.write_all(b"late").await.unwrap();
    client.shutdown().await.unwrap();
    let end = end(&mut tasks).await.unwrap();
    assert_eq!(
        (end.reason, end.bytes_up, end.bytes_down),
        (EndReason::Done, 4, 3)
    );
}

#[tokio::test]
async fn a_router_dials_its_own_backend() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    router
        .backends
        .send_replace(vec![publication("echo.default", 80, backend.addr)].into());
    let view = router.shows(|view| !view.services.is_empty()).await;
    assert_eq!(view.services[0].providers[0].identity.path(), "/node/r");
    let target = target("echo.default", 80, "/node/r".parse().unwrap(), &router);
    let mut tasks = JoinSet::new();
    let consumer = world.consumer();
    let mut client = consumer.connect(&mut tasks, &target).await;
    assert_eq!(
        soon(exchange(&mut client, b"hello")).await.unwrap(),
        b"hello"
    );
    assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
    let view = router
        .shows(|view| view.totals.bytes_out == 5 && view.totals.connections == 0)
        .await;
    assert_eq!(view.services[0].clients[0].bytes_in, 5);
}

#[tokio::test]
async fn a_flow_to_a_backend_of_the_router_outlives_its_place_in_the_list() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    router
        .backends
        .send_replace(vec![publication("echo.default", 80, backend.addr)].into());
    router.shows(|view| !view.services.is_empty()).await;
    let target = target("echo.default", 80, "/node/r".parse().unwrap(), &router);
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = connection.open_bi().await.unwrap();
    let open = headers::open(&target);
    let (accepted, _leg) = answer(&connection, Frame::Open(Box::new(open.clone()))).await;
    assert!(matches!(accepted, Frame::Accept { .. }), "{accepted:?}");
    router.backends.send_replace(Arc::default());
    router.shows(|view| view.services.is_empty()).await;
    let resume = Frame::Resume(Box::new(headers::resume(&open)));
    let (resumed, _leg) = answer(&connection, resume).await;
    assert!(matches!(resumed, Frame::Resumed { .. }), "{resumed:?}");
    let new = Frame::Open(Box::new(headers::open(&target)));
    let (refused, _leg) = answer(&connection, new).await;
    assert!(matches!(refused, Frame::Refuse { .. }), "{refused:?}");
}

#[tokio::test]
async fn the_view_names_providers_and_clients_and_forgets_them() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    client.write_all(b"x").await.unwrap();
    soon(client.read_u8()).await.unwrap();
    let view = router
        .shows(|view| view.totals.connections == 1 && view.totals.bytes_out > 0)
        .await;
    let service = &view.services[0];
    assert_eq!(
        (service.service.to_string().as_str(), service.port),
        ("echo.default", 80)
    );
    assert_eq!(
        service.providers[0].identity.path(),
        "/node/b/ns/default/pod/p"
    );
    assert!(service.providers[0].since <= crate::world::now());
    let roles: Vec<_> = service
        .clients
        .iter()
        .map(|c| (c.identity.path(), c.connections))
        .collect();
    assert_eq!(
        roles,
        [
            ("/node/a/ns/default/pod/c".to_owned(), 1),
            ("/node/b/ns/default/pod/p".to_owned(), 1)
        ]
    );
    provider.stop.cancel();
    router.shows(|view| view.services.is_empty()).await;
}

#[tokio::test]
async fn an_urgent_byte_stays_in_the_stream() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    client.write_all(b"abc").await.unwrap();
    socket2::SockRef::from(&client)
        .send_out_of_band(b"D")
        .unwrap();
    client.write_all(b"ef").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon(client.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"abcDef");
}

#[tokio::test]
async fn of_a_hundred_flows_on_one_connection_one_is_reset_and_the_others_are_exact() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let (mut ends, mut clients) = (JoinSet::new(), Vec::new());
    for _ in 0..100 {
        clients.push(consumer.carried(&mut ends, &target).await);
    }
    let which = rand::random_range(0..clients.len());
    println!("the one is {which}");
    let doomed = clients.swap_remove(which);
    let mut exchanges = JoinSet::new();
    for (seed, mut client) in (0..).zip(clients) {
        exchanges.spawn(async move {
            let bytes = noise(seed, 100_000);
            let answer = exchange(&mut client, &bytes).await.unwrap();
            assert!(answer == bytes, "flow {seed}");
        });
    }
    // Into the middle of the others.
    soon(exchanges.join_next()).await.unwrap().unwrap();
    reset(doomed);
    while let Some(done) = soon(exchanges.join_next()).await {
        done.unwrap();
    }
    let mut reasons = Vec::new();
    while let Some(end) = soon(ends.join_next()).await {
        reasons.push(end.unwrap().unwrap().reason);
    }
    let done = reasons.iter().filter(|reason| **reason == EndReason::Done);
    assert_eq!(done.count(), 99, "{reasons:?}");
    assert!(reasons.contains(&EndReason::Aborted(AbortCode::Reset)));
}

/// As port scanners and simple health checks do.
#[tokio::test]
async fn connections_that_are_closed_at_once_leave_nothing_and_disturb_nobody() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let (mut early, mut ends) = (JoinSet::new(), JoinSet::new());
    let mut neighbour = consumer.carried(&mut early, &target).await;
    let made = world.metrics.links_connected.get();
    let count = if crate::long() { 10_000 } else { 1_000 };
    for _ in 0..count {
        drop(consumer.connect(&mut ends, &target).await);
        // A client of a real listener makes one after the other.
        let ended = soon(ends.join_next()).await.unwrap().unwrap();
        assert!(
            ended.is_ok() || matches!(ended, Err(OpenError::ClientGone)),
            "{ended:?}"
        );
    }
    echoes(&mut neighbour, b'n').await;
    let now = world.metrics.links_connected.get();
    assert_eq!(now, made, "nobody lost its connection");
}
