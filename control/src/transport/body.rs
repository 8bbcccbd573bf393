//! Bodies on their way in and out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::adapter::{Budget, RecvHalf};
use crate::http::{Body, BoxError};

/// The receiving half of a message in h3: a request at the server, an answer at the client.
pub(crate) trait Receive: Send + 'static {
    /// The next piece of payload; `None` at the end.
    fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, h3::error::StreamError>>;
}

/// Copies what h3 gave out: it counts as held by h3 as long as a part of it lives.
fn own(chunk: impl Buf) -> Bytes {
    let mut own = BytesMut::with_capacity(chunk.remaining());
    own.put(chunk);
    own.freeze()
}

impl Receive for h3::server::RequestStream<RecvHalf, Bytes> {
    fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, h3::error::StreamError>> {
        let chunk = ready!(self.poll_recv_data(cx))?;
        Poll::Ready(Ok(chunk.map(own)))
    }
}

impl Receive for h3::client::RequestStream<RecvHalf, Bytes> {
    fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, h3::error::StreamError>> {
        let chunk = ready!(self.poll_recv_data(cx))?;
        Poll::Ready(Ok(chunk.map(own)))
    }
}

/// A message ended before the length that its header announced.
#[derive(Debug, thiserror::Error)]
#[error("the body has not the {announced} bytes that its content-length announces")]
struct WrongLength {
    announced: u64,
}

/// h3 holds all that it may and gives nothing out: it waits for the end of a frame that nobody asked for.
#[derive(Debug, thiserror::Error)]
#[error("the peer sent a frame that is too large to be skipped")]
struct FrameTooLarge;

/// Takes the payload of a message out of h3.
pub(crate) struct Reader<R> {
    stream: R,
    budget: Option<Arc<Budget>>,
    announced: Option<u64>,
    seen: u64,
    ended: bool,
}

impl<R: Receive> Reader<R> {
    /// A reader behind a message's header.
    pub(crate) fn new(stream: R, budget: Option<Arc<Budget>>, headers: &http::HeaderMap) -> Self {
        let announced = headers
            .get(http::header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Self {
            stream,
            budget,
            announced,
            seen: 0,
            ended: false,
        }
    }

    /// The next piece; `None` at the end and ever after. An error is the end too.
    ///
    /// h3 takes a stream that ends inside a frame for complete, so the announced length is checked here.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let payload = match self.stream.poll_payload(cx) {
            Poll::Ready(payload) => payload,
            Poll::Pending => {
                let room = self.budget.as_ref().and_then(|budget| budget.room());
                if room != Some(0) {
                    return Poll::Pending;
                }
                self.ended = true;
                return Poll::Ready(Some(Err(FrameTooLarge.into())));
            }
        };
        let next = match payload {
            Ok(Some(chunk)) => {
                self.seen += chunk.len() as u64;
                match self.announced {
                    Some(announced) if self.seen > announced => {
                        Some(Err(WrongLength { announced }.into()))
                    }
                    _ => Some(Ok(chunk)),
                }
            }
            Ok(None) => match self.announced {
                Some(announced) if self.seen < announced => {
                    Some(Err(WrongLength { announced }.into()))
                }
                _ => None,
            },
            Err(error) => Some(Err(error.into())),
        };
        self.ended = !matches!(next, Some(Ok(_)));
        Poll::Ready(next)
    }

    /// Reads on to the end, but no more than `limit` bytes.
    pub(crate) async fn drain(&mut self, limit: usize) {
        let mut seen = 0;
        while seen < limit {
            match std::future::poll_fn(|cx| self.poll_next(cx)).await {
                Some(Ok(chunk)) => seen += chunk.len(),
                Some(Err(_)) | None => break,
            }
        }
    }
}

/// A body over a [`Reader`], which goes back to `back` when the body is dropped.
pub(crate) struct Streamed<R: Receive> {
    reader: Option<Reader<R>>,
    back: Option<oneshot::Sender<Reader<R>>>,
}

impl<R: Receive> Streamed<R> {
    /// A body and where its reader comes back.
    pub(crate) fn new(reader: Reader<R>) -> (Self, oneshot::Receiver<Reader<R>>) {
        let (back, receiver) = oneshot::channel();
        (
            Self {
                reader: Some(reader),
                back: Some(back),
            },
            receiver,
        )
    }
}

impl<R: Receive> Drop for Streamed<R> {
    fn drop(&mut self) {
        if let (Some(reader), Some(back)) = (self.reader.take(), self.back.take()) {
            // Nobody waits for it: then it ends here.
            let _ = back.send(reader);
        }
    }
}

impl<R: Receive + Unpin> http_body::Body for Streamed<R> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.reader {
            Some(reader) => reader
                .poll_next(cx)
                .map(|next| next.map(|chunk| chunk.map(Frame::data))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reader
            .as_ref()
            .is_none_or(|reader| reader.ended || reader.announced == Some(0))
    }

    fn size_hint(&self) -> SizeHint {
        match self.reader.as_ref().and_then(|reader| {
            reader
                .announced
                .map(|announced| announced.saturating_sub(reader.seen))
        }) {
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

/// A request's body that must be there in time: whoever sends it slowly holds a connection and a handler.
pub(crate) struct Timed {
    body: Body,
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The rest of a request did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the body was not complete within {} s", .0.as_secs_f32())]
struct TooSlow(Duration);

impl Timed {
    /// Counts from the first time that somebody waits for the body.
    pub(crate) fn new(body: Body, limit: Duration) -> Self {
        Self {
            body,
            limit,
            deadline: None,
        }
    }
}

impl http_body::Body for Timed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let limit = this.limit;
        let deadline = this.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Some(Err(TooSlow(limit).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer that ends, at the border of two frames, once the server stops and there is nothing to send: a watch ends cleanly, an
/// answer of known length is sent to its end.
pub(crate) struct Ending {
    body: Body,
    stop: Option<BoxFuture<'static, ()>>,
    stopped: bool,
}

impl Ending {
    /// Wraps an answer's body.
    pub(crate) fn new(body: Body, stop: CancellationToken) -> Self {
        let streamed = http_body::Body::size_hint(&body).exact().is_none();
        Self {
            body,
            stop: streamed.then(|| Box::pin(stop.cancelled_owned()) as BoxFuture<'static, ()>),
            stopped: false,
        }
    }
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if let Some(stop) = &mut self.stop
            && stop.as_mut().poll(cx).is_ready()
        {
            self.stop = None;
            self.stopped = true;
        }
        if self.stopped {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    #[tokio::test]
    async fn a_watch_ends_between_frames_when_the_server_stops() {
        let (events, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, BoxError>>(4);
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
            Some((receiver.recv().await?, receiver))
        });
        let stop = CancellationToken::new();
        let mut body = Ending::new(StreamBody::new(stream).boxed_unsync(), stop.clone());
        events
            .send(Ok(Frame::data(Bytes::from_static(b"one\n"))))
            .await
            .unwrap();
        stop.cancel();
        let first = body.frame().await.expect("what is there is sent").unwrap();
        assert_eq!(first.into_data().unwrap(), "one\n");
        assert!(
            body.frame().await.is_none(),
            "a stopped server must end an idle watch"
        );
    }

    #[tokio::test]
    async fn an_answer_of_known_length_is_sent_to_its_end() {
        let stop = CancellationToken::new();
        stop.cancel();
        let body = Ending::new(crate::http::full("whole"), stop);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
    }
}
