//! A connection as h3 wants it: everything is polled.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use h3::error::Code;
use h3::quic::{ConnectionErrorIncoming, StreamErrorIncoming};
use keel_fabric::quic::{Connection, Lost, RecvStream, SendStream};

use super::streams::{RecvHalf, SendHalf, Stream, connection_error, stream_lost};
use super::{Budget, Side};

/// What each request adds to the budget of the connection's control streams: room for a priority update or a like frame.
const CONTROL_PER_REQUEST: u64 = 256;

/// A stream that is being opened; `Sync`, so that the senders of requests can be shared.
type Opening<T> = Pin<Box<dyn Future<Output = Result<T, Lost>> + Send + Sync>>;
type Bidi = (SendStream, RecvStream);

/// The stream that was accepted last, for whoever serves its request.
pub(crate) struct Accepted {
    /// What h3 may still read from it.
    pub(crate) budget: Arc<Budget>,
    /// Completes when the peer wants no more of the answer (`true`) or has acknowledged all of it (`false`).
    pub(crate) stopped: BoxFuture<'static, bool>,
}

/// The budgets of the streams that were opened here, by stream id: h3 gives its user the id of a stream, not the stream.
#[derive(Clone, Default)]
pub(crate) struct Budgets(Arc<Mutex<HashMap<u64, Weak<Budget>>>>);

impl Budgets {
    /// The budget of a stream that is still open.
    pub(crate) fn of(&self, id: h3::quic::StreamId) -> Option<Arc<Budget>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id.into_inner())?
            .upgrade()
    }

    fn open(&self, id: u64) -> Arc<Budget> {
        let budget = Budget::new();
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.retain(|_, budget| budget.strong_count() > 0);
        budgets.insert(id, Arc::downgrade(&budget));
        budget
    }
}

/// One QUIC connection, for h3.
pub(crate) struct H3Connection {
    side: Side,
    bidi: BoxStream<'static, Result<Bidi, Lost>>,
    uni: BoxStream<'static, Result<RecvStream, Lost>>,
    opener: Opener,
    control: Arc<Budget>,
    accepted: Option<Accepted>,
    last_id: Option<u64>,
    refuse_from: Option<u64>,
}

impl H3Connection {
    /// Wraps a connection whose handshake is done.
    pub(crate) fn new(quic: Connection, side: Side) -> Self {
        let bidi = stream::unfold(quic.clone(), |quic| async {
            Some((quic.accept_bi().await, quic))
        })
        .boxed();
        let uni = stream::unfold(quic.clone(), |quic| async {
            Some((quic.accept_uni().await, quic))
        })
        .boxed();
        Self {
            opener: Opener::new(quic, side, Budgets::default()),
            side,
            bidi,
            uni,
            control: Budget::new(),
            accepted: None,
            last_id: None,
            refuse_from: None,
        }
    }

    /// The budgets of the streams that are opened on this connection.
    pub(crate) fn budgets(&self) -> Budgets {
        self.opener.budgets.clone()
    }

    /// The handle of the request stream that h3 accepted last; there is one for each request that h3's `accept` gives.
    pub(crate) fn take_accepted(&mut self) -> Option<Accepted> {
        self.accepted.take()
    }

    /// From here on refuses every request that the GOAWAY of `shutdown(1)` named as not processed.
    ///
    /// h3 announces the id after the last accepted one, or the first id of all, and refuses only what lies beyond; the announced id
    /// itself would be served although the peer was told that it may send it elsewhere.
    pub(crate) fn refuse_new(&mut self) {
        self.refuse_from = Some(self.last_id.map_or(0, |id| id + 4));
    }
}

impl h3::quic::OpenStreams<Bytes> for H3Connection {
    type BidiStream = Stream;
    type SendStream = SendHalf;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

impl h3::quic::Connection<Bytes> for H3Connection {
    type RecvStream = RecvHalf;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        match ready!(self.uni.poll_next_unpin(cx)) {
            Some(Ok(stream)) => {
                Poll::Ready(Ok(RecvHalf::new(stream, self.control.clone(), self.side)))
            }
            Some(Err(error)) => Poll::Ready(Err(connection_error(error))),
            None => Poll::Ready(Err(ConnectionErrorIncoming::InternalError(
                "no more streams".to_owned(),
            ))),
        }
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        loop {
            let (mut send, mut recv) = match ready!(self.bidi.poll_next_unpin(cx)) {
                Some(Ok(halves)) => halves,
                Some(Err(error)) => return Poll::Ready(Err(connection_error(error))),
                None => {
                    return Poll::Ready(Err(ConnectionErrorIncoming::InternalError(
                        "no more streams".to_owned(),
                    )));
                }
            };
            let id = send.id();
            if self.refuse_from.is_some_and(|from| id >= from) {
                recv.stop(Code::H3_REQUEST_REJECTED.value());
                send.reset(Code::H3_REQUEST_REJECTED.value());
                continue;
            }
            self.last_id = self.last_id.max(Some(id));
            self.control.grant(CONTROL_PER_REQUEST);
            let budget = Budget::new();
            let stopped = send.stopped();
            self.accepted = Some(Accepted {
                budget: budget.clone(),
                stopped: Box::pin(async { matches!(stopped.await, Ok(None)) }),
            });
            return Poll::Ready(Ok(Stream::new(
                SendHalf::answering(send, self.side, budget.clone()),
                RecvHalf::new(recv, budget, self.side),
            )));
        }
    }

    fn opener(&self) -> Self::OpenStreams {
        self.opener.clone()
    }
}

/// Opens streams on a connection; one per sender of requests.
pub(crate) struct Opener {
    quic: Connection,
    side: Side,
    budgets: Budgets,
    bidi: Option<Opening<Bidi>>,
    uni: Option<Opening<SendStream>>,
}

impl Opener {
    fn new(quic: Connection, side: Side, budgets: Budgets) -> Self {
        Self {
            quic,
            side,
            budgets,
            bidi: None,
            uni: None,
        }
    }
}

impl Clone for Opener {
    /// A clone waits for streams of its own.
    fn clone(&self) -> Self {
        Self::new(self.quic.clone(), self.side, self.budgets.clone())
    }
}

impl h3::quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Stream;
    type SendStream = SendHalf;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        let quic = &self.quic;
        let opening = self.bidi.get_or_insert_with(|| {
            let quic = quic.clone();
            Box::pin(async move { quic.open_bi().await })
        });
        let opened = ready!(opening.as_mut().poll(cx));
        self.bidi = None;
        let (send, recv) = opened.map_err(stream_lost)?;
        let budget = self.budgets.open(recv.id());
        Poll::Ready(Ok(Stream::new(
            SendHalf::new(send, self.side),
            RecvHalf::new(recv, budget, self.side),
        )))
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        let quic = &self.quic;
        let opening = self.uni.get_or_insert_with(|| {
            let quic = quic.clone();
            Box::pin(async move { quic.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(cx));
        self.uni = None;
        Poll::Ready(Ok(SendHalf::new(opened.map_err(stream_lost)?, self.side)))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.quic.close(code.value(), reason);
    }
}
