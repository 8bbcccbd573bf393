//! What stands at a router is what is wanted, whatever became of earlier questions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use keel_certs::{Clients, LiveIdentity};
use keel_fabric::consumer::{FlowOptions, Target};
use keel_fabric::limits::LinkLimits;
use keel_fabric::link::{ALPN, Links, RouterPeer};
use keel_fabric::provider::PublishOutcome;
use keel_fabric::quic::{
    Connection, Endpoint, Lost, Profile, QuicKeys, ReadError, RecvStream, SendStream,
};
use keel_fabric::wire::{
    CloseCode, FlowId, Frame, Generation, Message, MessageDecoder, Offer, Open, Protocol,
    ResetCode, Secret, VERSION,
};

use crate::admission::connect;
use crate::backend::Backend;
use crate::bounds::names;
use crate::limits::hits;
use crate::world::{RunningProvider, RunningRouter, World, publication, soon};

/// A router of node `r` that does what the test says.
pub(crate) struct Puppet {
    endpoint: Endpoint,
    pub(crate) addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Puppet {
    pub(crate) fn new(world: &World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = QuicKeys::load_or_create(dir.path()).unwrap();
        let tls = world
            .fabric
            .node("r")
            .server_config(&[ALPN], Clients::Required);
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = Endpoint::bind(&any, Some(tls), &keys, Profile::Router).unwrap();
        let addr = endpoint.local_addrs()[0];
        Self {
            endpoint,
            addr,
            _dir: dir,
        }
    }

    pub(crate) fn peer(&self) -> RouterPeer {
        RouterPeer {
            node: "r".parse().unwrap(),
            addresses: vec![self.addr.into()],
        }
    }

    /// The next connection and its control stream.
    pub(crate) async fn accept(&self) -> (Connection, SendStream, RecvStream) {
        loop {
            let incoming = soon(self.endpoint.accept()).await.unwrap();
            // On a busy machine the peer races two attempts and gives one of them up.
            let Ok(connection) = incoming.handshake().await else {
                continue;
            };
            if let Ok((send, recv)) = soon(connection.accept_bi()).await {
                return (connection, send, recv);
            }
        }
    }
}

/// A provider of an echoing backend whose only router is the test itself.
pub(crate) struct Alone {
    pub(crate) connection: Connection,
    /// The service as a consumer at that router names it.
    pub(crate) target: Target,
    _control: (SendStream, RecvStream),
    pub(crate) provider: RunningProvider,
    _backend: Backend,
    _puppet: Puppet,
}

impl Alone {
    pub(crate) async fn new(world: &mut World) -> Self {
        let puppet = Puppet::new(world);
        let backend = Backend::echo().await;
        let live = world.fabric.pod("b", "default", "p");
        let list = vec![publication("echo.default", 80, backend.addr)];
        let links = world.links(&live);
        let provider = world.provider_over(links, &live, vec![puppet.peer()], list);
        let (connection, send, recv) = puppet.accept().await;
        Self {
            connection,
            target: Target {
                service: "echo.default".parse().unwrap(),
                port: 80,
                provider: live.identity().subject,
                router: puppet.peer(),
                options: FlowOptions::default(),
            },
            _control: (send, recv),
            provider,
            _backend: backend,
            _puppet: puppet,
        }
    }
}

/// The next message that is no greeting.
async fn next(recv: &mut RecvStream, decoder: &mut MessageDecoder) -> Message {
    loop {
        match decoder.next().unwrap() {
            Some(Message::Hello { .. }) => {}
            Some(message) => return message,
            None => decoder.push(soon(recv.read_chunk(1000)).await.unwrap().unwrap()),
        }
    }
}

#[tokio::test]
async fn a_publication_with_another_backend_is_the_same_at_the_router() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let (one, two) = (Backend::echo().await, Backend::echo().await);
    let (mut provider, _) = world.echo(&router, one.addr).await;
    let changed = publication("echo.default", 80, two.addr);
    provider
        .publications
        .send_replace(vec![changed.clone()].into());
    let shown = soon(
        provider
            .state
            .wait_for(|list| list.iter().any(|at| at.publication == changed)),
    )
    .await
    .unwrap()
    .clone();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].outcome, PublishOutcome::Published);
    provider.publications.send_replace(Arc::default());
    router.shows(|view| view.services.is_empty()).await;
    soon(provider.state.wait_for(|list| list.is_empty()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_publication_without_an_answer_is_withdrawn() {
    let mut world = World::new();
    let puppet = Puppet::new(&world);
    let live = world.fabric.pod("b", "default", "p");
    let limits = LinkLimits {
        answer_time: Duration::from_millis(100),
        ..LinkLimits::default()
    };
    let links = Links::new(
        Endpoint::client(Profile::Sidecar).unwrap(),
        live.clone(),
        limits,
        Arc::clone(&world.metrics),
    );
    let list = vec![publication("echo.default", 80, puppet.addr)];
    let mut provider = world.provider_over(links, &live, vec![puppet.peer()], list);
    let (_connection, _send, mut recv) = puppet.accept().await;
    let mut decoder = MessageDecoder::new();
    let Message::Publish { id, .. } = next(&mut recv, &mut decoder).await else {
        panic!("no publication")
    };
    let unanswered = |at: &keel_fabric::provider::PublishedAt| {
        matches!(at.outcome, PublishOutcome::Unreachable(_))
    };
    soon(provider.state.wait_for(|list| list.iter().any(unanswered)))
        .await
        .unwrap();
    provider.publications.send_replace(Arc::default());
    assert_eq!(
        next(&mut recv, &mut decoder).await,
        Message::Withdraw { id }
    );
}

#[tokio::test]
async fn a_control_stream_that_ends_takes_its_connection_along() {
    let mut world = World::new();
    let puppet = Puppet::new(&world);
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![publication("echo.default", 80, puppet.addr)];
    let links = world.links(&live);
    let _provider = world.provider_over(links, &live, vec![puppet.peer()], list);
    let (connection, mut send, _recv) = puppet.accept().await;
    send.finish();
    let lost = soon(connection.closed()).await;
    let Lost::Closed { code, .. } = lost else {
        panic!("{lost}")
    };
    assert_eq!(CloseCode::from_wire(code), CloseCode::Protocol);
    // It comes back and asks again.
    let (_connection, _send, mut recv) = puppet.accept().await;
    let message = next(&mut recv, &mut MessageDecoder::new()).await;
    assert!(matches!(message, Message::Publish { .. }), "{message:?}");
}

#[tokio::test]
async fn a_farewell_to_a_mute_router_is_short() {
    let mut world = World::new();
    let puppet = Puppet::new(&world);
    let live = world.fabric.pod("b", "default", "p");
    let list = (1..=5)
        .map(|port| publication("echo.default", port, puppet.addr))
        .collect();
    let links = world.links(&live);
    let mut provider = world.provider_over(links, &live, vec![puppet.peer()], list);
    let (connection, mut send, mut recv) = puppet.accept().await;
    let mut decoder = MessageDecoder::new();
    for _ in 0..5 {
        let Message::Publish { id, .. } = next(&mut recv, &mut decoder).await else {
            panic!("no publication")
        };
        let mut out = BytesMut::new();
        Message::Answer {
            id,
            outcome: Ok(()),
        }
        .encode(&mut out);
        send.write_chunk(out.freeze()).await.unwrap();
    }
    provider.published().await;
    let asked = Instant::now();
    provider.stop.cancel();
    soon(provider.done.wait_for(|done| *done)).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(4), "{asked:?}");
    drop(connection);
}

#[tokio::test]
async fn an_older_task_does_not_wipe_what_a_newer_one_says() {
    let mut world = World::new();
    let puppet = Puppet::new(&world);
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![publication("echo.default", 80, puppet.addr)];
    let links = world.links(&live);
    let mut provider = world.provider_over(links, &live, vec![puppet.peer()], list);
    let (_connection, mut send, mut recv) = puppet.accept().await;
    let mut decoder = MessageDecoder::new();
    for round in 0..2 {
        // Withdrawals have no answer, so the old task's farewell takes its time.
        let id = loop {
            if let Message::Publish { id, .. } = next(&mut recv, &mut decoder).await {
                break id;
            }
        };
        let mut out = BytesMut::new();
        Message::Answer {
            id,
            outcome: Ok(()),
        }
        .encode(&mut out);
        send.write_chunk(out.freeze()).await.unwrap();
        provider.published().await;
        if round == 0 {
            // The same router under one more address: a new task takes over.
            let mut moved = puppet.peer();
            moved.addresses.push("127.0.0.1:9".parse().unwrap());
            provider.routers.send_replace(vec![moved].into());
        }
    }
    let wiped = provider.state.wait_for(|list| list.is_empty());
    tokio::time::timeout(Duration::from_millis(1500), wiped)
        .await
        .map(|_| ())
        .unwrap_err();
}

#[tokio::test]
async fn a_blocked_splice_sees_that_its_near_side_is_gone() {
    let mut world = World::new();
    let router = world.router("r").await;
    let provider = connect(&router, &world.fabric.pod("b", "default", "p")).await;
    let (mut control, mut answers) = provider.open_bi().await.unwrap();
    let service: keel_certs::ServiceId = "echo.default".parse().unwrap();
    let mut out = BytesMut::new();
    Message::Publish {
        id: 1,
        service: service.clone(),
        port: 80,
        protocol: Protocol::Tcp,
        offer: Offer::default(),
    }
    .encode(&mut out);
    control.write_chunk(out.split().freeze()).await.unwrap();
    let answer = next(&mut answers, &mut MessageDecoder::new()).await;
    assert!(matches!(
        answer,
        Message::Answer {
            outcome: Ok(()),
            ..
        }
    ));

    let consumer = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = consumer.open_bi().await.unwrap();
    let (mut send, _recv) = consumer.open_bi().await.unwrap();
    let open = Open {
        version: VERSION,
        flow: FlowId::random(),
        generation: Generation::FIRST,
        secret: Secret::random(),
        service,
        port: 80,
        protocol: Protocol::Tcp,
        provider: "/node/b/ns/default/pod/p".parse().unwrap(),
        limit: 0,
        max_datagram: 0,
        hops: 0,
        flags: 0,
        from: None,
        window: None,
        rest: bytes::Bytes::new(),
    };
    Frame::Open(Box::new(open)).encode(&mut out);
    send.write_chunk(out.freeze()).await.unwrap();
    let (far_send, mut far_recv) = soon(provider.accept_bi()).await.unwrap();
    soon(far_recv.read_chunk(10)).await.unwrap();
    // Nobody reads at the provider, until nothing moves any more.
    let filler = vec![0; 1 << 20];
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(300), send.write_all(&filler)).await
    {
        written.unwrap();
    }
    consumer.close(0, b"");
    assert_eq!(
        soon(far_send.stopped()).await.unwrap(),
        Some(ResetCode::LegLost.to_wire())
    );
    let cut = loop {
        match soon(far_recv.read_chunk(1 << 20)).await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(cut, Err(ReadError::Reset(ResetCode::LegLost.to_wire())));
}

/// A connection that says hello as the one of `instance`.
async fn hello(
    router: &RunningRouter,
    live: &LiveIdentity,
    instance: Option<u64>,
) -> (Connection, SendStream) {
    let connection = connect(router, live).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let mut out = BytesMut::new();
    let software = "test".to_owned();
    let (version, id) = (VERSION, 1);
    Message::Hello {
        version,
        software,
        instance,
    }
    .encode(&mut out);
    Message::Withdraw { id }.encode(&mut out);
    send.write_chunk(out.freeze()).await.unwrap();
    // Nothing was published, but the answer tells that the greeting was read.
    let answer = next(&mut recv, &mut MessageDecoder::new()).await;
    assert!(matches!(answer, Message::Answer { .. }), "{answer:?}");
    (connection, send)
}

/// A process that gave a connection up may have been unable to say so: its flows would wait for the idle time.
#[tokio::test]
async fn a_newer_connection_of_the_same_process_takes_the_place_of_the_older() {
    let mut world = World::new();
    let router = world.router("r").await;
    let live = world.fabric.pod("b", "default", "p");
    let other = world.fabric.pod("b", "default", "q");
    let (first, _one) = hello(&router, &live, Some(7)).await;
    let (unknown, _two) = hello(&router, &live, None).await;
    let (another, _three) = hello(&router, &live, Some(8)).await;
    let (foreign, _four) = hello(&router, &other, Some(7)).await;
    let (newer, _five) = hello(&router, &live, Some(7)).await;
    let Lost::Closed { code, .. } = soon(first.closed()).await else {
        panic!("another end")
    };
    assert_eq!(code, CloseCode::Replaced.to_wire());
    for connection in [&unknown, &another, &foreign, &newer] {
        assert_eq!(connection.close_reason(), None);
    }
}

/// The answers to so many withdrawals of what was never published.
async fn withdrawals(connection: &Connection, count: u64) -> Duration {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let (mut out, mut decoder) = (BytesMut::new(), MessageDecoder::new());
    (0..count).for_each(|id| Message::Withdraw { id }.encode(&mut out));
    let asked = Instant::now();
    send.write_chunk(out.freeze()).await.unwrap();
    for expected in 0..count {
        let answer = next(&mut recv, &mut decoder).await;
        assert!(
            matches!(answer, Message::Answer { id, .. } if id == expected),
            "{answer:?}"
        );
    }
    asked.elapsed()
}

#[tokio::test]
async fn who_publishes_and_withdraws_without_end_is_read_slower_and_nobody_else() {
    let mut world = World::new();
    world.router_limits.changes_burst = 10;
    world.router_limits.changes_per_second = 3;
    let router = world.router("r").await;
    let live = world.fabric.pod("b", "default", "p");
    let within = connect(&router, &live).await;
    withdrawals(&within, 10).await;
    assert_eq!(hits(&world), []);
    let beyond = connect(&router, &live).await;
    let other = connect(&router, &world.fabric.pod("b", "default", "q")).await;
    // Some of the budget may have come back by then.
    let (slow, usual) = tokio::join!(withdrawals(&beyond, 10), withdrawals(&other, 10));
    assert!(usual < slow, "{usual:?} and {slow:?}");
    assert_eq!(names(&world), ["publication_changes"]);
}
