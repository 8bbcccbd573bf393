//! Resets that come while nothing reads the socket, and backends that say nothing.

use std::io::ErrorKind;
use std::time::Duration;

use keel_fabric::EndReason;
use keel_fabric::consumer::OpenError;
use keel_fabric::metrics::{EndLabels, Side};
use keel_fabric::wire::{AbortCode, RefuseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::backend::{Backend, Deaf, noise};
use crate::resets::reset;
use crate::world::{World, end, publication, soon, target};

/// A backend that reads nothing after a first byte until it may, and then says how its connection ended.
async fn idle() -> (Backend, std::sync::Arc<Notify>, mpsc::Receiver<ErrorKind>) {
    let (seen, kinds) = mpsc::channel(64);
    let go = std::sync::Arc::new(Notify::new());
    let wait = std::sync::Arc::clone(&go);
    let backend = Backend::new(move |mut socket| {
        let (seen, wait) = (seen.clone(), std::sync::Arc::clone(&wait));
        async move {
            socket.write_all(b"x").await.unwrap();
            wait.notified().await;
            let mut all = Vec::new();
            if let Err(error) = socket.read_to_end(&mut all).await {
                seen.try_send(error.kind()).ok();
            }
        }
    })
    .await;
    (backend, go, kinds)
}

#[tokio::test]
async fn a_reset_is_seen_when_the_credit_is_used_up() {
    let mut world = World::new();
    let router = world.router("r").await;
    let (backend, go, mut kinds) = idle().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    soon(client.read_u8()).await.unwrap();
    // More than all buffers on the way hold; what the client's kernel does not take shows that they are full.
    let bytes = noise(9, 1 << 20);
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), client.write(&bytes)).await
    {
        written.unwrap();
    }
    reset(client);
    assert_eq!(
        end(&mut tasks).await.unwrap().reason,
        EndReason::Aborted(AbortCode::Reset)
    );
    go.notify_one();
    assert_eq!(soon(kinds.recv()).await, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_reset_is_seen_behind_a_half_close() {
    let mut world = World::new();
    let router = world.router("r").await;
    let (seen, mut ended) = mpsc::channel(64);
    let backend = Backend::new(move |mut socket| {
        let seen = seen.clone();
        async move {
            socket.write_all(b"x").await.unwrap();
            let mut all = Vec::new();
            seen.try_send(socket.read_to_end(&mut all).await.is_ok())
                .ok();
            // Silent, and never done.
            std::future::pending::<()>().await;
        }
    })
    .await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    soon(client.read_u8()).await.unwrap();
    client.shutdown().await.unwrap();
    // The backend has the end, so the consumer's socket is not read any more.
    soon(ended.recv()).await.unwrap();
    reset(client);
    assert_eq!(
        end(&mut tasks).await.unwrap().reason,
        EndReason::Aborted(AbortCode::Reset)
    );
}

#[tokio::test]
async fn a_reset_of_the_backend_is_seen_behind_its_half_close() {
    let mut world = World::new();
    let router = world.router("r").await;
    let go = std::sync::Arc::new(Notify::new());
    let wait = std::sync::Arc::clone(&go);
    let backend = Backend::new(move |mut socket| {
        let wait = std::sync::Arc::clone(&wait);
        async move {
            socket.shutdown().await.unwrap();
            wait.notified().await;
            reset(socket);
        }
    })
    .await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let mut all = Vec::new();
    assert_eq!(soon(client.read_to_end(&mut all)).await.unwrap(), 0);
    go.notify_one();
    assert_eq!(
        end(&mut tasks).await.unwrap().reason,
        EndReason::Aborted(AbortCode::BackendReset)
    );
}

#[tokio::test]
async fn a_reset_is_seen_before_an_open_and_between_two() {
    let mut world = World::new();
    let router = world.router("r").await;
    let consumer = world.consumer();
    let (client, mut flow) = consumer.flow().await;
    reset(client);
    assert!(matches!(soon(flow.gone()).await, OpenError::ClientGone));
    assert_eq!(flow.reset().reason, EndReason::Aborted(AbortCode::Reset));

    let (mut client, mut flow) = consumer.flow().await;
    client.write_all(b"early").await.unwrap();
    let nowhere = target("nothing.default", 80, "/node/b".parse().unwrap(), &router);
    soon(flow.open(&consumer.links, &nowhere))
        .await
        .unwrap_err();
    // A half-close is no reset.
    client.shutdown().await.unwrap();
    tokio::time::timeout(Duration::from_millis(50), flow.gone())
        .await
        .unwrap_err();
    reset(client);
    assert!(matches!(soon(flow.gone()).await, OpenError::ClientGone));
}

#[tokio::test]
async fn a_deaf_backend_holds_up_nobody_and_its_dials_end_with_their_clients() {
    let mut world = World::new();
    // Longer than the test may take.
    world.provider_limits.dial_time = Duration::from_secs(600);
    let mut router = world.router("r").await;
    let (echo, deaf) = (Backend::echo().await, Deaf::new().await);
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![
        publication("echo.default", 80, echo.addr),
        publication("deaf.default", 80, deaf.addr),
    ];
    let mut provider = world.provider(&live, &[&router], list);
    provider.published().await;
    let consumer = world.consumer();
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    // More early bytes than the window of the provider's connection.
    let silent = target("deaf.default", 80, live.identity().subject, &router);
    for seed in 0..100 {
        let mut client = consumer.connect(&mut tasks, &silent).await;
        client.write_all(&noise(seed, 64 << 10)).await.unwrap();
        clients.push(client);
    }
    router.shows(|view| view.totals.connections == 100).await;
    let good = target("echo.default", 80, live.identity().subject, &router);
    let mut ends = JoinSet::new();
    let mut client = consumer.connect(&mut ends, &good).await;
    let bytes = noise(1000, 64 << 10);
    let answer = soon(crate::backend::exchange(&mut client, &bytes)).await;
    assert!(answer.unwrap() == bytes);

    clients.into_iter().for_each(reset);
    let ended = world.metrics.flows_ended.get_or_create_owned(&EndLabels {
        role: Side::provider,
        how: "reset",
        code: AbortCode::Reset.name(),
    });
    let all = async {
        while ended.get() < 100 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(all).await;
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_refused_at_the_dial_time() {
    let mut world = World::new();
    world.provider_limits.dial_time = Duration::from_millis(200);
    let router = world.router("r").await;
    let deaf = Deaf::new().await;
    let (_provider, target) = world.echo(&router, deaf.addr).await;
    let consumer = world.consumer();
    let (_client, mut flow) = consumer.flow().await;
    let error = soon(flow.open(&consumer.links, &target)).await.unwrap_err();
    assert!(error.elsewhere());
    let OpenError::Refused { code, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(code, RefuseCode::BackendTimeout);
}
