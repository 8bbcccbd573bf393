//! What a router holds of one identity is bounded, and stops nobody else.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use keel_fabric::consumer::Target;
use keel_fabric::limits::Limits;
use keel_fabric::link::ALPN;
use keel_fabric::quic::{Connection, Endpoint, Profile, RecvStream, SendStream, Windows};
use keel_fabric::wire::{Frame, Message, MessageDecoder, Offer, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::admission::connect;
use crate::backend::{Backend, noise};
use crate::bounds::{bytes, names, only};
use crate::counters::{settled, until};
use crate::headers;
use crate::limits::hits;
use crate::world::{RunningRouter, World, soon, target};

#[tokio::test]
async fn connection_window() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let live = world.fabric.pod("a", "default", "c");
    let mut kept = Vec::new();
    for count in 1..=2 {
        kept.push(connect(&router, &live).await);
        router.shows(|view| view.totals.clients == count).await;
    }
    assert_eq!(hits(&world), []);
    kept.push(connect(&router, &live).await);
    only(&world, "connection_window", 1).await;
}

/// Sends so much to an echo and has it back.
async fn echoed(client: &mut TcpStream, length: usize) -> Duration {
    let sent = noise(7, length);
    let begun = Instant::now();
    let mut back = vec![0; length];
    let (mut read, mut write) = client.split();
    let (written, came) = tokio::join!(write.write_all(&sent), soon(read.read_exact(&mut back)));
    written.unwrap();
    came.unwrap();
    assert!(back == sent, "other bytes came back");
    begun.elapsed()
}

/// A provider of `slow.default:80` that takes flows and reads nothing: a mebibyte fits on its connection.
async fn slow_provider(
    world: &World,
    router: &RunningRouter,
) -> (Connection, (SendStream, RecvStream), Target) {
    let mut limits = Limits::default();
    limits.windows.connection = 1 << 20;
    let windows = Windows::of(&limits);
    let endpoint = Endpoint::client_with(Profile::Sidecar, windows).unwrap();
    let live = world.fabric.pod("s", "default", "slow");
    let tls = live.client_config(&[ALPN], &"r".parse().unwrap());
    let connection = soon(endpoint.connect(router.addr, "127.0.0.1", tls))
        .await
        .unwrap();
    let (mut control, mut answers) = connection.open_bi().await.unwrap();
    let target = target("slow.default", 80, live.identity().subject, router);
    let mut out = BytesMut::new();
    Message::Publish {
        id: 1,
        service: target.service.clone(),
        port: 80,
        protocol: Protocol::Tcp,
        offer: Offer::default(),
    }
    .encode(&mut out);
    control.write_chunk(out.freeze()).await.unwrap();
    let mut decoder = MessageDecoder::new();
    let answered = async {
        loop {
            match decoder.next().unwrap() {
                Some(Message::Answer { outcome, .. }) => return outcome,
                Some(_) => {}
                None => decoder.push(answers.read_chunk(1000).await.unwrap().unwrap()),
            }
        }
    };
    assert_eq!(soon(answered).await, Ok(()));
    (connection, (control, answers), target)
}

/// Connections and flows of the identity that floods.
const CONNECTIONS: usize = 4;
const FLOWS: usize = 20;
/// What a router may hold, and what it reads at once of one flow on loopback.
const BUDGET: usize = 256 << 10;
const READ: usize = 32 * 6500;
const PACKET: usize = 6500;

/// What a router holds of flows that nobody reads, once it has come.
async fn all_held(world: &World) -> i64 {
    settled(|| world.metrics.router_held.get()).await
}

/// One identity fills many flows that nobody reads, on many connections; another one's flow goes on as before.
async fn flooded(limit: &'static str) {
    let mut world = World::new();
    match limit {
        "passing_buffers" => world.router_limits.passing = 2 * BUDGET as u64,
        _ => world.router_limits.passing_identity = BUDGET as u64,
    }
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, echo) = world.echo(&router, backend.addr).await;
    let mut ends = JoinSet::new();
    let other = world.consumer_as(&world.fabric.pod("z", "default", "c"));
    let mut client = other.carried(&mut ends, &echo).await;
    echoed(&mut client, 8 << 20).await;
    let before = echoed(&mut client, 8 << 20).await;

    let (_slow, _control, target) = slow_provider(&world, &router).await;
    let live = world.fabric.pod("a", "default", "c");
    let mut kept = Vec::new();
    let mut writing = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let connection = connect(&router, &live).await;
        let control = connection.open_bi().await.unwrap();
        for _ in 0..FLOWS {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            let open = bytes(&Frame::Open(Box::new(headers::open(&target))));
            send.write_all(&open).await.unwrap();
            writing.spawn(async move {
                // All that the fabric takes, for as long as the connection lives.
                while send.write_all(&[0; 64 << 10]).await.is_ok() {}
                drop(recv);
            });
        }
        kept.push((connection, control));
    }
    let legs = i64::try_from(CONNECTIONS * FLOWS).unwrap() + 1;
    until(|| world.metrics.router_legs.get() == legs).await;
    until(|| world.metrics.router_held.get() >= BUDGET as i64).await;
    let held = usize::try_from(all_held(&world).await).unwrap();
    // The best of a few: other tests run beside this one.
    let mut after = Duration::MAX;
    for _ in 0..4 {
        after = after.min(echoed(&mut client, 8 << 20).await);
    }
    println!("{held} bytes held; 8 MiB echoed in {before:?} before and {after:?} beside");
    let bound = BUDGET + READ + CONNECTIONS * FLOWS * PACKET;
    assert!(held <= bound, "{held} of {bound}");
    assert!(after < 3 * before + Duration::from_millis(200), "{after:?}");
    let hits: Vec<_> = names(&world)
        .into_iter()
        .filter(|name| name.ends_with("passing_buffers"))
        .collect();
    assert_eq!(hits, [limit]);

    drop(kept);
    writing.shutdown().await;
    until(|| world.metrics.router_held.get() == 0).await;
}

#[tokio::test]
async fn an_identity_that_floods_a_router_holds_its_budget_and_stops_nobody() {
    flooded("identity_passing_buffers").await;
}

#[tokio::test]
async fn an_identity_that_floods_a_router_leaves_others_half_of_what_there_is() {
    flooded("passing_buffers").await;
}

/// What comes with a flow's header waits like what comes later.
#[tokio::test]
async fn first_bytes_that_wait_are_counted() {
    let mut world = World::new();
    let router = world.router("r").await;
    let (_slow, _control, target) = slow_provider(&world, &router).await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _first = connection.open_bi().await.unwrap();
    let header = || bytes(&Frame::Open(Box::new(headers::open(&target))));
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&header()).await.unwrap();
    let mut writing = JoinSet::new();
    writing.spawn(async move { while send.write_all(&[0; 64 << 10]).await.is_ok() {} });
    until(|| world.metrics.router_held.get() > 0).await;
    let before = all_held(&world).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let with_more = [&header()[..], &[0; 1000]].concat();
    send.write_all(&with_more).await.unwrap();
    until(|| world.metrics.router_held.get() >= before + 1000).await;
    connection.close(0, b"");
    until(|| world.metrics.router_held.get() == 0).await;
}
