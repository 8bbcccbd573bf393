//! Who may connect and publish, and what becomes of garbage.

use bytes::BytesMut;
use keel_certs::fixture::Fabric;
use keel_certs::{LiveIdentity, NodeName};
use keel_fabric::link::ALPN;
use keel_fabric::provider::PublishOutcome;
use keel_fabric::quic::{Connection, Endpoint, Profile, ReadError};
use keel_fabric::wire::{
    Decoder, FlowId, Frame, Generation, Message, Offer, Open, Protocol, RefuseCode, ResetCode,
    Secret, VERSION,
};

use crate::backend::Backend;
use crate::world::{RunningRouter, World, publication, soon};

fn name(node: &str) -> NodeName {
    node.parse().unwrap()
}

pub(crate) async fn connect(router: &RunningRouter, live: &LiveIdentity) -> Connection {
    let endpoint = Endpoint::client(Profile::Sidecar).unwrap();
    let tls = live.client_config(&[ALPN], &name("r"));
    soon(endpoint.connect(router.addr, "127.0.0.1", tls))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_pod_of_another_namespace_cannot_publish() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let live = world.fabric.pod("b", "other", "p");
    let mut provider = world.provider(
        &live,
        &[&router],
        vec![publication("echo.default", 80, backend.addr)],
    );
    let state = soon(provider.state.wait_for(|list| !list.is_empty()))
        .await
        .unwrap()
        .clone();
    let PublishOutcome::Refused(error) = &state[0].outcome else {
        panic!("{state:?}")
    };
    assert!(error.to_string().contains("namespace default"), "{error}");
    assert!(
        router
            .shows(|view| view.totals.clients == 1)
            .await
            .services
            .is_empty()
    );
}

#[tokio::test]
async fn a_node_publishes_for_every_namespace() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let live = world.fabric.node("b");
    let mut provider = world.provider(
        &live,
        &[&router],
        vec![publication("echo.shop", 80, backend.addr)],
    );
    provider.published().await;
    let view = router.shows(|view| !view.services.is_empty()).await;
    assert_eq!(view.services[0].providers[0].identity.path(), "/node/b");
}

#[tokio::test]
async fn publications_follow_the_list() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (provider, _) = world.echo(&router, backend.addr).await;
    let both = vec![
        publication("echo.default", 80, backend.addr),
        publication("more.default", 81, backend.addr),
    ];
    provider.publications.send_replace(both.into());
    router.shows(|view| view.services.len() == 2).await;
    provider
        .publications
        .send_replace(vec![publication("more.default", 81, backend.addr)].into());
    let view = router.shows(|view| view.services.len() == 1).await;
    assert_eq!(view.services[0].service.to_string(), "more.default");
}

#[tokio::test]
async fn a_foreign_trust_domain_is_turned_away_and_turns_away() {
    let mut world = World::new();
    let router = world.router("r").await;
    let foreign = Fabric::named("other.keel");
    let endpoint = Endpoint::client(Profile::Sidecar).unwrap();
    // It does not believe the router.
    let tls = foreign
        .pod("b", "default", "p")
        .client_config(&[ALPN], &name("r"));
    soon(endpoint.connect(router.addr, "127.0.0.1", tls))
        .await
        .unwrap_err();
    // It would, but the router does not believe it.
    let theirs = foreign.pod("b", "default", "p");
    let confused = LiveIdentity::new(theirs.key(), theirs.chain(), world.fabric.roots());
    if let Ok(confused) = confused {
        let connected = soon(endpoint.connect(
            router.addr,
            "127.0.0.1",
            confused.client_config(&[ALPN], &name("r")),
        ))
        .await;
        if let Ok(connection) = connected {
            // A TLS 1.3 client is done before the server has judged it.
            let lost = soon(connection.closed()).await;
            assert!(lost.to_string().contains("TLS failed"), "{lost}");
        }
    }
}

#[tokio::test]
async fn a_router_of_another_node_than_expected_is_refused() {
    let mut world = World::new();
    let router = world.router("r").await;
    let endpoint = Endpoint::client(Profile::Sidecar).unwrap();
    let tls = world
        .fabric
        .pod("b", "default", "p")
        .client_config(&[ALPN], &name("q"));
    let error = soon(endpoint.connect(router.addr, "127.0.0.1", tls))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("TLS failed"), "{error}");
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let mut world = World::new();
    let router = world.router("r").await;
    let endpoint = Endpoint::client(Profile::Sidecar).unwrap();
    let tls = world
        .fabric
        .pod("b", "default", "p")
        .client_config(&[b"h3"], &name("r"));
    let error = soon(endpoint.connect(router.addr, "127.0.0.1", tls))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("ALPN"), "{error}");
}

#[tokio::test]
async fn garbage_cuts_its_stream_and_nothing_else() {
    let mut world = World::new();
    let router = world.router("r").await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = connection.open_bi().await.unwrap();
    let mut oversized = BytesMut::new();
    keel_fabric::wire::varint::write(1, &mut oversized);
    keel_fabric::wire::varint::write(1 << 20, &mut oversized);
    let mut data = BytesMut::new();
    Frame::Fin { offset: 0 }.encode(&mut data);
    let mut short = BytesMut::new();
    keel_fabric::wire::varint::write(1, &mut short);
    keel_fabric::wire::varint::write(3, &mut short);
    short.extend_from_slice(b"\x01ab");
    for garbage in [oversized, data, short] {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&garbage).await.unwrap();
        let error = soon(recv.read_chunk(1000)).await.unwrap_err();
        assert_eq!(error, ReadError::Reset(ResetCode::Protocol.to_wire()));
    }
    assert!(connection.close_reason().is_none());
}

#[tokio::test]
async fn another_version_is_refused_in_words() {
    let mut world = World::new();
    let router = world.router("r").await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = connection.open_bi().await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let mut open = BytesMut::new();
    for number in [1, 1, 2] {
        keel_fabric::wire::varint::write(number, &mut open);
    }
    send.write_all(&open).await.unwrap();
    let mut decoder = Decoder::new();
    decoder.push(soon(recv.read_chunk(1000)).await.unwrap().unwrap());
    let Some(Frame::Refuse { code, text }) = decoder.next().unwrap() else {
        panic!("no refusal")
    };
    assert_eq!(code, RefuseCode::UnsupportedVersion);
    assert!(text.contains("version 2"), "{text}");
}

#[tokio::test]
async fn garbage_on_the_control_stream_closes_the_connection() {
    let mut world = World::new();
    let router = world.router("r").await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let mut garbage = BytesMut::new();
    keel_fabric::wire::varint::write(33, &mut garbage);
    keel_fabric::wire::varint::write(2, &mut garbage);
    garbage.extend_from_slice(b"ab");
    send.write_all(&garbage).await.unwrap();
    let lost = soon(connection.closed()).await;
    assert!(lost.to_string().contains("PUBLISH"), "{lost}");
}

#[tokio::test]
async fn unknown_frames_are_skipped_and_what_the_consumer_says_of_itself_is_overwritten() {
    let mut world = World::new();
    let router = world.router("r").await;
    let provider = connect(&router, &world.fabric.pod("b", "default", "p")).await;
    let (mut control, mut answers) = provider.open_bi().await.unwrap();
    let mut out = BytesMut::new();
    let service: keel_certs::ServiceId = "echo.default".parse().unwrap();
    Message::Publish {
        id: 1,
        service: service.clone(),
        port: 80,
        protocol: Protocol::Tcp,
        offer: Offer::default(),
    }
    .encode(&mut out);
    control.write_chunk(out.split().freeze()).await.unwrap();
    let mut decoder = keel_fabric::wire::MessageDecoder::new();
    let answered = async {
        loop {
            decoder.push(answers.read_chunk(1000).await.unwrap().unwrap());
            while let Some(message) = decoder.next().unwrap() {
                if let Message::Answer { id, outcome } = message {
                    return (id, outcome);
                }
            }
        }
    };
    assert_eq!(soon(answered).await, (1, Ok(())));

    let consumer = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = consumer.open_bi().await.unwrap();
    let (mut send, mut near) = consumer.open_bi().await.unwrap();
    keel_fabric::wire::varint::write(1000, &mut out);
    keel_fabric::wire::varint::write(5, &mut out);
    out.extend_from_slice(b"later");
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
        from: Some("/node/z".parse().unwrap()),
        window: Some(60_000),
        rest: bytes::Bytes::from_static(b"later"),
    };
    Frame::Open(Box::new(open)).encode(&mut out);
    Frame::Ping.encode(&mut out);
    send.write_chunk(out.freeze()).await.unwrap();

    let (mut far_send, mut far_recv) = soon(provider.accept_bi()).await.unwrap();
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    while frames.len() < 2 {
        decoder.push(soon(far_recv.read_chunk(10_000)).await.unwrap().unwrap());
        while let Some(frame) = decoder.next().unwrap() {
            frames.push(frame);
        }
    }
    let Frame::Open(open) = &frames[0] else {
        panic!("{frames:?}")
    };
    assert_eq!(
        open.from.as_ref().unwrap().path(),
        "/node/a/ns/default/pod/c"
    );
    assert_eq!((open.hops, &open.rest[..]), (1, &b"later"[..]));
    assert_eq!(frames[1], Frame::Ping);
    // A loss of the provider's side is LEG_LOST at the consumer, and nothing else.
    far_send.reset(9);
    assert_eq!(
        soon(near.read_chunk(10)).await,
        Err(ReadError::Reset(ResetCode::LegLost.to_wire()))
    );
}
