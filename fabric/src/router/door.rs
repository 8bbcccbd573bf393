//! Who may start a handshake. Handshakes are what costs a router most, and who asks for one may not be where he says.
//! Pure: no IO, time comes in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::RouterLimits;

/// Prefixes that are counted at once. A flood from more than that is asked for proofs altogether.
const PREFIXES: usize = 4096;
/// For how long a prefix is counted.
const SECOND: Duration = Duration::from_secs(1);

/// What becomes of an attempt, with the limit that was hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Take,
    /// It has to come back with a proof of its address, which costs us nothing.
    Prove(&'static str),
    /// It is refused.
    Refuse(&'static str),
}

/// Attempts by prefix of their address.
#[derive(Debug, Default)]
pub(super) struct Door {
    prefixes: HashMap<u64, Count>,
}

/// Attempts since a second began.
#[derive(Debug, Clone, Copy)]
struct Count {
    since: Instant,
    attempts: u32,
}

impl Door {
    /// Decides on an attempt from `address`, which has proven it or not, while so many handshakes run.
    pub(super) fn decide(
        &mut self,
        (address, proven): (IpAddr, bool),
        running: usize,
        limits: &RouterLimits,
        now: Instant,
    ) -> Verdict {
        if running >= limits.incoming {
            return Verdict::Refuse("incoming");
        }
        if proven {
            return Verdict::Take;
        }
        if running >= limits.handshakes {
            return Verdict::Prove("handshakes");
        }
        // Peers on this host are no flood from afar; there may be many, all with one address.
        if !address.is_loopback() && !self.count(address, limits.handshakes_per_prefix, now) {
            return Verdict::Prove("handshake_prefix");
        }
        Verdict::Take
    }

    /// Whether one more attempt is within the limit.
    fn count(&mut self, address: IpAddr, most: u32, now: Instant) -> bool {
        let over = |count: &Count| now.saturating_duration_since(count.since) >= SECOND;
        let prefix = prefix(address);
        if !self.prefixes.contains_key(&prefix) && self.prefixes.len() >= PREFIXES {
            self.prefixes.retain(|_, count| !over(count));
            if self.prefixes.len() >= PREFIXES {
                return false;
            }
        }
        let count = self.prefixes.entry(prefix).or_insert(Count {
            since: now,
            attempts: 0,
        });
        if over(count) {
            *count = Count {
                since: now,
                attempts: 0,
            };
        }
        count.attempts = count.attempts.saturating_add(1);
        count.attempts <= most
    }
}

/// The network that one party can be expected to have: a /24 of IPv4, a /56 of IPv6.
fn prefix(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits() >> 8),
        IpAddr::V6(v6) => {
            // 56 bits always fit; the mark keeps them apart from those of IPv4.
            u64::try_from(v6.to_bits() >> 72).unwrap_or_default() | (1 << 63)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn limits() -> RouterLimits {
        RouterLimits {
            handshakes: 10,
            incoming: 20,
            handshakes_per_prefix: 3,
            ..RouterLimits::default()
        }
    }

    #[test]
    fn who_has_proven_its_address_gets_in_while_others_flood() {
        let (mut door, limits, now) = (Door::default(), limits(), Instant::now());
        let mut ask = |proven, running| {
            let from = (address("192.0.2.1"), proven);
            door.decide(from, running, &limits, now)
        };
        assert_eq!(ask(false, 9), Verdict::Take);
        assert_eq!(ask(false, 10), Verdict::Prove("handshakes"));
        assert_eq!(ask(true, 10), Verdict::Take);
        assert_eq!(ask(true, 20), Verdict::Refuse("incoming"));
        assert_eq!(ask(false, 20), Verdict::Refuse("incoming"));
    }

    #[test]
    fn a_network_has_its_number_of_attempts_each_second() {
        let (mut door, limits, now) = (Door::default(), limits(), Instant::now());
        let mut ask = |from: &str, now| door.decide((address(from), false), 0, &limits, now);
        for host in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            assert_eq!(ask(host, now), Verdict::Take);
        }
        let flood = Verdict::Prove("handshake_prefix");
        assert_eq!(ask("192.0.2.4", now), flood);
        assert_eq!(ask("::ffff:192.0.2.4", now), flood);
        assert_eq!(ask("192.0.3.4", now), Verdict::Take);
        assert_eq!(ask("192.0.2.4", now + SECOND), Verdict::Take);
        for host in 1..=3 {
            assert_eq!(ask(&format!("2001:db8:0:{host}::1"), now), Verdict::Take);
        }
        assert_eq!(ask("2001:db8:0:f::1", now), flood);
        assert_eq!(ask("2001:db8:0:100::1", now), Verdict::Take);
        for _ in 0..100 {
            assert_eq!(ask("127.0.0.1", now), Verdict::Take);
        }
    }

    #[test]
    fn a_flood_from_everywhere_costs_bounded_memory() {
        let (mut door, limits, now) = (Door::default(), limits(), Instant::now());
        for network in 0..100_000u32 {
            let from = IpAddr::from(network.to_be_bytes().map(|byte| byte | 1));
            let from = if from.is_loopback() {
                address("192.0.2.1")
            } else {
                from
            };
            door.decide((from, false), 0, &limits, now);
        }
        for network in 0..100_000u32 {
            let from = IpAddr::V6(Ipv6Addr::from_bits(u128::from(network) << 72 | 1 << 125));
            door.decide((from, false), 0, &limits, now);
        }
        assert!(door.prefixes.len() <= PREFIXES);
        let late = door.decide((address("198.51.100.1"), false), 0, &limits, now);
        assert_eq!(late, Verdict::Prove("handshake_prefix"));
        let later = door.decide((address("198.51.100.1"), false), 0, &limits, now + SECOND);
        assert_eq!(later, Verdict::Take);
    }
}
