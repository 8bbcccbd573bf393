//! Bugs that are planted to see that the checks find them.

use bytes::BytesMut;

use crate::wire::{Frame, Generation};

/// Mistakes that a driver or a machine could make; each must be caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    SwappedByte,
    LostFin,
    StaleGenerationAccepted,
    DoubleDial,
    CutTakenForEnd,
    /// Planted where headers are forged.
    ForgeryAccepted,
    /// Planted where a repeated open is answered.
    YoungProcessBelieved,
}

/// What a broken machine would make of a frame; `None` if it loses it.
pub(super) fn sabotage(
    bug: Option<Bug>,
    frame: Frame,
    leg: Generation,
    newest: Generation,
) -> Option<(Frame, Generation)> {
    match (bug, frame) {
        (Some(Bug::SwappedByte), Frame::Data { offset, bytes })
            if offset > 5000 && bytes.len() > 1 =>
        {
            let mut swapped = BytesMut::from(&bytes[..]);
            swapped[..].swap(0, 1);
            Some((
                Frame::Data {
                    offset,
                    bytes: swapped.freeze(),
                },
                leg,
            ))
        }
        (Some(Bug::LostFin), Frame::Fin { .. }) if leg > Generation::FIRST => None,
        (Some(Bug::StaleGenerationAccepted), frame @ Frame::Data { .. }) => Some((frame, newest)),
        (Some(Bug::CutTakenForEnd), Frame::Abort { offset, .. }) => {
            Some((Frame::Fin { offset }, leg))
        }
        (_, frame) => Some((frame, leg)),
    }
}
