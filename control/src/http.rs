//! What every way into the APIServer has in common: a request with a streamed body, who asks, and the handler that answers.
//!
//! HTTP/3, HTTP/2 and HTTP/1.1 over mutual TLS and HTTP/1.1 over the node's Unix sockets all end in one [`Handler`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use keel_certs::Identity;

/// Why a body could not be read or produced.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's or a response's body: frames that come as they are made, so that a watch is a body too.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The identity of the client certificate, verified against this fabric's root; `None` if the client showed none.
    pub identity: Option<Identity>,
    /// Where the request came from.
    pub remote: Remote,
}

/// The other end of the connection that carried a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// TLS over TCP: HTTP/1.1 or HTTP/2.
    Tcp(SocketAddr),
    /// QUIC: HTTP/3.
    Quic(SocketAddr),
    /// A Unix socket, with the peer's credentials as the kernel gives them.
    Unix {
        /// The peer's user id.
        uid: u32,
        /// The peer's group id.
        gid: u32,
        /// The peer's process id; `None` where the kernel does not know it.
        pid: Option<i32>,
    },
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Quic(address) => write!(f, "quic {address}"),
            Self::Unix {
                uid,
                pid: Some(pid),
                ..
            } => write!(f, "unix uid {uid} pid {pid}"),
            Self::Unix { uid, pid: None, .. } => write!(f, "unix uid {uid}"),
        }
    }
}

/// Answers requests, whatever carried them.
///
/// The future is dropped when the client goes away, so everything that must not stop half-way belongs to a task of its owner; the
/// response's body is dropped likewise, which is how a cancelled watch ends.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(
        &self,
        request: http::Request<Body>,
        caller: Caller,
    ) -> BoxFuture<'static, http::Response<Body>>;
}

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body of these bytes, one piece after the other: what is long need not be copied into one, and goes piece by piece.
pub fn pieces(pieces: VecDeque<Bytes>) -> Body {
    Pieces(pieces)
        .map_err(|never| match never {})
        .boxed_unsync()
}

struct Pieces(VecDeque<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// A body without bytes.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Why [`read`] gave no bytes.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The body is longer than the limit.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The peer or the connection ended it early.
    #[error("the body ended early: {0}")]
    Broken(BoxError),
}

/// Reads a whole body of at most `limit` bytes.
///
/// # Errors
/// [`ReadError::TooLarge`] as soon as the limit is passed, [`ReadError::Broken`] if the body fails before its end.
pub async fn read(mut body: Body, limit: usize) -> Result<Bytes, ReadError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Trailers say nothing here.
        let Ok(data) = frame.map_err(ReadError::Broken)?.into_data() else {
            continue;
        };
        if first.len() + rest.len() + data.len() > limit {
            return Err(ReadError::TooLarge { limit });
        }
        // Most bodies come in one piece, which is passed on without a copy.
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() {
        first
    } else {
        rest.freeze()
    })
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::StreamBody;

    use super::*;

    fn parts(parts: &'static [&'static str]) -> Body {
        let parts = parts.iter().map(|part| Bytes::from_static(part.as_bytes()));
        pieces(parts.collect())
    }

    #[tokio::test]
    async fn a_body_is_read_whole_or_refused() {
        assert_eq!(read(empty(), 0).await.unwrap(), "");
        assert_eq!(parts(&["one", "two"]).size_hint().exact(), Some(6));
        assert_eq!(read(full("one"), 3).await.unwrap(), "one");
        assert_eq!(
            read(parts(&["one", "two", "three"]), 11).await.unwrap(),
            "onetwothree"
        );
        assert!(matches!(
            read(parts(&["one", "two"]), 5).await,
            Err(ReadError::TooLarge { limit: 5 })
        ));
        let broken = StreamBody::new(futures_util::stream::iter([Err::<Frame<Bytes>, BoxError>(
            "cut".into(),
        )]));
        assert!(matches!(
            read(broken.boxed_unsync(), 5).await,
            Err(ReadError::Broken(_))
        ));
    }
}
