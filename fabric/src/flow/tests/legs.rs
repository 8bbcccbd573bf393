//! Legs of the random world: two byte pipes with delay, cut at any byte.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::wire::{Decoder, FlowId, Frame, Generation};

/// SplitMix64: small, and the same everywhere for the same seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`; 0 if `end` is 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True once in `times`.
    pub(super) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(super) fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }

    /// Small numbers as likely as large ones.
    pub(super) fn spread(&mut self, end: u64) -> u64 {
        let bits = 64 - end.max(1).leading_zeros() as u64;
        let top = 1u64 << (self.below(bits) + 1);
        self.below(top.min(end))
    }
}

/// One way of a leg.
pub(super) struct Pipe {
    chunks: VecDeque<(Instant, Bytes)>,
    decoder: Decoder,
    /// Bytes that still pass before the leg breaks.
    left: u64,
    delay: Duration,
    last: Option<Instant>,
    /// The sender finished the stream.
    pub(super) finished: bool,
    swallowed: bool,
}

impl Pipe {
    fn new(random: &mut Random, breaks: bool) -> Self {
        Self {
            chunks: VecDeque::new(),
            decoder: Decoder::new(),
            left: if breaks {
                random.spread(400_000)
            } else {
                u64::MAX
            },
            delay: random.millis(60),
            last: None,
            finished: false,
            swallowed: false,
        }
    }

    /// Sends a frame; false if the leg broke (what was before the break arrives).
    fn send(&mut self, frame: &Frame, now: Instant, random: &mut Random) -> bool {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        let mut bytes = out.freeze();
        let whole = bytes.len() as u64 <= self.left;
        bytes.truncate(self.left.min(bytes.len() as u64) as usize);
        self.left -= bytes.len() as u64;
        while !bytes.is_empty() && !self.swallowed {
            let piece = bytes.split_to(bytes.len().min(1 + random.spread(20_000) as usize));
            let at = (now + self.delay + random.millis(3)).max(self.last.unwrap_or(now));
            self.last = Some(at);
            self.chunks.push_back((at, piece));
        }
        whole
    }

    /// The next frame that has arrived by now.
    pub(super) fn receive(&mut self, now: Instant) -> Result<Option<Frame>, String> {
        loop {
            if let Some(frame) = self
                .decoder
                .next()
                .map_err(|error| format!("codec: {error}"))?
            {
                return Ok(Some(frame));
            }
            match self.chunks.front() {
                Some((at, _)) if *at <= now => {
                    let (_, bytes) = self.chunks.pop_front().expect("seen above");
                    self.decoder.push(bytes);
                }
                _ => return Ok(None),
            }
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        self.finished && self.chunks.is_empty() && !self.swallowed
    }

    /// Breaks after so many more bytes.
    pub(super) fn cut_in(&mut self, bytes: u64) {
        self.left = self.left.min(bytes);
    }

    /// Nothing arrives before `until`.
    pub(super) fn stall(&mut self, until: Instant) {
        for (at, _) in &mut self.chunks {
            *at = until.max(*at);
        }
        self.last = self.last.max(Some(until));
    }

    /// What has not arrived by now never will.
    pub(super) fn swallow(&mut self) {
        self.chunks.clear();
        self.swallowed = true;
    }
}

/// What the listener made of a leg's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    Unread,
    To(FlowId),
    Refused,
}

pub(super) struct Leg {
    pub(super) flow: FlowId,
    pub(super) generation: Generation,
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    pub(super) bound: Bound,
    pub(super) broken: bool,
    /// When each end notices the break.
    pub(super) up_notice: Option<Instant>,
    pub(super) down_notice: Option<Instant>,
}

impl Leg {
    pub(super) fn new(
        flow: FlowId,
        generation: Generation,
        random: &mut Random,
        breaks: bool,
    ) -> Self {
        let (up_breaks, down_breaks) = (breaks && random.once_in(2), breaks && random.once_in(2));
        Self {
            flow,
            generation,
            up: Pipe::new(random, up_breaks),
            down: Pipe::new(random, down_breaks),
            bound: Bound::Unread,
            broken: false,
            up_notice: None,
            down_notice: None,
        }
    }

    pub(super) fn send_up(&mut self, frame: &Frame, now: Instant, random: &mut Random) {
        if !self.broken && !self.up.send(frame, now, random) {
            self.cut(now, random);
        }
    }

    pub(super) fn send_down(&mut self, frame: &Frame, now: Instant, random: &mut Random) {
        if !self.broken && !self.down.send(frame, now, random) {
            self.cut(now, random);
        }
    }

    /// Both ends learn at the latest by then that the leg is of no use.
    pub(super) fn notice(&mut self, at: Instant) {
        self.up_notice.get_or_insert(at);
        self.down_notice.get_or_insert(at);
    }

    /// Nothing more is sent; what is under way still arrives, and each end notices at its own time.
    pub(super) fn cut(&mut self, now: Instant, random: &mut Random) {
        if !self.broken {
            self.broken = true;
            self.up_notice = Some(now + random.millis(2000));
            self.down_notice = Some(now + random.millis(2000));
        }
    }
}
