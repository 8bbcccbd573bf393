//! One HTTP/3 connection: accepts requests, answers each in a task of its own, ends in order.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h3::error::Code;
use h3::server::RequestResolver;
use http_body_util::BodyExt;
use keel_fabric::quic::Connection;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::adapter::{Accepted, H3Connection, MAX_FIELD_SECTION, Side};
use super::body::{Ending, Reader, Streamed, Timed};
use super::stall::PIECE;
use super::{Limits, TransportMetrics};
use crate::http::{Body, Caller, Handler};

/// Bytes of a request that are read after the answer is sent, so that a client that is still sending sees the answer first.
const DRAIN: usize = 64 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// How long a client may take to acknowledge the end of an answer before its request no longer counts as running.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
/// The same while the connection ends, and as many round trips on top: a client that was killed must not hold a server that stops.
const ACKNOWLEDGE_LAST: Duration = Duration::from_secs(1);
const ROUND_TRIPS: u32 = 10;

/// Serves requests until the peer closes, `stop` is requested or `expires` has come.
///
/// In the last two cases the peer is told to go elsewhere, what runs is finished (watches are ended), and the connection is closed
/// after `limits.drain` at the latest.
pub(super) async fn serve(
    quic: Connection,
    caller: Caller,
    handler: Arc<dyn Handler>,
    limits: Limits,
    metrics: Arc<TransportMetrics>,
    expires: Instant,
    stop: CancellationToken,
) {
    let mut builder = h3::server::builder();
    builder.max_field_section_size(MAX_FIELD_SECTION);
    let mut connection = match timeout(
        limits.handshake,
        builder.build::<_, Bytes>(H3Connection::new(quic.clone(), Side::Server)),
    )
    .await
    {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            return debug!(remote = %caller.remote, %error, "HTTP/3 connection did not start");
        }
        Err(_) => {
            return quic.close(
                Code::H3_GENERAL_PROTOCOL_ERROR.value(),
                b"no HTTP/3 in time",
            );
        }
    };
    // The watches of this connection end when it does, be it for its certificate's end or for the server's.
    let ending = stop.child_token();
    let mut requests = JoinSet::new();
    let mut deadline = None;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Ok(Some(resolver)) => {
                    let Some(stream) = connection.inner.conn.take_accepted() else { continue };
                    let request = Request { quic: quic.clone(), handler: handler.clone(), caller: caller.clone(), ending: ending.clone(), limits, metrics: metrics.clone() };
                    requests.spawn(request.serve(resolver, stream));
                }
                // The peer is going and all its requests are answered.
                Ok(None) => break,
                Err(error) => {
                    if !error.is_h3_no_error() {
                        debug!(remote = %caller.remote, %error, "HTTP/3 connection ended");
                    }
                    break;
                }
            },
            Some(_) = requests.join_next() => {}
            () = ending.cancelled(), if deadline.is_none() => {
                deadline = Some(Instant::now() + limits.drain);
                // One more than the last accepted: the id that is named is the first that was not processed.
                if connection.shutdown(1).await.is_err() {
                    break;
                }
                connection.inner.conn.refuse_new();
            }
            () = sleep_until(expires), if deadline.is_none() => {
                debug!(remote = %caller.remote, "the client's certificate has ended, so its connection ends");
                ending.cancel();
            }
            () = sleep_until(deadline.unwrap_or(expires)), if deadline.is_some() => {
                metrics.limit_hit("drain_time");
                break;
            }
        }
        if deadline.is_some() && requests.is_empty() {
            break;
        }
    }
    requests.shutdown().await;
}

/// What a request's task owns.
struct Request {
    quic: Connection,
    handler: Arc<dyn Handler>,
    caller: Caller,
    ending: CancellationToken,
    limits: Limits,
    metrics: Arc<TransportMetrics>,
}

impl Request {
    async fn serve(self, resolver: RequestResolver<H3Connection, Bytes>, accepted: Accepted) {
        let Accepted {
            budget,
            mut stopped,
        } = accepted;
        let resolved = match timeout(self.limits.header, resolver.resolve_request()).await {
            Ok(Ok(resolved)) => resolved,
            Ok(Err(error)) => {
                self.metrics.limit_hit_if(&error);
                return debug!(remote = %self.caller.remote, %error, "request without a usable header");
            }
            Err(_) => {
                self.metrics.limit_hit("header_time");
                return debug!(remote = %self.caller.remote, "request without a complete header in time");
            }
        };
        let (request, stream) = resolved;
        budget.header_complete();
        let (send, recv) = stream.split();
        let (body, mut back) = Streamed::new(Reader::new(recv, Some(budget), request.headers()));
        let request =
            request.map(|()| Body::new(Timed::new(body.boxed_unsync(), self.limits.body)));
        // A client that cancels, drops everything the handler holds at once, also while a watch is idle.
        tokio::select! {
            sent = self.answer(request, send) => if let Err(error) = sent {
                debug!(remote = %self.caller.remote, %error, "answer not sent");
                return;
            },
            cancelled = &mut stopped => return debug!(remote = %self.caller.remote, cancelled, "the client cancelled the request"),
        }
        if let Ok(mut reader) = back.try_recv() {
            // Too late or too long is no error here: the rest is refused when the reader is dropped.
            let _ = timeout(DRAIN_TIME, reader.drain(DRAIN)).await;
        }
        // Closing a connection throws away what is under way, so a request runs until its answer has arrived.
        let ends = async {
            self.ending.cancelled().await;
            sleep(ACKNOWLEDGE_LAST + self.quic.rtt() * ROUND_TRIPS).await;
        };
        tokio::select! {
            _ = &mut stopped => {}
            () = ends => {}
            () = sleep(ACKNOWLEDGE) => {}
        }
    }

    async fn answer(
        &self,
        request: http::Request<Body>,
        mut send: h3::server::RequestStream<super::adapter::SendHalf, Bytes>,
    ) -> Result<(), SendError> {
        let answer = self.handler.handle(request, self.caller.clone()).await;
        let (parts, body) = answer.into_parts();
        self.taken(send.send_response(http::Response::from_parts(parts, ())))
            .await?;
        let mut body = Ending::new(body, self.ending.clone());
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    send.stop_stream(Code::H3_INTERNAL_ERROR);
                    return Err(SendError::Body(error));
                }
            };
            // Trailers carry nothing that our API uses.
            let mut data = frame.into_data().unwrap_or_default();
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(PIECE));
                self.taken(send.send_data(piece)).await?;
            }
        }
        self.taken(send.finish()).await
    }

    /// Waits until the client has taken what is sent, or for too long: it may say that it is there and give this stream no window.
    async fn taken(
        &self,
        sent: impl Future<Output = Result<(), h3::error::StreamError>>,
    ) -> Result<(), SendError> {
        match timeout(self.limits.unread, sent).await {
            Ok(sent) => Ok(sent?),
            Err(_) => {
                self.metrics.limit_hit("unread");
                Err(SendError::Unread)
            }
        }
    }
}

/// Why an answer was not sent.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("{0}")]
    Stream(#[from] h3::error::StreamError),
    #[error("its body failed: {0}")]
    Body(crate::http::BoxError),
    #[error("the client does not read it")]
    Unread,
}
