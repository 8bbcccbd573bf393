//! A router that is killed again and again while it carries many connections.

use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::lab::{Host, Lab};
use keel_tests::load::{Load, Report, Server};
use keel_tests::need::{Need, lacking, long};
use keel_tests::process::{Process, Program};
use keel_tests::site::{DNS, Node, Sidecar};
use keel_tests::wait::{self, SOON};

/// The bound on the 99th percentile of all stalls, with the router back after each kill.
const STALL: Duration = Duration::from_secs(3);
/// How long after the router's return half of all flows carry bytes again at the latest.
const PROMPT: Duration = Duration::from_millis(600);

/// A node in parts, so that its router can be killed alone.
struct Parts {
    router: Process,
    command: Program,
    node: Node,
}

impl Parts {
    fn start(host: &Host) -> anyhow::Result<Self> {
        let advertise = format!("{}:7000", host.address);
        let flags = [
            "--apiserver-listen",
            "0.0.0.0:7443",
            "--advertise",
            &advertise,
        ];
        let node = Node::apiserver(host, "a", &flags)?;
        let command = Program::ours("keel-router")?
            .args(["--advertise", &advertise, "--data-dir"])
            .arg(node.data())
            .args(["--metrics-listen", "127.0.0.1:0"])
            .on(host);
        let mut router = command.start()?;
        router.says("ready node=", SOON)?;
        Ok(Self {
            router,
            command,
            node,
        })
    }

    /// Kills the router; the next one starts at once, without its keys if `forget`.
    fn kill(&mut self, forget: bool) -> anyhow::Result<()> {
        self.router.kill()?;
        if forget {
            for file in ["reset.key", "cid.key", "token.key", "peers"] {
                let path = self.node.data().join("quic").join(file);
                // The file of the peers is written when there are some.
                let _absent = std::fs::remove_file(path);
            }
        }
        self.router = self.command.start()?;
        self.router.says("ready node=", SOON)
    }
}

/// A kill: when after the start of the load, and how long there was no router.
struct Kill {
    at: Duration,
    away: Duration,
}

/// How much longer than the router was away its flows stood still, in the middle over all flows and kills.
fn delay(report: &Report, kills: &[Kill]) -> Duration {
    let mut delays = Vec::new();
    for Kill { at, away } in kills {
        for flow in &report.flows {
            let around = flow
                .pauses
                .iter()
                .filter(|(begun, long)| *begun <= *at + *away && *begun + *long >= *at + *away);
            let longest = around.map(|(begun, long)| (*begun + *long).saturating_sub(*at + *away));
            delays.push(longest.max().unwrap_or_default());
        }
    }
    delays.sort_unstable();
    delays.get(delays.len() / 2).copied().unwrap_or_default()
}

/// `kills` kills, spread over a load that carries `total` bytes each way on `flows` connections. What was seen, the
/// [`delay`], and the longest time without a router.
fn storm(
    kills: u64,
    flows: usize,
    total: u64,
    forget: bool,
) -> anyhow::Result<(Report, Duration, Duration)> {
    let mut lab = Lab::new()?;
    let mut parts = Parts::start(&lab.host("a")?)?;
    let (servers, apps) = (lab.host("p")?, lab.host("d")?.resolves_by(Some(DNS))?);
    let server = Server::on(&servers, 2003)?;
    let publish = ["--published-services", "echo=127.0.0.1:2003"];
    let _provider = Sidecar::joining(&servers, "provider", &parts.node, &publish)?;
    let consumer = Sidecar::joining(
        &apps,
        "consumer",
        &parts.node,
        &["--mapped-services", "echo"],
    )?;
    let address = consumer.listens("echo", 2003)?;

    let begun = Instant::now();
    let length = (total / flows as u64).next_multiple_of(8);
    let load = Load::bulk(flows, length, 11).start(&apps, address)?;
    let step = length * flows as u64 / (kills + 1);
    let mut seen = Vec::new();
    for kill in 0..kills {
        load.moves(step * 9 / 10, Duration::from_secs(60))
            .with_context(|| format!("kill {kill}: {}", consumer.process.log()))?;
        let at = begun.elapsed();
        parts.kill(forget)?;
        let away = begun.elapsed() - at;
        seen.push(Kill { at, away });
    }
    let report = load.complete()?;
    let delay = delay(&report, &seen);
    let keys = if forget { "removed" } else { "kept" };
    let away = seen.iter().map(|kill| kill.away).max().unwrap_or_default();
    println!(
        "{kills} kills (keys {keys}), away for {away:?} at most, flows stood {delay:?} longer: {report}"
    );
    wait::until("every connection ends at the server", SOON, || {
        server.open() == 0
    })?;
    report.exact().with_context(|| consumer.process.log())?;
    Ok((report, delay, away))
}

#[test]
fn connections_survive_the_kills_of_their_router() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let (kills, flows, total) = if long() {
        (20, 100, 256 << 20)
    } else {
        (4, 25, 32 << 20)
    };
    let (report, _, away) = storm(kills, flows, total, false)?;
    // How long a start takes beside many other tests says nothing of the flows.
    let bound = if long() { STALL } else { STALL + away };
    assert!(report.stall(0.99) <= bound, "{report}");
    Ok(())
}

/// What keeps the stalls of the test before this one short: without its keys nobody learns from the router that it is
/// another one.
#[test]
fn without_its_keys_a_killed_router_is_noticed_later() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) || !long() {
        return Ok(());
    }
    let (_, kept, _) = storm(5, 50, 64 << 20, false)?;
    let (_, removed, _) = storm(5, 50, 64 << 20, true)?;
    assert!(kept <= PROMPT, "{kept:?}");
    assert!(removed > PROMPT, "{removed:?}");
    Ok(())
}
