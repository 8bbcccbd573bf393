//! Headers that are none: each is cut with its code, whole or byte by byte, at a router and at a provider, and nobody dials.

use bytes::BytesMut;
use keel_fabric::consumer::Target;
use keel_fabric::metrics::{RoleLabels, Side};
use keel_fabric::quic::{Connection, ReadError, RecvStream};
use keel_fabric::wire::varint;
use keel_fabric::wire::{
    AbortCode, Decoder, Frame, Generation, GoneCode, Place, RefuseCode, ResetCode, Role, Secret,
};

use crate::admission::connect;
use crate::backend::Backend;
use crate::bounds::bytes;
use crate::headers;
use crate::limits::{answer, silent};
use crate::publications::Alone;
use crate::world::{World, soon};

const OPEN: u64 = 1;
const RESUME: u64 = 4;
const ACK: u64 = 8;

/// What a stream hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Cut(ResetCode),
    Refused(RefuseCode),
}

/// A header that is none.
struct Case {
    name: String,
    bytes: Vec<u8>,
    /// The stream ends behind it.
    ends: bool,
    heard: Heard,
}

fn case(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Case {
    Case {
        name: name.into(),
        bytes: bytes.into(),
        ends: false,
        heard: Heard::Cut(ResetCode::Protocol),
    }
}

fn number(value: u64) -> Vec<u8> {
    let mut out = BytesMut::new();
    varint::write(value, &mut out);
    out.to_vec()
}

fn text(text: &[u8]) -> Vec<u8> {
    [number(text.len() as u64), text.to_vec()].concat()
}

fn frame(kind: u64, body: &[u8]) -> Vec<u8> {
    [number(kind), number(body.len() as u64), body.to_vec()].concat()
}

type Field = (&'static str, Vec<u8>);

/// The fields of an OPEN that is right.
fn open() -> Vec<Field> {
    vec![
        ("version", number(1)),
        ("flow", vec![7; 16]),
        ("generation", number(1)),
        ("secret", vec![9; 32]),
        ("service", text(b"echo.default")),
        ("port", number(80)),
        ("protocol", number(1)),
        ("provider", text(b"/node/b/ns/default/pod/p")),
        ("limit", number(1000)),
        ("max_datagram", number(0)),
        ("hops", number(0)),
        ("flags", number(0)),
        ("from", text(b"/node/a")),
    ]
}

/// Those of a RESUME.
fn resume() -> Vec<Field> {
    let generation = Generation(2);
    let flow = keel_fabric::wire::FlowId::from_bytes([7; 16]);
    let proof = Secret::from_bytes([9; 32]).prove(flow, generation, Role::Initiator);
    let resumed = Frame::Resumed {
        generation,
        recv: 0,
        limit: 0,
        proof,
        age: None,
    };
    // Type, length and three numbers come before it.
    let proof = bytes(&resumed)[5..].to_vec();
    vec![
        ("version", number(1)),
        ("flow", vec![7; 16]),
        ("generation", number(2)),
        ("service", text(b"echo.default")),
        ("port", number(80)),
        ("provider", text(b"/node/b/ns/default/pod/p")),
        ("recv", number(0)),
        ("limit", number(1000)),
        ("proof", proof),
        ("from", text(b"/node/a")),
        ("protocol", number(1)),
    ]
}

fn joined(fields: &[Field]) -> Vec<u8> {
    fields.iter().flat_map(|(_, bytes)| bytes.clone()).collect()
}

/// The frame with one field that is something else.
fn with(kind: u64, fields: Vec<Field>, name: &str, wrong: Vec<u8>) -> Case {
    let said = format!("type {kind} with {name} {wrong:?}");
    let mut fields = fields;
    for (field, bytes) in &mut fields {
        if *field == name {
            bytes.clone_from(&wrong);
        }
    }
    case(said, frame(kind, &joined(&fields)))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    // A body that ends in each of its fields; without the last one a RESUME is of an earlier version.
    for (kind, fields, most) in [(OPEN, open(), 13), (RESUME, resume(), 10)] {
        for (at, (name, bytes)) in fields.iter().enumerate().take(most) {
            let mut body = joined(&fields[..at]);
            body.extend(&bytes[..bytes.len() - 1]);
            all.push(case(
                format!("type {kind} cut in {name}"),
                frame(kind, &body),
            ));
        }
    }
    for (name, wrong) in [
        ("generation", number(0)),
        ("service", text(b"no service")),
        ("service", text(b"\xff\xfe.default")),
        ("service", [number(5000), b"echo.default".to_vec()].concat()),
        ("port", number(65_536)),
        ("protocol", number(9)),
        ("provider", text(b"")),
        ("provider", text(b"node b")),
        ("from", text(b"somebody")),
    ] {
        all.push(with(OPEN, open(), name, wrong));
    }
    for (name, wrong) in [
        ("generation", number(0)),
        ("service", text(b"")),
        ("port", number(70_000)),
        ("protocol", number(9)),
    ] {
        all.push(with(RESUME, resume(), name, wrong));
    }
    let bytes_of = |frame: Frame| bytes(&frame).to_vec();
    for first in [
        Frame::Accept {
            limit: 1,
            max_datagram: 0,
            window: None,
        },
        Frame::Refuse {
            code: RefuseCode::Limit,
            text: "no".into(),
        },
        Frame::Gone {
            code: GoneCode::Unknown,
        },
        Frame::Data {
            offset: 0,
            bytes: "early".into(),
        },
        Frame::Ack { recv: 0, limit: 0 },
        Frame::Fin { offset: 0 },
        Frame::Abort {
            code: AbortCode::Reset,
            offset: 0,
        },
        Frame::Move(Place::Elsewhere),
        Frame::Ping,
    ] {
        all.push(case(format!("{first:?} first"), bytes_of(first)));
    }
    for (kind, length) in [(OPEN, 4097), (RESUME, 4097), (2, 65_537), (99, 65_537)] {
        let front = [number(kind), number(length)].concat();
        all.push(case(format!("type {kind} of {length} bytes"), front));
    }
    for (kind, version) in [(OPEN, 0), (OPEN, 2), (RESUME, 2)] {
        let said = format!("type {kind} of version {version}");
        all.push(Case {
            heard: Heard::Refused(RefuseCode::UnsupportedVersion),
            ..case(said, frame(kind, &number(version)))
        });
    }
    let whole = frame(OPEN, &joined(&open()));
    for length in [1, 2, whole.len() - 1] {
        all.push(Case {
            ends: true,
            heard: Heard::Cut(ResetCode::Unspecified),
            ..case(format!("an end after {length} bytes"), &whole[..length])
        });
    }
    all
}

async fn heard(recv: &mut RecvStream) -> Heard {
    let mut decoder = Decoder::new();
    loop {
        match soon(recv.read_chunk(1000)).await {
            Ok(Some(chunk)) => decoder.push(chunk),
            Err(ReadError::Reset(code)) => return Heard::Cut(ResetCode::from_wire(code)),
            other => panic!("{other:?}"),
        }
        if let Some(Frame::Refuse { code, .. }) = decoder.next().unwrap() {
            return Heard::Refused(code);
        }
    }
}

async fn send(connection: &Connection, case: &Case, step: usize) -> Heard {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    for piece in case.bytes.chunks(step) {
        // It may be cut before all of it has come.
        if send.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    if case.ends {
        send.finish();
    }
    heard(&mut recv).await
}

/// All cases over this connection, which then still takes a header that is right.
async fn all(world: &World, connection: &Connection, target: &Target) {
    let cases = cases();
    assert!(cases.len() >= 40, "{}", cases.len());
    for case in &cases {
        for step in [case.bytes.len(), 1] {
            let heard = send(connection, case, step).await;
            assert_eq!(heard, case.heard, "{} in steps of {step}", case.name);
        }
    }
    let role = Side::provider;
    let begun = || {
        let started = world.metrics.flows_started.get(&RoleLabels { role });
        started.map_or(0, |started| started.get())
    };
    assert_eq!(begun(), 0, "nobody dials");
    let mut open = headers::open(target);
    open.from = Some("/node/a".parse().unwrap());
    let (first, (mut send, mut recv)) = answer(connection, Frame::Open(Box::new(open))).await;
    assert!(matches!(first, Frame::Accept { .. }), "{first:?}");
    assert_eq!(begun(), 1);

    // Garbage behind the header is the flow's affair: it loses its leg.
    let without_numbers = frame(ACK, &[]);
    send.write_all(&without_numbers).await.unwrap();
    let cut = loop {
        match soon(recv.read_chunk(1000)).await {
            Ok(Some(_)) => {}
            Err(ReadError::Reset(code)) => break ResetCode::from_wire(code),
            other => panic!("{other:?}"),
        }
    };
    assert!(
        matches!(cut, ResetCode::Protocol | ResetCode::LegLost),
        "{cut:?}"
    );
    assert!(connection.close_reason().is_none());
}

#[tokio::test]
async fn malformed_headers_at_a_router() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    all(&world, &connection, &target).await;
}

#[tokio::test]
async fn malformed_headers_at_a_provider() {
    let mut world = World::new();
    let alone = Alone::new(&mut world).await;
    let (connection, target) = (alone.connection.clone(), alone.target.clone());
    all(&world, &connection, &target).await;
}
