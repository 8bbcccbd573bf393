//! The applications of the random world and what must hold for them.

use std::sync::LazyLock;

use bytes::Bytes;
use tokio::time::Instant;

use super::legs::Random;
use crate::flow::{Flow, State};
use crate::wire::AbortCode;

/// How an application ends its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Fin,
    Reset,
}

/// One application with its socket: writes a known pattern, checks what it reads.
pub(super) struct App {
    pub(super) name: &'static str,
    /// Where its pattern starts; the peer's application knows it.
    pub(super) key: u64,
    pub(super) plan: u64,
    pub(super) ending: Ending,
    pub(super) written: u64,
    pub(super) ended: bool,
    pub(super) read: u64,
    pub(super) eof: bool,
    pub(super) reset: bool,
    pub(super) stalled_until: Option<Instant>,
    /// Its end of file was said, before a reset.
    pub(super) finished: bool,
}

/// What an application knows of the one at the other end.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Peer {
    pub(super) key: u64,
    pub(super) written: u64,
    pub(super) finished: bool,
}

impl App {
    pub(super) fn new(name: &'static str, key: u64, random: &mut Random) -> Self {
        Self {
            name,
            key,
            plan: random.spread(600_000),
            ending: if random.once_in(8) {
                Ending::Reset
            } else {
                Ending::Fin
            },
            written: 0,
            ended: false,
            read: 0,
            eof: false,
            reset: false,
            stalled_until: None,
            finished: false,
        }
    }

    pub(super) fn as_peer(&self) -> Peer {
        Peer {
            key: self.key,
            written: self.written,
            finished: self.finished || self.ended && self.ending == Ending::Fin,
        }
    }

    /// Writes, reads and ends as the mood is.
    pub(super) fn act(
        &mut self,
        flow: &mut Flow,
        peer: Peer,
        now: Instant,
        random: &mut Random,
    ) -> Result<(), String> {
        if !random.once_in(3) {
            self.write(flow, random);
        }
        if self.stalled_until.is_none_or(|until| until <= now) {
            self.stalled_until = random.once_in(60).then(|| now + random.millis(3000));
            self.read(flow, peer, random)?;
        }
        self.observe(flow, peer)?;
        if self.eof
            && let State::Aborting { code, .. } = *flow.state()
        {
            flow.abort(code);
        }
        Ok(())
    }

    fn write(&mut self, flow: &mut Flow, random: &mut Random) {
        let room = (flow.writable() as u64).min(self.plan - self.written);
        if room > 0 {
            let count = 1 + random.spread(room);
            flow.write(pattern(self.key, self.written, count as usize));
            self.written += count;
        }
        if self.written == self.plan && !self.ended && !self.reset {
            self.ended = true;
            match self.ending {
                Ending::Fin => flow.finish(),
                Ending::Reset => flow.abort(AbortCode::Reset),
            }
        }
    }

    fn read(&mut self, flow: &mut Flow, peer: Peer, random: &mut Random) -> Result<(), String> {
        let mut left = if random.once_in(2) {
            u64::MAX
        } else {
            random.spread(100_000)
        };
        let mut taken = 0;
        for chunk in flow.readable() {
            let count = left.min(chunk.len() as u64) as usize;
            if chunk[..count] != pattern(peer.key, self.read, count)[..] {
                return Err(format!(
                    "I1: {} read other bytes than were written, near {}",
                    self.name, self.read
                ));
            }
            self.read += count as u64;
            taken += count;
            left -= count as u64;
        }
        if self.read > peer.written {
            return Err(format!(
                "I1: {} read {} of {} bytes",
                self.name, self.read, peer.written
            ));
        }
        if taken > 0 && (self.reset || self.eof) {
            return Err(format!("I6: {} was given bytes after the end", self.name));
        }
        flow.consumed(taken);
        Ok(())
    }

    pub(super) fn observe(&mut self, flow: &Flow, peer: Peer) -> Result<(), String> {
        if let State::Aborted(_) = flow.state() {
            self.reset = true;
            if flow.at_eof() || flow.readable().next().is_some() {
                return Err(format!("I6: {} could read after the abort", self.name));
            }
        }
        if flow.at_eof() && !self.eof {
            self.eof = true;
            if !peer.finished || self.read != peer.written {
                return Err(format!(
                    "I2: {} saw an end at {} of {:?}",
                    self.name, self.read, peer
                ));
            }
        }
        Ok(())
    }

    /// Whether everything was carried both ways, as seen from here.
    pub(super) fn is_satisfied(&self, peer: Peer) -> bool {
        self.ended && self.eof && !self.reset && self.read == peer.written
    }
}

/// Bytes `offset..offset + len` of the pattern that starts at `key`. Its period is a prime, so that a shift shows.
fn pattern(key: u64, offset: u64, len: usize) -> Bytes {
    static BYTES: LazyLock<Bytes> = LazyLock::new(|| {
        let mut random = Random(7);
        let period: Vec<u8> = (0..PERIOD).map(|_| random.next() as u8).collect();
        period
            .iter()
            .copied()
            .cycle()
            .take(PERIOD as usize + (1 << 20))
            .collect()
    });
    let start = ((key + offset) % PERIOD) as usize;
    BYTES.slice(start..start + len)
}

const PERIOD: u64 = 65_521;
