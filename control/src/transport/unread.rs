//! The part of a request's body that its handler did not read, over TCP.
//!
//! hyper resets an HTTP/2 stream whose request body is dropped before its end, and the answer is lost with it if it has
//! not left yet (seen with curl: "stream error" instead of 401). So a dropped body comes back, and is read to its end,
//! within bounds, before the answer is given.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::http::{Body, BoxError};

/// Bytes that are read and thrown away so that a refused client hears why: more than any body that is taken, because who
/// sends one that is too large should see 413. Nothing of it is held.
const DRAIN: usize = 16 << 20;
/// How long that may take; whoever is slower sees the stream end.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A body that goes back when it is dropped before its end.
pub(super) struct Lent {
    body: Option<Body>,
    back: Option<oneshot::Sender<Body>>,
}

/// Where a [`Lent`] body comes back.
pub(super) struct Rest(oneshot::Receiver<Body>);

/// Lends `body` to a handler.
pub(super) fn lend(body: Body) -> (Lent, Rest) {
    let (back, receiver) = oneshot::channel();
    (
        Lent {
            body: Some(body),
            back: Some(back),
        },
        Rest(receiver),
    )
}

impl Rest {
    /// Reads what the handler left, at most [`DRAIN`] bytes and for [`DRAIN_TIME`]. A body that the handler still holds is its own.
    pub(super) async fn drain(mut self) {
        let Ok(mut body) = self.0.try_recv() else {
            return;
        };
        let read = async {
            let mut seen = 0;
            while seen < DRAIN {
                match body.frame().await {
                    Some(Ok(frame)) => seen += frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(_)) | None => return,
                }
            }
        };
        // Too slow or too much is no error here: the stream is reset when the body is dropped.
        let _ = timeout(DRAIN_TIME, read).await;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take())
            && !http_body::Body::is_end_stream(&body)
        {
            // Nobody waits for it: then it ends here.
            let _ = back.send(body);
        }
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body
            .as_ref()
            .is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}
