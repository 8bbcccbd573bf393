//! Why a call failed, and what to do about it.

use keel_fabric::quic::HostPort;

use crate::api::{Reason, Status};

/// Why a call of the API failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection to the server.
    #[error("cannot reach the APIServer {server}: {why}")]
    Unreachable {
        /// The server, as configured.
        server: HostPort,
        /// Every address that was tried, with what went wrong there.
        why: String,
    },
    /// The connection or the stream ended while the call ran: it may or may not have had an effect.
    #[error("the call to the APIServer {server} was cut: {why}")]
    Interrupted {
        /// The server, as configured.
        server: HostPort,
        /// What happened.
        why: String,
    },
    /// The server did not answer in time.
    #[error("the APIServer {server} did not answer within {seconds} s")]
    Slow {
        /// The server, as configured.
        server: HostPort,
        /// How long was waited.
        seconds: u64,
    },
    /// The server said no.
    #[error("{}", .0.message)]
    Status(Box<Status>),
    /// The server's answer makes no sense.
    #[error("the APIServer's answer cannot be read: {0}")]
    Answer(String),
    /// The request could not be built.
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

/// What a caller can do about a [`ClientError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try again later: the server or the way to it is away.
    Retry,
    /// There is no such object.
    NotFound,
    /// The object is there already, or is not what the caller thought: read it again.
    Conflict,
    /// The revision is too old for the server: list again.
    Gone,
    /// The revision is newer than the server: it was restored or replaced; list again.
    Ahead,
    /// The caller may not do that, or is nobody.
    Denied,
    /// The request is wrong; sending it again changes nothing.
    Invalid,
}

impl ClientError {
    /// What can be done about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. }
            | Self::Interrupted { .. }
            | Self::Slow { .. }
            | Self::Answer(_) => Class::Retry,
            Self::Request(_) => Class::Invalid,
            Self::Status(status) => match status.code {
                401 | 403 => Class::Denied,
                404 => Class::NotFound,
                409 => Class::Conflict,
                410 => Class::Gone,
                504 if status.has_cause("ResourceVersionTooLarge") => Class::Ahead,
                429 | 500..=599 => Class::Retry,
                _ => Class::Invalid,
            },
        }
    }

    /// Whether the object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.class() == Class::NotFound
    }

    /// The error that an answer with this code and body is.
    pub(super) fn answer(code: http::StatusCode, body: &[u8]) -> Self {
        match serde_json::from_slice::<Status>(body) {
            Ok(mut status) if status.kind == "Status" => {
                status.code = code.as_u16();
                Self::Status(Box::new(status))
            }
            _ => {
                let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
                let mut status = Status::failure(
                    Reason::Unknown,
                    format!("the APIServer answered {code}: {text}"),
                );
                status.code = code.as_u16();
                Self::Status(Box::new(status))
            }
        }
    }
}
