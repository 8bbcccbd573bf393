//! The two halves of a stream as h3 wants them.

use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use keel_fabric::quic::{Lost, ReadError, RecvStream, SendStream, WriteError};

use super::{Budget, Side};

/// Bytes taken from QUIC at a time.
const CHUNK: usize = 16 * 1024;
/// HEADERS with `:status: 431` alone: a literal behind a name of QPACK's static table.
const HEADER_TOO_LARGE: &[u8] = &[0x01, 0x08, 0x00, 0x00, 0x5f, 0x09, 0x03, b'4', b'3', b'1'];

/// A bidirectional stream: a request and its answer.
pub(crate) struct Stream {
    send: SendHalf,
    recv: RecvHalf,
}

impl Stream {
    pub(super) fn new(send: SendHalf, recv: RecvHalf) -> Self {
        Self { send, recv }
    }
}

/// The sending half. Dropped before it is finished it resets the stream, so that half an answer never looks like a whole one.
pub(crate) struct SendHalf {
    stream: SendStream,
    /// What h3 handed over and QUIC has not taken yet.
    pending: Bytes,
    written: bool,
    done: bool,
    side: Side,
    /// That of the request which this half answers.
    request: Option<Arc<Budget>>,
}

impl SendHalf {
    pub(super) fn new(stream: SendStream, side: Side) -> Self {
        Self {
            stream,
            pending: Bytes::new(),
            written: false,
            done: false,
            side,
            request: None,
        }
    }

    /// The half that answers a request with this budget.
    pub(super) fn answering(stream: SendStream, side: Side, request: Arc<Budget>) -> Self {
        let mut half = Self::new(stream, side);
        half.request = Some(request);
        half
    }

    /// Says that the header is too large, if that is why no request came of it.
    ///
    /// h3 drops the stream in both cases: when it has said so itself, which is all that it ever sends before there is a request, and
    /// when it was not given the whole header.
    fn refuse_header(&mut self) -> bool {
        let Some(request) = self.request.take().filter(|it| it.awaits_header()) else {
            return false;
        };
        if !self.written && request.is_exceeded() {
            self.pending = Bytes::from_static(HEADER_TOO_LARGE);
        } else if !self.written {
            return false;
        }
        // Nothing was sent on this stream before, so that there is room; if not, it is reset.
        let mut cx = Context::from_waker(Waker::noop());
        let ready = h3::quic::SendStream::poll_ready(self, &mut cx);
        if !matches!(ready, Poll::Ready(Ok(()))) {
            return false;
        }
        self.stream.finish();
        true
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.done && !self.refuse_header() {
            self.stream.reset(self.side.reset_code());
        }
    }
}

impl h3::quic::SendStream<Bytes> for SendHalf {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while !self.pending.is_empty() {
            ready!(
                self.stream
                    .poll_write_chunks(cx, std::slice::from_mut(&mut self.pending))
            )
            .map_err(write_error)?;
        }
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if !self.pending.is_empty() {
            return Err(StreamErrorIncoming::ConnectionErrorIncoming {
                connection_error: ConnectionErrorIncoming::InternalError(
                    "a frame was sent before the last one had left".to_owned(),
                ),
            });
        }
        self.written = true;
        let mut data = data.into();
        self.pending = data.copy_to_bytes(data.remaining());
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        ready!(self.poll_ready(cx))?;
        self.done = true;
        self.stream.finish();
        Poll::Ready(Ok(()))
    }

    fn reset(&mut self, reset_code: u64) {
        self.done = true;
        self.stream.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

/// The receiving half, which gives h3 no more than its budget allows.
pub(crate) struct RecvHalf {
    stream: RecvStream,
    budget: Arc<Budget>,
    done: bool,
    side: Side,
}

impl RecvHalf {
    pub(super) fn new(stream: RecvStream, budget: Arc<Budget>, side: Side) -> Self {
        Self {
            stream,
            budget,
            done: false,
            side,
        }
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        if !self.done {
            self.stream.stop(self.side.stop_code());
        }
    }
}

impl h3::quic::RecvStream for RecvHalf {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let room = self.budget.room();
        if room == Some(0) {
            // Nobody needs to be woken: h3 has something to give out, or the reader sees that it has not.
            return Poll::Pending;
        }
        let most = room.map_or(CHUNK, |room| room.min(CHUNK));
        loop {
            return Poll::Ready(match ready!(self.stream.poll_read_chunk(cx, most)) {
                // h3 takes an empty chunk for a mistake.
                Ok(Some(chunk)) if chunk.is_empty() => continue,
                Ok(Some(chunk)) if room.is_some() => Ok(Some(self.budget.lend(chunk))),
                Ok(Some(chunk)) if self.budget.take(chunk.len()) => Ok(Some(chunk)),
                Ok(Some(_)) => {
                    // A header that is too large gets an answer, and a request that is answered is stopped without an error.
                    let code = match self.side {
                        Side::Server => Code::H3_NO_ERROR,
                        Side::Client => Code::H3_EXCESSIVE_LOAD,
                    };
                    h3::quic::RecvStream::stop_sending(self, code.value());
                    Err(StreamErrorIncoming::StreamTerminated {
                        error_code: Code::H3_EXCESSIVE_LOAD.value(),
                    })
                }
                Ok(None) => {
                    self.done = true;
                    Ok(None)
                }
                Err(error) => {
                    self.done = true;
                    Err(read_error(error))
                }
            });
        }
    }

    fn stop_sending(&mut self, error_code: u64) {
        if !self.done {
            self.done = true;
            self.stream.stop(error_code);
        }
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl h3::quic::SendStream<Bytes> for Stream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.send.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl h3::quic::RecvStream for Stream {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.recv.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl h3::quic::BidiStream<Bytes> for Stream {
    type SendStream = SendHalf;
    type RecvStream = RecvHalf;

    fn split(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }
}

fn stream_id(id: u64) -> StreamId {
    // invariant: QUIC's stream ids are variable-length integers, the only thing that this conversion checks.
    StreamId::try_from(id).expect("a QUIC stream id is below 2^62")
}

/// What h3 is told when the connection ends.
pub(super) fn connection_error(error: Lost) -> ConnectionErrorIncoming {
    match error {
        Lost::Closed { code, .. } => ConnectionErrorIncoming::ApplicationClose { error_code: code },
        Lost::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

/// The same, met on a stream.
pub(super) fn stream_lost(error: Lost) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming {
        connection_error: connection_error(error),
    }
}

fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(error_code) => StreamErrorIncoming::StreamTerminated { error_code },
        ReadError::Lost(error) => stream_lost(error),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn write_error(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(error_code) => StreamErrorIncoming::StreamTerminated { error_code },
        WriteError::Lost(error) => stream_lost(error),
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}
