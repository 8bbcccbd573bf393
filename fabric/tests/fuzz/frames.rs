//! The frames of a leg, and an end of a flow that takes them.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use keel_fabric::flow::{Flow, FlowLimits, State, Violation};
use keel_fabric::wire::{Decoder, EARLY, Frame, Generation, Open, WireError};
use tokio::time::Instant;

use crate::header::round_trip;

static OPEN: LazyLock<Open> = LazyLock::new(crate::corpus::open);

const LIMITS: FlowLimits = FlowLimits {
    window: 4096,
    max_window: 16_384,
    resume_window: Duration::from_secs(60),
    packets: 1,
    packet_bytes: 1,
};
/// More frames than an end ever has to say at once.
const TALK: usize = 64;

/// How the bytes arrive does not matter, what is read can be written again, and no frames bring an end of a flow to break
/// its promises, whatever it was doing.
pub(crate) fn target(input: &[u8]) {
    let seed = input.iter().fold(input.len(), |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(usize::from(*byte))
    });
    let whole = decode([input].into_iter());
    let split = seed % (input.len() + 1);
    let halves = decode([&input[..split], &input[split..]].into_iter());
    let (frames, error) = whole;
    assert_eq!(halves.1, error);
    assert_eq!(join(&halves.0), join(&frames));
    if seed.is_multiple_of(16) {
        let bytewise = decode(input.chunks(1));
        assert_eq!(join(&bytewise.0), join(&frames));
    }
    let mut end = End::new(seed);
    for frame in frames {
        round_trip(&frame);
        if !end.take(frame) {
            break;
        }
    }
    end.close();
}

/// I4, for each direction: a window of bytes to send, and a window of bytes to read, or what may come before an answer.
pub(crate) fn within(flow: &Flow, limits: &FlowLimits) {
    let stats = flow.stats();
    let unread: usize = flow.readable().map(Bytes::len).sum();
    let early = limits.max_window.max(EARLY as usize);
    if stats.accepted {
        let kept = stats.buffered - unread;
        assert!(kept <= limits.max_window, "I4: {kept} bytes to send");
        assert!(unread <= early, "I4: {unread} bytes to read");
    } else {
        // What has come cannot be read yet.
        let most = limits.max_window + early;
        assert!(stats.buffered <= most, "I4: {} bytes", stats.buffered);
    }
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<WireError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// Joins neighbouring pieces of DATA; an empty one is none.
fn join(frames: &[Frame]) -> Vec<Frame> {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        if let (
            Some(Frame::Data { offset, bytes }),
            Frame::Data {
                offset: next,
                bytes: more,
            },
        ) = (joined.last_mut(), frame)
            && *offset + bytes.len() as u64 == *next
        {
            *bytes = [&bytes[..], more].concat().into();
        } else {
            joined.push(frame.clone());
        }
    }
    joined
}

/// One end with what its application knows.
struct End {
    flow: Flow,
    generation: Generation,
    now: Instant,
    /// What came in order, of which the application has taken some.
    came: Vec<u8>,
    taken: usize,
    fin: Option<u64>,
    seed: usize,
}

impl End {
    /// An end in one of the situations in which it may hear something.
    fn new(seed: usize) -> Self {
        let now = Instant::now();
        let first = Generation::FIRST;
        let mut end = Self {
            flow: Flow::initiate(OPEN.clone(), LIMITS),
            generation: first,
            now,
            came: Vec::new(),
            taken: 0,
            fin: None,
            seed,
        };
        let accept = Frame::Accept {
            limit: 4096,
            max_datagram: 0,
            window: None,
        };
        match seed % 5 {
            0 => {
                end.flow.write(Bytes::from_static(b"early bytes"));
                end.say();
            }
            1 => {
                end.say();
                end.flow.receive(first, accept, now).unwrap();
                end.flow.write(Bytes::from_static(b"some bytes, then more"));
                end.say();
            }
            2 => end.flow = Flow::terminate(&OPEN, LIMITS),
            3 => {
                end.flow = Flow::terminate(&OPEN, LIMITS);
                end.flow.accept(0);
                end.flow.write(Bytes::from_static(b"a banner"));
                end.say();
            }
            _ => {
                end.say();
                end.flow.receive(first, accept, now).unwrap();
                end.flow.write(Bytes::from_static(b"bytes in flight"));
                end.say();
                end.flow.leg_lost(first, now);
                end.generation = end.flow.resume(now).unwrap();
                end.say();
            }
        }
        end
    }

    fn say(&mut self) {
        for _ in 0..TALK {
            if self.flow.transmit(self.generation, self.now).is_none() {
                return;
            }
        }
        panic!("it says ever more");
    }

    /// Whether it would take another.
    fn take(&mut self, frame: Frame) -> bool {
        let before = self.flow.stats().buffered;
        let data = match &frame {
            Frame::Data { bytes, .. } => bytes.clone(),
            _ => Bytes::new(),
        };
        let fin = match &frame {
            Frame::Fin { offset } => Some(*offset),
            _ => None,
        };
        let result = self.flow.receive(self.generation, frame, self.now);
        match result {
            Ok(()) => {
                let grown = self.flow.stats().buffered.saturating_sub(before);
                assert!(grown == 0 || grown == data.len(), "I1: {grown} bytes came");
                if grown > 0 {
                    assert!(self.fin.is_none(), "I2: bytes behind the end");
                    self.came.extend_from_slice(&data);
                }
                self.fin = self.fin.or(fin);
            }
            Err(Violation::Proof) => assert!(!self.flow.has_leg()),
            Err(_) => assert!(matches!(self.flow.state(), State::Aborted(_))),
        }
        self.check();
        if !self.seed.is_multiple_of(3) {
            self.read();
        }
        self.say();
        result.is_ok()
    }

    /// Bytes that can be read or were.
    fn held(&self) -> usize {
        let readable: usize = self.flow.readable().map(Bytes::len).sum();
        self.taken + readable
    }

    fn read(&mut self) {
        let readable: Vec<u8> = self
            .flow
            .readable()
            .flat_map(|chunk| chunk.to_vec())
            .collect();
        assert_eq!(readable, self.came[self.taken..][..readable.len()], "I1");
        let count = readable.len() - self.seed % (readable.len() + 1);
        self.flow.consumed(count);
        self.taken += count;
        self.check();
    }

    fn check(&self) {
        within(&self.flow, &LIMITS);
        let eof = self.flow.at_eof();
        if eof {
            assert_eq!(self.fin, Some(self.taken as u64), "I2");
        }
        if matches!(self.flow.state(), State::Aborted(_)) {
            assert!(!eof && self.flow.readable().next().is_none(), "I6");
        }
    }

    /// I7: without a leg it is over when its window is.
    fn close(mut self) {
        self.flow.leg_lost(self.generation, self.now);
        self.now += Duration::from_secs(600);
        self.flow.tick(self.now);
        self.check();
        if *self.flow.state() == State::Draining {
            let rest = self.held() - self.taken;
            self.flow.consumed(rest);
        }
        assert!(
            self.flow.state().is_final() && !self.flow.is_telling(),
            "I7: {:?}",
            self.flow.state()
        );
        assert_eq!(self.flow.next_timeout(), None, "I7");
    }
}
