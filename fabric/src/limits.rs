//! Limits and deadlines of the fabric, each with its default and the reason for it.

use std::time::Duration;

/// Limits of a router; every hit counts in `limit_hit{name}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterLimits {
    /// Handshakes that run at once (`handshakes`). More are asked to prove their address first.
    pub handshakes: usize,
    /// Time for one handshake.
    pub handshake_time: Duration,
    /// Open connections (`connections`).
    pub connections: usize,
    /// Open connections of one identity (`connections_per_identity`).
    pub connections_per_identity: usize,
    /// Publications of one connection (`publications`).
    pub publications: usize,
    /// Flows on one connection (`streams`).
    pub streams: usize,
    /// New flows per second of one identity (`opens`).
    pub opens_per_second: u32,
    /// New flows that one identity may open at once beyond the rate.
    pub opens_burst: u32,
    /// Opens of one identity that may be reset without a byte within [`Self::flood_time`] (`flood`); more close the connection.
    pub flood: u32,
    /// See [`Self::flood`].
    pub flood_time: Duration,
    /// Time for the header of a stream (`header_time`).
    pub header_time: Duration,
    /// Routers that a flow may pass, this one included (`hops`).
    pub hops: u64,
    /// Resumed legs that wait at once for their provider to come back (`parked`).
    pub parked: usize,
    /// How long they wait.
    pub park_time: Duration,
}

impl Default for RouterLimits {
    fn default() -> Self {
        Self {
            handshakes: 256,
            handshake_time: Duration::from_secs(5),
            connections: 4096,
            connections_per_identity: 64,
            publications: 1024,
            streams: 65_535,
            opens_per_second: 20_000,
            opens_burst: 4_000,
            flood: 200,
            flood_time: Duration::from_secs(10),
            header_time: Duration::from_secs(3),
            hops: 8,
            parked: 4096,
            // A provider that was told of the restart is back sooner; the consumer's end tries again anyway.
            park_time: Duration::from_secs(1),
        }
    }
}

/// Limits of connections to routers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkLimits {
    /// Time for one attempt at a router, all its addresses included.
    pub connect_time: Duration,
    /// Head start of one address before the next is tried too.
    pub stagger: Duration,
    /// Time after which addresses that are silent are tried afresh, beside the attempts that run; a quarter of it at first.
    pub again: Duration,
    /// Time for the router's answer on the control stream.
    pub answer_time: Duration,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            connect_time: Duration::from_secs(5),
            // RFC 8305, section 5.
            stagger: Duration::from_millis(250),
            again: Duration::from_secs(1),
            answer_time: Duration::from_secs(5),
        }
    }
}

/// Limits of the provider's end of flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderLimits {
    /// Time to connect to a backend.
    pub dial_time: Duration,
    /// Flows at once (`provider_flows`).
    pub flows: usize,
    /// Time for the header of a stream.
    pub header_time: Duration,
}

impl Default for ProviderLimits {
    fn default() -> Self {
        Self {
            dial_time: Duration::from_secs(5),
            flows: 65_535,
            header_time: Duration::from_secs(3),
        }
    }
}
