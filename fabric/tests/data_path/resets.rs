//! A cut never looks like an end, and refusals are quick.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use keel_fabric::EndReason;
use keel_fabric::consumer::OpenError;
use keel_fabric::quic::{Connection, RecvStream, SendStream};
use keel_fabric::wire::{AbortCode, Frame, RefuseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::backend::{Backend, nobody, noise};
use crate::bounds::bytes;
use crate::publications::Puppet;
use crate::relay::Relay;
use crate::world::{World, echoes, end, soon, target};

pub(crate) fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_backend() {
    let mut world = World::new();
    let router = world.router("r").await;
    let (seen, mut kinds) = mpsc::channel(1);
    let backend = Backend::new(move |mut socket| {
        let seen = seen.clone();
        async move {
            socket.write_all(b"!").await.unwrap();
            let mut all = Vec::new();
            let error = socket
                .read_to_end(&mut all)
                .await
                .map_err(|error| error.kind());
            seen.send((all, error)).await.unwrap();
        }
    })
    .await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    // A client that is gone before the backend was reached would end the dial.
    soon(client.read_u8()).await.unwrap();
    client.write_all(b"some bytes").await.unwrap();
    reset(client);
    let (all, error) = soon(kinds.recv()).await.unwrap();
    assert_eq!(error, Err(ErrorKind::ConnectionReset));
    assert_eq!(all, b"some bytes");
    let end = end(&mut tasks).await.unwrap();
    assert_eq!(end.reason, EndReason::Aborted(AbortCode::Reset));
}

#[tokio::test]
async fn a_reset_of_the_backend_reaches_the_client_behind_its_bytes() {
    for len in [0, 1, 100_000] {
        let mut world = World::new();
        let router = world.router("r").await;
        let backend = Backend::new(move |mut socket| async move {
            let mut byte = [0];
            socket.read_exact(&mut byte).await.unwrap();
            socket.write_all(&noise(3, len)).await.unwrap();
            reset(socket);
        })
        .await;
        let (_provider, target) = world.echo(&router, backend.addr).await;
        let mut tasks = JoinSet::new();
        let mut client = world.consumer().connect(&mut tasks, &target).await;
        client.write_all(b"x").await.unwrap();
        let mut all = Vec::new();
        let error = soon(client.read_to_end(&mut all)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // The reset drops what the backend's kernel had not sent yet, as it does without us; what came is in order.
        assert!(noise(3, len).starts_with(&all));
        let end = end(&mut tasks).await.unwrap();
        assert_eq!(end.reason, EndReason::Aborted(AbortCode::BackendReset));
    }
}

#[tokio::test]
async fn a_flow_that_was_taken_is_opened_even_if_it_is_over_when_that_is_heard() {
    let mut world = World::new();
    let router = world.router("r").await;
    let relay = Relay::to(&router).await;
    let (was_reset, mut at_backend) = mpsc::channel(1);
    let backend = Backend::new(move |socket| {
        reset(socket);
        let was_reset = was_reset.clone();
        async move { was_reset.send(()).await.unwrap() }
    })
    .await;
    let (_provider, mut target) = world.echo(&router, backend.addr).await;
    target.router = relay.peer.clone();
    let consumer = world.consumer();
    soon(consumer.links.link(&target.router)).await.unwrap();
    relay.pass(true, false);
    let mut tasks = JoinSet::new();
    let mut client = consumer.connect(&mut tasks, &target).await;
    soon(at_backend.recv()).await.unwrap();
    // The provider, on this thread, says both: that it took the flow, and that it is cut.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    relay.pass(true, true);
    let error = soon(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let end = end(&mut tasks).await.unwrap();
    assert_eq!(end.reason, EndReason::Aborted(AbortCode::BackendReset));
}

/// A router that answers the first leg of a flow with `accept` and ends it with the same packet.
async fn cut_short(puppet: &Puppet, accept: bool) -> (Connection, Vec<(SendStream, RecvStream)>) {
    let (connection, control, answers) = puppet.accept().await;
    let (mut send, mut recv) = soon(connection.accept_bi()).await.unwrap();
    soon(recv.read_chunk(1000)).await.unwrap().unwrap();
    if accept {
        let (limit, max_datagram) = (1000, 0);
        let frame = Frame::Accept {
            limit,
            max_datagram,
            window: None,
        };
        send.write_all(&bytes(&frame)).await.unwrap();
    }
    send.finish();
    (connection, vec![(control, answers), (send, recv)])
}

#[tokio::test]
async fn a_flow_that_was_taken_is_opened_even_if_its_leg_is_lost_when_that_is_heard() {
    let mut world = World::new();
    let puppet = Puppet::new(&world);
    let elsewhere = world.router("q").await;
    let mut target = target("echo.default", 80, "/node/b".parse().unwrap(), &elsewhere);
    target.router = puppet.peer();
    let consumer = world.consumer();
    let (_client, mut flow) = consumer.flow().await;
    let served = cut_short(&puppet, true);
    let (opened, _kept) = tokio::join!(soon(flow.open(&consumer.links, &target)), served);
    opened.unwrap();
    flow.reset();
}

#[tokio::test]
async fn an_open_that_cannot_resume_goes_elsewhere_if_nothing_was_said() {
    for said in [false, true] {
        let mut world = World::new();
        let puppet = Puppet::new(&world);
        let router = world.router("q").await;
        let backend = Backend::echo().await;
        let (_provider, good) = world.echo(&router, backend.addr).await;
        let mut bad = good.clone();
        bad.router = puppet.peer();
        bad.options.resume_window = Some(Duration::ZERO);
        let consumer = world.consumer();
        let (mut client, mut flow) = consumer.flow().await;
        if said {
            client.write_all(b"early").await.unwrap();
        }
        let served = cut_short(&puppet, false);
        let (opened, _kept) = tokio::join!(soon(flow.open(&consumer.links, &bad)), served);
        let error = opened.unwrap_err();
        assert_eq!(error.elsewhere(), !said, "{error}");
        if said {
            continue;
        }
        soon(flow.open(&consumer.links, &good)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { Ok(flow.carry().await) });
        echoes(&mut client, b'a').await;
        drop(client);
        assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
    }
}

#[tokio::test]
async fn a_backend_that_refuses_is_a_quick_reset() {
    let mut world = World::new();
    let router = world.router("r").await;
    let (_provider, target) = world.echo(&router, nobody()).await;
    let consumer = world.consumer();
    let mut tasks = JoinSet::new();
    let mut client = consumer.connect(&mut tasks, &target).await;
    client.write_all(b"early").await.unwrap();
    let asked = Instant::now();
    let error = soon(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(
        asked.elapsed() < Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );
    let error = end(&mut tasks).await.unwrap_err();
    assert!(
        matches!(
            &error,
            OpenError::Refused {
                code: RefuseCode::BackendRefused,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.elsewhere());
}

#[tokio::test]
async fn an_unknown_service_and_an_absent_provider_are_refused() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, good) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let unknown = target("nothing.default", 80, good.provider.clone(), &router);
    let absent = target(
        "echo.default",
        80,
        "/node/b/ns/default/pod/other".parse().unwrap(),
        &router,
    );
    for (target, expected) in [
        (unknown, RefuseCode::UnknownService),
        (absent, RefuseCode::NoProvider),
    ] {
        let mut tasks = JoinSet::new();
        let mut client = consumer.connect(&mut tasks, &target).await;
        assert_eq!(
            soon(client.read_u8()).await.unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        let error = end(&mut tasks).await.unwrap_err();
        assert!(
            matches!(&error, OpenError::Refused { code, .. } if *code == expected),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_refused_flow_opens_elsewhere_with_the_same_bytes() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, good) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let (mut client, mut flow) = consumer.flow().await;
    client.write_all(b"early").await.unwrap();
    let bad = target("nothing.default", 80, good.provider.clone(), &router);
    assert!(
        soon(flow.open(&consumer.links, &bad))
            .await
            .unwrap_err()
            .elsewhere()
    );
    soon(flow.open(&consumer.links, &good)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { Ok(flow.carry().await) });
    let mut echoed = [0; 5];
    soon(client.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"early");
    drop(client);
    assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
}

#[tokio::test]
async fn a_router_that_is_not_there_is_an_error_that_names_its_address() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    router.stopped().await;
    let consumer = world.consumer();
    let target = target("echo.default", 80, "/node/b".parse().unwrap(), &router);
    let (mut client, mut flow) = consumer.flow().await;
    let error = soon(flow.open(&consumer.links, &target)).await.unwrap_err();
    assert!(error.elsewhere());
    assert!(error.to_string().contains("router r"), "{error}");
    flow.reset();
    assert_eq!(
        soon(client.read_u8()).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn a_client_that_closes_while_the_server_still_talks_resets_it() {
    let mut world = World::new();
    let router = world.router("r").await;
    let (seen, mut kinds) = mpsc::channel(1);
    let backend = Backend::new(move |mut socket| {
        let seen = seen.clone();
        async move {
            let bytes = noise(5, 64 << 10);
            let error = loop {
                if let Err(error) = socket.write_all(&bytes).await {
                    break error;
                }
            };
            seen.send(error.kind()).await.unwrap();
        }
    })
    .await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    soon(client.read_u8()).await.unwrap();
    drop(client);
    let kind = soon(kinds.recv()).await.unwrap();
    assert!(
        matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{kind:?}"
    );
    assert_eq!(
        end(&mut tasks).await.unwrap().reason,
        EndReason::Aborted(AbortCode::Reset)
    );
}
