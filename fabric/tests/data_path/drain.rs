//! A router that stops: nothing new, and what can go elsewhere goes before it ends.

use std::time::{Duration, Instant};

use bytes::Bytes;
use keel_fabric::consumer::{OpenError, Target};
use keel_fabric::metrics::{EndLabels, Side};
use keel_fabric::wire::{
    Decoder, Frame, GoneCode, MAX_HEADER_FRAME, Open, Place, RefuseCode, ResetCode,
};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

use crate::admission::connect;
use crate::backend::Backend;
use crate::counters::until;
use crate::headers;
use crate::limits::{answer, cut, hits, silent};
use crate::world::{World, echoes, end, publication, soon, target};

#[tokio::test]
async fn a_router_that_stops_takes_nothing_new() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, other) = world.echo(&router, backend.addr).await;
    router
        .backends
        .send_replace(vec![publication("own.default", 80, backend.addr)].into());
    router.shows(|view| view.services.len() == 2).await;
    // A flow that ends in the router may go on until the deadline, and keeps it here.
    let own = target("own.default", 80, "/node/r".parse().unwrap(), &router);
    let consumer = world.consumer();
    let mut tasks = JoinSet::new();
    let mut client = consumer.carried(&mut tasks, &own).await;
    let link = consumer.links.link(&router.peer).await.unwrap();
    assert!(!link.is_draining());

    router.stop.cancel();
    soon(link.drained()).await;
    assert!(consumer.links.draining(&router.peer.node));
    let mut more = JoinSet::new();
    let _refused = consumer.connect(&mut more, &other).await;
    match end(&mut more).await {
        Err(error @ OpenError::Refused { code, .. }) => {
            assert_eq!(code, RefuseCode::Draining);
            assert!(error.elsewhere());
        }
        other => panic!("{other:?}"),
    }
    // A new connection is refused at once, not left to its timeout.
    let begun = Instant::now();
    let stranger = world.consumer();
    assert!(soon(stranger.links.link(&router.peer)).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(3), "{begun:?}");

    echoes(&mut client, b'b').await;
    drop(client);
    router.stopped().await;
}

#[tokio::test]
async fn a_flow_that_ends_in_the_router_is_reset_at_the_deadline() {
    let mut world = World::new();
    world.drain_timeout = Duration::from_millis(300);
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    router
        .backends
        .send_replace(vec![publication("echo.default", 80, backend.addr)].into());
    router.shows(|view| !view.services.is_empty()).await;
    let target = target("echo.default", 80, "/node/r".parse().unwrap(), &router);
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().carried(&mut tasks, &target).await;
    let begun = Instant::now();
    router.stopped().await;
    assert!(begun.elapsed() >= world.drain_timeout, "{begun:?}");
    let error = soon(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(end(&mut tasks).await.unwrap().reason.name(), "SHUTDOWN");
    // Both ends have said so.
    for role in [Side::consumer, Side::provider] {
        let labels = EndLabels {
            role,
            how: "reset",
            code: "SHUTDOWN",
        };
        let ended = world.metrics.flows_ended.get_or_create(&labels).get();
        assert_eq!(ended, 1, "{role:?}");
    }
}

#[tokio::test]
async fn a_router_that_is_hurried_waits_for_nothing() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    router
        .backends
        .send_replace(vec![publication("echo.default", 80, backend.addr)].into());
    router.shows(|view| !view.services.is_empty()).await;
    let target = target("echo.default", 80, "/node/r".parse().unwrap(), &router);
    let mut tasks = JoinSet::new();
    let _client = world.consumer().carried(&mut tasks, &target).await;
    let begun = Instant::now();
    router.hurry.cancel();
    router.stopped().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{begun:?}");
}

/// An end that knows DRAIN and nothing of its answers.
#[tokio::test]
async fn an_end_that_does_not_answer_is_waited_for_until_the_deadline() {
    let mut world = World::new();
    world.drain_timeout = Duration::from_secs(1);
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let live = world.fabric.pod("a", "default", "c");
    let connection = connect(&router, &live).await;
    let _control = silent(&connection).await;
    let (accepted, (_send, mut recv)) = answer(&connection, open(&target, 0)).await;
    assert!(matches!(accepted, Frame::Accept { .. }), "{accepted:?}");
    let begun = Instant::now();
    router.stop.cancel();
    // The provider's end asks for a leg elsewhere, should the router not be heard.
    let mut decoder = Decoder::new();
    let asked = loop {
        match decoder.next().unwrap() {
            Some(Frame::Move(Place::Elsewhere)) => break begun.elapsed(),
            Some(_) => {}
            None => decoder.push(soon(recv.read_chunk(1000)).await.unwrap().unwrap()),
        }
    };
    assert!(asked < Duration::from_secs(5), "{asked:?}");
    router.stopped().await;
    assert!(begun.elapsed() >= world.drain_timeout, "{begun:?}");
    assert!(hits(&world).contains(&("drain_time", 1)));
}

/// As after a restart of the router: the consumer is back before the provider.
#[tokio::test]
async fn a_resumed_leg_waits_a_moment_for_its_provider() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let live = world.fabric.pod("b", "default", "p");
    let target = target("echo.default", 80, live.identity().subject, &router);
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    let waiting = answer(&connection, resume(&target));
    let metrics = world.metrics.clone();
    let coming = async {
        until(|| metrics.router_legs_parked.get() == 1).await;
        world.echo(&router, backend.addr).await
    };
    let ((frame, _), (provider, _)) = tokio::join!(waiting, coming);
    // The provider was asked, and has no such flow.
    let code = GoneCode::Unknown;
    assert_eq!(frame, Frame::Gone { code });

    provider.stop.cancel();
    let mut done = provider.done.clone();
    soon(done.wait_for(|done| *done)).await.unwrap();
    world.close_links().await;
    let begun = Instant::now();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let mut out = bytes::BytesMut::new();
    resume(&target).encode(&mut out);
    send.write_chunk(out.freeze()).await.unwrap();
    assert_eq!(cut(&mut recv).await, ResetCode::LegLost);
    assert!(begun.elapsed() >= world.router_limits.park_time / 2);
}

#[tokio::test]
async fn a_header_that_the_router_makes_too_long_is_refused() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let live = world.fabric.pod("a", "default", "c");
    let connection = connect(&router, &live).await;
    let _control = silent(&connection).await;
    let Frame::Open(bare) = open(&target, 0) else {
        panic!("an open")
    };
    let size = |open: &Open| {
        let mut out = bytes::BytesMut::new();
        open.encode(&mut out);
        out.len()
    };
    // What the router writes: the identity in the place of an empty text.
    let stamped = Open {
        from: Some(live.identity().subject),
        window: Some(60_000),
        rest: Bytes::from(vec![0; 100]),
        ..(*bare).clone()
    };
    let most = 100 + MAX_HEADER_FRAME - size(&stamped);
    let (fits, _leg) = answer(&connection, open(&target, most)).await;
    assert!(matches!(fits, Frame::Accept { .. }), "{fits:?}");
    match answer(&connection, open(&target, most + 1)).await.0 {
        Frame::Refuse { code, text } => {
            assert_eq!(code, RefuseCode::Limit);
            assert!(text.contains("4096 bytes"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(hits(&world).contains(&("header_size", 1)));
}

fn resume(target: &Target) -> Frame {
    Frame::Resume(Box::new(headers::resume(&headers::open(target))))
}

/// An open of a later version, whose fields that nobody knows have that length.
fn open(target: &Target, rest: usize) -> Frame {
    Frame::Open(Box::new(Open {
        window: Some(60_000),
        rest: Bytes::from(vec![0; rest]),
        ..headers::open(target)
    }))
}
