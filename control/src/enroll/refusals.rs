//! Who was refused a join too often is not answered for a while: a flood of guesses costs neither look-ups nor lines of the log.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::pace::Pace;

/// What a refusal costs: one a second,
const REFUSAL: Duration = Duration::from_secs(1);
/// and ten at once.
const BURST: Duration = Duration::from_secs(10);
/// Addresses that are remembered. Beyond it nobody new is: they had to complete a handshake each.
const ADDRESSES: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<IpAddr, Pace>>);

impl Refusals {
    fn all(&self) -> MutexGuard<'_, HashMap<IpAddr, Pace>> {
        // Nothing is left half changed here, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this one is answered now.
    pub(super) fn may_ask(&self, from: IpAddr, now: Instant) -> bool {
        let all = self.all();
        all.get(&network(from)).is_none_or(|pace| pace.is_open(now))
    }

    /// It was refused.
    pub(super) fn note(&self, from: IpAddr, now: Instant) {
        let mut all = self.all();
        if all.len() >= ADDRESSES {
            all.retain(|_, pace| !pace.is_idle(now));
        }
        let from = network(from);
        if all.len() < ADDRESSES || all.contains_key(&from) {
            let pace = all.entry(from).or_insert_with(|| Pace::new(BURST));
            pace.take(now, REFUSAL);
        }
    }
}

/// Who has one IPv6 address has all of its network.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_guesses_is_not_answered_for_a_while_and_others_are() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let [one, neighbour, other] =
            ["2001:db8::1", "2001:db8::2", "192.0.2.1"].map(|text| text.parse().unwrap());
        for _ in 0..11 {
            assert!(refusals.may_ask(one, now));
            refusals.note(one, now);
        }
        assert!(!refusals.may_ask(one, now) && !refusals.may_ask(neighbour, now));
        assert!(refusals.may_ask(other, now));
        assert!(refusals.may_ask(one, now + REFUSAL));
        refusals.note(other, now + BURST * 2);
        assert!(refusals.may_ask(one, now + BURST * 2));
    }
}
