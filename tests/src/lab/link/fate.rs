//! What becomes of each packet: pure, and the same for the same seed.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::Conditions;

/// A packet out of order is late by up to this.
const HELD_BACK: Duration = Duration::from_millis(10);
/// Random numbers for each packet, whatever it meets: so a changed condition does not change the luck of those after it.
const DRAWS: usize = 6;

/// The memory of one direction.
#[derive(Debug)]
pub(super) struct Fates {
    random: SmallRng,
    in_burst: bool,
    /// When the last packet has left the sender.
    free_at: Duration,
    /// When the last packet that kept its place arrives.
    last: Duration,
}

/// What becomes of a packet. Times are from the start of the link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Arrives {
        at: Duration,
        again: Option<Duration>,
        /// Where it is damaged, as a part of its length; whether the checksum is made to fit.
        damage: Option<(f64, bool)>,
        late: bool,
    },
    Lost,
    TooLong,
    QueueFull,
    Down,
}

impl Fates {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: SmallRng::seed_from_u64(seed),
            in_burst: false,
            free_at: Duration::ZERO,
            last: Duration::ZERO,
        }
    }

    /// The fate of an IP packet of `length` bytes that enters `now`.
    pub(super) fn of(&mut self, now: Duration, length: usize, on: &Conditions) -> Fate {
        let [lost, damaged, twice, out, shake, extra]: [f64; DRAWS] =
            std::array::from_fn(|_| self.random.random());
        if on.is_down(now) {
            return Fate::Down;
        }
        if on.mtu > 0 && length > on.mtu.into() {
            return Fate::TooLong;
        }
        if self.loses(lost, on) {
            return Fate::Lost;
        }
        let Some(left) = self.leaves(now, length, on) else {
            return Fate::QueueFull;
        };
        let least = on.delay.saturating_sub(on.jitter);
        let arrives = left + least + (on.delay + on.jitter - least).mul_f64(shake);
        let late = out < on.reorder;
        let at = if late {
            arrives + HELD_BACK.mul_f64(extra)
        } else {
            self.last = self.last.max(arrives);
            self.last
        };
        Fate::Arrives {
            at,
            again: (twice < on.duplicate).then_some(at),
            damage: (damaged < on.corrupt).then_some((extra, damaged < on.corrupt / 2.0)),
            late,
        }
    }

    fn loses(&mut self, draw: f64, on: &Conditions) -> bool {
        if on.burst <= 1.0 || on.loss >= 1.0 {
            self.in_burst = false;
            return draw < on.loss;
        }
        // Two states: nothing is lost, or everything. One is left as often as the mean length says, the other entered as
        // often as makes the part right.
        let leave = 1.0 / on.burst;
        let enter = leave * on.loss / (1.0 - on.loss);
        self.in_burst = if self.in_burst {
            draw >= leave
        } else {
            draw < enter
        };
        self.in_burst
    }

    fn leaves(&mut self, now: Duration, length: usize, on: &Conditions) -> Option<Duration> {
        if on.rate == 0 {
            return Some(now);
        }
        let begins = self.free_at.max(now);
        let waiting = (begins - now).as_secs_f64() * on.rate as f64 / 8.0;
        if on.queue > 0 && waiting + length as f64 > f64::from(on.queue) {
            return None;
        }
        self.free_at = begins + Duration::from_secs_f64(length as f64 * 8.0 / on.rate as f64);
        Some(self.free_at)
    }
}

impl Conditions {
    /// Whether nothing passes at this time.
    pub(super) fn is_down(&self, now: Duration) -> bool {
        self.cut
            || self.flap.is_some_and(|(up, down)| {
                let period = (up + down).as_nanos().max(1);
                now.as_nanos() % period >= up.as_nanos()
            })
    }

    /// When a packet arrives that is never lost: what makes a network work at all (ARP, neighbour discovery).
    pub(super) fn spared(&self, now: Duration) -> Option<Duration> {
        (!self.is_down(now)).then(|| now + self.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: usize = 200_000;
    const MS: Duration = Duration::from_millis(1);

    fn fates(seed: u64, on: &Conditions) -> Vec<Fate> {
        let mut fates = Fates::new(seed);
        (0..PACKETS)
            .map(|number| fates.of(MS * number as u32, 1200, on))
            .collect()
    }

    #[test]
    fn a_seed_decides() {
        let on = Conditions {
            jitter: MS,
            delay: 5 * MS,
            reorder: 0.1,
            duplicate: 0.1,
            corrupt: 0.1,
            ..super::super::Profile::Wifi.conditions()
        };
        assert_eq!(fates(1, &on), fates(1, &on));
        assert_ne!(fates(1, &on), fates(2, &on));
    }

    #[test]
    fn parts_and_bursts_are_as_asked() {
        for (loss, burst) in [(0.01, 1.0), (0.05, 1.0), (0.01, 6.0), (0.08, 20.0)] {
            let on = Conditions {
                loss,
                burst,
                ..Conditions::default()
            };
            let fates = fates(7, &on);
            let lost = fates.iter().filter(|fate| **fate == Fate::Lost).count();
            let runs = fates
                .windows(2)
                .filter(|pair| pair[0] != Fate::Lost && pair[1] == Fate::Lost)
                .count();
            let (part, mean) = (lost as f64 / PACKETS as f64, lost as f64 / runs as f64);
            assert!((part / loss - 1.0).abs() < 0.15, "{loss} {burst}: {part}");
            assert!((mean / burst - 1.0).abs() < 0.15, "{loss} {burst}: {mean}");
        }
    }

    #[test]
    fn order_holds_unless_asked() {
        let on = Conditions {
            delay: 30 * MS,
            jitter: 20 * MS,
            ..Conditions::default()
        };
        let times = |on: &Conditions| -> Vec<Duration> {
            let times = fates(3, on).into_iter().map(|fate| match fate {
                Fate::Arrives { at, .. } => at,
                other => panic!("{other:?}"),
            });
            times.collect()
        };
        assert!(times(&on).is_sorted(), "jitter keeps the order");
        let on = Conditions {
            reorder: 0.01,
            ..on
        };
        assert!(!times(&on).is_sorted());
    }

    #[test]
    fn rate_queue_and_flap_hold() {
        let on = Conditions {
            rate: 9_600,
            queue: 2_400,
            flap: Some((10_000 * MS, 1_000 * MS)),
            ..Conditions::default()
        };
        let mut fates = Fates::new(1);
        let mut fate = |ms| fates.of(ms * MS, 1200, &on);
        // One packet takes a second.
        assert!(matches!(fate(0), Fate::Arrives { at, .. } if at == 1_000 * MS));
        assert!(matches!(fate(0), Fate::Arrives { at, .. } if at == 2_000 * MS));
        assert_eq!(fate(0), Fate::QueueFull);
        assert!(matches!(fate(1_000), Fate::Arrives { at, .. } if at == 3_000 * MS));
        assert_eq!(fate(10_500), Fate::Down);
        assert!(matches!(fate(11_000), Fate::Arrives { .. }));
    }
}
