use bytes::Bytes;

use super::super::*;

/// Frames and messages of `golden.hex`, under the names that they have there.
pub(super) fn golden() -> Vec<(&'static str, Golden)> {
    let flow = FlowId::from_bytes(std::array::from_fn(|i| i as u8));
    let secret = Secret::from_bytes(std::array::from_fn(|i| 0x20 + i as u8));
    let service = || "mysql.default".parse().unwrap();
    let provider = || "/node/edge-b/ns/default/pod/db-0".parse().unwrap();
    let second = Generation(2);
    use Golden::{Frame as F, Message as M};
    vec![
        (
            "OPEN",
            F(Frame::Open(Box::new(Open {
                version: 1,
                flow,
                generation: Generation::FIRST,
                secret: secret.clone(),
                service: service(),
                port: 3306,
                protocol: Protocol::Tcp,
                provider: provider(),
                limit: 262_144,
                max_datagram: 1100,
                hops: 1,
                flags: 0,
                from: Some("/node/edge-a".parse().unwrap()),
                window: None,
                rest: Bytes::new(),
            }))),
        ),
        (
            "ACCEPT",
            F(Frame::Accept {
                limit: 262_144,
                max_datagram: 0,
                window: None,
            }),
        ),
        (
            "REFUSE",
            F(Frame::Refuse {
                code: RefuseCode::BackendRefused,
                text: "connection refused".into(),
            }),
        ),
        (
            "RESUME",
            F(Frame::Resume(Box::new(Resume {
                version: 1,
                flow,
                generation: second,
                service: service(),
                port: 3306,
                provider: provider(),
                recv: 70_000,
                limit: 332_144,
                proof: secret.prove(flow, second, Role::Initiator),
                from: None,
                protocol: Protocol::Tcp,
                rest: Bytes::new(),
            }))),
        ),
        (
            "RESUMED",
            F(Frame::Resumed {
                generation: second,
                recv: 5,
                limit: 262_149,
                proof: secret.prove(flow, second, Role::Terminator),
                age: None,
            }),
        ),
        (
            "RESUMED of an unknown flow",
            F(Frame::Resumed {
                generation: second,
                recv: 0,
                limit: 0,
                proof: secret.prove(flow, second, Role::Terminator),
                age: Some(90_000),
            }),
        ),
        (
            "GONE",
            F(Frame::Gone {
                code: GoneCode::Complete,
            }),
        ),
        (
            "DATA",
            F(Frame::Data {
                offset: 65_536,
                bytes: Bytes::from_static(b"SELECT 1"),
            }),
        ),
        (
            "ACK",
            F(Frame::Ack {
                recv: 65_544,
                limit: 1 << 32,
            }),
        ),
        ("FIN", F(Frame::Fin { offset: 65_544 })),
        (
            "ABORT",
            F(Frame::Abort {
                code: AbortCode::WindowExpired,
                offset: 63,
            }),
        ),
        ("MOVE", F(Frame::Move(Place::Elsewhere))),
        ("MOVE to any place", F(Frame::Move(Place::Anywhere))),
        ("PING", F(Frame::Ping)),
        (
            "HELLO",
            M(Message::Hello {
                version: 1,
                software: "keel/0.1.0".into(),
                instance: None,
            }),
        ),
        (
            "HELLO of an instance",
            M(Message::Hello {
                version: 1,
                software: "keel/0.1.0".into(),
                instance: Some(0x1234),
            }),
        ),
        (
            "PUBLISH",
            M(Message::Publish {
                id: 7,
                service: "ntp.default".parse().unwrap(),
                port: 123,
                protocol: Protocol::Udp,
                offer: Offer::default(),
            }),
        ),
        (
            "PUBLISH with an offer",
            M(Message::Publish {
                id: 9,
                service: "ntp.default".parse().unwrap(),
                port: 123,
                protocol: Protocol::Udp,
                offer: Offer {
                    weight: 300,
                    priority: 1,
                    health: Health::Unhealthy,
                },
            }),
        ),
        ("WITHDRAW", M(Message::Withdraw { id: 7 })),
        (
            "ANSWER ok",
            M(Message::Answer {
                id: 7,
                outcome: Ok(()),
            }),
        ),
        (
            "ANSWER refused",
            M(Message::Answer {
                id: 8,
                outcome: Err((RefuseCode::Forbidden, "other namespace".into())),
            }),
        ),
        ("DRAIN", M(Message::Drain)),
        ("MOVED", M(Message::Moved)),
        ("NOWHERE", M(Message::Nowhere)),
        (
            "OPEN of a later version",
            F(Frame::Open(Box::new(Open {
                version: 1,
                flow,
                generation: Generation::FIRST,
                secret: secret.clone(),
                service: service(),
                port: 3306,
                protocol: Protocol::Tcp,
                provider: provider(),
                limit: 262_144,
                max_datagram: 1100,
                hops: 1,
                flags: 0,
                from: Some("/node/edge-a".parse().unwrap()),
                window: Some(7),
                rest: Bytes::from_static(b"later"),
            }))),
        ),
        (
            "RESUME of a later version",
            F(Frame::Resume(Box::new(Resume {
                version: 1,
                flow,
                generation: second,
                service: service(),
                port: 3306,
                provider: provider(),
                recv: 70_000,
                limit: 332_144,
                proof: secret.prove(flow, second, Role::Initiator),
                from: None,
                protocol: Protocol::Udp,
                rest: Bytes::from_static(&[0xff; 3]),
            }))),
        ),
        (
            "ACCEPT of a provider with a window",
            F(Frame::Accept {
                limit: 262_144,
                max_datagram: 0,
                window: Some(30_000),
            }),
        ),
    ]
}

#[derive(Debug, PartialEq)]
pub(super) enum Golden {
    Frame(Frame),
    Message(Message),
}

/// The entries of `golden.hex`, in order.
pub(super) fn golden_file() -> Vec<(String, Vec<u8>)> {
    let mut entries: Vec<(String, Vec<u8>)> = Vec::new();
    for line in include_str!("../golden.hex").lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(name) = line.strip_prefix('[') {
            entries.push((name.trim_end_matches(']').to_owned(), Vec::new()));
        } else if !line.is_empty() {
            let digits: String = line.split_whitespace().collect();
            let bytes = (0..digits.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap());
            entries.last_mut().expect("a name first").1.extend(bytes);
        }
    }
    entries
}
