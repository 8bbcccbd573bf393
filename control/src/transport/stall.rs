//! A client that does not read its answer, over HTTP/2.
//!
//! It may answer every ping and give a stream no window all the same, and the answer would wait for ever. hyper does not ask the
//! body for more meanwhile, so the body cannot end that by itself: it notes since when its last piece waits, and the stream's task
//! ends once that is too long.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, sleep_until};

use crate::http::{Body, BoxError};

/// Bytes of an answer that are handed over at a time, over HTTP/3 too: so much a client has to take within the limit. As large as a
/// frame of HTTP/2 unless its peer wants larger ones.
pub(super) const PIECE: usize = 16 << 10;

tokio::task_local! {
    /// That of the HTTP/2 stream whose task this is.
    static STALL: Stall;
}

/// Since when a client lets a piece of its answer wait.
#[derive(Clone, Default)]
pub(super) struct Stall(Arc<Mutex<Option<Instant>>>);

impl Stall {
    /// The one of this task's stream; none over HTTP/1.1, which the kernel watches.
    pub(super) fn of_this_stream() -> Option<Self> {
        STALL.try_with(Self::clone).ok()
    }

    /// Runs the task of a stream. Ends early, with `false`, if a piece of its answer waits longer than `limit`.
    pub(super) async fn watch(limit: Duration, stream: impl Future<Output = ()>) -> bool {
        let stall = Self::default();
        tokio::select! {
            biased;
            () = STALL.scope(stall.clone(), stream) => true,
            () = stall.comes(limit) => false,
        }
    }

    /// Waits until a piece has waited for so long.
    async fn comes(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let end = self.waiting_since().unwrap_or(now) + limit;
            if end <= now {
                return;
            }
            sleep_until(end).await;
        }
    }

    fn waiting_since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

/// An answer in pieces whose reader is watched.
///
/// hyper takes a piece as soon as there is window for its first byte, and lets go of a stream when it has the last piece. So the last
/// byte of each frame is a piece of its own: when that is taken, there is window for all.
pub(super) struct Watched {
    body: Body,
    rest: Bytes,
    stall: Stall,
}

impl Watched {
    pub(super) fn new(body: Body, stall: Stall) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            stall,
        }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        this.stall.waits(None);
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let most = match this.rest.len() {
            0 | 1 => this.rest.len(),
            more => PIECE.min(more - 1),
        };
        let piece = this.rest.split_to(most);
        this.stall.waits(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use http_body::Body as _;
    use http_body_util::BodyExt;

    use super::*;
    use crate::http::pieces;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_piece_that_waits_too_long_ends_its_stream() {
        let stream = async {
            let stall = Stall::of_this_stream().expect("within a stream");
            // What was taken in time does not count.
            for _ in 0..3 {
                stall.waits(Some(Instant::now()));
                tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
                stall.waits(None);
                tokio::time::sleep(10 * LIMIT).await;
            }
            stall.waits(Some(Instant::now()));
            pending().await
        };
        let began = Instant::now();
        assert!(!Stall::watch(LIMIT, stream).await);
        let silent = began + 3 * (11 * LIMIT - Duration::from_secs(1));
        let cut = Instant::now() - silent;
        assert!(
            cut >= LIMIT && cut < LIMIT + Duration::from_secs(1),
            "{cut:?}"
        );
        assert!(Stall::watch(LIMIT, tokio::time::sleep(5 * LIMIT)).await);
    }

    #[tokio::test]
    async fn an_answer_is_whole_and_its_last_byte_comes_alone() {
        let text = Bytes::from(vec![7; 2 * PIECE + 5]);
        let all = [text.clone(), Bytes::from_static(b"x"), Bytes::new()];
        let mut body = Watched::new(pieces(all.into()), Stall::default());
        assert_eq!(body.size_hint().exact(), Some(text.len() as u64 + 1));
        let mut lengths = Vec::new();
        while let Some(frame) = body.frame().await {
            let left = body.size_hint().exact().unwrap();
            let piece = frame.unwrap().into_data().unwrap();
            lengths.push(piece.len());
            assert_eq!(
                left as usize + lengths.iter().sum::<usize>(),
                text.len() + 1
            );
        }
        assert_eq!(lengths, [PIECE, PIECE, 4, 1, 1, 0]);
        assert!(body.is_end_stream());
    }
}
