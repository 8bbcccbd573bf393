//! For how long the peer of a connection says nothing although it owes an answer.

use std::time::Duration;

use tokio::time::Instant;

use crate::quic::Traffic;

/// How often a connection in use is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// Least silence that is suspicious.
const LEAST: Duration = Duration::from_secs(1);
/// Silence after which an acknowledgement may be of before.
const OLD: Duration = Duration::from_secs(3);
/// What a peer may take to acknowledge a packet, besides the way there and back.
const ACK_DELAY: Duration = Duration::from_millis(25);

/// How long a round trip over a connection may take before silence is suspicious: three probe timeouts.
pub(crate) fn patience(rtt: Duration) -> Duration {
    // The variance is not shown to us; on a steady path it is well below the round trip.
    LEAST.max((2 * rtt + ACK_DELAY) * 3)
}

/// Measures for how long nothing of what was sent was acknowledged.
///
/// Packets that arrive are no answer: where only our direction is cut, the peer's go on to come, and its repeated
/// acknowledgements with them. A new acknowledgement is a new sample of the round trip. What was lost is sent again and
/// again while it lacks one, so that something is seen to be sent as long as something is owed.
///
/// Nor is it an answer if it is for a packet from before the silence, whose first acknowledgement was lost when the network went.
/// It comes with the peer's first packet after that, and as a round trip of the whole outage makes the probe timeout longer
/// than that: what was sent meanwhile fills the congestion window, and nothing leaves any more for as long again.
#[derive(Debug)]
pub(crate) struct Silence {
    seen: Traffic,
    looked: Instant,
    owed: bool,
    quiet: Duration,
}

impl Silence {
    pub(crate) const fn new(seen: Traffic, now: Instant) -> Self {
        Self {
            seen,
            looked: now,
            owed: false,
            quiet: Duration::ZERO,
        }
    }

    /// Whether something was acknowledged since the last look, and the time for which something is owed.
    pub(crate) fn look(&mut self, traffic: Traffic, now: Instant) -> (bool, Duration) {
        // A process that was stopped or starved looks late, and what came meanwhile was not read yet.
        let passed = now.saturating_duration_since(self.looked).min(2 * TICK);
        self.looked = now;
        let heard = traffic.rtt != self.seen.rtt && !self.is_old(traffic.rtt);
        let sent = traffic.eliciting != self.seen.eliciting;
        self.seen = traffic;
        if heard {
            self.owed = false;
            self.quiet = Duration::ZERO;
        } else if self.owed {
            self.quiet += passed;
        } else {
            self.owed = sent;
        }
        (heard, self.quiet)
    }
}

impl Silence {
    /// Whether the round trip that made it this is longer than the silence (RFC 9002, section 5.3: an eighth of it counts).
    fn is_old(&self, rtt: Duration) -> bool {
        let sample = (rtt * 8).saturating_sub(self.seen.rtt * 7);
        self.quiet >= OLD && sample >= self.quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(silence: &mut Silence, eliciting: u64, rtt: u64, millis: u64) -> (bool, u128) {
        let start = silence.looked;
        let traffic = Traffic {
            eliciting,
            rtt: Duration::from_nanos(rtt),
        };
        let (heard, quiet) = silence.look(traffic, start + Duration::from_millis(millis));
        (heard, quiet.as_millis())
    }

    #[test]
    fn silence_counts_from_the_look_that_saw_a_packet_leave() {
        let traffic = Traffic {
            eliciting: 5,
            rtt: Duration::from_nanos(1000),
        };
        let mut silence = Silence::new(traffic, Instant::now());
        assert_eq!(look(&mut silence, 5, 1000, 500), (false, 0), "idle");
        assert_eq!(look(&mut silence, 6, 1000, 500), (false, 0));
        assert_eq!(look(&mut silence, 6, 1000, 250), (false, 250));
        assert_eq!(look(&mut silence, 7, 1000, 250), (false, 500));
        assert_eq!(look(&mut silence, 9, 1001, 250), (true, 0), "answered");
        assert_eq!(look(&mut silence, 9, 1001, 500), (false, 0), "idle");
    }

    #[test]
    fn an_acknowledgement_of_before_an_outage_ends_no_silence() {
        let millis = |millis: u64| millis * 1_000_000;
        let traffic = Traffic {
            eliciting: 0,
            rtt: Duration::from_millis(8),
        };
        let mut silence = Silence::new(traffic, Instant::now());
        look(&mut silence, 1, millis(8), 250);
        for sent in 2..22 {
            look(&mut silence, sent, millis(8), 500);
        }
        assert_eq!(silence.quiet, Duration::from_secs(10));
        // One of 11 s: 11,000 / 8 + 8 * 7 / 8.
        assert_eq!(look(&mut silence, 22, millis(1382), 50), (false, 10_050));
        // And one of 50 ms, for a probe that was sent since.
        assert_eq!(look(&mut silence, 23, 1_215_500_000, 50), (true, 0));
        // A path that has become slow is no silence for long.
        look(&mut silence, 24, 1_215_500_000, 250);
        assert_eq!(look(&mut silence, 24, millis(1500), 500), (true, 0));
    }

    #[test]
    fn the_time_for_which_the_process_was_stopped_is_no_silence() {
        let traffic = Traffic {
            eliciting: 0,
            rtt: Duration::from_nanos(1),
        };
        let mut silence = Silence::new(traffic, Instant::now());
        look(&mut silence, 1, 1, 250);
        assert_eq!(look(&mut silence, 1, 1, 20_000), (false, 500));
    }

    #[test]
    fn three_probe_timeouts_but_a_second_at_least() {
        assert_eq!(patience(Duration::from_millis(1)), LEAST);
        assert_eq!(
            patience(Duration::from_millis(300)),
            Duration::from_millis(1875)
        );
    }
}
