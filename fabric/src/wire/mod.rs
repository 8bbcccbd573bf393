//! What crosses the streams of a connection of ALPN `keel/1`: frames of flow legs, messages of the control stream,
//! closed tables of codes. No IO, no clock; a decoder never panics and holds a bounded part of what it was given.
//!
//! Layouts: [`frame`] for legs, [`control`] for the control stream. `golden.hex` holds one example of each, byte for
//! byte; a change there is a change of the protocol.

pub mod code;
pub mod control;
mod decode;
pub mod frame;
mod input;
mod offer;
mod proof;
pub mod varint;

#[cfg(test)]
mod tests;

pub use code::{AbortCode, CloseCode, GoneCode, RefuseCode, ResetCode};
pub use control::{Message, MessageDecoder};
pub use decode::{Decoder, MAX_BODY, MAX_HEADER, MAX_HEADER_FRAME, MAX_UNKNOWN, WireError};
pub use frame::{Frame, MAX_PAYLOAD, MAX_TEXT, Open, Place, Protocol, Resume, data_header};
pub use offer::{Health, Offer};
pub use proof::{FlowId, Generation, Proof, Role, Secret};

/// The version of the flow protocol that this code speaks.
pub const VERSION: u64 = 1;

/// Bytes that each side of a flow may send before ACCEPT.
pub const EARLY: u64 = 64 * 1024;
