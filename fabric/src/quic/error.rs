//! Errors of endpoints, connections and streams.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;

use super::KeysError;
use crate::wire::CloseCode;

/// Why an endpoint could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket has the port.
    #[error("UDP {addr} is taken by another process: stop it, or listen on another port")]
    Taken {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// Ports below 1024 need a permission.
    #[error(
        "not permitted to bind UDP {addr}: take a port of 1024 or more, or grant CAP_NET_BIND_SERVICE"
    )]
    NotPermitted {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// Any other error of the system.
    #[error("cannot bind UDP {addr}: {source}")]
    Io {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The TLS configuration cannot be used for QUIC.
    #[error("the TLS configuration cannot serve QUIC: {0}")]
    Tls(String),
    /// The endpoint's keys cannot be had.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// Why a connection could not be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be used from here.
    #[error("cannot connect to {addr}: {why}")]
    Address {
        /// The address.
        addr: SocketAddr,
        /// What is wrong with it.
        why: String,
    },
    /// The TLS configuration cannot be used for QUIC.
    #[error("the TLS configuration cannot serve QUIC: {0}")]
    Tls(String),
    /// The handshake failed.
    #[error("{0}")]
    Handshake(#[from] Lost),
    /// The endpoint is closed.
    #[error("the endpoint is closed")]
    Closed,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Nothing was heard for the idle time.
    #[error("nothing heard for too long")]
    TimedOut,
    /// The peer does not know the connection: it was restarted.
    #[error("the peer was restarted")]
    Restarted,
    /// The peer closed it.
    #[error("closed by the peer with code {code}{}", said(.reason))]
    Closed {
        /// The application's code.
        code: u64,
        /// The peer's words.
        reason: Bytes,
    },
    /// We closed it.
    #[error("closed here")]
    Here,
    /// TLS failed: the alert's number and what was said about it.
    #[error("TLS failed: {text}")]
    Tls {
        /// Alert of RFC 8446 section 6.
        alert: u8,
        /// In words.
        text: String,
    },
    /// Anything else below us.
    #[error("QUIC failed: {0}")]
    Transport(String),
}

impl Lost {
    /// Whether the peer closed it because another connection of ours takes its place.
    pub(crate) fn is_replaced(&self) -> bool {
        let replaced = CloseCode::Replaced.to_wire();
        matches!(self, Self::Closed { code, .. } if *code == replaced)
    }
}

fn said(reason: &Bytes) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {}", String::from_utf8_lossy(reason))
    }
}

/// TLS alert when no protocol (ALPN) is shared.
const NO_APPLICATION_PROTOCOL: u8 = 120;

fn tls(alert: u8, reason: &str) -> Lost {
    let meaning = match alert {
        42 => "the certificate was not accepted",
        43 | 46 => "the certificate is of a kind or identity that is not accepted",
        44 => "the certificate was revoked",
        45 => "the certificate is expired or not yet valid (check both clocks)",
        48 => "the certificate is of another trust domain",
        49 => "access denied",
        116 => "a client certificate is required",
        NO_APPLICATION_PROTOCOL => "the peer does not speak this protocol (ALPN)",
        _ => "handshake failed",
    };
    // What our own verifier says is a whole sentence with its remedy; rustls wraps it in the names of its types.
    let own = reason
        .split_once("Other(OtherError(")
        .and_then(|(_, rest)| rest.strip_suffix("))"));
    let text = if let Some(own) = own {
        own.to_owned()
    } else if reason.is_empty() {
        meaning.to_owned()
    } else {
        format!("{meaning}: {reason}")
    };
    Lost::Tls { alert, text }
}

/// QUIC carries TLS alerts as 0x100 + alert.
fn alert_of(code: quinn::TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200)
        .contains(&code)
        .then(|| u8::try_from(code - 0x100).unwrap_or(0))
}

impl From<quinn::ConnectionError> for Lost {
    fn from(error: quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::TimedOut => Self::TimedOut,
            E::Reset => Self::Restarted,
            E::LocallyClosed => Self::Here,
            E::ApplicationClosed(close) => Self::Closed {
                code: close.error_code.into_inner(),
                reason: close.reason,
            },
            E::TransportError(error) => match alert_of(error.code) {
                Some(alert) => tls(alert, &error.reason),
                None => Self::Transport(error.to_string()),
            },
            E::ConnectionClosed(close) => match alert_of(close.error_code) {
                Some(alert) => tls(alert, &String::from_utf8_lossy(&close.reason)),
                None => Self::Transport(close.to_string()),
            },
            other => Self::Transport(other.to_string()),
        }
    }
}

/// Why nothing more can be read from a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The peer reset the stream.
    #[error("the peer reset the stream with code {0}")]
    Reset(u64),
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Lost(#[from] Lost),
    /// We stopped the stream before.
    #[error("the stream is closed")]
    Closed,
}

impl From<quinn::ReadError> for ReadError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset(code.into_inner()),
            quinn::ReadError::ConnectionLost(error) => Self::Lost(error.into()),
            _ => Self::Closed,
        }
    }
}

/// Why nothing more can be written to a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The peer stopped the stream.
    #[error("the peer stopped the stream with code {0}")]
    Stopped(u64),
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Lost(#[from] Lost),
    /// We finished or reset the stream before.
    #[error("the stream is closed")]
    Closed,
}

impl From<quinn::WriteError> for WriteError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Stopped(code.into_inner()),
            quinn::WriteError::ConnectionLost(error) => Self::Lost(error.into()),
            _ => Self::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_our_verifier_says_stands_alone() {
        let wrapped = "invalid peer certificate: Other(OtherError(wrong endpoint (of c)))";
        assert_eq!(
            tls(46, wrapped).to_string(),
            "TLS failed: wrong endpoint (of c)"
        );
        let plain = tls(45, "it is late").to_string();
        assert!(
            plain.contains("both clocks") && plain.ends_with(": it is late"),
            "{plain}"
        );
    }
}
