//! Draws random schedules.
//!
//! Each schedule is made so that plain TCP gives the same outcome every time (each is played direct twice to see that).
//! Steps are drawn in one order for both sides, and each can be done once those before it are done, so that nobody waits
//! for ever: what is written without a reader beside it fits the kernel, and what is read was written before. Whoever
//! leaves in a way that breaks the other's writes first hears that these are done. A reset or a close that leaves bytes
//! unread may overtake bytes, so it waits until the other has read them, or until they lie in the other's kernel; right
//! behind its bytes it comes only where they are the first of their direction and few, and elsewhere the reader says that
//! it takes any prefix (`ReadCut`).

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::script::Case;
use crate::script::Step::{
    self, Close, Duplex, Exchange, Fin, Hear, Lie, NoDelay, Push, Read, ReadCut, ReadEnd, Reset,
    Rest, Send, SendFin, Tell, Trickle, Unread, Urgent,
};

/// Bytes that nobody reads yet: few enough for any kernel's buffers at any time of a connection.
const UNREAD: usize = 16 << 10;
/// Bytes of one bulk write. In both directions at once, more than one flow may hold.
const BULK: usize = 512 << 10;

/// How a schedule ends. `one` is the side that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// Both half-close and read to the end.
    Halves,
    /// Both half-close at the same time.
    HalvesAtOnce,
    /// Both write and read to the end meanwhile.
    Duplex,
    /// `one` closes behind its bytes, and the other reads them.
    Close,
    /// Both leave at the same time, each by a close or a reset.
    BothLeave,
    /// `one` resets when all its bytes were read.
    ResetRead,
    /// `one` resets when its bytes lie unread.
    ResetLying,
    /// `one` resets right behind its only bytes.
    ResetBehind,
    /// `one` resets in the middle of its bytes.
    ResetMiddle,
    /// `one` closes with bytes unread.
    CloseUnread,
    /// `one` closes while the other writes.
    ClosePushed,
}

impl Ending {
    pub(crate) const ALL: [Self; 11] = [
        Self::Halves,
        Self::HalvesAtOnce,
        Self::Duplex,
        Self::Close,
        Self::BothLeave,
        Self::ResetRead,
        Self::ResetLying,
        Self::ResetBehind,
        Self::ResetMiddle,
        Self::CloseUnread,
        Self::ClosePushed,
    ];
}

/// One direction, as it stands behind the steps drawn so far.
#[derive(Debug, Default, Clone, Copy)]
struct Half {
    unread: usize,
    /// FIN is sent.
    ended: bool,
    /// And was read.
    read_out: bool,
    /// It has to stay open for the ending.
    kept: bool,
    /// No byte before the ending.
    silent: bool,
    /// No urgent byte, at whose mark a read stops.
    plain: bool,
    /// No more bytes than the kernel takes while nobody reads.
    few: bool,
    /// All bytes so far.
    sent: usize,
    /// Some of it was read.
    heard: bool,
}

struct Plan {
    rng: SmallRng,
    scripts: [Vec<Step>; 2],
    halves: [Half; 2],
}

/// The schedule of this seed, and how it ends.
pub(crate) fn schedule(seed: u64) -> (Case, Ending) {
    let rng = SmallRng::seed_from_u64(seed);
    let mut plan = Plan {
        rng,
        scripts: Default::default(),
        halves: Default::default(),
    };
    // Any run of seeds has all endings of both sides.
    let kinds = Ending::ALL.len() as u64;
    let ending = Ending::ALL[(seed % kinds) as usize];
    let one = (seed / kinds % 2) as usize;
    plan.prepare(ending, one);
    plan.talk();
    plan.end(ending, one);
    let [client, server] = plan.scripts;
    let case = Case {
        name: format!("KEEL_SEED={seed}, {ending:?} of {one}"),
        client,
        server: Some(server),
    };
    (case, ending)
}

impl Plan {
    /// Sets what the ending needs of the steps before it.
    fn prepare(&mut self, ending: Ending, one: usize) {
        match ending {
            Ending::Duplex => self.halves.iter_mut().for_each(|half| half.kept = true),
            Ending::ResetBehind => {
                self.halves[one].silent = true;
                self.halves[one].kept = true;
            }
            Ending::ResetMiddle => {
                self.halves[one].kept = true;
                self.halves[one].plain = true;
            }
            // Bytes are counted where they lie, and a look at them does not get past an urgent one. A kernel that has seen
            // large segments closes its window for small ones that nobody reads, so there are none.
            Ending::ResetLying | Ending::CloseUnread => {
                self.halves[one].plain = true;
                self.halves[one].few = true;
                self.halves[1 - one].kept = ending == Ending::CloseUnread;
            }
            Ending::ClosePushed => self.halves[1 - one].kept = true,
            Ending::Halves
            | Ending::HalvesAtOnce
            | Ending::Close
            | Ending::BothLeave
            | Ending::ResetRead => {}
        }
        for side in [0, 1] {
            // Without it the last of several small writes may wait for an acknowledgement.
            if self.once_in(2) {
                self.scripts[side].push(NoDelay);
            }
        }
    }

    fn talk(&mut self) {
        for _ in 0..self.rng.random_range(0..10) {
            let side = self.rng.random_range(0..2);
            self.rest();
            match self.rng.random_range(0..11) {
                0..3 => self.send(side),
                3 | 4 => self.read(side),
                5 => self.bulk(side),
                6 => self.exchange(),
                7 => self.odd(side),
                8 => self.fin(side),
                9 => {
                    self.step(side, Tell);
                    self.step(1 - side, Hear);
                }
                _ => self.meet(),
            }
        }
        self.rest();
    }

    fn end(&mut self, ending: Ending, one: usize) {
        let other = 1 - one;
        match ending {
            Ending::Halves | Ending::HalvesAtOnce => self.halves(ending, one),
            Ending::Duplex => {
                for side in [0, 1] {
                    let len = self.size(BULK);
                    self.step(side, Duplex(len));
                    self.step(side, Close);
                }
            }
            Ending::Close => {
                self.read_all(one);
                if self.says(one) && self.once_in(2) {
                    let len = self.size(BULK);
                    self.pieces(one, len, Send);
                }
                self.step(one, Close);
                self.rest_of(other);
                self.step(other, ReadEnd);
                self.step(other, Close);
            }
            Ending::BothLeave => {
                self.meet();
                for side in [0, 1] {
                    let leave = if self.once_in(2) { Reset } else { Close };
                    self.step(side, leave);
                }
            }
            Ending::ResetRead => {
                self.read_all(other);
                self.after(other, one, Reset);
            }
            Ending::ResetLying => {
                let len = self.halves[one].unread;
                self.step(other, Lie(len));
                self.after(other, one, Reset);
            }
            Ending::ResetBehind => {
                let len = self.size(UNREAD);
                self.step(other, Tell);
                self.step(one, Hear);
                self.step(one, Send(len));
                self.step(one, Reset);
                self.step(other, ReadEnd);
            }
            Ending::ResetMiddle => {
                let len = BULK + self.size(BULK);
                self.step(other, Tell);
                self.step(one, Hear);
                self.step(one, Send(len));
                self.step(one, Reset);
                self.rest_of(other);
                self.step(other, ReadCut);
            }
            Ending::CloseUnread => {
                if self.halves[other].unread == 0 {
                    let len = self.size(UNREAD);
                    self.step(other, Send(len));
                }
                let len = self.halves[one].unread;
                self.step(other, Lie(len));
                self.step(one, Unread);
                self.after(other, one, Close);
            }
            Ending::ClosePushed => {
                self.step(other, Tell);
                self.step(other, Push);
                self.step(one, Hear);
                self.read(one);
                self.rest_of(one);
                self.step(one, Close);
            }
        }
    }

    fn halves(&mut self, ending: Ending, one: usize) {
        let both = [one, 1 - one];
        if ending == Ending::HalvesAtOnce {
            self.meet();
            for side in both {
                self.fin_now(side);
            }
        }
        for side in both {
            self.fin_now(side);
            self.rest_of(1 - side);
            self.step(1 - side, ReadEnd);
            self.halves[side].read_out = true;
        }
        for side in both {
            self.step(side, Close);
        }
    }

    /// `one` leaves when the other has done everything so far; the other sees that. If `one` has half-closed before, the
    /// other has read that first: behind an end of file only a write sees a reset.
    fn after(&mut self, other: usize, one: usize, leave: Step) {
        let Half {
            ended, read_out, ..
        } = self.halves[one];
        if ended && !read_out {
            self.step(other, ReadEnd);
        }
        self.step(other, Tell);
        self.step(one, Hear);
        self.rest_of(one);
        self.step(one, leave);
        if !ended {
            self.step(other, ReadEnd);
        } else if !self.halves[other].ended {
            self.step(other, Push);
        }
    }

    fn step(&mut self, side: usize, step: Step) {
        self.scripts[side].push(step);
    }

    fn once_in(&mut self, times: u32) -> bool {
        self.rng.random_range(0..times) == 0
    }

    /// Up to `most`, each order of magnitude as often as any other.
    fn size(&mut self, most: usize) -> usize {
        let magnitude = 2 << self.rng.random_range(0..most.ilog2());
        self.rng.random_range(magnitude / 2..=magnitude).min(most)
    }

    fn rest(&mut self) {
        let side = self.rng.random_range(0..2);
        self.rest_of(side);
    }

    fn rest_of(&mut self, side: usize) {
        if self.once_in(2) {
            let millis = self.rng.random_range(0..=20);
            self.step(side, Rest(millis));
        }
    }

    /// In one step or in several, with pauses.
    fn pieces(&mut self, side: usize, len: usize, step: fn(usize) -> Step) {
        let mut left = len;
        while left > 0 {
            let piece = if self.once_in(2) {
                left
            } else {
                self.rng.random_range(1..=left)
            };
            left -= piece;
            self.step(side, step(piece));
            if left > 0 {
                self.rest_of(side);
            }
        }
    }

    fn says(&self, side: usize) -> bool {
        !self.halves[side].ended && !self.halves[side].silent
    }

    /// Room for bytes that nobody reads yet.
    fn room(&self, side: usize) -> usize {
        let half = self.halves[side];
        match self.says(side) {
            false => 0,
            true if half.few => UNREAD - half.sent,
            true => UNREAD - half.unread,
        }
    }

    fn add(&mut self, side: usize, len: usize) {
        self.halves[side].unread += len;
        self.halves[side].sent += len;
    }

    fn send(&mut self, side: usize) {
        let room = self.room(side);
        if room > 1 {
            let len = self.size(room);
            self.add(side, len);
            self.pieces(side, len, Send);
        }
    }

    /// Single bytes, or an urgent one.
    fn odd(&mut self, side: usize) {
        if self.room(side) < 100 {
            return;
        }
        // The kernel does not wake a reader for an urgent byte alone that comes before its socket has the option for it. A
        // client knows that its server has it, from the listener; a server knows it of its client from the first byte.
        let ready = side == 0 || self.halves[0].heard;
        if self.once_in(2) && ready && !self.halves[side].plain {
            self.add(side, 1);
            return self.step(side, Urgent);
        }
        let len = self.rng.random_range(1..50);
        self.add(side, len);
        self.step(side, Trickle(len));
    }

    /// Reads some of what is there, or to the end.
    fn read(&mut self, side: usize) {
        let half = &mut self.halves[1 - side];
        if half.ended && !half.read_out && self.rng.random_range(0..2) == 0 {
            half.unread = 0;
            half.read_out = true;
            self.step(side, ReadEnd);
        } else if half.unread > 0 {
            let len = self.rng.random_range(1..=half.unread);
            half.unread -= len;
            half.heard = true;
            self.pieces(side, len, Read);
        }
    }

    fn read_all(&mut self, side: usize) {
        let half = &mut self.halves[1 - side];
        let len = std::mem::take(&mut half.unread);
        half.heard |= len > 0;
        self.pieces(side, len, Read);
    }

    /// More than the kernel holds, for a reader that is there.
    fn bulk(&mut self, side: usize) {
        if self.says(side) && !self.halves[side].few {
            let len = self.size(BULK);
            self.pieces(side, len, Send);
            self.add(side, len);
            self.read_all(1 - side);
        }
    }

    fn exchange(&mut self) {
        if self.room(0) > 1 && self.room(1) > 1 {
            let lens = [0, 1].map(|side| {
                let few = self.halves[side].few;
                let most = if few { self.room(side) } else { BULK };
                self.size(most)
            });
            for (side, len) in lens.into_iter().enumerate() {
                self.add(1 - side, lens[1 - side]);
                let half = &mut self.halves[1 - side];
                let back = std::mem::take(&mut half.unread);
                half.heard = true;
                self.step(side, Exchange(len, back));
            }
        }
    }

    fn fin(&mut self, side: usize) {
        if !self.halves[side].kept {
            self.fin_now(side);
        }
    }

    fn fin_now(&mut self, side: usize) {
        let room = self.room(side);
        if std::mem::replace(&mut self.halves[side].ended, true) {
            return;
        }
        if room > 1 && self.once_in(3) {
            let len = self.size(room);
            self.add(side, len);
            self.step(side, SendFin(len));
        } else {
            self.step(side, Fin);
        }
    }

    /// Both go on from here at the same time.
    fn meet(&mut self) {
        for side in [0, 1] {
            self.step(side, Tell);
            self.step(side, Hear);
        }
    }
}
