//! Two ends of a flow, and a list of what happens to them.

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use keel_fabric::flow::{Flow, FlowLimits, State};
use keel_fabric::wire::{AbortCode, Frame, Generation, GoneCode, Open, RefuseCode};
use tokio::time::Instant;

use crate::frames;

static OPEN: LazyLock<Open> = LazyLock::new(crate::corpus::open);

const LIMITS: FlowLimits = FlowLimits {
    window: 1024,
    max_window: 4096,
    resume_window: Duration::from_secs(60),
    packets: 1,
    packet_bytes: 1,
};

/// One side: its end, and what its application did and saw.
struct Side {
    flow: Flow,
    key: u8,
    written: u64,
    finished: bool,
    read: u64,
    eof: bool,
}

/// Frames of one leg on their way, in order.
#[derive(Default)]
struct Way(VecDeque<(Generation, Frame)>);

struct Pair {
    consumer: Side,
    provider: Option<Side>,
    up: Way,
    down: Way,
    now: Instant,
}

/// Whatever is done in whatever order, invariants I1 to I8 hold.
pub(crate) fn target(input: &[u8]) {
    let mut pair = Pair {
        consumer: Side::new(Flow::initiate(OPEN.clone(), LIMITS), 1),
        provider: None,
        up: Way::default(),
        down: Way::default(),
        now: Instant::now(),
    };
    for operation in input.chunks_exact(2) {
        pair.step(operation[0], operation[1]);
        pair.check();
    }
    pair.close();
}

fn byte(key: u8, offset: u64) -> u8 {
    (offset.wrapping_mul(31) >> 3) as u8 ^ offset as u8 ^ key
}

impl Side {
    fn new(flow: Flow, key: u8) -> Self {
        Self {
            flow,
            key,
            written: 0,
            finished: false,
            read: 0,
            eof: false,
        }
    }

    fn write(&mut self, count: usize) {
        let count = count.min(self.flow.writable());
        let bytes: Bytes = (0..count as u64)
            .map(|i| byte(self.key, self.written + i))
            .collect();
        self.flow.write(bytes);
        self.written += count as u64;
    }

    fn finish(&mut self) {
        if !self.flow.state().is_final() {
            self.flow.finish();
            self.finished = true;
        }
    }

    /// I1, I2 and I6 as the application sees them.
    fn read(&mut self, other: u8, written: u64, finished: bool, count: usize) {
        let mut left = count;
        let mut taken = 0;
        for chunk in self.flow.readable() {
            let part = chunk.len().min(left);
            for (i, found) in (0u64..).zip(&chunk[..part]) {
                assert_eq!(*found, byte(other, self.read + i), "I1");
            }
            self.read += part as u64;
            taken += part;
            left -= part;
        }
        assert!(taken == 0 || !self.eof, "I6: bytes behind the end");
        assert!(self.read <= written, "I1: {} of {written}", self.read);
        self.flow.consumed(taken);
        if self.flow.at_eof() && !self.eof {
            self.eof = true;
            assert!(finished && self.read == written, "I2");
        }
        if self.eof
            && let State::Aborting { code, .. } = *self.flow.state()
        {
            self.flow.abort(code);
        }
    }

    fn check(&self) {
        frames::within(&self.flow, &LIMITS);
        if matches!(self.flow.state(), State::Aborted(_)) {
            let readable = self.flow.readable().next().is_some();
            assert!(!readable && !self.flow.at_eof(), "I6");
        }
    }
}

impl Pair {
    fn step(&mut self, operation: u8, number: u8) {
        let many = usize::from(number) * 8;
        match operation % 18 {
            0 | 1 => self.consumer.write(many),
            2 | 3 => self.on_provider(|side| side.write(many)),
            4 if number < 64 => self.consumer.finish(),
            5 if number < 64 => self.on_provider(Side::finish),
            6 if number < 8 => self.consumer.flow.abort(AbortCode::Reset),
            7 if number < 8 => self.on_provider(|side| side.flow.abort(AbortCode::BackendReset)),
            8 => self.decide(number),
            9 | 10 => self.say(),
            11 | 12 => self.deliver_up(usize::from(number % 16)),
            13 | 14 => self.deliver_down(usize::from(number % 16)),
            15 => self.read(many),
            16 if number < 128 => self.lose(usize::from(number % 8)),
            16 => self.resume(),
            _ => self.wait(number),
        }
    }

    fn on_provider(&mut self, what: impl FnOnce(&mut Side)) {
        if let Some(side) = &mut self.provider {
            what(side);
        }
    }

    fn decide(&mut self, number: u8) {
        self.on_provider(|side| {
            if number < 16 {
                side.flow.refuse(RefuseCode::BackendRefused, "no");
            } else {
                side.flow.accept(0);
            }
        });
    }

    fn say(&mut self) {
        let now = self.now;
        let generation = self.consumer.flow.generation();
        while let Some(frame) = self.consumer.flow.transmit(generation, now) {
            self.up.0.push_back((generation, frame));
        }
        if let Some(side) = &mut self.provider {
            let generation = side.flow.generation();
            while let Some(frame) = side.flow.transmit(generation, now) {
                self.down.0.push_back((generation, frame));
            }
        }
    }

    fn deliver_up(&mut self, count: usize) {
        for _ in 0..count {
            let Some((generation, frame)) = self.up.0.pop_front() else {
                return;
            };
            let outcome = match (&mut self.provider, &frame) {
                (None, Frame::Open(open)) if open.generation == Generation::FIRST => {
                    self.provider = Some(Side::new(Flow::terminate(open, LIMITS), 2));
                    Ok(())
                }
                // I8: a flow that is known is never started again.
                (Some(side), Frame::Open(open)) => side.flow.attach_open(open, self.now),
                (Some(side), Frame::Resume(resume)) => side.flow.attach(resume, self.now),
                (None, _) => Err(GoneCode::Unknown),
                (Some(side), _) => {
                    let fenced = generation < side.flow.generation();
                    let before = side.flow.stats();
                    let taken = side.flow.receive(generation, frame.clone(), self.now);
                    taken.unwrap_or_else(|violation| panic!("{frame:?}: {violation}"));
                    assert!(!fenced || before == side.flow.stats(), "I3");
                    continue;
                }
            };
            if let Err(code) = outcome {
                self.down.0.push_back((generation, Frame::Gone { code }));
            }
        }
    }

    fn deliver_down(&mut self, count: usize) {
        for _ in 0..count {
            let Some((generation, frame)) = self.down.0.pop_front() else {
                return;
            };
            let fenced = generation < self.consumer.flow.generation();
            let before = self.consumer.flow.stats();
            let taken = self
                .consumer
                .flow
                .receive(generation, frame.clone(), self.now);
            taken.unwrap_or_else(|violation| panic!("{frame:?}: {violation}"));
            assert!(!fenced || before == self.consumer.flow.stats(), "I3");
        }
    }

    fn read(&mut self, count: usize) {
        let consumer = &self.consumer;
        let (key, written, finished) = (consumer.key, consumer.written, consumer.finished);
        let mut other = (2, 0, false);
        self.on_provider(|side| {
            side.read(key, written, finished, count);
            other = (side.key, side.written, side.finished);
        });
        self.consumer.read(other.0, other.1, other.2, count);
    }

    /// The leg is lost; the first frames on the way still arrive, late.
    fn lose(&mut self, kept: usize) {
        self.up.0.truncate(kept);
        self.down.0.truncate(kept);
        let generation = self.consumer.flow.generation();
        self.consumer.flow.leg_lost(generation, self.now);
        let now = self.now;
        self.on_provider(|side| side.flow.leg_lost(side.flow.generation(), now));
    }

    /// A leg that is replaced loses what is on its way.
    fn resume(&mut self) {
        if self.consumer.flow.resume(self.now).is_some() {
            self.say();
        }
    }

    fn wait(&mut self, number: u8) {
        self.now += match number {
            0..250 => Duration::from_millis(u64::from(number)),
            _ => Duration::from_secs(30),
        };
        let now = self.now;
        self.consumer.flow.tick(now);
        self.on_provider(|side| side.flow.tick(now));
    }

    fn check(&self) {
        self.consumer.check();
        if let Some(side) = &self.provider {
            side.check();
        }
    }

    /// I7: without a leg both are over when their windows are.
    fn close(mut self) {
        self.lose(0);
        for _ in 0..2 {
            self.wait(250);
            self.wait(250);
            self.wait(250);
            self.wait(250);
        }
        self.read(usize::MAX);
        self.check();
        for side in [Some(&self.consumer), self.provider.as_ref()]
            .into_iter()
            .flatten()
        {
            let state = side.flow.state();
            assert!(state.is_final() && !side.flow.is_telling(), "I7: {state:?}");
        }
    }
}
