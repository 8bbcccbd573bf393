//! The end of a connection's certificates: at that time both ends close it, so another one is made well before.

use std::time::{Duration, SystemTime};

use keel_certs::LiveIdentity;

/// After which part of its time a connection is made anew. Certificates are renewed at half of their life, a little sooner
/// or later; what is left is for flows that cannot leave the connection. The range keeps those that were made together from
/// being made anew together.
const DUE: std::ops::Range<f64> = 0.6..0.75;
/// Least time between two attempts at a connection that ends later.
const AGAIN: Duration = Duration::from_secs(1);

/// When a connection ends, and when another one should be tried.
#[derive(Debug)]
pub(super) struct Ending {
    live: LiveIdentity,
    own: SystemTime,
    peer: Option<SystemTime>,
    next: SystemTime,
}

impl Ending {
    /// Of a connection that is made at `now` with a certificate until `own`, to a peer whose certificate is until `peer`;
    /// `live` has the own one when it is renewed.
    pub(super) fn new(
        live: LiveIdentity,
        own: SystemTime,
        peer: Option<SystemTime>,
        now: SystemTime,
    ) -> Self {
        let mut ending = Self {
            live,
            own,
            peer,
            next: now,
        };
        let left = ending.at().duration_since(now).unwrap_or_default();
        ending.next += left.mul_f64(rand::random_range(DUE));
        ending
    }

    /// When the connection ends at the latest.
    pub(super) fn at(&self) -> SystemTime {
        self.peer.map_or(self.own, |peer| peer.min(self.own))
    }

    /// Whether a connection that is made now may end later. It cannot while the certificate that ends first is the own
    /// one, and that is not renewed; whether the peer's is, only a handshake tells.
    pub(super) fn look(&mut self, now: SystemTime) -> bool {
        if now < self.next || (self.at() == self.own && self.live.not_after() <= self.own) {
            return false;
        }
        let left = self.at().duration_since(now).unwrap_or_default();
        self.next = now + AGAIN.max(left / 4);
        true
    }
}

#[cfg(test)]
mod tests {
    use keel_certs::fixture::Fabric;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_connection_is_made_anew_once_a_newer_certificate_is_there() {
        let live = Fabric::new().pod("a", "default", "c");
        let now = live.not_after() - DAY;
        let hours = |hours| now + Duration::from_secs(hours * 3600);
        // The own one ends first and is not renewed; then it is.
        let mut ending = Ending::new(live.clone(), live.not_after(), Some(hours(30)), now);
        assert_eq!(ending.at(), live.not_after());
        assert!((0..24).all(|at| !ending.look(hours(at))));
        ending.own -= DAY / 24;
        assert!(ending.look(hours(18)));
        // The peer's ends first: it may be renewed or not.
        let mut ending = Ending::new(live, hours(24), Some(hours(12)), now);
        let looks: Vec<u64> = (0..12).filter(|&at| ending.look(hours(at))).collect();
        assert!((8..=9).contains(&looks[0]), "{looks:?}");
        assert!(looks.len() > 1, "{looks:?}");
    }
}
