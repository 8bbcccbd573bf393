//! A stream that proves itself: whoever reads it knows every byte that must come, and when the end is one.
//!
//! A header says how both sides send; then come blocks of `length, bytes`, of which the bytes follow from a seed and the
//! place; then a block of length 0 and the end of file. An end of file anywhere else is a cut that looks clean.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// A pause between two arrivals that is shorter is not written down.
const NOTED: Duration = Duration::from_millis(100);

/// How one direction of a flow ended for who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All bytes, then the end of file.
    Exact,
    /// `ECONNRESET` and its like: honest.
    Reset,
    /// An end of file before the end.
    CleanCut,
    /// A byte that was not sent, at about this place.
    Wrong(u64),
    /// Neither the end nor an error within the bound.
    Hung,
}

impl End {
    /// The end of the connection, by what became of the other direction.
    pub(super) fn with(self, written: &io::Result<()>) -> Self {
        match (self, written) {
            // The kernel tells of an RST once. A write that was told leaves an end of file to the reader; after a FIN it
            // would have been told `EPIPE`.
            (Self::CleanCut, Err(error)) if error.kind() == ErrorKind::ConnectionReset => {
                Self::Reset
            }
            (Self::Exact, Err(_)) => Self::Reset,
            (end, _) => end,
        }
    }
}

/// How both sides of a connection send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) seed: u64,
    /// Bytes of a block; a multiple of 8.
    pub(super) block: u32,
    /// Microseconds from block to block; 0 is as fast as it goes.
    pub(super) pause: u32,
    /// What each side sends; a multiple of 8. 0 is until it is told to stop, the server by the client's end.
    pub(super) length: u64,
}

const HEADER: usize = 24;

impl Manner {
    pub(super) async fn write(self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend(self.seed.to_be_bytes());
        header.extend(self.block.to_be_bytes());
        header.extend(self.pause.to_be_bytes());
        header.extend(self.length.to_be_bytes());
        to.write_all(&header).await
    }

    pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        Ok(Self {
            seed: from.read_u64().await?,
            block: from.read_u32().await?,
            pause: from.read_u32().await?,
            length: from.read_u64().await?,
        })
    }

    /// The other direction has other bytes: one that is reflected is found out.
    pub(super) const fn answer(self) -> Self {
        Self {
            seed: !self.seed,
            ..self
        }
    }

    fn fill(self, place: u64, block: &mut [u8]) {
        for (word, out) in (place / 8..).zip(block.chunks_exact_mut(8)) {
            let mixed = (word ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            out.copy_from_slice(&(mixed ^ (mixed >> 29)).to_be_bytes());
        }
    }

    /// Sends it all, or until `enough`, and ends the direction. Bytes sent are added to `sent`.
    pub(super) async fn send(
        self,
        mut to: impl AsyncWrite + Unpin,
        enough: &CancellationToken,
        sent: &AtomicU64,
    ) -> io::Result<()> {
        let mut place = 0;
        let mut next = tokio::time::Instant::now();
        let mut message = vec![0; 4 + self.block as usize];
        while !enough.is_cancelled() && (self.length == 0 || place < self.length) {
            let left = match self.length {
                0 => u64::from(self.block),
                length => (length - place).min(u64::from(self.block)),
            };
            let size = usize::try_from(left).map_err(io::Error::other)?;
            let block = &mut message[..4 + size];
            block[..4].copy_from_slice(&u32::to_be_bytes(left as u32));
            self.fill(place, &mut block[4..]);
            to.write_all(block).await?;
            place += left;
            sent.fetch_add(left, Ordering::Relaxed);
            if self.pause > 0 {
                // After a stall it goes on at its pace: no burst makes up for it.
                next = (next + Duration::from_micros(self.pause.into()))
                    .max(tokio::time::Instant::now());
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = enough.cancelled() => {}
                }
            }
        }
        to.write_all(&0_u32.to_be_bytes()).await?;
        to.shutdown().await
    }
}

/// Reads one direction to its end and judges it.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    pub(super) manner: Manner,
    pub(super) began: Instant,
    pub(super) deadline: Instant,
    /// Bytes that arrived and were right, here and elsewhere.
    pub(super) arrived: &'a AtomicU64,
    last: Instant,
    /// Pauses between two arrivals: when each began, and how long it was.
    pub(super) pauses: Vec<(Duration, Duration)>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        manner: Manner,
        (began, deadline): (Instant, Instant),
        arrived: &'a AtomicU64,
    ) -> Self {
        let now = Instant::now();
        Self {
            manner,
            began,
            deadline,
            arrived,
            last: now,
            pauses: Vec::new(),
        }
    }

    pub(super) async fn read(&mut self, mut from: impl AsyncRead + Unpin) -> End {
        let mut place = 0;
        let (mut block, mut right) = (Vec::new(), Vec::new());
        loop {
            let mut length = [0; 4];
            if let Err(end) = self.exactly(&mut from, &mut length).await {
                return end;
            }
            let length = u32::from_be_bytes(length);
            if length == 0 {
                return match self.exactly(&mut from, &mut [0]).await {
                    Err(End::CleanCut)
                        if self.manner.length == 0 || place == self.manner.length =>
                    {
                        End::Exact
                    }
                    Err(end @ (End::Reset | End::Hung)) => end,
                    Ok(()) | Err(_) => End::Wrong(place),
                };
            }
            if length > self.manner.block {
                return End::Wrong(place);
            }
            block.resize(length as usize, 0);
            right.resize(length as usize, 0);
            if let Err(end) = self.exactly(&mut from, &mut block).await {
                return end;
            }
            self.manner.fill(place, &mut right);
            if block != right {
                return End::Wrong(place);
            }
            place += u64::from(length);
            self.arrived.fetch_add(length.into(), Ordering::Relaxed);
        }
    }

    async fn exactly(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        mut buffer: &mut [u8],
    ) -> Result<(), End> {
        while !buffer.is_empty() {
            let read = tokio::time::timeout_at(self.deadline.into(), from.read(&mut *buffer)).await;
            let now = Instant::now();
            let pause = now - self.last;
            if pause >= NOTED {
                self.pauses.push((self.last - self.began, pause));
            }
            self.last = now;
            match read {
                Ok(Ok(0)) => return Err(End::CleanCut),
                Ok(Ok(count)) => buffer = &mut buffer[count..],
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(_)) => return Err(End::Reset),
                Err(_) => return Err(End::Hung),
            }
        }
        Ok(())
    }
}
