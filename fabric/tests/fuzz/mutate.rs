//! Makes inputs: frames that are nearly right, and then bytes that are not.

use bytes::{Bytes, BytesMut};
use keel_fabric::wire::varint;
use keel_fabric::wire::{AbortCode, Frame, GoneCode, Place, RefuseCode};

use crate::corpus;

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }
}

/// Numbers at the borders of varints and of limits.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    63,
    64,
    4095,
    4096,
    16_383,
    16_384,
    65_535,
    65_536,
    65_537,
    262_144,
    (1 << 30) - 1,
    1 << 30,
    (1 << 62) - 1,
];

pub(crate) struct Mutator {
    random: Random,
    frames: Vec<Vec<u8>>,
    headers: Vec<Vec<u8>>,
}

impl Mutator {
    pub(crate) fn new(random: Random) -> Self {
        let all = corpus::golden();
        let is_header = |name: &str| name.starts_with("OPEN") || name.starts_with("RESUME");
        let headers = all.iter().filter(|(name, _)| is_header(name));
        Self {
            random,
            headers: headers.map(|(_, bytes)| bytes.clone()).collect(),
            frames: all.iter().map(|(_, bytes)| bytes.clone()).collect(),
        }
    }

    /// A header, with perhaps something behind it.
    pub(crate) fn header(&mut self) -> Vec<u8> {
        let at = self.random.index(self.headers.len());
        let mut bytes = self.headers[at].clone();
        if self.random.once_in(4) {
            self.refit(&mut bytes);
        }
        if self.random.once_in(4) {
            let at = self.random.index(self.frames.len());
            bytes.extend_from_slice(&self.frames[at]);
        }
        for _ in 0..self.random.below(4) {
            self.hurt(&mut bytes);
        }
        bytes
    }

    /// Some frames, in an order that a leg could have for a while.
    pub(crate) fn frames(&mut self) -> Vec<u8> {
        let mut out = BytesMut::new();
        let mut offset = 0;
        for _ in 0..1 + self.random.below(6) {
            if self.random.once_in(4) {
                let at = self.random.index(self.frames.len());
                out.extend_from_slice(&self.frames[at]);
            } else {
                self.frame(&mut offset).encode(&mut out);
            }
        }
        let mut bytes = out.to_vec();
        if self.random.once_in(2) {
            for _ in 0..1 + self.random.below(3) {
                self.hurt(&mut bytes);
            }
        }
        bytes
    }

    /// Pairs of an operation and its number, for the target of sessions.
    pub(crate) fn operations(&mut self) -> Vec<u8> {
        let len = 8 + self.random.below(56);
        (0..len).map(|_| self.random.next() as u8).collect()
    }

    /// A frame that continues at `offset`, mostly.
    fn frame(&mut self, offset: &mut u64) -> Frame {
        let near = match self.random.below(8) {
            0 => *offset + 1,
            1 => self.number(),
            _ => *offset,
        };
        match self.random.below(14) {
            0 => Frame::Accept {
                limit: self.number(),
                max_datagram: self.number(),
                window: (self.random.below(2) == 0).then(|| self.number()),
            },
            1 => Frame::Refuse {
                code: RefuseCode::from_wire(self.random.below(16)),
                text: "no".to_owned(),
            },
            2 => Frame::Gone {
                code: GoneCode::from_wire(self.random.below(9)),
            },
            3..8 => {
                let len = self.random.below(300);
                *offset = near + len;
                let byte = self.random.next() as u8;
                Frame::Data {
                    offset: near.min((1 << 62) - 301),
                    bytes: Bytes::from(vec![byte; len as usize]),
                }
            }
            8 | 9 => Frame::Ack {
                recv: self.random.below(40),
                limit: self.number(),
            },
            10 => Frame::Fin {
                offset: near.min((1 << 62) - 1),
            },
            11 => Frame::Abort {
                code: AbortCode::from_wire(self.random.below(10)),
                offset: self.number(),
            },
            12 => Frame::Move(Place::Elsewhere),
            _ => Frame::Ping,
        }
    }

    fn number(&mut self) -> u64 {
        let at = self.random.index(NUMBERS.len());
        NUMBERS[at]
    }

    /// Makes the body longer or shorter, and the length fit it.
    fn refit(&mut self, bytes: &mut Vec<u8>) {
        let Some((kind, first)) = varint::read(bytes) else {
            return;
        };
        let Some((_, second)) = varint::read(&bytes[first..]) else {
            return;
        };
        let mut body = bytes.split_off(first + second);
        if self.random.once_in(2) {
            let most = if self.random.once_in(16) { 4200 } else { 40 };
            let more = self.random.below(most) as usize;
            body.resize(body.len() + more, 7);
        } else {
            let less = self.random.index(body.len() + 1);
            body.truncate(less);
        }
        let mut out = BytesMut::new();
        varint::write(kind, &mut out);
        varint::write(body.len() as u64, &mut out);
        out.extend_from_slice(&body);
        *bytes = out.to_vec();
    }

    /// One mutation that knows nothing.
    fn hurt(&mut self, bytes: &mut Vec<u8>) {
        let at = self.random.index(bytes.len() + 1);
        let end = (at + 1 + self.random.index(16)).min(bytes.len());
        match self.random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.random.below(8),
            1 if at < bytes.len() => bytes[at] = self.random.next() as u8,
            2 => bytes.truncate(at),
            3 if at < end => drop(bytes.drain(at..end)),
            4 if at < end => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let mut number = BytesMut::new();
                varint::write(self.number(), &mut number);
                let over = (at + number.len()).min(bytes.len());
                bytes.splice(at..over, number);
            }
            _ => bytes.insert(at, self.random.next() as u8),
        }
    }
}
