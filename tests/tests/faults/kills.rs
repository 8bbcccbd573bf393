//! A router that is killed again and again while it carries many connections.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::lab::{Host, Lab};
use keel_tests::load::{Load, Report, Server};
use keel_tests::need::{Need, lacking, long};
use keel_tests::process::{Process, Program};
use keel_tests::site::{DNS, Node, Sidecar};
use keel_tests::wait::{self, SOON};

/// The bound on the 99th percentile of the longest stalls of each flow after each kill, with the router back then.
const STALL: Duration = Duration::from_secs(3);
/// From one block to the next where connections are nearly idle.
const SELDOM: Duration = Duration::from_secs(1);

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

/// A router in parts, a server, its provider, and where the consumer is.
struct Site {
    // Dropped from top to bottom: processes before the namespaces they run in.
    consumer: Sidecar,
    address: SocketAddr,
    _provider: Sidecar,
    parts: Parts,
    server: Server,
    _lab: Lab,
}

impl Site {
    /// The consumer is on the router's host if `beside`, else on one of its own.
    fn new(beside: bool) -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let host = lab.host("a")?.resolves_by(Some(DNS))?;
        let parts = Parts::start(&host)?;
        let servers = lab.host("p")?;
        let server = Server::on(&servers, 2003)?;
        let publish = ["--published-services", "echo=127.0.0.1:2003"];
        let provider = Sidecar::joining(&servers, "provider", &parts.node, &publish)?;
        let map = ["--mapped-services", "echo"];
        let consumer = if beside {
            Sidecar::beside(&parts.node, "consumer", &map)?
        } else {
            let apps = lab.host("d")?.resolves_by(Some(DNS))?;
            Sidecar::joining(&apps, "consumer", &parts.node, &map)?
        };
        let address = consumer.listens("echo", 2003)?;
        Ok(Self {
            consumer,
            address,
            _provider: provider,
            parts,
            server,
            _lab: lab,
        })
    }

    /// Kills the router; how long there was none.
    fn kill(&mut self, forget: bool) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.parts.kill(forget)?;
        Ok(begun.elapsed())
    }

    fn over(&self, report: &Report) -> anyhow::Result<()> {
        let log = || self.consumer.process.log();
        report.exact().with_context(log)?;
        wait::until("every connection ends at the server", SOON, || {
            self.server.open() == 0
        })
    }
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
    let mut site = Site::new(false)?;
    let length = (total / flows as u64).next_multiple_of(8);
    let load = Load::bulk(flows, length, 11).start(&site.consumer.host, site.address)?;
    let all = length * flows as u64;
    let (mut away, mut times) = (Duration::ZERO, Vec::new());
    for kill in 0..kills {
        // Bytes go on to come while the router is away, from what was under way.
        let until = all * (kill + 1) / (kills + 1);
        load.moves(
            until.saturating_sub(load.arrived()),
            Duration::from_secs(60),
        )
        .with_context(|| format!("kill {kill}: {}", site.consumer.process.log()))?;
        times.push(load.elapsed());
        away = away.max(site.kill(false)?);
    }
    let report = load.complete()?;
    let stall = report.stall_after(&times, 0.99);
    println!(
        "{kills} kills, away for {away:?} at most, p99 of the longest stalls {stall:.0?}: {report}"
    );
    site.over(&report)?;
    // How long a start takes beside many other tests says nothing of the flows.
    let bound = if long() { STALL } else { STALL + away };
    assert!(stall <= bound, "{stall:?}, {report}");
    Ok(())
}

/// Kills the router of connections that only receive, and seldom. The longest pause of any, and how long the router was
/// away.
///
/// Whoever has bytes under way notices a dead router by their silence. These have none: without the router's own word they
/// wait for their next keep-alive, and then for its answer.
fn quiet(forget: bool) -> anyhow::Result<(Duration, Duration)> {
    let mut site = Site::new(true)?;
    let listeners = Load {
        block: 1024,
        pause: SELDOM,
        mute: true,
        ..Load::steady(10, 12)
    };
    let round = u64::from(listeners.block) * listeners.flows as u64;
    let load = listeners.start(&site.consumer.host, site.address)?;
    load.moves(2 * round, SOON)?;
    // Between two rounds, when everything is acknowledged.
    wait::pause(SELDOM / 2);
    let away = site.kill(forget)?;
    load.moves(2 * round, SOON)
        .with_context(|| site.consumer.process.log())?;
    let report = load.finish()?;
    let keys = if forget { "removed" } else { "kept" };
    println!("keys {keys}, away for {away:?}: {report}");
    site.over(&report)?;
    Ok((report.stall(1.0), away))
}

#[test]
fn a_quiet_connection_notices_a_killed_router_by_its_keys() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let (kept, away) = quiet(false)?;
    assert!(kept <= STALL + away, "{kept:?}");
    // The same with its keys removed fails the bound: that is what they are for.
    let (removed, away) = quiet(true)?;
    assert!(removed > STALL + away, "{removed:?}");
    Ok(())
}
