//! Limits and deadlines of the fabric, each with its default and the reason for it.

mod keys;

use std::time::Duration;

use crate::flow::FlowLimits;
use crate::wire::MAX_HEADER;
pub use keys::{KEYS, Key, Kind, LimitError};

/// Legs of known flows: half of what one core takes, so that those that run go on, and a burst of as many as a large node
/// has flows.
const RESUMES: (u32, u32) = (5_000, 4_000);

/// Every limit that has a name in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of a router on its peers.
    pub router: RouterLimits,
    /// Of a provider's end.
    pub provider: ProviderLimits,
    /// Of one flow.
    pub flow: FlowLimits,
    /// Of what flows hold together.
    pub memory: MemoryLimits,
    /// Of connections.
    pub windows: WindowLimits,
    /// Of a sidecar's listeners.
    pub consumer: ConsumerLimits,
}

/// Limits of a sidecar's listeners; their hits count in the sidecar's own metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerLimits {
    /// Connections that are proxied at once (`connections`); beyond it they wait in the kernel's backlog.
    pub connections: usize,
    /// Connections of one mapped service that wait for a provider at once (`parked`).
    pub waiting: usize,
    /// UDP associations of one port of a service (`associations`).
    pub associations: usize,
    /// UDP associations of one client at one port (`associations_per_client`).
    pub associations_per_client: usize,
}

impl Default for ConsumerLimits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            waiting: 1024,
            associations: 4096,
            associations_per_client: 1024,
        }
    }
}

/// How much flows that end in one process may hold together.
///
/// At three quarters flows get no more than the window that they start with; at nine tenths new ones are refused and those
/// that run are slowed down; above, the newest is cut. Bytes are never dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Bytes for flows of one consumer's identity (`identity_buffers`).
    pub identity: u64,
    /// Bytes for all flows (`buffers`).
    pub process: u64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            identity: 64 << 20,
            process: 256 << 20,
        }
    }
}

/// Flow control of QUIC connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowLimits {
    /// Bytes of one connection on their way to this process.
    pub connection: u32,
    /// Bytes of packets of peers whose handshake waits to be looked at; more of them are lost, as on the way.
    pub incoming: u64,
    /// UDP packets of one association that wait to leave on one connection; more are dropped (`queue`).
    pub packets: usize,
    /// Bytes of all UDP packets that wait to leave on one connection; more are dropped (`queue`).
    pub packet_bytes: u64,
}

impl Default for WindowLimits {
    fn default() -> Self {
        Self {
            connection: 64 << 20,
            incoming: 8 << 20,
            packets: 128,
            packet_bytes: 2 << 20,
        }
    }
}

/// Limits of a router; every hit counts in `limit_hit{name}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterLimits {
    /// Handshakes that run at once (`handshakes`). More are asked to prove their address first.
    pub handshakes: usize,
    /// Handshakes per second of one IPv4 /24 or IPv6 /56 (`handshake_prefix`). More are asked to prove their address first.
    pub handshakes_per_prefix: u32,
    /// Handshakes that run at once with proven addresses (`incoming`). More are refused.
    pub incoming: usize,
    /// Time for one handshake.
    pub handshake_time: Duration,
    /// Open connections (`connections`).
    pub connections: usize,
    /// Open connections of one identity (`connections_per_identity`).
    pub connections_per_identity: usize,
    /// Publications of one connection (`publications`).
    pub publications: usize,
    /// Publications and withdrawals per second of one identity (`publication_changes`). More are read later: all nodes hear
    /// of each.
    pub changes_per_second: u32,
    /// Publications and withdrawals that one identity may send at once beyond the rate.
    pub changes_burst: u32,
    /// Flows on one connection (`streams`).
    pub streams: usize,
    /// Legs of known flows per second, of all identities (`resumes`). More wait a moment, and then are cut.
    pub resumes_per_second: u32,
    /// Legs of known flows that come at once beyond the rate and need not wait.
    pub resumes_burst: u32,
    /// New flows per second of one identity (`opens`).
    pub opens_per_second: u32,
    /// New flows that one identity may open at once beyond the rate.
    pub opens_burst: u32,
    /// Opens of one identity that may be reset without a byte within [`Self::flood_time`] (`flood`); more close the connection.
    pub flood: u32,
    /// See [`Self::flood`].
    pub flood_time: Duration,
    /// Most bytes of the header of a stream (`header_size`).
    pub header_size: usize,
    /// Time for the header of a stream (`header_time`).
    pub header_time: Duration,
    /// Routers that a flow may pass, this one included (`hops`).
    pub hops: u64,
    /// Resumed legs that wait at once for their provider to come back (`parked`).
    pub parked: usize,
    /// How long they wait (`park_time`).
    pub park_time: Duration,
    /// Bytes of the flows of one identity that were read and wait for a slow reader (`identity_passing_buffers`). Beyond it
    /// they are read packet by packet.
    pub passing_identity: u64,
    /// Bytes of all flows that were read and wait for a slow reader (`passing_buffers`); an identity has no more of them than
    /// the others leave.
    pub passing: u64,
}

impl Default for RouterLimits {
    fn default() -> Self {
        Self {
            handshakes: 256,
            handshakes_per_prefix: 50,
            incoming: 1024,
            handshake_time: Duration::from_secs(5),
            connections: 4096,
            connections_per_identity: 64,
            publications: 1024,
            // All publications of a connection within half of the time that their answers are waited for, and four times
            // all of them at once.
            changes_per_second: 500,
            changes_burst: 4096,
            streams: 65_535,
            resumes_per_second: RESUMES.0,
            resumes_burst: RESUMES.1,
            opens_per_second: 20_000,
            opens_burst: 4_000,
            flood: 200,
            flood_time: Duration::from_secs(10),
            header_size: MAX_HEADER,
            header_time: Duration::from_secs(3),
            hops: 8,
            parked: 4096,
            // A provider that was told of the restart is back sooner; the consumer's end tries again anyway.
            park_time: Duration::from_secs(1),
            // A flow that is stuck holds one read, some forty kilobytes: as many as four hundred of them.
            passing_identity: 16 << 20,
            passing: 64 << 20,
        }
    }
}

impl RouterLimits {
    /// Time and bytes of a stream's header.
    pub(crate) const fn header(&self) -> (Duration, usize) {
        (self.header_time, self.header_size)
    }

    /// Rate and burst of legs of known flows.
    pub(crate) const fn resumes(&self) -> (u32, u32) {
        (self.resumes_per_second, self.resumes_burst)
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
    /// Time to connect to a backend (`dial_time`).
    pub dial_time: Duration,
    /// Flows at once (`provider_flows`).
    pub flows: usize,
    /// Flows that are over and whose late legs are still answered (`remembered`).
    pub remembered: usize,
    /// Most bytes of the header of a stream (`header_size`).
    pub header_size: usize,
    /// Time for the header of a stream (`header_time`).
    pub header_time: Duration,
    /// Streams of one link whose header is awaited at once (`headers`).
    pub headers: usize,
    /// Legs of known flows per second, of all routers (`resumes`). More wait a moment, and then are cut.
    pub resumes_per_second: u32,
    /// Legs of known flows that come at once beyond the rate and need not wait.
    pub resumes_burst: u32,
    /// Legs that wait at once to be one flow's (`waiting_legs`). More are cut.
    pub waiting_legs: usize,
}

impl ProviderLimits {
    /// Rate and burst of legs of known flows.
    pub(crate) const fn resumes(&self) -> (u32, u32) {
        (self.resumes_per_second, self.resumes_burst)
    }

    /// Time and bytes of a stream's header.
    pub(crate) const fn header(&self) -> (Duration, usize) {
        (self.header_time, self.header_size)
    }
}

impl Default for ProviderLimits {
    fn default() -> Self {
        Self {
            dial_time: Duration::from_secs(5),
            flows: 65_535,
            remembered: 65_536,
            header_size: MAX_HEADER,
            header_time: Duration::from_secs(3),
            headers: 4096,
            resumes_per_second: RESUMES.0,
            resumes_burst: RESUMES.1,
            // An end tries three at once, and a flow takes one as soon as it runs.
            waiting_legs: 4,
        }
    }
}
