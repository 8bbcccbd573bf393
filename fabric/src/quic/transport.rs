//! Transport parameters by role.
//!
//! Memory of one connection is at most `receive_window + send_window + both datagram buffers`: received bytes that nobody
//! has read, sent bytes that nobody has acknowledged, and datagrams both ways. Everything else per connection is a few
//! kilobytes plus about 100 bytes for each stream that the peer may open. Who has many connections to a router has smaller
//! windows on the later ones, see [`Whole::part`].

use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::datagrams::QueueLimits;
use crate::limits::{Limits, WindowLimits};

/// Segments that the driver hands to one send; the product with the packet size must fit into one UDP datagram.
const SEGMENTS: u16 = 10;
/// What one UDP send takes over IPv4.
pub(super) const UDP_MAX: u16 = 65_507;
/// Largest UDP payload on Ethernet.
const MTU_NETWORK: u16 = 1472;
/// Largest UDP payload that is looked for on loopback.
const MTU_LOOPBACK: u16 = 6500;
const _: () = assert!(MTU_LOOPBACK <= UDP_MAX / SEGMENTS);

/// Connection window of a peer that a router does not know yet, and the least of those that it knows.
const LEAST_WINDOW: u32 = MIB;
/// Least bytes of datagrams that may wait to leave on a connection.
const LEAST_QUEUE: usize = 64 << 10;

/// Bytes of datagrams that wait for the congestion window, all flows in one line; so this is kept short.
const DATAGRAMS_OUT: usize = 64 << 10;

/// Streams that a peer may hold open on one connection at most.
pub(super) const MAX_BIDI: u32 = 65_535;

/// Largest UDP payload that an endpoint takes.
pub(super) const MAX_UDP_PAYLOAD: u16 = MTU_LOOPBACK;

/// What an endpoint is used for; fixes windows, streams and timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A router's endpoint: large windows, many peers.
    Router,
    /// A sidecar's endpoint: small windows, few peers.
    Sidecar,
    /// An API server's or its client's endpoint.
    Control,
}

/// Flow control of an endpoint, where it is not its profile's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Windows {
    stream: u32,
    connection: u32,
    /// Bytes that wait with handshakes; 0 for the default.
    incoming: u64,
    pub(super) packets: QueueLimits,
}

impl Windows {
    /// Room for the flows that these limits allow.
    #[must_use]
    pub fn of(limits: &Limits) -> Self {
        let most = u32::try_from(limits.flow.max_window).unwrap_or(u32::MAX);
        let stream = most.saturating_add(64 * KIB);
        let usual = Self {
            stream: 4 * MIB + 64 * KIB,
            ..Self::default()
        };
        Self {
            // A profile's own window is enough for the usual flow, or small on purpose.
            stream: if stream > usual.stream { stream } else { 0 },
            connection: limits.windows.connection,
            incoming: limits.windows.incoming,
            packets: QueueLimits::of(&limits.windows),
        }
    }

    /// Bytes of packets that may wait with handshakes.
    pub(super) fn incoming(self) -> u64 {
        if self.incoming > 0 {
            self.incoming
        } else {
            WindowLimits::default().incoming
        }
    }

    fn over(self, numbers: &mut Numbers) {
        if self.stream > numbers.stream_window {
            numbers.stream_window = self.stream;
        }
        if self.connection > 0 {
            numbers.receive_window = self.connection;
            numbers.send_window = numbers.send_window.min(self.connection.into());
        }
        if numbers.receive_window < numbers.stream_window {
            numbers.receive_window = numbers.stream_window;
        }
    }
}

/// What a connection may hold, either direction: all that its endpoint allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole {
    receive: u32,
    send: u64,
    datagrams: usize,
}

/// What one connection may hold of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) receive: u32,
    pub(super) send: u64,
    pub(super) datagrams: usize,
}

impl Whole {
    /// For the oldest connection of a peer (`rank` 1) and its later ones. Two have all of it, as one is made beside another
    /// that it is to replace; the third has a quarter, the fourth a ninth, and so on: all together hold little more than
    /// three, however many there are.
    pub(super) fn part(self, rank: u32) -> Part {
        let steps = u64::from(rank.saturating_sub(1).max(1));
        let of = |whole: u64, least: u64| (whole / (steps * steps)).max(least.min(whole));
        let least = u64::from(LEAST_WINDOW);
        Part {
            // No more than it was.
            receive: of(self.receive.into(), least) as u32,
            send: of(self.send, least),
            datagrams: of(self.datagrams as u64, LEAST_QUEUE as u64) as usize,
        }
    }
}

struct Numbers {
    stream_window: u32,
    receive_window: u32,
    send_window: u64,
    /// Bytes of datagrams that wait for our reader; those that leave wait in a queue of our own, fairly.
    datagrams_in: usize,
    bidi_at_start: u32,
    bidi_max: u32,
    uni: u32,
}

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

/// Bytes of all streams of a connection that wait to be sent or acknowledged; what one identity may have buffered.
///
/// It must not be what holds flows back: streams that wait for room in it are woken last come, first served, and some
/// then get nothing for seconds. Each flow is bounded by its own credit, and the streams take turns below.
const SEND_WINDOW: u64 = 64 << 20;

/// Bytes of all streams of a connection on their way to us, for the same reason: with less, some of fifty busy flows got
/// nothing for seconds.
const RECEIVE_WINDOW: u32 = 64 * MIB;

impl Profile {
    const fn numbers(self) -> Numbers {
        match self {
            // A stream's window is the largest flow credit plus what may travel before it is granted.
            Self::Router => Numbers {
                stream_window: 4 * MIB + 64 * KIB,
                receive_window: RECEIVE_WINDOW,
                send_window: SEND_WINDOW,
                datagrams_in: 1 << 20,
                bidi_at_start: 1024,
                bidi_max: MAX_BIDI,
                uni: 16,
            },
            Self::Sidecar => Numbers {
                stream_window: MIB + 64 * KIB,
                receive_window: RECEIVE_WINDOW,
                send_window: SEND_WINDOW,
                datagrams_in: 256 << 10,
                bidi_at_start: 512,
                bidi_max: MAX_BIDI,
                uni: 16,
            },
            Self::Control => Numbers {
                stream_window: MIB,
                receive_window: 4 * MIB,
                send_window: 2 << 20,
                datagrams_in: 64 << 10,
                bidi_at_start: 256,
                bidi_max: 1024,
                uni: 16,
            },
        }
    }

    /// How many streams a peer may hold open: at the start, and at most.
    ///
    /// The implementation keeps a table entry for each stream that it has allowed, so the number grows with use.
    pub(super) const fn bidi(self) -> (u32, u32) {
        let numbers = self.numbers();
        (numbers.bidi_at_start, numbers.bidi_max)
    }

    fn numbers_with(self, windows: Windows) -> Numbers {
        let mut numbers = self.numbers();
        windows.over(&mut numbers);
        numbers
    }

    /// What one of its connections may hold.
    pub(super) fn whole(self, windows: Windows) -> Whole {
        let numbers = self.numbers_with(windows);
        Whole {
            receive: numbers.receive_window,
            send: numbers.send_window,
            datagrams: windows.packets.bytes(),
        }
    }

    /// The parameters of a server towards a peer on this host or elsewhere. A router knows who that is after the handshake
    /// only, and what it has granted by then it cannot take back.
    pub(super) fn accepting(self, loopback: bool, windows: Windows) -> Arc<TransportConfig> {
        let mut numbers = self.numbers_with(windows);
        if self == Self::Router {
            numbers.receive_window = numbers.receive_window.min(LEAST_WINDOW);
        }
        Self::config(&numbers, loopback)
    }

    /// The parameters towards a peer that is dialled on this host or elsewhere.
    pub(super) fn dialling(self, loopback: bool, windows: Windows) -> Arc<TransportConfig> {
        Self::config(&self.numbers_with(windows), loopback)
    }

    fn config(numbers: &Numbers, loopback: bool) -> Arc<TransportConfig> {
        let mtu = if loopback { MTU_LOOPBACK } else { MTU_NETWORK };
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(mtu);
        let mut congestion = CubicConfig::default();
        // A packet that is not smaller than the window would never leave.
        congestion.initial_window(u64::from(mtu) * u64::from(SEGMENTS));
        let mut config = TransportConfig::default();
        config
            .max_concurrent_bidi_streams(VarInt::from_u32(numbers.bidi_at_start))
            .max_concurrent_uni_streams(VarInt::from_u32(numbers.uni))
            .stream_receive_window(VarInt::from_u32(numbers.stream_window))
            .receive_window(VarInt::from_u32(numbers.receive_window))
            .send_window(numbers.send_window)
            .datagram_receive_buffer_size(Some(numbers.datagrams_in))
            .datagram_send_buffer_size(DATAGRAMS_OUT)
            // Short enough to outlive the idle time of home NATs and to bring a client's new address to the server.
            .keep_alive_interval(Some(Duration::from_secs(if loopback { 5 } else { 2 })))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
            .mtu_discovery_config(Some(discovery))
            .congestion_controller_factory(Arc::new(congestion));
        Arc::new(config)
    }
}

/// Silence after which a connection is given up: several lost keep-alives, and well inside the resume window.
const IDLE_MS: u32 = 15_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_of_a_connection_is_one_of_both_ways() {
        let whole = |connection| {
            let mut limits = Limits::default();
            limits.windows.connection = connection;
            let whole = Profile::Router.whole(Windows::of(&limits));
            (u64::from(whole.receive), whole.send)
        };
        assert_eq!(whole(16 * MIB), (16 << 20, 16 << 20));
        // What leaves is bounded by what one identity may have buffered.
        assert_eq!(whole(128 * MIB), (128 << 20, SEND_WINDOW));
    }
}
