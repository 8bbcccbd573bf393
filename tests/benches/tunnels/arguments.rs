//! The command line.

use std::time::Duration;

use crate::place::Link;
use crate::tunnel::Tunnel;

/// Tunnels side by side, under the same loads, interleaved
#[derive(Debug, clap::Parser)]
#[command(
    bin_name = "tests/compare",
    after_help = "Examples:\n  tests/compare                              all of it, about 45 minutes\n  tests/compare --quick                      one short round of each\n  tests/compare --only keel,rathole --link pair --loads bulk\n  tests/compare --faults                     connections through the same faults, about 10 minutes, as root"
)]
pub(crate) struct Arguments {
    /// Rounds; each measures every tunnel once
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Seconds of each load
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// One round of half a second each: shows that it works, not how fast
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only the tunnels with these names; a word that is no name stands for all that have it in theirs
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only on these links: loopback, pair (two namespaces, MTU 1500), loss (the same, 1 % of packets lost)
    #[arg(long, value_delimiter = ',')]
    link: Vec<Link>,
    /// Connections held open to measure what an idle one keeps in memory
    #[arg(long, default_value_t = 1000)]
    pub(crate) idle: usize,
    /// Only these loads
    #[arg(long, value_delimiter = ',', value_enum)]
    loads: Vec<Kind>,
    /// Fail if something that we set out to reach is not; with --faults, if a connection through ours does not go on
    #[arg(long)]
    pub(crate) check: bool,
    /// What becomes of a connection when the relay dies, the network goes, the NAT changes its ports (as root)
    #[arg(long)]
    pub(crate) faults: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// One kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Many bytes over 1 and 8 connections
    Bulk,
    /// New connections
    Connections,
    /// Small requests
    Echo,
    /// Idle connections
    Memory,
}

impl Arguments {
    pub(crate) fn wants(&self, tunnel: &str) -> bool {
        let named = |word: &str| Tunnel::ALL.iter().any(|known| known.name() == word);
        let means =
            |word: &String| tunnel == word || (!named(word) && tunnel.contains(word.as_str()));
        self.only.is_empty() || self.only.iter().any(means)
    }

    pub(crate) fn loads(&self, kind: Kind) -> bool {
        self.loads.is_empty() || self.loads.contains(&kind)
    }

    pub(crate) fn links(&self) -> Vec<Link> {
        if self.link.is_empty() {
            Link::ALL.to_vec()
        } else {
            self.link.clone()
        }
    }

    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(if self.quick {
            0.5
        } else {
            self.seconds.max(0.1)
        })
    }
}
