//! A link with delay, loss and the rest between a host and the internet: two devices and a thread that carries frames
//! from one to the other, or does not. It needs no `netem` in the kernel.

mod conditions;
mod fate;
mod frame;
mod tap;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::time::TimeSpec;

pub use conditions::{Conditions, Profile};
use fate::{Fate, Fates};

/// A frame is read whole or cut: longer than any MTU of a lab.
const FRAME: usize = 2048;
/// Frames taken from one side before the other has its turn.
const TURN: usize = 64;
/// How soon a link that is dropped ends at the latest.
const LOOK_UP: Duration = Duration::from_millis(50);

/// A direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the host sends.
    Up,
    /// What comes to the host.
    Down,
}

/// A running link. Dropping it takes the host off the net.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    conditions: Mutex<[Conditions; 2]>,
    counts: [Counts; 2],
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Counts {
    passed: AtomicU64,
    lost: AtomicU64,
    too_long: AtomicU64,
    queue_full: AtomicU64,
    down: AtomicU64,
    twice: AtomicU64,
    late: AtomicU64,
    damaged: AtomicU64,
}

/// What became of the packets of one direction so far. ARP and the like are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Went over, in whatever state.
    pub passed: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Longer than the silent MTU.
    pub too_long: u64,
    /// Found the queue full.
    pub queue_full: u64,
    /// Came while the link was down or cut.
    pub down: u64,
    /// Of those that passed: arrived twice.
    pub twice: u64,
    /// Of those that passed: were held back.
    pub late: u64,
    /// Of those that passed: were damaged.
    pub damaged: u64,
}

impl Link {
    /// Starts a link between a device on the host's side and one on the net's.
    pub(super) fn start(
        host: File,
        net: File,
        conditions: Conditions,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            conditions: Mutex::new([conditions; 2]),
            counts: Default::default(),
            stop: AtomicBool::new(false),
        });
        let carrier = Carrier {
            ends: [host, net],
            // The directions have luck of their own: how they interleave does not matter.
            fates: [Fates::new(seed), Fates::new(!seed)],
            began: Instant::now(),
            under_way: BinaryHeap::new(),
            number: 0,
        };
        let thread = std::thread::Builder::new().name("link".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || carrier.run(&shared)
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Makes the device of one end in the namespace of the calling thread.
    pub(super) fn device(name: &str) -> anyhow::Result<File> {
        tap::open(name)
    }

    /// Changes both directions, from the next packet on.
    pub fn set(&self, conditions: Conditions) {
        *self.conditions() = [conditions; 2];
    }

    /// Changes one direction, from the next packet on.
    pub fn set_one(&self, direction: Direction, conditions: Conditions) {
        self.conditions()[direction as usize] = conditions;
    }

    /// Changes something in both directions and leaves the rest.
    pub fn change(&self, change: impl Fn(&mut Conditions)) {
        self.conditions().iter_mut().for_each(change);
    }

    /// What became of the packets of a direction.
    #[must_use]
    pub fn tally(&self, direction: Direction) -> Tally {
        let counts = &self.shared.counts[direction as usize];
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            passed: get(&counts.passed),
            lost: get(&counts.lost),
            too_long: get(&counts.too_long),
            queue_full: get(&counts.queue_full),
            down: get(&counts.down),
            twice: get(&counts.twice),
            late: get(&counts.late),
            damaged: get(&counts.damaged),
        }
    }

    fn conditions(&self) -> std::sync::MutexGuard<'_, [Conditions; 2]> {
        self.shared
            .conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// A frame that is on its way; the earliest is the greatest. Equal times keep the order of arrival.
type UnderWay = Reverse<(Duration, u64, usize, Vec<u8>)>;

struct Carrier {
    /// The host's device and the net's.
    ends: [File; 2],
    fates: [Fates; 2],
    began: Instant,
    under_way: BinaryHeap<UnderWay>,
    number: u64,
}

impl Carrier {
    fn run(mut self, shared: &Shared) {
        while !shared.stop.load(Ordering::Acquire) {
            self.wait();
            for from in 0..2 {
                self.take_in(from, shared);
            }
            self.deliver();
        }
    }

    /// Until a frame comes in or one is due.
    fn wait(&self) {
        let next = self.under_way.peek().map_or(LOOK_UP, |Reverse((due, ..))| {
            due.saturating_sub(self.began.elapsed()).min(LOOK_UP)
        });
        let mut ends = self
            .ends
            .each_ref()
            .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        // A failure is an interruption: then the loop goes round once for nothing.
        let _ = nix::poll::ppoll(&mut ends, Some(TimeSpec::from_duration(next)), None);
    }

    fn take_in(&mut self, from: usize, shared: &Shared) {
        let conditions = shared
            .conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)[from];
        let counts = &shared.counts[from];
        for _ in 0..TURN {
            let mut frame = vec![0; FRAME];
            match self.ends[from].read(&mut frame) {
                Ok(length) => frame.truncate(length),
                Err(error) => {
                    if error.kind() != ErrorKind::WouldBlock {
                        // The namespace is going: nothing comes any more, and nobody waits for it.
                        crate::wait::pause(LOOK_UP);
                    }
                    return;
                }
            }
            let now = self.began.elapsed();
            let Some(length) = frame::ip_length(&frame) else {
                if let Some(due) = conditions.spared(now) {
                    self.send(due, 1 - from, frame);
                }
                continue;
            };
            let count = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
            match self.fates[from].of(now, length, &conditions) {
                Fate::Arrives {
                    at,
                    again,
                    damage,
                    late,
                } => {
                    count(&counts.passed);
                    if late {
                        count(&counts.late);
                    }
                    if let Some((part, unseen)) = damage {
                        count(&counts.damaged);
                        frame::damage(&mut frame, part, unseen);
                    }
                    if let Some(again) = again {
                        count(&counts.twice);
                        self.send(again, 1 - from, frame.clone());
                    }
                    self.send(at, 1 - from, frame);
                }
                Fate::Lost => drop(count(&counts.lost)),
                Fate::TooLong => drop(count(&counts.too_long)),
                Fate::QueueFull => drop(count(&counts.queue_full)),
                Fate::Down => drop(count(&counts.down)),
            }
        }
    }

    fn send(&mut self, due: Duration, to: usize, frame: Vec<u8>) {
        self.number += 1;
        self.under_way.push(Reverse((due, self.number, to, frame)));
    }

    fn deliver(&mut self) {
        let now = self.began.elapsed();
        while let Some(Reverse((due, ..))) = self.under_way.peek()
            && *due <= now
            && let Some(Reverse((_, _, to, frame))) = self.under_way.pop()
        {
            // A device that is down takes nothing: the frame is lost, as on a cable that is out.
            let _lost = self.ends[to].write(&frame);
        }
    }
}
