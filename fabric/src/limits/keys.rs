//! The names by which limits are set, what they take, and the metrics that say that one was hit.

use std::time::Duration;

use super::Limits;
use crate::units::{Size, Span};

/// Why a limit was not set. Names the word and what is right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// No limit has that name.
    #[error("`{name}` is no limit; there are {}", names())]
    Name {
        /// As it was written.
        name: String,
    },
    /// A value that the limit does not take.
    #[error("limit {name} `{value}` is wrong; it takes {least} to {most}")]
    Value {
        /// The limit.
        name: &'static str,
        /// As it was written.
        value: String,
        /// Its least value.
        least: String,
        /// Its greatest value.
        most: String,
    },
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Time,
}

/// One limit.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name in the configuration.
    pub name: &'static str,
    /// What it counts.
    pub kind: Kind,
    /// Its least and its greatest value.
    pub range: (u64, u64),
    /// The `name` in the metric `limit_hit`; empty for what cannot be hit.
    pub metric: &'static str,
    /// What it bounds.
    pub what: &'static str,
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

impl Key {
    /// The value in `limits`, as it is written.
    #[must_use]
    pub fn value(&self, limits: &Limits) -> String {
        self.show((self.get)(limits))
    }

    fn show(&self, value: u64) -> String {
        match self.kind {
            Kind::Count => value.to_string(),
            Kind::Bytes => Size(value).to_string(),
            Kind::Time => Span(Duration::from_millis(value)).to_string(),
        }
    }

    fn read(&self, text: &str) -> Option<u64> {
        let value = match self.kind {
            Kind::Count => text.parse().ok()?,
            Kind::Bytes => text.parse::<Size>().ok()?.0,
            Kind::Time => u64::try_from(text.parse::<Span>().ok()?.0.as_millis()).ok()?,
        };
        (self.range.0..=self.range.1)
            .contains(&value)
            .then_some(value)
    }
}

fn names() -> String {
    let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
    names.join(", ")
}

impl Limits {
    /// Sets the limit of this name.
    ///
    /// # Errors
    /// There is none, or the value is not what it takes.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), LimitError> {
        let Some(key) = KEYS.iter().find(|key| key.name == name.trim()) else {
            return Err(LimitError::Name {
                name: name.to_owned(),
            });
        };
        let Some(number) = key.read(value.trim()) else {
            return Err(LimitError::Value {
                name: key.name,
                value: value.to_owned(),
                least: key.show(key.range.0),
                most: key.show(key.range.1),
            });
        };
        (key.set)(self, number);
        Ok(())
    }
}

/// A field of a limit as a number.
trait Number {
    fn of(value: u64) -> Self;
    fn number(&self) -> u64;
}

macro_rules! numbers {
    ($($type:ty)+) => {$(
        impl Number for $type {
            fn of(value: u64) -> Self {
                // Every key's range is inside of its field's type.
                Self::try_from(value).unwrap_or(Self::MAX)
            }

            fn number(&self) -> u64 {
                u64::try_from(*self).unwrap_or(u64::MAX)
            }
        }
    )+};
}

numbers!(u32 u64 usize);

impl Number for Duration {
    fn of(value: u64) -> Self {
        Self::from_millis(value)
    }

    fn number(&self) -> u64 {
        u64::try_from(self.as_millis()).unwrap_or(u64::MAX)
    }
}

macro_rules! keys {
    ($($name:literal $kind:ident $($part:ident.$field:ident),+ [$least:expr, $most:expr] $metric:literal $what:literal;)+) => {
        /// All limits.
        pub const KEYS: &[Key] = &[$(Key {
            name: $name,
            kind: Kind::$kind,
            range: ($least, $most),
            metric: $metric,
            what: $what,
            // Parts that share a limit always have the same value.
            get: |limits| [$(limits.$part.$field.number()),+][0],
            set: |limits, value| { $(limits.$part.$field = Number::of(value);)+ },
        }),+];
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: u64 = 1_000;

keys! {
    "handshakes" Count router.handshakes [1, 65_536] "handshakes" "handshakes at once; more have to prove their address first";
    "handshakesPerPrefix" Count router.handshakes_per_prefix [1, 1_000_000] "handshake_prefix" "handshakes per second of one IPv4 /24 or IPv6 /56; more have to prove their address first";
    "incoming" Count router.incoming [1, 65_536] "incoming" "handshakes at once with proven addresses; more are refused";
    "handshakeTime" Time router.handshake_time [10, 60 * SECOND] "handshake_time" "time for one handshake";
    "connections" Count router.connections [1, 1_000_000] "connections" "open connections";
    "connectionsPerIdentity" Count router.connections_per_identity [1, 1_000_000] "connections_per_identity" "open connections of one identity";
    "publications" Count router.publications [1, 1_000_000] "publications" "publications of one connection";
    "publicationChangesPerSecond" Count router.changes_per_second [1, 1_000_000] "publication_changes" "publications and withdrawals per second of one identity; more are read later";
    "publicationChangesBurst" Count router.changes_burst [1, 1_000_000] "publication_changes" "publications and withdrawals of one identity at once beyond the rate";
    "flowsPerConnection" Count router.streams [1, 65_535] "streams" "flows on one connection";
    "newFlowsPerSecond" Count router.opens_per_second [0, 10_000_000] "opens" "new flows per second of one identity";
    "newFlowsBurst" Count router.opens_burst [1, 10_000_000] "opens" "new flows of one identity at once beyond the rate";
    "floodResets" Count router.flood [1, 1_000_000] "flood" "flows of one identity that may be cut without a byte within floodTime; more close the connection";
    "floodTime" Time router.flood_time [10, 3600 * SECOND] "flood" "see floodResets";
    "headerSize" Bytes router.header_size, provider.header_size [256, 4 * KIB] "header_size" "bytes of a flow's header";
    "headerTime" Time router.header_time, provider.header_time [10, 60 * SECOND] "header_time" "time for a flow's header";
    "hops" Count router.hops [1, 64] "hops" "routers that a flow may pass";
    "parkedResumes" Count router.parked [0, 1_000_000] "parked" "resumes at once that wait for their provider to come back, up to half of them of one identity";
    "parkTime" Time router.park_time [10, 60 * SECOND] "park_time" "time that such a resume waits";
    "identityPassingBuffers" Bytes router.passing_identity [64 * KIB, 64 * GIB] "identity_passing_buffers" "bytes of one identity's flows that a router has read and that wait for a slow reader; beyond it they are read packet by packet";
    "passingBuffers" Bytes router.passing [64 * KIB, 64 * GIB] "passing_buffers" "bytes of all flows that a router has read and that wait for a slow reader; an identity has no more of them than the others leave";
    "resumesPerSecond" Count router.resumes_per_second, provider.resumes_per_second [1, 10_000_000] "resumes" "legs of known flows per second; more wait a moment, new flows behind them, and are cut then; at a router a quarter is one identity's, and what others leave";
    "resumesBurst" Count router.resumes_burst, provider.resumes_burst [1, 10_000_000] "resumes" "legs of known flows at once beyond the rate";
    "headers" Count provider.headers [1, 65_536] "headers" "new flows of one connection at once whose header is awaited, at a provider";
    "providerFlows" Count provider.flows [1, 1_000_000] "provider_flows" "flows at once that end in this process as their provider; the idlest UDP associations make room";
    "rememberedFlows" Count provider.remembered [1, 10_000_000] "remembered" "flows that are over and whose late legs are still answered; the oldest are forgotten early";
    "waitingLegs" Count provider.waiting_legs [1, 1024] "waiting_legs" "legs at once that wait to be one flow's; more are cut";
    "dialTime" Time provider.dial_time [10, 60 * SECOND] "dial_time" "time to connect to a backend";
    "proxiedConnections" Count consumer.connections [1, 1_000_000] "connections" "connections that a sidecar carries at once; more wait to be accepted";
    "waitingConnections" Count consumer.waiting [0, 65_536] "parked" "connections to one mapped service at once that wait for a provider";
    "associations" Count consumer.associations [1, 65_536] "associations" "UDP associations of one port of a mapped service; the idlest one makes room";
    "associationsPerClient" Count consumer.associations_per_client [1, 65_536] "associations_per_client" "UDP associations of one client's address at one port";
    "flowWindow" Bytes flow.window [64 * KIB, 16 * MIB] "" "credit and replay of one flow at its start";
    "flowWindowMax" Bytes flow.max_window [64 * KIB, 16 * MIB] "flow_window_max" "credit and replay to which a flow may grow; a hit is a flow whose reader keeps up and could have more";
    "connectionWindow" Bytes windows.connection [MIB, 256 * MIB] "connection_window" "bytes of one connection on their way to this process, and up to 64MiB on their way from it; at a router the third connection of an identity has a quarter of it, the fourth a ninth, and so on down to 1 MiB";
    "incomingBuffer" Bytes windows.incoming [64 * KIB, GIB] "" "bytes of packets of peers whose handshake waits; more are lost, as on the way";
    "queuedPackets" Count windows.packets [1, 65_536] "queued_packets" "UDP packets of one association that wait to leave on one connection; more are dropped as `queue`";
    "queuedPacketBytes" Bytes windows.packet_bytes [64 * KIB, GIB] "queued_packet_bytes" "bytes of all UDP packets that wait to leave on one connection; more are dropped as `queue`; less on an identity's later connections, as `connectionWindow`";
    "waitingPackets" Count flow.packets [1, 65_536] "waiting_packets" "UDP packets that wait at one end of an association; more are dropped as `queue`";
    "waitingPacketBytes" Bytes flow.packet_bytes [64 * KIB, GIB] "waiting_packet_bytes" "their bytes; more are dropped as `queue`";
    "identityBuffers" Bytes memory.identity [MIB, 64 * GIB] "identity_buffers" "bytes held for flows of one consumer's identity that end here";
    "processBuffers" Bytes memory.process [MIB, 64 * GIB] "buffers" "bytes held for all flows that end here";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_what_its_key_takes() {
        let mut limits = Limits::default();
        for key in KEYS {
            let value = key.value(&limits);
            limits.set(key.name, &value).unwrap();
            for bound in [key.range.0, key.range.1] {
                let mut other = Limits::default();
                other.set(key.name, &key.show(bound)).unwrap();
                assert_eq!(key.value(&other), key.show(bound), "{}", key.name);
            }
        }
        assert_eq!(limits, Limits::default());
    }

    #[test]
    fn a_wrong_name_lists_the_right_ones_and_a_wrong_value_its_bounds() {
        let mut limits = Limits::default();
        let error = limits.set("flows", "1").unwrap_err().to_string();
        assert!(
            error.contains("`flows`") && error.contains("flowsPerConnection, newFlows"),
            "{error}"
        );
        for (name, value, part) in [
            ("handshakes", "0", "1 to 65536"),
            ("headerTime", "3", "10ms to 1m"),
            ("processBuffers", "1KiB", "1MiB to 64GiB"),
            ("hops", "-1", "1 to 64"),
        ] {
            let error = limits.set(name, value).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(part), "{error}");
        }
        assert_eq!(limits, Limits::default());
    }

    /// The table of the documentation, as it has to be.
    #[test]
    fn the_readme_has_the_table() {
        let limits = Limits::default();
        let mut table =
            String::from("| limit | default | `limit_hit` | bounds |\n|---|---|---|---|\n");
        for key in KEYS {
            let default = key.value(&limits);
            let metric = match key.metric {
                "" => String::new(),
                name => format!("`{name}`"),
            };
            table += &format!("| `{}` | {default} | {metric} | {} |\n", key.name, key.what);
        }
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&table), "the table should be:\n{table}");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len());
    }
}
