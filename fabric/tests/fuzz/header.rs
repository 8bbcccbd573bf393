//! The header of a leg, as a router and a provider read it from anybody.

use bytes::{Bytes, BytesMut};
use keel_fabric::wire::{Decoder, Frame, MAX_HEADER, WireError};

/// Type and length of a frame.
const FRONT: usize = 16;

/// What is read of any bytes does not depend on how they arrive; what is accepted is small and can be written again.
pub(crate) fn target(input: &[u8]) {
    let input = Bytes::copy_from_slice(input);
    let mut decoder = Decoder::new();
    decoder.push(input.clone());
    let whole = decoder.next();
    assert!(decoder.held() <= input.len());
    if let Ok(Some(frame)) = &whole {
        let rest: usize = decoder.into_rest().iter().map(Bytes::len).sum();
        if matches!(frame, Frame::Open(_) | Frame::Resume(_)) {
            let taken = input.len() - rest;
            assert!(
                skips(&input) || taken <= MAX_HEADER + FRONT,
                "{taken} bytes"
            );
            round_trip(frame);
        }
    }
    // Byte by byte is every split point at once; long ones in larger steps.
    for step in [1 + input.len() / 256, 1 + input.len() / 2] {
        let pieced = feed(&input, step, whole.is_ok());
        match (&whole, &pieced) {
            // A DATA frame is handed on as it arrives.
            (Ok(Some(Frame::Data { offset, .. })), Ok(Some(Frame::Data { offset: at, .. }))) => {
                assert_eq!(offset, at);
            }
            _ => assert_eq!(whole, pieced),
        }
    }
}

/// Whether frames of unknown types may come before the header.
fn skips(input: &[u8]) -> bool {
    !matches!(input.first(), Some(1 | 4))
}

/// The first frame of bytes that arrive in pieces. A decoder that is asked after each holds less than one frame.
fn feed(input: &Bytes, step: usize, check: bool) -> Result<Option<Frame>, WireError> {
    let mut decoder = Decoder::new();
    let mut rest = input.clone();
    while !rest.is_empty() {
        decoder.push(rest.split_to(step.min(rest.len())));
        if let Some(frame) = decoder.next()? {
            return Ok(Some(frame));
        }
        assert!(!check || decoder.held() <= MAX_HEADER + FRONT);
    }
    Ok(None)
}

/// What was read can be written, and is the same when it is read again.
pub(crate) fn round_trip(frame: &Frame) {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    let mut decoder = Decoder::new();
    decoder.push(out.freeze());
    match decoder.next() {
        Ok(Some(again)) => assert_eq!(*frame, again),
        // An accepted header may be longer in our own writing by the few bytes of its numbers.
        Err(WireError::Oversized { .. }) => {}
        other => panic!("{frame:?} is written as {other:?}"),
    }
    assert!(decoder.is_idle() || matches!(decoder.next(), Err(_) | Ok(None)));
}
