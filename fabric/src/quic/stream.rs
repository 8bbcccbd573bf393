//! Streams: chunks in, chunks out.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use quinn::VarInt;

use super::connection::Streams;
use super::datagrams::Datagrams;
use super::error::{ReadError, WriteError};

/// Code of streams that were dropped before they were finished.
const ABANDONED: VarInt = VarInt::from_u32(0);

fn code(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

/// Who opened a stream. Those of one direction stand with ours, as the peer is not allowed more of them in time.
#[derive(Debug, Clone, Copy)]
pub(super) enum Opener {
    Us,
    Peer,
}

/// Counts a half of a stream for as long as it is held.
#[derive(Debug)]
pub(super) struct Half {
    streams: Arc<Streams>,
    by: Opener,
}

impl Half {
    pub(super) fn new(streams: Arc<Streams>, by: Opener) -> Self {
        streams.half_opened(by);
        Self { streams, by }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.streams.half_closed(self.by);
    }
}

/// The sending half of a stream.
///
/// Dropped before [`finish`](Self::finish), the stream is reset with code 0, so that the peer never takes a cut for an end.
#[derive(Debug)]
pub struct SendStream {
    inner: quinn::SendStream,
    datagrams: Arc<Datagrams>,
    ended: bool,
    _half: Half,
}

impl SendStream {
    pub(super) const fn new(
        inner: quinn::SendStream,
        datagrams: Arc<Datagrams>,
        half: Half,
    ) -> Self {
        Self {
            inner,
            datagrams,
            ended: false,
            _half: half,
        }
    }

    /// The QUIC stream id.
    #[must_use]
    pub fn id(&self) -> u64 {
        VarInt::from(self.inner.id()).into_inner()
    }

    /// The datagrams of the stream's connection.
    pub(crate) const fn datagrams(&self) -> &Arc<Datagrams> {
        &self.datagrams
    }

    /// Writes all of `bytes`, copying them. Not cancel safe: a prefix may have gone out.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        Ok(self.inner.write_all(bytes).await?)
    }

    /// Writes a chunk without copying it. Not cancel safe: a prefix may have gone out.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn write_chunk(&mut self, chunk: Bytes) -> Result<(), WriteError> {
        Ok(self.inner.write_chunk(chunk).await?)
    }

    /// Writes all chunks without copying them; those written become empty. Not cancel safe.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn write_all_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), WriteError> {
        Ok(self.inner.write_all_chunks(chunks).await?)
    }

    /// Writes as much of `chunks` as goes at once, at least one byte; returns how many chunks and bytes were taken.
    ///
    /// Taken chunks become empty, a chunk taken in part keeps its rest.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<(usize, usize), WriteError>> {
        self.datagrams.stream_sends();
        // The implementation's future is cancel safe and leaves its waker registered.
        pin!(self.inner.write_chunks(chunks))
            .poll(cx)
            .map_ok(|written| (written.chunks, written.bytes))
            .map_err(WriteError::from)
    }

    /// Ends the stream after what was written. Does nothing on a stream that has ended.
    pub fn finish(&mut self) {
        self.ended = true;
        // An error only says that the stream had ended before.
        let _ = self.inner.finish();
    }

    /// Cuts the stream with a code; what is on its way may be lost.
    pub fn reset(&mut self, with: u64) {
        self.ended = true;
        // An error only says that the stream had ended before.
        let _ = self.inner.reset(code(with));
    }

    /// Waits until the peer stops the stream (its code) or has received all of a finished one (`None`).
    ///
    /// # Errors
    /// [`WriteError::Lost`] if the connection ends first.
    pub fn stopped(
        &self,
    ) -> impl Future<Output = Result<Option<u64>, WriteError>> + Send + Sync + 'static {
        let stopped = self.inner.stopped();
        async move {
            match stopped.await {
                Ok(code) => Ok(code.map(VarInt::into_inner)),
                Err(error) => Err(quinn::WriteError::from(error).into()),
            }
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if !self.ended {
            // An error only says that the stream had ended before.
            let _ = self.inner.reset(ABANDONED);
        }
    }
}

/// The receiving half of a stream.
///
/// Dropped before its end, the peer is told to stop with code 0.
#[derive(Debug)]
pub struct RecvStream {
    inner: quinn::RecvStream,
    _half: Half,
}

impl RecvStream {
    pub(super) const fn new(inner: quinn::RecvStream, half: Half) -> Self {
        Self { inner, _half: half }
    }

    /// The QUIC stream id.
    #[must_use]
    pub fn id(&self) -> u64 {
        VarInt::from(self.inner.id()).into_inner()
    }

    /// The next chunk of at most `max` bytes; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, ReadError> {
        Ok(self
            .inner
            .read_chunk(max, true)
            .await?
            .map(|chunk| chunk.bytes))
    }

    /// As [`read_chunk`](Self::read_chunk), for poll-style tasks.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, ReadError>> {
        // The implementation's future is cancel safe and leaves its waker registered.
        pin!(self.inner.read_chunk(max, true))
            .poll(cx)
            .map_ok(|chunk| chunk.map(|chunk| chunk.bytes))
            .map_err(ReadError::from)
    }

    /// Fills `chunks` from the front with what is there; returns how many, `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, ReadError>> {
        // The implementation's future is cancel safe and leaves its waker registered.
        pin!(self.inner.read_chunks(chunks))
            .poll(cx)
            .map_err(ReadError::from)
    }

    /// Tells the peer to stop sending, with a code; what has arrived is dropped.
    pub fn stop(&mut self, with: u64) {
        // An error only says that the stream had ended before.
        let _ = self.inner.stop(code(with));
    }
}
