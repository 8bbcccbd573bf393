//! Peers of other versions: what they add is skipped, and what they speak is refused in words if it is not spoken here.

use bytes::BytesMut;
use keel_fabric::wire::{Health, Message, MessageDecoder, Offer, Protocol, VERSION, varint};

use crate::admission::connect;
use crate::world::{World, soon};

/// The message as a later version may write it, with a field behind those of today.
fn longer(message: &Message) -> BytesMut {
    let mut out = BytesMut::new();
    message.encode(&mut out);
    // Kind and length are a byte each as long as they are small.
    assert!(out[0] < 64 && out[1] < 59);
    out[1] += 5;
    out.extend_from_slice(b"later");
    out
}

#[tokio::test]
async fn what_a_later_version_adds_is_skipped() {
    let mut world = World::new();
    let router = world.router("r").await;
    let peer = connect(&router, &world.fabric.pod("b", "default", "p")).await;
    let (mut control, mut answers) = soon(peer.open_bi()).await.unwrap();
    let mut out = longer(&Message::Hello {
        version: VERSION,
        software: "keel/9".to_owned(),
        instance: Some(7),
    });
    varint::write(60, &mut out);
    varint::write(5, &mut out);
    out.extend_from_slice(b"later");
    out.extend(longer(&Message::Publish {
        id: 1,
        service: "echo.default".parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        offer: Offer {
            weight: 2,
            priority: 0,
            health: Health::Healthy,
        },
    }));
    out.extend(longer(&Message::Withdraw { id: 1 }));
    soon(control.write_chunk(out.freeze())).await.unwrap();
    let (mut decoder, mut answered) = (MessageDecoder::new(), Vec::new());
    while answered.len() < 2 {
        decoder.push(soon(answers.read_chunk(1000)).await.unwrap().unwrap());
        while let Some(message) = decoder.next().unwrap() {
            if let Message::Answer { id, outcome } = message {
                answered.push((id, outcome));
            }
        }
    }
    assert_eq!(answered, [(1, Ok(())), (1, Ok(()))]);
    assert!(peer.close_reason().is_none());
}

#[tokio::test]
async fn another_version_of_the_control_stream_is_refused_in_words() {
    let mut world = World::new();
    let router = world.router("r").await;
    let peer = connect(&router, &world.fabric.pod("b", "default", "p")).await;
    let (mut control, _answers) = soon(peer.open_bi()).await.unwrap();
    let mut out = BytesMut::new();
    // HELLO, its length, the version, no name.
    for number in [32, 2, VERSION + 1, 0] {
        varint::write(number, &mut out);
    }
    soon(control.write_chunk(out.freeze())).await.unwrap();
    let lost = soon(peer.closed()).await.to_string();
    let version = format!("version {}", VERSION + 1);
    assert!(lost.contains(&version), "{lost}");
}
