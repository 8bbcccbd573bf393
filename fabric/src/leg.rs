//! One attachment of a flow to a pair of QUIC streams.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::quic::{Datagrams, ReadError, RecvStream, SendStream};
use crate::wire::{
    Decoder, Frame, Generation, GoneCode, Open, RefuseCode, ResetCode, Resume, Role, WireError,
    data_header,
};

/// Payloads of at most this size travel in one chunk with their header; larger ones are not copied.
const COALESCE: usize = 512;
/// Chunks that wait for the stream before the flow is asked for more.
const QUEUE: usize = 16;
/// Chunks taken from the stream at once.
const CHUNKS: usize = 16;

/// The first frame of a leg.
#[derive(Debug)]
pub(crate) enum Header {
    Open(Box<Open>),
    Resume(Box<Resume>),
}

impl Header {
    /// Whether the flow may be known where it ends: it had a leg before.
    pub(crate) fn is_of_known_flow(&self) -> bool {
        match self {
            Self::Open(open) => open.generation > Generation::FIRST,
            Self::Resume(_) => true,
        }
    }

    /// Appends it as the frame that it came in.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Open(open) => open.encode(out),
            Self::Resume(resume) => resume.encode(out),
        }
    }
}

/// A leg that somebody opened towards us, with its header read.
#[derive(Debug)]
pub(crate) struct IncomingLeg {
    pub(crate) header: Header,
    pub(crate) decoder: Decoder,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

/// Why a stream's header could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("no header in time")]
    Late,
    #[error("the stream ended in its header")]
    Ended,
    #[error("the stream was cut before a byte came")]
    Empty,
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the first frame is {0}, not OPEN or RESUME")]
    NoHeader(&'static str),
}

impl HeaderError {
    /// The limit that was hit, if it was one.
    pub(crate) const fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Late => Some("header_time"),
            Self::Wire(WireError::Oversized { .. }) => Some("header_size"),
            _ => None,
        }
    }

    /// The code with which the stream is cut.
    pub(crate) const fn code(&self) -> ResetCode {
        match self {
            Self::Late => ResetCode::HeaderTimeout,
            Self::Ended | Self::Empty => ResetCode::Unspecified,
            Self::Wire(_) | Self::NoHeader(_) => ResetCode::Protocol,
        }
    }
}

impl IncomingLeg {
    /// Reads the header of a stream that a peer opened; cuts the stream if there is none.
    ///
    /// # Errors
    /// [`HeaderError`]; at most one frame of `size` bytes is held while waiting.
    pub(crate) async fn read(
        mut send: SendStream,
        mut recv: RecvStream,
        (time, size): (Duration, usize),
    ) -> Result<Self, HeaderError> {
        let read = tokio::time::timeout(time, read_header(&mut recv, size))
            .await
            .unwrap_or(Err(HeaderError::Late));
        match read {
            Ok((header, decoder)) => Ok(Self {
                header,
                decoder,
                send,
                recv,
            }),
            Err(error) => {
                if let HeaderError::Wire(version @ WireError::Version { .. }) = &error {
                    refuse_version(&mut send, version).await;
                } else {
                    send.reset(error.code().to_wire());
                }
                recv.stop(error.code().to_wire());
                Err(error)
            }
        }
    }

    /// Refuses as the provider's end, for a flow that it does not know. The answer to a repeated open proves that, and says
    /// how old the flow may be and would still be known here, had it come: a refusal by a router on the way, or by a process
    /// that is younger than the flow or has forgotten some, would not say that nothing was delivered.
    pub(crate) async fn refuse(self, code: RefuseCode, text: String, age: Duration) {
        let mut out = BytesMut::new();
        match &self.header {
            Header::Open(open) => {
                if open.generation > Generation::FIRST {
                    let proof = open
                        .secret
                        .prove(open.flow, open.generation, Role::Terminator);
                    Frame::Resumed {
                        generation: open.generation,
                        recv: 0,
                        limit: 0,
                        proof,
                        age: Some(u64::try_from(age.as_millis()).unwrap_or(0)),
                    }
                    .encode(&mut out);
                }
                Frame::Refuse { code, text }.encode(&mut out);
            }
            Header::Resume(_) => Frame::Gone {
                code: GoneCode::Forbidden,
            }
            .encode(&mut out),
        }
        self.last(out).await;
    }

    /// Answers with a last frame.
    pub(crate) async fn answer(self, frame: &Frame) {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        self.last(out).await;
    }

    async fn last(mut self, out: BytesMut) {
        // If the stream is gone there is nobody to tell.
        if self.send.write_chunk(out.freeze()).await.is_ok() {
            self.send.finish();
        }
        self.recv.stop(ResetCode::FlowEnded.to_wire());
    }

    /// Cuts the leg without a word on its flow.
    pub(crate) fn cut(mut self, code: ResetCode) {
        self.send.reset(code.to_wire());
        self.recv.stop(code.to_wire());
    }
}

/// A newer peer must hear that it is too new, and may go elsewhere.
async fn refuse_version(send: &mut SendStream, error: &WireError) {
    let mut out = BytesMut::new();
    Frame::Refuse {
        code: RefuseCode::UnsupportedVersion,
        text: error.to_string(),
    }
    .encode(&mut out);
    // If the stream is gone there is nobody to tell.
    if send.write_chunk(out.freeze()).await.is_ok() {
        send.finish();
    }
}

async fn read_header(recv: &mut RecvStream, size: usize) -> Result<(Header, Decoder), HeaderError> {
    let mut decoder = Decoder::with_header(size);
    let mut empty = true;
    loop {
        match decoder.next()? {
            Some(Frame::Open(open)) => return Ok((Header::Open(open), decoder)),
            Some(Frame::Resume(resume)) => return Ok((Header::Resume(resume), decoder)),
            Some(other) => return Err(HeaderError::NoHeader(other.name())),
            None => {}
        }
        match recv.read_chunk(crate::wire::MAX_PAYLOAD).await {
            Ok(Some(chunk)) => decoder.push(chunk),
            Ok(None) => return Err(HeaderError::Ended),
            Err(_) if empty => return Err(HeaderError::Empty),
            Err(_) => return Err(HeaderError::Ended),
        }
        empty = false;
    }
}

/// Why a leg is of no more use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LegEnd {
    /// Its stream was finished by the other side.
    Finished,
    /// The stream was cut.
    Reset(ResetCode),
    /// Its connection is lost.
    Lost,
    /// What came is not our protocol.
    Wire(WireError),
}

impl LegEnd {
    /// The name in metrics.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Reset(code) => code.name(),
            Self::Lost => "connection",
            Self::Wire(_) => "protocol",
        }
    }
}

/// A leg in use by a flow.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) generation: Generation,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder,
    out: Vec<Bytes>,
    /// Chunks at the front of `out` that are written.
    written: usize,
    finished: bool,
    mute: bool,
}

impl Leg {
    pub(crate) const fn new(
        generation: Generation,
        send: SendStream,
        recv: RecvStream,
        decoder: Decoder,
    ) -> Self {
        Self {
            generation,
            send,
            recv,
            decoder,
            out: Vec::new(),
            written: 0,
            finished: false,
            mute: false,
        }
    }

    /// The datagrams of the leg's connection, and the stream that they are for.
    pub(crate) fn datagrams(&self) -> (&Arc<Datagrams>, u64) {
        (self.send.datagrams(), self.send.id())
    }

    /// The next frame that arrived.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, LegEnd>> {
        loop {
            if let Some(frame) = self.decoder.next().map_err(LegEnd::Wire)? {
                return Poll::Ready(Ok(frame));
            }
            let mut chunks = [const { Bytes::new() }; CHUNKS];
            let count = match ready!(self.recv.poll_read_chunks(cx, &mut chunks)) {
                Ok(Some(count)) => count,
                Ok(None) => return Poll::Ready(Err(LegEnd::Finished)),
                Err(ReadError::Reset(code)) => {
                    return Poll::Ready(Err(LegEnd::Reset(ResetCode::from_wire(code))));
                }
                Err(ReadError::Lost(_) | ReadError::Closed) => {
                    return Poll::Ready(Err(LegEnd::Lost));
                }
            };
            for chunk in chunks.into_iter().take(count) {
                self.decoder.push(chunk);
            }
        }
    }

    /// Whether another frame may be queued now.
    pub(crate) fn has_room(&self) -> bool {
        self.out.len() < QUEUE
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// Queues a frame. Its payload is not copied unless it is small.
    pub(crate) fn push(&mut self, frame: Frame, scratch: &mut BytesMut) {
        match frame {
            Frame::Data { offset, bytes } => {
                data_header(offset, bytes.len(), scratch);
                if bytes.len() <= COALESCE {
                    scratch.extend_from_slice(&bytes);
                    self.out.push(scratch.split().freeze());
                } else {
                    self.out.push(scratch.split().freeze());
                    self.out.push(bytes);
                }
            }
            other => {
                other.encode(scratch);
                self.out.push(scratch.split().freeze());
            }
        }
    }

    /// Whether nothing can be sent any more. What the other side still says decides what becomes of the leg: it may have
    /// stopped reading because it has just said how the flow ends.
    pub(crate) const fn is_mute(&self) -> bool {
        self.mute
    }

    /// Writes what is queued; ready when all of it is written or the leg is mute.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.written < self.out.len() {
            match ready!(
                self.send
                    .poll_write_chunks(cx, &mut self.out[self.written..])
            ) {
                Ok((chunks, _)) => self.written += chunks,
                Err(_) => {
                    self.mute = true;
                    break;
                }
            }
        }
        self.out.clear();
        self.written = 0;
        Poll::Ready(())
    }

    /// Ends the sending side after what was written.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
        self.send.finish();
    }

    /// Cuts the leg; says nothing about the flow.
    pub(crate) fn cut(mut self, code: ResetCode) {
        if !self.finished {
            self.send.reset(code.to_wire());
        }
        self.recv.stop(code.to_wire());
    }
}
