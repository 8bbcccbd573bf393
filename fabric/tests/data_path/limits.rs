//! Limits hit exactly their metric, and legs are believed only as far as they are proven.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::BytesMut;
use keel_fabric::EndReason;
use keel_fabric::consumer::OpenError;
use keel_fabric::limits::KEYS;
use keel_fabric::metrics::{FabricMetrics, LimitLabels};
use keel_fabric::quic::{Connection, ReadError, RecvStream, SendStream};
use keel_fabric::wire::{CloseCode, Decoder, Frame, GoneCode, Open, RefuseCode, ResetCode, Resume};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::admission::connect;
use crate::backend::Deaf;
use crate::bounds::{bytes, only};
use crate::headers;
use crate::publications::Alone;
use crate::world::{World, end, soon, target};

/// The limits that were hit, and how often.
pub(crate) fn hits(world: &World) -> Vec<(&'static str, u64)> {
    hits_in(&world.metrics)
}

/// Those of one part that counts for itself.
pub(crate) fn hits_in(metrics: &FabricMetrics) -> Vec<(&'static str, u64)> {
    let names: BTreeSet<_> = KEYS.iter().map(|key| key.metric).collect();
    let names = names.into_iter().chain(["drain_time"]);
    let count = |name| {
        metrics
            .limit_hit
            .get(&LimitLabels { name })
            .map_or(0, |hits| hits.get())
    };
    names
        .map(|name| (name, count(name)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// A stream that says nothing yet.
pub(crate) async fn silent(connection: &Connection) -> (SendStream, RecvStream) {
    let (mut send, recv) = connection.open_bi().await.unwrap();
    // Half a header, so that the router sees the stream.
    send.write_all(&[1]).await.unwrap();
    (send, recv)
}

pub(crate) async fn cut(recv: &mut RecvStream) -> ResetCode {
    match soon(recv.read_chunk(100)).await {
        Err(ReadError::Reset(code)) => ResetCode::from_wire(code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn streams_beyond_the_limit_are_cut() {
    let mut world = World::new();
    world.router_limits.streams = 1;
    let router = world.router("r").await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    let _first = silent(&connection).await;
    let (_send, mut second) = silent(&connection).await;
    assert_eq!(cut(&mut second).await, ResetCode::Limit);
    assert_eq!(hits(&world), [("streams", 1)]);
}

#[tokio::test]
async fn opens_beyond_the_rate_are_cut() {
    let mut world = World::new();
    world.router_limits.opens_burst = 1;
    world.router_limits.opens_per_second = 0;
    let router = world.router("r").await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    for expected in [RefuseCode::UnknownService, RefuseCode::Limit] {
        let absent = target("echo.default", 80, "/node/z".parse().unwrap(), &router);
        let header = Frame::Open(Box::new(headers::open(&absent)));
        match answer(&connection, header).await.0 {
            Frame::Refuse { code, .. } => assert_eq!(code, expected),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(hits(&world), [("opens", 1)]);
}

#[tokio::test]
async fn connections_of_an_identity_beyond_the_limit_are_closed() {
    let mut world = World::new();
    world.router_limits.connections_per_identity = 1;
    let mut router = world.router("r").await;
    let live = world.fabric.pod("a", "default", "c");
    let _first = connect(&router, &live).await;
    router.shows(|view| view.totals.clients == 1).await;
    let second = connect(&router, &live).await;
    let lost = soon(second.closed()).await;
    let expected = format!("code {}", CloseCode::Limit.to_wire());
    assert!(lost.to_string().contains(&expected), "{lost}");
    assert_eq!(hits(&world), [("connections_per_identity", 1)]);
}

#[tokio::test]
async fn a_header_that_does_not_come_costs_its_stream() {
    let mut world = World::new();
    world.router_limits.header_time = Duration::from_millis(50);
    let router = world.router("r").await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    let (_send, mut recv) = silent(&connection).await;
    assert_eq!(cut(&mut recv).await, ResetCode::HeaderTimeout);
    assert_eq!(hits(&world), [("header_time", 1)]);
}

#[tokio::test]
async fn a_header_that_does_not_come_costs_its_stream_at_a_provider_too() {
    let mut world = World::new();
    world.provider_limits.header_time = Duration::from_millis(50);
    let alone = Alone::new(&mut world).await;
    let (_send, mut recv) = silent(&alone.connection).await;
    assert_eq!(cut(&mut recv).await, ResetCode::HeaderTimeout);
    only(&world, "header_time", 1).await;
    // The other streams of the connection are none the worse for it.
    let open = Open {
        from: Some("/node/a".parse().unwrap()),
        ..headers::open(&alone.target)
    };
    let (accepted, _leg) = answer(&alone.connection, Frame::Open(Box::new(open))).await;
    assert!(matches!(accepted, Frame::Accept { .. }), "{accepted:?}");
}

#[tokio::test]
async fn a_redial_survives_whoever_waits_for_it() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let deaf = Deaf::new().await;
    let (_provider, target) = world.echo(&router, deaf.addr).await;
    let consumer = world.consumer();
    let (mut client, mut flow) = consumer.flow().await;
    client.write_all(b"a").await.unwrap();
    let away = async {
        router.shows(|view| view.totals.connections == 1).await;
        router.stopped().await;
        let metrics = world.metrics.clone();
        crate::counters::until(|| metrics.legs_dialled.get() > 0).await;
    };
    tokio::select! {
        opened = flow.open(&consumer.links, &target) => panic!("{opened:?}"),
        () = away => {}
    }
    let _again = world.router_at("r", router.addr.into());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { Ok::<_, OpenError>(flow.carry().await) });
    let listener = deaf.hear();
    let (mut served, _) = soon(listener.accept()).await.unwrap();
    assert_eq!(soon(served.read_u8()).await.unwrap(), b'a');
    served.write_all(b"b").await.unwrap();
    assert_eq!(soon(client.read_u8()).await.unwrap(), b'b');
    drop((client, served));
    assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
}

/// The answer to a header.
pub(crate) async fn answer(
    connection: &Connection,
    header: Frame,
) -> (Frame, (SendStream, RecvStream)) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let mut out = BytesMut::new();
    header.encode(&mut out);
    send.write_chunk(out.freeze()).await.unwrap();
    let mut decoder = Decoder::new();
    loop {
        if let Some(frame) = decoder.next().unwrap() {
            return (frame, (send, recv));
        }
        decoder.push(soon(recv.read_chunk(1000)).await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn a_provider_takes_only_what_is_for_it_and_from_whom_it_is() {
    let mut world = World::new();
    let alone = Alone::new(&mut world).await;
    let connection = alone.connection.clone();
    let us = alone.target.clone();
    let open = Open {
        hops: 1,
        from: Some("/node/a".parse().unwrap()),
        ..headers::open(&us)
    };
    let resume = |from: &str| {
        Frame::Resume(Box::new(Resume {
            from: Some(from.parse().unwrap()),
            ..headers::resume(&open)
        }))
    };
    let refusal = async |open: Open| match answer(&connection, Frame::Open(Box::new(open))).await {
        (Frame::Refuse { code, .. }, _) => code,
        (other, _) => panic!("{other:?}"),
    };
    let nobody = Open {
        from: None,
        ..open.clone()
    };
    assert_eq!(refusal(nobody).await, RefuseCode::Forbidden);
    let other = Open {
        provider: "/node/c".parse().unwrap(),
        ..open.clone()
    };
    assert_eq!(refusal(other).await, RefuseCode::NoProvider);

    let (accepted, _leg) = answer(&connection, Frame::Open(Box::new(open.clone()))).await;
    assert!(matches!(accepted, Frame::Accept { .. }), "{accepted:?}");
    // Everything is right but the identity: the flow is somebody else's.
    let (frame, _) = answer(&connection, resume("/node/z")).await;
    assert_eq!(
        frame,
        Frame::Gone {
            code: GoneCode::Unknown
        }
    );
    let (frame, _) = answer(&connection, resume("/node/a")).await;
    assert!(matches!(frame, Frame::Resumed { .. }), "{frame:?}");
}

#[tokio::test]
async fn waiting_legs() {
    let mut world = World::new();
    world.provider_limits.waiting_legs = 1;
    let alone = Alone::new(&mut world).await;
    let connection = alone.connection.clone();
    let target = alone.target.clone();
    let from = Some("/node/a".parse().unwrap());
    let open = Open {
        from: from.clone(),
        ..headers::open(&target)
    };
    let (mut first, mut accepted) = connection.open_bi().await.unwrap();
    let header = bytes(&Frame::Open(Box::new(open.clone())));
    first.write_all(&header).await.unwrap();
    soon(accepted.read_chunk(100)).await.unwrap().unwrap();
    let resume = Resume {
        from,
        ..headers::resume(&open)
    };
    let header = bytes(&Frame::Resume(Box::new(resume)));
    // They come with one packet: the flow has not taken the one when the other is looked at.
    let mut legs = Vec::new();
    for _ in 0..2 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&header).await.unwrap();
        legs.push((send, recv));
    }
    assert_eq!(cut(&mut legs[1].1).await, ResetCode::LegLost);
    only(&world, "waiting_legs", 1).await;
}
