//! A connection that a crowd has worn out: it carries nothing any more and still holds memory for all that it carried.
//!
//! The implementation keeps the receiving state of as many streams as a connection had at once, some hundred bytes each. Spread
//! over the heap they hold on to the pages around them: 8 MB were seen after 2,000 flows. A fresh connection has none of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::quic::StreamCount;

/// Fewer streams than this leave too little behind.
const CROWD: u32 = 128;
/// The control stream is always there.
const CONTROL: u32 = 1;
/// How long nothing must be carried: who comes in waves keeps the connection.
const REST: Duration = Duration::from_secs(10);

/// Whether the connection carries nothing.
pub(super) const fn is_idle(streams: StreamCount) -> bool {
    streams.open <= CONTROL
}

/// Whether it carries nothing and has carried a crowd.
pub(super) const fn is_worn(streams: StreamCount) -> bool {
    is_idle(streams) && streams.most >= CROWD
}

/// For how long a connection has rested after a crowd.
#[derive(Debug, Default)]
pub(super) struct Worn {
    since: Option<Instant>,
}

impl Worn {
    /// Whether the connection should be replaced; said once for each [`REST`].
    pub(super) fn look(&mut self, streams: StreamCount, now: Instant) -> bool {
        if !is_worn(streams) {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let worn = now.saturating_duration_since(since) >= REST;
        if worn {
            self.since = None;
        }
        worn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_worn_when_it_rests_after_a_crowd() {
        let (mut worn, start) = (Worn::default(), Instant::now());
        for (at, open, most, expected) in [
            (0, 1, 127, false),
            (11, 1, 127, false),
            (12, 128, 128, false),
            (13, 1, 128, false),
            (22, 1, 128, false),
            (23, 1, 128, true),
            (24, 1, 128, false),
            (30, 2, 128, false),
            (31, 1, 128, false),
            (40, 1, 128, false),
            (41, 1, 128, true),
        ] {
            let now = start + Duration::from_secs(at);
            let streams = StreamCount { open, most };
            assert_eq!(worn.look(streams, now), expected, "at {at} s");
        }
    }
}
