//! Where the faults happen: a public node, a provider's sidecar and a consumer's behind NATs and behind links that can
//! be made bad, and a server that judges what it gets.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use keel_tests::lab::{Conditions, Lab, Link, Nat, NatKind};
use keel_tests::load::{Load, Running, Server};
use keel_tests::need;
use keel_tests::process::{Process, Program};
use keel_tests::site::{DNS, Node, Sidecar};
use keel_tests::wait::{self, SOON};

/// The port of the service that everything is carried to.
const PORT: u16 = 2003;
/// What `keel-sidecar` serves its metrics on.
const METRICS: u16 = 1080;

pub(crate) struct Ground {
    // Dropped from top to bottom: processes before the namespaces they run in, and those before their links.
    pub(crate) consumer: Sidecar,
    pub(crate) provider: Sidecar,
    pub(crate) node: Node,
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    pub(crate) consumer_nat: Nat,
    pub(crate) provider_nat: Nat,
    pub(crate) lab: Lab,
    pub(crate) consumer_link: Link,
    pub(crate) provider_link: Link,
    pub(crate) seed: u64,
}

impl Ground {
    /// Everything up, and nothing wrong yet. `options` go to both sidecars.
    pub(crate) fn new(seed: u64, options: &[&str]) -> anyhow::Result<Self> {
        let seed = need::seed(seed);
        println!("KEEL_SEED={seed}");
        let fine = Conditions::default();
        let mut lab = Lab::new()?;
        let node = Node::public(&lab.host("a")?, "a")?;
        let (inside, provider_nat, provider_link) =
            lab.behind_nat_over("p", NatKind::Home, fine, seed)?;
        let (apps, consumer_nat, consumer_link) =
            lab.behind_nat_over("c", NatKind::Home, fine, seed + 1)?;
        let apps = apps.resolves_by(Some(DNS))?;
        let server = Server::on(&inside, PORT)?;
        let published = ["--published-services", "load=127.0.0.1:2003"];
        let provider =
            Sidecar::joining(&inside, "provider", &node, &[&published, options].concat())?;
        let mapped = ["--mapped-services", "load"];
        let consumer = Sidecar::joining(&apps, "consumer", &node, &[&mapped, options].concat())?;
        let address = consumer.listens("load", PORT)?;
        Ok(Self {
            consumer,
            provider,
            node,
            server,
            address,
            consumer_nat,
            provider_nat,
            lab,
            consumer_link,
            provider_link,
            seed,
        })
    }

    /// Starts a load beside the consumer's sidecar, and waits until every connection carries something.
    pub(crate) fn carry(&self, load: &Load) -> anyhow::Result<Running> {
        let running = load.start(&self.consumer.host, self.address, &self.server)?;
        let first = u64::from(load.block) * load.flows as u64;
        running.moves(first, SOON * 3)?;
        Ok(running)
    }

    /// Both links at once.
    pub(crate) fn links(&self) -> [&Link; 2] {
        [&self.consumer_link, &self.provider_link]
    }

    /// What the three processes hold.
    pub(crate) fn holding(&self) -> anyhow::Result<[Holding; 3]> {
        Ok([
            Holding::of(&self.consumer.process, &metrics(&self.consumer)?)?,
            Holding::of(&self.provider.process, &metrics(&self.provider)?)?,
            Holding::of(&self.node.process, &self.node.metrics("/metrics")?)?,
        ])
    }

    /// Flow ends that were started and are not over, of both sidecars.
    pub(crate) fn open_flows(&self) -> anyhow::Result<u64> {
        let mut open = 0;
        for sidecar in [&self.consumer, &self.provider] {
            let text = metrics(sidecar)?;
            let (started, ended) = (
                sum(&text, "keel_fabric_flows_started_total"),
                sum(&text, "keel_fabric_flows_ended_total"),
            );
            open += started.saturating_sub(ended);
        }
        Ok(open)
    }

    /// Waits until no flow is open at either end.
    pub(crate) fn is_quiet(&self, bound: Duration) -> anyhow::Result<()> {
        wait::until_some("no flow is left", bound, || {
            let open = self.open_flows().map_err(|error| error.to_string())?;
            let backends = self.server.open();
            if open == 0 && backends == 0 {
                Ok(())
            } else {
                Err(format!(
                    "{open} flow ends and {backends} connections to the backend are open"
                ))
            }
        })
    }

    /// What the logs of all three processes say, for a failure.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for (name, process) in [
            ("consumer", &self.consumer.process),
            ("provider", &self.provider.process),
            ("node", &self.node.process),
        ] {
            let log = process.log();
            let lines = log.lines().filter(|line| !line.contains("flow end"));
            let lines: Vec<_> = lines.collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            let _ = write!(text, "\n--- {name}\n{tail}");
        }
        text
    }
}

/// What a sidecar serves at `/metrics`.
pub(crate) fn metrics(sidecar: &Sidecar) -> anyhow::Result<String> {
    Program::new("curl")
        .args(["-sSf", &format!("http://127.0.0.1:{METRICS}/metrics")])
        .on(&sidecar.host)
        .ok(SOON)
}

/// The sum over all labels of a counter.
pub(crate) fn sum(metrics: &str, name: &str) -> u64 {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
    lines
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holding {
    pub(crate) files: usize,
    /// Of all its runtimes, those of the scrape that told us included.
    pub(crate) tasks: u64,
    pub(crate) resident_kib: u64,
}

impl Holding {
    fn of(process: &Process, metrics: &str) -> anyhow::Result<Self> {
        Ok(Self {
            files: process.open_files()?,
            tasks: sum(metrics, "keel_runtime_tasks"),
            resident_kib: process.resident_kib()?,
        })
    }
}
