//! h3's idea of a QUIC connection over the fabric's own QUIC types.
//!
//! h3 does the framing and the header compression; what it leaves open is closed here: the stop and reset codes of streams that are
//! dropped, how many bytes one stream may make it hold, and which requests are refused once a GOAWAY was sent.

mod budget;
mod connection;
mod streams;

pub(crate) use budget::Budget;
pub(crate) use connection::{Accepted, Budgets, H3Connection, Opener};
pub(crate) use streams::{RecvHalf, SendHalf};

/// Bytes of header fields that one message may have, on the wire and by the count of RFC 9114 (32 bytes more for each field).
pub(crate) const MAX_FIELD_SECTION: u64 = 64 * 1024;

/// Which end of a connection this is; it decides what a dropped stream means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

impl Side {
    /// The code for "no more of this, please" when a receiving half is dropped before its end.
    ///
    /// A server that has answered wants no more of the request, which is no error (RFC 9114, 4.1); a client that drops a response
    /// cancels it. The zero that QUIC libraries send by default is no HTTP/3 code and makes clients fail a complete answer.
    fn stop_code(self) -> u64 {
        match self {
            Self::Server => h3::error::Code::H3_NO_ERROR.value(),
            Self::Client => h3::error::Code::H3_REQUEST_CANCELLED.value(),
        }
    }

    /// The code for a sending half that is dropped before it was finished.
    fn reset_code(self) -> u64 {
        match self {
            Self::Server => h3::error::Code::H3_INTERNAL_ERROR.value(),
            Self::Client => h3::error::Code::H3_REQUEST_CANCELLED.value(),
        }
    }
}
