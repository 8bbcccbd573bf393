//! A router that is killed again and again while it carries many connections.

use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::lab::{Host, Lab};
use keel_tests::load::{Load, Server};
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

/// A router in parts, a server, its provider, a consumer on a host of its own and one beside the router.
struct Site {
    // Dropped from top to bottom: processes before the namespaces they run in.
    far: Sidecar,
    beside: Sidecar,
    _provider: Sidecar,
    parts: Parts,
    server: Server,
    _lab: Lab,
}

impl Site {
    fn new() -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let host = lab.host("a")?.resolves_by(Some(DNS))?;
        let parts = Parts::start(&host)?;
        let servers = lab.host("p")?;
        let server = Server::on(&servers, 2003)?;
        let publish = ["--published-services", "echo=127.0.0.1:2003"];
        let provider = Sidecar::joining(&servers, "provider", &parts.node, &publish)?;
        let map = ["--mapped-services", "echo"];
        let beside = Sidecar::beside(&parts.node, "beside", &map)?;
        let apps = lab.host("d")?.resolves_by(Some(DNS))?;
        let far = Sidecar::joining(&apps, "far", &parts.node, &map)?;
        Ok(Self {
            far,
            beside,
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

    fn log(&self) -> String {
        format!("{}\n{}", self.far.process.log(), self.beside.process.log())
    }
}

/// What kills of the router did to the connections over it.
struct Killed {
    /// The longest time without a router.
    away: Duration,
    /// The 99th percentile of the longest stalls of each flow after each kill, of those that carry all the time.
    busy: Duration,
    /// The same of those that only receive, and seldom.
    quiet: Duration,
}

/// Kills the router again and again while it carries so many bytes both ways, on so many connections; a tenth of them only
/// receive, and seldom.
///
/// Whoever has bytes under way notices a dead router by their silence. The quiet ones have none: without the router's own word
/// they wait for their next keep-alive, and then for its answer.
fn kill(kills: u64, (flows, total): (usize, u64), forget: bool) -> anyhow::Result<Killed> {
    let mut site = Site::new()?;
    let quiet = flows.div_ceil(10);
    let listeners = Load {
        block: 1024,
        pause: SELDOM,
        mute: true,
        ..Load::steady(quiet, 12)
    };
    let round = u64::from(listeners.block) * quiet as u64;
    let there = site.beside.listens("echo", 2003)?;
    let listeners = listeners.start(&site.beside.host, there, &site.server)?;
    listeners.moves(2 * round, SOON)?;
    let flows = flows - quiet;
    let length = (total / flows as u64).next_multiple_of(8);
    let all = length * flows as u64;
    let there = site.far.listens("echo", 2003)?;
    let load = Load::bulk(flows, length, 11).start(&site.far.host, there, &site.server)?;
    let (mut away, mut times, mut quiet_times) = (Duration::ZERO, Vec::new(), Vec::new());
    for kill in 0..kills {
        // Bytes go on to come while the router is away, from what was under way.
        let until = all * (kill + 1) / (kills + 1);
        load.moves(
            until.saturating_sub(load.arrived()),
            Duration::from_secs(60),
        )
        .with_context(|| format!("kill {kill}: {}", site.log()))?;
        times.push(load.elapsed());
        quiet_times.push(listeners.elapsed());
        away = away.max(site.kill(forget)?);
    }
    listeners
        .moves(2 * round, SOON)
        .with_context(|| site.log())?;
    let (load, listeners) = (load.complete()?, listeners.finish()?);
    let killed = Killed {
        away,
        busy: load.stall_after(&times, 0.99),
        quiet: listeners.stall_after(&quiet_times, 0.99),
    };
    println!(
        "{kills} kills, keys {}, away for {away:.0?} at most; p99 of the longest stalls: busy {:.0?}, quiet {:.0?}; busy: {load}; quiet: {listeners}",
        if forget { "removed" } else { "kept" },
        killed.busy,
        killed.quiet,
    );
    for report in [&load, &listeners] {
        report.exact().with_context(|| site.log())?;
    }
    wait::until("every connection ends at the server", SOON, || {
        site.server.open() == 0
    })?;
    Ok(killed)
}

#[test]
fn connections_survive_the_kills_of_their_router() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let (kills, load) = if long() {
        (20, (100, 256 << 20))
    } else {
        (4, (25, 32 << 20))
    };
    let bound = |killed: &Killed| {
        // How long a start takes beside many other tests says nothing of the flows.
        if long() { STALL } else { STALL + killed.away }
    };
    let kept = kill(kills, load, false)?;
    let stall = kept.busy.max(kept.quiet);
    assert!(stall <= bound(&kept), "{stall:?} with the router's keys");
    // The same with its keys removed fails the bound: that is what they are for.
    let removed = kill(kills, load, true)?;
    let stall = removed.busy.max(removed.quiet);
    assert!(stall > bound(&removed), "{stall:?} without its keys");
    Ok(())
}
