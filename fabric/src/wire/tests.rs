use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

mod golden;

use golden::{Golden, golden, golden_file};

use super::*;

#[test]
fn golden_bytes_encode_and_decode() {
    let file = golden_file();
    let expected = golden();
    assert_eq!(
        file.iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>(),
        names(&expected)
    );
    for ((name, bytes), (_, golden)) in file.iter().zip(&expected) {
        let mut out = BytesMut::new();
        match golden {
            Golden::Frame(frame) => {
                frame.encode(&mut out);
                assert_eq!(
                    frames(&[bytes]).unwrap(),
                    std::slice::from_ref(frame),
                    "{name}"
                );
            }
            Golden::Message(message) => {
                message.encode(&mut out);
                assert_eq!(
                    messages(&[bytes]).unwrap(),
                    std::slice::from_ref(message),
                    "{name}"
                );
            }
        }
        assert_eq!(out, bytes, "{name}");
    }
}

#[test]
fn every_split_point_and_every_missing_tail_is_handled() {
    let entries = golden();
    for ((name, bytes), (_, golden)) in golden_file().iter().zip(&entries) {
        for split in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(split);
            match golden {
                Golden::Frame(frame) => {
                    assert_eq!(
                        join(frames(&[head, tail]).unwrap()),
                        std::slice::from_ref(frame),
                        "{name} split at {split}"
                    );
                    let front = frames(&[head]).unwrap();
                    assert!(
                        split == bytes.len() || front.iter().all(|f| f.name() == "DATA"),
                        "{name} cut at {split}"
                    );
                }
                Golden::Message(message) => {
                    assert_eq!(
                        messages(&[head, tail]).unwrap(),
                        std::slice::from_ref(message),
                        "{name} at {split}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_body_that_is_too_short_is_an_error_that_names_frame_and_field() {
    for (name, golden) in golden() {
        let Golden::Frame(frame) = golden else {
            continue;
        };
        if matches!(name, "DATA" | "PING") || name.starts_with("MOVE") || name.contains(" of a") {
            continue;
        }
        let mut whole = BytesMut::new();
        frame.encode(&mut whole);
        let mut input = input::Input::default();
        input.push(whole.freeze());
        let header = input.header().unwrap();
        let body = input.take(header.len as usize).unwrap();
        for len in 0..body.len() {
            let mut short = BytesMut::new();
            varint::write(header.kind, &mut short);
            varint::write(len as u64, &mut short);
            short.extend_from_slice(&body[..len]);
            let error = frames(&[&short]).unwrap_err();
            assert!(
                error.to_string().starts_with(name),
                "{name} cut to {len}: {error}"
            );
        }
    }
}

#[test]
fn unknown_frames_are_skipped_and_oversized_ones_refused() {
    let unknown = raw(77, &[9; 1000]);
    let ping = raw(frame::kind::PING, &[]);
    let input = [&unknown[..], &ping, &unknown, &ping].concat();
    assert_eq!(frames(&[&input]).unwrap(), [Frame::Ping, Frame::Ping]);
    assert_eq!(
        messages(&[&unknown, &raw(36, &[]), &unknown]).unwrap(),
        [Message::Drain]
    );
    // Room for fields of later versions behind the known ones.
    assert_eq!(
        frames(&[&raw(frame::kind::FIN, &[5, 1, 2, 3])]).unwrap(),
        [Frame::Fin { offset: 5 }]
    );

    for (kind, max) in [
        (frame::kind::OPEN, MAX_HEADER),
        (frame::kind::RESUME, MAX_HEADER),
        (frame::kind::ACK, MAX_BODY),
        (77, MAX_UNKNOWN),
        (frame::kind::DATA, MAX_PAYLOAD + 8),
    ] {
        let mut header = BytesMut::new();
        varint::write(kind, &mut header);
        varint::write(max as u64 + 1, &mut header);
        let error = frames(&[&header]).unwrap_err();
        assert_eq!(
            error,
            WireError::Oversized {
                kind,
                len: max as u64 + 1,
                max: max as u64
            }
        );
    }
    assert!(messages(&[&raw(33, &[0; MAX_HEADER + 1])]).is_err());
    let over = [&[7u8, 0x80, 1, 0, 2, 0][..], &[0; 100]].concat(); // offset in 1 byte, payload of 64 KiB and 1
    assert!(matches!(frames(&[&over]), Err(WireError::Oversized { .. })));
}

#[test]
fn other_versions_and_impossible_values_have_their_own_errors() {
    let mut open = raw(frame::kind::OPEN, &[0; 100]);
    assert_eq!(
        frames(&[&open]).unwrap_err(),
        WireError::Version { version: 0 }
    );
    open[3] = 2;
    assert_eq!(
        frames(&[&open]).unwrap_err(),
        WireError::Version { version: 2 }
    );
    // An offset at the end of the number space would overflow.
    let data = raw(frame::kind::DATA, &[0xff; 20]);
    assert_eq!(
        frames(&[&data]).unwrap_err(),
        WireError::Malformed {
            frame: "DATA",
            field: "offset"
        }
    );
}

#[test]
fn data_is_handed_on_without_copying() {
    let payload = Bytes::from(vec![7; 10_000]);
    let mut decoder = Decoder::new();
    let mut header = BytesMut::new();
    data_header(3, payload.len(), &mut header);
    decoder.push(header.freeze());
    for (offset, chunk) in [(3, payload.slice(..4000)), (4003, payload.slice(4000..))] {
        decoder.push(chunk.clone());
        let Some(Frame::Data { offset: at, bytes }) = decoder.next().unwrap() else {
            panic!("no data")
        };
        assert_eq!(
            (at, bytes.as_ptr(), bytes.len()),
            (offset, chunk.as_ptr(), chunk.len())
        );
    }
    assert!(decoder.is_idle());
}

#[test]
fn a_router_gets_what_follows_the_header_untouched() {
    let (_, Golden::Frame(open)) = golden().remove(0) else {
        panic!("OPEN is first")
    };
    let mut bytes = BytesMut::new();
    open.encode(&mut bytes);
    bytes.extend_from_slice(b"not a frame at all");
    let mut decoder = Decoder::new();
    decoder.push(bytes.freeze());
    decoder.push(Bytes::from_static(b"and more"));
    assert_eq!(decoder.next().unwrap(), Some(open));
    assert_eq!(
        Vec::from(decoder.into_rest()).concat(),
        b"not a frame at alland more"
    );
}

#[test]
fn codes_never_change_their_numbers() {
    fn table<C: Copy + PartialEq + std::fmt::Display + std::fmt::Debug>(
        all: &[C],
        to: fn(C) -> u64,
        from: fn(u64) -> C,
        names: &str,
    ) {
        let listed = all
            .iter()
            .map(|code| format!("{}={code}", to(*code)))
            .collect::<Vec<_>>()
            .join(" ");
        assert_eq!(listed, names);
        assert!(all.iter().all(|code| from(to(*code)) == *code));
        assert_eq!(from(varint::MAX), all[0]);
    }
    table(
        RefuseCode::ALL,
        RefuseCode::to_wire,
        RefuseCode::from_wire,
        "0=UNSPECIFIED 1=UNKNOWN_SERVICE 2=NO_PROVIDER 3=FORBIDDEN 4=BACKEND_REFUSED 5=BACKEND_TIMEOUT \
         6=BACKEND_UNREACHABLE 7=LIMIT 8=UNSUPPORTED_VERSION 9=UNSUPPORTED 10=DRAINING 11=TOO_MANY_HOPS 12=MALFORMED 13=NEVER_ARRIVED",
    );
    table(
        AbortCode::ALL,
        AbortCode::to_wire,
        AbortCode::from_wire,
        "0=UNSPECIFIED 1=RESET 2=BACKEND_RESET 3=WINDOW_EXPIRED 4=PROTOCOL 5=PEER_GONE 6=FORBIDDEN 7=SHUTDOWN 8=LIMIT",
    );
    table(
        GoneCode::ALL,
        GoneCode::to_wire,
        GoneCode::from_wire,
        "0=UNKNOWN 1=COMPLETE 2=ABORTED 3=EXPIRED 4=STALE 5=FORBIDDEN 6=REFUSED",
    );
    table(
        ResetCode::ALL,
        ResetCode::to_wire,
        ResetCode::from_wire,
        "0=UNSPECIFIED 1=LEG_LOST 2=ABANDONED 3=PROTOCOL 4=FLOW_ENDED 5=LIMIT 6=HEADER_TIMEOUT 7=PROVIDER_SILENT \
         8=RESET 9=BACKEND_RESET 10=WINDOW_EXPIRED 11=PROTOCOL 12=PEER_GONE 13=FORBIDDEN 14=SHUTDOWN 15=LIMIT",
    );
    table(
        CloseCode::ALL,
        CloseCode::to_wire,
        CloseCode::from_wire,
        "0=UNSPECIFIED 1=DONE 2=RESTART 3=PROTOCOL 4=LIMIT 5=FORBIDDEN 6=REPLACED",
    );
}

#[test]
fn secrets_and_proofs_are_not_printed_and_bind_everything() {
    let (secret, flow, generation) = (Secret::random(), FlowId::random(), Generation(3));
    let proof = secret.prove(flow, generation, Role::Initiator);
    assert_eq!(format!("{secret:?} {proof:?}"), "Secret(..) Proof(..)");
    assert!(secret.accepts(&proof, flow, generation, Role::Initiator));
    assert!(!secret.accepts(&proof, flow, generation, Role::Terminator));
    assert!(!secret.accepts(&proof, flow, generation.next(), Role::Initiator));
    assert!(!secret.accepts(&proof, FlowId::random(), generation, Role::Initiator));
    assert!(!Secret::random().accepts(&proof, flow, generation, Role::Initiator));
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let mut out = BytesMut::new();
    Frame::Refuse {
        code: RefuseCode::Limit,
        text: "ü".repeat(MAX_TEXT),
    }
    .encode(&mut out);
    let decoded = frames(&[&out]).unwrap();
    assert_eq!(
        decoded,
        [Frame::Refuse {
            code: RefuseCode::Limit,
            text: "ü".repeat(MAX_TEXT / 2)
        }]
    );
}

proptest! {
    #[test]
    fn varints_round_trip(value in 0..=varint::MAX, shift in 0u32..62) {
        let value = value >> shift;
        let mut out = BytesMut::new();
        varint::write(value, &mut out);
        prop_assert_eq!(out.len(), varint::size(value));
        prop_assert_eq!(varint::read(&out), Some((value, out.len())));
        prop_assert_eq!(varint::read(&out[..out.len() - 1]), None);
    }

    #[test]
    fn any_frames_in_any_chunks_come_out_as_they_went_in(
        frames_in in prop::collection::vec(any_frame(), 1..8),
        cuts in prop::collection::vec(1usize..200, 1..40),
    ) {
        let mut out = BytesMut::new();
        frames_in.iter().for_each(|frame| frame.encode(&mut out));
        let (mut rest, mut chunks) = (&out[..], Vec::new());
        for cut in cuts.iter().cycle() {
            let (chunk, tail) = rest.split_at((*cut).min(rest.len()));
            chunks.push(chunk);
            rest = tail;
            if rest.is_empty() { break }
        }
        prop_assert_eq!(join(frames(&chunks).unwrap()), join(frames_in));
    }

    #[test]
    fn garbage_never_panics_and_the_split_does_not_matter(
        bytes in prop::collection::vec(prop_oneof![0u8..16, any::<u8>()], 0..300),
        split in 0usize..300,
    ) {
        let (head, tail) = bytes.split_at(split.min(bytes.len()));
        prop_assert_eq!(frames(&[&bytes]).map(join), frames(&[head, tail]).map(join));
        prop_assert_eq!(messages(&[&bytes]), messages(&[head, tail]));
    }
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let number = || (0..=varint::MAX, 0u32..62).prop_map(|(value, shift)| value >> shift);
    prop_oneof![
        (0usize..12).prop_map(|index| match golden().swap_remove(index).1 {
            Golden::Frame(frame) => frame,
            Golden::Message(_) => Frame::Ping,
        }),
        (number(), number(), proptest::option::of(number())).prop_map(
            |(limit, max_datagram, window)| Frame::Accept {
                limit,
                max_datagram,
                window
            }
        ),
        (number(), number()).prop_map(|(recv, limit)| Frame::Ack { recv, limit }),
        (number(), 1usize..2000).prop_map(|(offset, len)| Frame::Data {
            offset: offset / 2,
            bytes: (0..len).map(|i| i as u8).collect(),
        }),
        number().prop_map(|offset| Frame::Fin { offset }),
    ]
}

/// Decodes all chunks; asserts that a decoder that came to the end of its input stays there.
fn frames(chunks: &[&[u8]]) -> Result<Vec<Frame>, WireError> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for chunk in chunks {
        decoder.push(Bytes::copy_from_slice(chunk));
        while let Some(frame) = decoder.next()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

fn messages(chunks: &[&[u8]]) -> Result<Vec<Message>, WireError> {
    let mut decoder = MessageDecoder::new();
    let mut messages = Vec::new();
    for chunk in chunks {
        decoder.push(Bytes::copy_from_slice(chunk));
        while let Some(message) = decoder.next()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

/// Joins neighbouring pieces of DATA.
fn join(frames: Vec<Frame>) -> Vec<Frame> {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        match (joined.last_mut(), frame) {
            (
                Some(Frame::Data { offset, bytes }),
                Frame::Data {
                    offset: next,
                    bytes: more,
                },
            ) if *offset + bytes.len() as u64 == next => {
                *bytes = [&bytes[..], &more].concat().into();
            }
            (_, frame) => joined.push(frame),
        }
    }
    joined
}

fn raw(kind: u64, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    varint::write(kind, &mut out);
    varint::write(body.len() as u64, &mut out);
    [&out[..], body].concat()
}

fn names(golden: &[(&'static str, Golden)]) -> Vec<&'static str> {
    golden.iter().map(|(name, _)| *name).collect()
}
