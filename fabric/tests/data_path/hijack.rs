//! Resumes by somebody else: refused, counted, and without any effect on the flow.

use bytes::{Bytes, BytesMut};
use keel_fabric::consumer::{FlowOptions, Target};
use keel_fabric::metrics::{GoneLabels, Side};
use keel_fabric::quic::{RecvStream, SendStream};
use keel_fabric::wire::{Decoder, Frame, Generation, GoneCode, Open, Proof, Resume, Role, Secret};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

use crate::admission::connect;
use crate::backend::Backend;
use crate::bounds::bytes;
use crate::headers;
use crate::limits::answer;
use crate::publications::Puppet;
use crate::world::{World, soon};

fn resume(open: &Open, proof: Option<Proof>) -> Frame {
    let resume = headers::resume(open);
    Frame::Resume(Box::new(Resume {
        proof: proof.unwrap_or(resume.proof),
        from: Some("/node/a/ns/default/pod/c".parse().unwrap()),
        ..resume
    }))
}

/// Sends bytes on a leg, and waits until they are given back on it.
async fn echo(leg: &mut (SendStream, RecvStream), offset: u64, bytes: &'static [u8]) {
    let mut out = BytesMut::new();
    let data = Frame::Data {
        offset,
        bytes: Bytes::from_static(bytes),
    };
    data.encode(&mut out);
    leg.0.write_chunk(out.freeze()).await.unwrap();
    let mut decoder = Decoder::new();
    loop {
        match decoder.next().unwrap() {
            Some(Frame::Data { bytes: back, .. }) => return assert_eq!(&back[..], bytes),
            Some(_) => {}
            None => decoder.push(soon(leg.1.read_chunk(1000)).await.unwrap().unwrap()),
        }
    }
}

#[tokio::test]
async fn forged_replayed_and_foreign_resumes_are_refused_and_counted() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let ours = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let theirs = connect(&router, &world.fabric.pod("a", "default", "thief")).await;
    let _control = (
        ours.open_bi().await.unwrap(),
        theirs.open_bi().await.unwrap(),
    );
    let open = headers::open(&target);
    let refused = |code: GoneCode| {
        let labels = GoneLabels {
            role: Side::provider,
            code: code.name(),
        };
        world.metrics.gone.get_or_create(&labels).get()
    };
    let (frame, mut first) = answer(&ours, Frame::Open(Box::new(open.clone()))).await;
    assert!(matches!(frame, Frame::Accept { .. }), "{frame:?}");
    echo(&mut first, 0, b"one").await;

    let forged = resume(&open, Some(Proof::from_bytes([7; 32])));
    let role = Secret::random().prove(open.flow, Generation(2), Role::Initiator);
    let other_secret = resume(&open, Some(role));
    let reflected = open
        .secret
        .prove(open.flow, Generation(2), Role::Terminator);
    let reflected = resume(&open, Some(reflected));
    for frame in [forged, other_secret, reflected] {
        let (frame, _) = answer(&ours, frame).await;
        let code = GoneCode::Forbidden;
        assert_eq!(frame, Frame::Gone { code });
    }
    assert_eq!(refused(GoneCode::Forbidden), 3);

    // Whoever else knows everything, is not the one who opened it: the router says who asks.
    let (frame, _) = answer(&theirs, resume(&open, None)).await;
    let code = GoneCode::Unknown;
    assert_eq!(frame, Frame::Gone { code });
    assert_eq!(refused(GoneCode::Unknown), 1);
    echo(&mut first, 3, b"two").await;

    let genuine = || resume(&open, None);
    let (frame, mut second) = answer(&ours, genuine()).await;
    assert!(matches!(frame, Frame::Resumed { .. }), "{frame:?}");
    let (frame, _) = answer(&ours, genuine()).await;
    let code = GoneCode::Stale;
    assert_eq!(frame, Frame::Gone { code });
    assert_eq!(refused(GoneCode::Stale), 1);
    echo(&mut second, 6, b"three").await;
}

/// The next frame of a leg.
async fn next(recv: &mut RecvStream, decoder: &mut Decoder) -> Frame {
    loop {
        match decoder.next().unwrap() {
            Some(frame) => return frame,
            None => decoder.push(soon(recv.read_chunk(1000)).await.unwrap().unwrap()),
        }
    }
}

/// A router that has not carried the OPEN does not know the flow's secret.
#[tokio::test]
async fn an_answer_of_somebody_else_is_counted_and_the_flow_goes_on() {
    let world = World::new();
    let puppet = Puppet::new(&world);
    let target = Target {
        service: "echo.default".parse().unwrap(),
        port: 80,
        provider: "/node/b/ns/default/pod/p".parse().unwrap(),
        router: puppet.peer(),
        options: FlowOptions::default(),
    };
    let (consumer, mut tasks) = (world.consumer(), JoinSet::new());
    let mut client = consumer.connect(&mut tasks, &target).await;
    let (connection, _control, _answers) = puppet.accept().await;
    let (mut send, mut recv) = soon(connection.accept_bi()).await.unwrap();
    let Frame::Open(open) = next(&mut recv, &mut Decoder::new()).await else {
        panic!("no OPEN")
    };
    let limit = 1 << 20;
    let accept = Frame::Accept {
        limit,
        max_datagram: 0,
        window: None,
    };
    send.write_chunk(bytes(&accept)).await.unwrap();
    send.finish();
    let mut last = None;
    for secret in [Secret::random(), open.secret.clone()] {
        let (mut send, mut recv) = soon(connection.accept_bi()).await.unwrap();
        let Frame::Resume(resume) = next(&mut recv, &mut Decoder::new()).await else {
            panic!("no RESUME")
        };
        let generation = resume.generation;
        let resumed = Frame::Resumed {
            generation,
            recv: 0,
            limit,
            proof: secret.prove(open.flow, generation, Role::Terminator),
            age: None,
        };
        let data = Frame::Data {
            offset: 0,
            bytes: Bytes::from_static(b"b"),
        };
        for frame in [resumed, data] {
            send.write_chunk(bytes(&frame)).await.unwrap();
        }
        last = Some((send, recv));
    }
    assert_eq!(soon(client.read_u8()).await.unwrap(), b'b');
    assert_eq!(world.metrics.forged.get(), 1);
    drop(last);
}
