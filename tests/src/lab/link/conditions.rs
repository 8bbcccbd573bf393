//! How bad a link is, and the named kinds of it.

use std::time::Duration;

/// What one direction of a [`super::Link`] does to the packets. The default does nothing to them.
///
/// Parts are of 1: `loss: 0.03` loses 3 %.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Conditions {
    /// From one end to the other.
    pub delay: Duration,
    /// The delay differs from packet to packet by up to this, either way. They stay in order, as on a radio link that
    /// repeats what it lost: [`Conditions::reorder`] is for the other case.
    pub jitter: Duration,
    /// The part of the packets that is lost.
    pub loss: f64,
    /// How many packets are lost in a row, on average (Gilbert-Elliott); up to 1 each is lost for itself.
    pub burst: f64,
    /// The part of the packets that is held back by up to 10 ms, while others pass.
    pub reorder: f64,
    /// The part of the packets that arrives twice.
    pub duplicate: f64,
    /// The part of the packets in which a bit is turned. For every other one the checksum is made to fit, so that UDP
    /// notices nothing.
    pub corrupt: f64,
    /// IP packets above this length vanish without a word; 0: none do.
    pub mtu: u16,
    /// Bits a second; 0: as fast as it goes.
    pub rate: u64,
    /// Bytes that may wait for their turn; those beyond are lost. 0: any number.
    pub queue: u32,
    /// Up for the first time, then down for the second, again and again.
    pub flap: Option<(Duration, Duration)>,
    /// Nothing passes.
    pub cut: bool,
}

/// A named kind of link. Delays are half the round trip; losses are of each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// No delay and no loss.
    Lan,
    /// 25 Mbit/s, 40 ms there and back, 1 % lost in bursts of 6.
    Wifi,
    /// 8 Mbit/s, 90 ms, 2 % in bursts of 8.
    LteEdge,
    /// 3 Mbit/s, 200 ms, 3 % in bursts of 10.
    ThreeG,
    /// 800 kbit/s, 450 ms, 8 % in bursts of 20.
    Bad,
    /// 25 Mbit/s, 600 ms, 1.5 %.
    Sat,
    /// 30 s up, 5 s down.
    Flap,
    /// 10 Mbit/s, 30 ms, a queue of 25 packets: what the QUIC implementations are compared over.
    Interop,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Lan,
        Self::Wifi,
        Self::LteEdge,
        Self::ThreeG,
        Self::Bad,
        Self::Sat,
        Self::Flap,
        Self::Interop,
    ];

    /// Its name, as on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wifi => "wifi",
            Self::LteEdge => "lte-edge",
            Self::ThreeG => "3g",
            Self::Bad => "bad",
            Self::Sat => "sat",
            Self::Flap => "flap",
            Self::Interop => "interop",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }

    /// What it does in each direction.
    #[must_use]
    pub fn conditions(self) -> Conditions {
        let (rate, round_trip, jitter, loss, burst) = match self {
            Self::Lan => (0, 0, 0, 0.0, 0.0),
            Self::Wifi => (25_000_000, 40, 12, 0.01, 6.0),
            Self::LteEdge => (8_000_000, 90, 15, 0.02, 8.0),
            Self::ThreeG => (3_000_000, 200, 0, 0.03, 10.0),
            Self::Bad => (800_000, 450, 0, 0.08, 20.0),
            Self::Sat => (25_000_000, 600, 0, 0.015, 1.0),
            Self::Flap => {
                return Conditions {
                    flap: Some((Duration::from_secs(30), Duration::from_secs(5))),
                    ..Conditions::default()
                };
            }
            Self::Interop => {
                return Conditions {
                    delay: ms(15),
                    rate: 10_000_000,
                    queue: 25 * 1500,
                    ..Conditions::default()
                };
            }
        };
        // A queue of one round trip, and never of less than a few bursts.
        let queue = (rate / 8 * round_trip / 1000).max(64 << 10);
        Conditions {
            delay: ms(round_trip) / 2,
            jitter: ms(jitter),
            loss,
            burst,
            rate,
            queue: if rate == 0 { 0 } else { queue as u32 },
            ..Conditions::default()
        }
    }
}
