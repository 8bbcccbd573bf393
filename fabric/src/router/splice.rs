//! Copies chunks between two streams, both ways, without looking into them.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;

use super::answers::Asked;
use super::held::{Held, Holding};
use crate::meter::Meter;
use crate::pace::Gate;
use crate::quic::{Connection, RecvStream, SendStream, WriteError};
use crate::wire::ResetCode;

/// Chunks moved at once.
const CHUNKS: usize = 32;
/// About how many bytes a chunk has: a packet's.
const CHUNK: usize = 1200;
/// Rounds of work before other tasks get their turn.
const ROUNDS: usize = 16;

/// Both halves of a stream.
pub(super) type Stream = (SendStream, RecvStream);

/// One side of a splice.
pub(super) struct Side<'a> {
    pub(super) connection: &'a Connection,
    pub(super) stream: Stream,
}

/// How a splice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spliced {
    /// Both directions came to their end; with the code of the flow, if an end says that it was cut.
    Ended(Option<ResetCode>),
    /// One side was lost, and the other was told with this code.
    Cut(ResetCode),
}

/// Copies until both directions have ended.
///
/// A loss of either side cuts the other with `LEG_LOST`; an end of the flow never comes from here. A direction that has
/// ended is left alone, so that an end's last words get through even if its connection is lost right behind them.
/// Dropping the future abandons both streams.
///
/// `limits` are the bandwidth of both directions, up first; what waits for a slow reader counts in `holding`. With `asked`, both
/// sides are cut with `PROVIDER_SILENT` if the far one is silent before its first byte.
pub(super) async fn splice(
    near: Side<'_>,
    far: Side<'_>,
    (up, down): (&Meter, &Meter),
    limits: (Gate, Gate),
    holding: &Holding,
    asked: Option<Asked<'_>>,
) -> Spliced {
    let ((near_send, near_recv), (far_send, far_recv)) = (near.stream, far.stream);
    let (limit_up, limit_down) = limits;
    let mut lost = pin!(async {
        tokio::select! {
            _ = near.connection.closed() => {}
            _ = far.connection.closed() => {}
        }
    });
    let mut ways = [
        Way::new((near_recv, far_send), up, limit_up, holding, None),
        Way::new((far_recv, near_send), down, limit_down, holding, asked),
    ];
    let cut = poll_fn(|cx| {
        let mut pending = false;
        for way in &mut ways {
            match way.poll(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Cut)) => return Poll::Ready(Some(ResetCode::LegLost)),
                Poll::Pending => pending = true,
            }
        }
        if !pending {
            return Poll::Ready(None);
        }
        if ways.iter_mut().any(|way| way.poll_silent(cx).is_ready()) {
            return Poll::Ready(Some(ResetCode::ProviderSilent));
        }
        // A way that reads sees the loss of its side, behind all that had arrived. The others would wait for ever.
        if ways.iter().all(Way::reads) {
            return Poll::Pending;
        }
        lost.as_mut().poll(cx).map(|()| Some(ResetCode::LegLost))
    });
    let Some(code) = cut.await else {
        return Spliced::Ended(ways.iter_mut().find_map(Way::flow_was_cut));
    };
    for way in ways {
        way.cut(code.to_wire());
    }
    Spliced::Cut(code)
}

/// One chunk of all. The sending side looks a packet's bytes up chunk by chunk, from the oldest that is not acknowledged:
/// with chunks of a packet's size that costs more than to copy them.
fn join(chunks: &mut [Bytes]) -> Bytes {
    if let [only] = chunks {
        return std::mem::take(only);
    }
    let mut joined = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    for chunk in chunks {
        joined.extend_from_slice(chunk);
    }
    joined.freeze()
}

/// A stream or its connection is gone.
struct Cut;

/// One direction. Holds bytes only while the receiver is slower than the sender.
struct Way<'a> {
    from: RecvStream,
    to: SendStream,
    waiting: Bytes,
    /// Bytes of memory behind `waiting`, which is freed as a whole; 0 for a chunk as it came, whose memory others share.
    behind: usize,
    held: Held<'a>,
    meter: &'a Meter,
    limit: Gate,
    /// Nothing was read yet, and something is waited for.
    asked: Option<Asked<'a>>,
    done: bool,
    /// What the reader stopped it with.
    stopped: Option<u64>,
}

impl<'a> Way<'a> {
    fn new(
        (from, to): (RecvStream, SendStream),
        meter: &'a Meter,
        limit: Gate,
        holding: &'a Holding,
        asked: Option<Asked<'a>>,
    ) -> Self {
        Self {
            from,
            to,
            waiting: Bytes::new(),
            behind: 0,
            held: Held::new(holding),
            meter,
            limit,
            asked,
            done: false,
            stopped: None,
        }
    }

    /// Whether it waits for bytes.
    const fn reads(&self) -> bool {
        !self.done && self.waiting.is_empty()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        for _ in 0..ROUNDS {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            if !self.waiting.is_empty() {
                ready!(self.write(cx))?;
                continue;
            }
            let mut chunks = [const { Bytes::new() }; CHUNKS];
            let free = self.held.is_free();
            // What is there is not known before it is read: a turn of the usual size is taken, and what comes is paid.
            let turn = ready!(self.limit.poll(cx, usize::MAX));
            let most = (turn / CHUNK).clamp(1, if free { CHUNKS } else { 1 });
            let read = if free {
                self.from.poll_read_chunks(cx, &mut chunks[..most])
            } else {
                // One may be large: what waited for long was joined.
                let one = self.from.poll_read_chunk(cx, CHUNK);
                one.map_ok(|one| one.map(|one| chunks[0] = one).map(|()| 1))
            };
            self.limit.used(match &read {
                Poll::Ready(Ok(Some(count))) => chunks[..*count].iter().map(Bytes::len).sum(),
                _ => 0,
            });
            match ready!(read) {
                Ok(Some(count)) => {
                    self.asked = None;
                    self.waiting = join(&mut chunks[..count]);
                    self.behind = if count > 1 { self.waiting.len() } else { 0 };
                    self.meter.add(self.waiting.len() as u64);
                }
                Ok(None) => {
                    self.to.finish();
                    self.asked = None;
                    self.done = true;
                }
                Err(_) => return Poll::Ready(Err(Cut)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what goes; ready when nothing waits any more.
    fn write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        while !self.waiting.is_empty() {
            let waiting = std::slice::from_mut(&mut self.waiting);
            let written = self.to.poll_write_chunks(cx, waiting);
            if written.is_pending() {
                self.hold();
            }
            match ready!(written) {
                Ok(_) => {}
                // The reader has what it wants, as after a refusal. What it still says must get through.
                Err(WriteError::Stopped(code)) => {
                    self.from.stop(code);
                    self.stopped = Some(code);
                    self.waiting.clear();
                    self.done = true;
                }
                Err(WriteError::Lost(_) | WriteError::Closed) => return Poll::Ready(Err(Cut)),
            }
        }
        self.held.set(0);
        Poll::Ready(Ok(()))
    }

    /// Counts what waits for the reader, once: most of what is read never does.
    fn hold(&mut self) {
        if self.held.bytes() > 0 {
            return;
        }
        if self.behind == 0 {
            // It would keep all packets that came with it.
            self.waiting = Bytes::copy_from_slice(&self.waiting);
            self.behind = self.waiting.len();
        }
        self.held.set(self.behind);
    }

    /// Ready if it waits for somebody who is silent.
    fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.asked {
            Some(asked) => asked.poll_silent(cx),
            None => Poll::Pending,
        }
    }

    /// The code that the reader of a flow which was cut has left, as far as it came with the end of its own direction.
    fn flow_was_cut(&mut self) -> Option<ResetCode> {
        let stopped = self.to.stopped().now_or_never();
        let code = self.stopped.or(stopped.and_then(Result::ok).flatten())?;
        Some(ResetCode::from_wire(code)).filter(|code| code.is_of_cut_flow())
    }

    fn cut(mut self, code: u64) {
        if !self.done {
            self.to.reset(code);
            self.from.stop(code);
        }
    }
}
