//! Processes that may open few files, and far more connections: what is not a connection of an application goes on, and
//! so do those that have their file.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::backends::{Backend, FakeUpstream, Manner};
use keel_tests::lab::Lab;
use keel_tests::need::{Need, lacking};
use keel_tests::process::{Process, Program};
use keel_tests::site::{COMMAND, Node, Sidecar, dig};
use keel_tests::wait::{self, SOON};

use crate::ground::{metrics, sum};
use crate::many::{Crowd, Habit, connect, echo, recovered, recovers};

/// The fewest files that anything here is started with.
const FEW: [&str; 2] = ["prlimit", "--nofile=256:256"];
/// The port of the service.
const PORT: u16 = 7;
/// How much of a processor a process takes at most while it has no file left.
const BUSY: f64 = 0.2;

/// What a node may take to stop: it waits for its flows to leave.
const STOP: Duration = Duration::from_secs(25);

/// The part of one processor that a process takes while nothing happens.
fn takes(process: &Process) -> anyhow::Result<f64> {
    let (began, before) = (Instant::now(), process.cpu_time()?);
    wait::pause(Duration::from_secs(2));
    let used = process.cpu_time()? - before;
    Ok(used.as_secs_f64() / began.elapsed().as_secs_f64())
}

/// A node, an echo with its provider, and a consumer; `few` says which of the two sidecars may open few files.
struct Site {
    // Dropped from top to bottom: processes before the namespaces they run in.
    consumer: Sidecar,
    provider: Sidecar,
    address: SocketAddr,
    node: Node,
    _backend: Backend,
    _upstream: FakeUpstream,
    _lab: Lab,
}

/// What the name server of the consumer's host says to everything.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

impl Site {
    fn new(few: &str) -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let node = Node::public(&lab.host("a")?, "a")?;
        let servers = lab.host("p")?;
        let backend = Backend::on(&servers, PORT, Manner::Echo)?;
        let apps = lab.host("c")?.resolves_by(Some("127.0.0.9"))?;
        let upstream = FakeUpstream::on(&apps, "127.0.0.9:53", ELSEWHERE)?;
        let start = |host, pod, flags| {
            if pod == few {
                Sidecar::joining_behind(FEW, host, pod, &node, flags)
            } else {
                Sidecar::joining(host, pod, &node, flags)
            }
        };
        let published = ["--published-services", "echo=127.0.0.1:7"];
        let provider = start(&servers, "provider", &published)?;
        let consumer = start(&apps, "consumer", &["--mapped-services", "echo"])?;
        let address = consumer.listens("echo", PORT)?;
        Ok(Self {
            consumer,
            provider,
            address,
            node,
            _backend: backend,
            _upstream: upstream,
            _lab: lab,
        })
    }

    /// Names of ours and of others, over both transports.
    fn resolves(&self) -> anyhow::Result<()> {
        let host = &self.consumer.host;
        let ours = self.address.ip().to_string();
        for (name, answer) in [("echo", &ours), ("example.org", &ELSEWHERE.to_string())] {
            for transport in ["+notcp", "+tcp"] {
                let said = dig(host, &[name, "A", "+short", transport])?;
                anyhow::ensure!(said.trim() == answer, "{name} {transport}: {said:?}");
            }
        }
        Ok(())
    }
}

#[test]
fn a_sidecar_that_may_open_no_more_files_resolves_and_carries() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let mut site = Site::new("consumer")?;
    let host = site.consumer.host.clone();
    let mut early = connect(&host, site.address, SOON)?;
    let crowd = Crowd::at(
        &host,
        site.address,
        Habit::Silent(b"x"),
        &site.consumer.process,
    )?;

    let takes = takes(&site.consumer.process)?;
    println!("takes {:.0} % of a processor", takes * 100.0);
    anyhow::ensure!(takes < BUSY, "takes {:.0} %", takes * 100.0);
    site.resolves()?;
    echo(&mut early).context("the connection that was there before")?;
    let metrics = || metrics(&site.consumer);
    anyhow::ensure!(sum(&metrics()?, "keel_sidecar_apiserver_connected") == 1);
    // What it needs to follow its node: a connection, and files for what it keeps.
    site.node.process.stop(STOP)?;
    wait::until("the loss is noticed", SOON, || {
        metrics().is_ok_and(|text| sum(&text, "keel_sidecar_apiserver_connected") == 0)
    })?;
    let advertise = format!("{}:7000", site.node.host.address);
    let public = [
        "--apiserver-listen",
        "0.0.0.0:7443",
        "--advertise",
        &advertise,
    ];
    site.node.again(&public)?;
    wait::until("the node is followed again", SOON, || {
        metrics().is_ok_and(|text| sum(&text, "keel_sidecar_apiserver_connected") == 1)
    })?;
    wait::until_some("the early connection carries", SOON, || {
        echo(&mut early).map_err(|error| error.to_string())
    })?;

    drop(crowd);
    recovers(&host, site.address)
}

#[test]
fn a_provider_that_may_open_no_more_files_refuses_and_carries() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let site = Site::new("provider")?;
    let host = &site.consumer.host;
    let mut early = connect(host, site.address, SOON)?;
    let crowd = Crowd::at(
        host,
        site.address,
        Habit::Silent(b"x"),
        &site.provider.process,
    )?;
    let takes = takes(&site.provider.process)?;
    println!("takes {:.0} % of a processor", takes * 100.0);
    anyhow::ensure!(takes < BUSY, "takes {:.0} %", takes * 100.0);
    let text = metrics(&site.provider)?;
    let hits = sum(
        &text,
        "keel_fabric_limit_hit_total{name=\"provider_flows\"}",
    );
    anyhow::ensure!(hits > 0, "nobody was turned away by the limit:\n{text}");
    echo(&mut early).context("the connection that was there before")?;
    drop(crowd);
    recovers(host, site.address)
}

#[test]
fn a_node_that_may_open_no_more_files_serves_its_owner_and_its_sidecars() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?.resolves_by(None)?;
    let advertise = format!("{}:7000", host.address);
    let public = [
        "--apiserver-listen",
        "0.0.0.0:7443",
        "--advertise",
        &advertise,
    ];
    let node = Node::up_behind(FEW, &host, "a", &public)?;
    let _backend = Backend::on(&host, PORT, Manner::Echo)?;
    let published = ["--published-services", "echo=127.0.0.1:7"];
    let _provider = Sidecar::beside(&node, "provider", &published)?;
    let apps = lab.host("c")?;
    let consumer = Sidecar::joining(&apps, "consumer", &node, &["--mapped-services", "echo"])?;
    let address = consumer.listens("echo", PORT)?;

    let api = SocketAddr::from((host.address, 7443));
    let crowd = Crowd::at(&apps, api, Habit::Silent(b""), &node.process)?;
    let takes = takes(&node.process)?;
    println!("takes {:.0} % of a processor", takes * 100.0);
    anyhow::ensure!(takes < BUSY, "takes {:.0} %", takes * 100.0);
    drop(crowd);
    // Those who say nothing are sent away after seconds: what is asked meanwhile is asked beside new ones.
    let crowd = Crowd::at(&apps, api, Habit::Silent(b""), &node.process)?;
    // Before the first of them are sent away.
    Program::new("curl")
        .args(["-sSf", "--max-time", "2", "http://127.0.0.1:9090/readyz"])
        .on(&host)
        .ok(COMMAND)?;
    node.token(&["--sidecar", "default/another"])?;
    node.keel(&["get", "routers"])?.ok(COMMAND)?;
    connect(&apps, address, SOON)?;
    drop(crowd);
    let began = Instant::now();
    wait::until_some("the API answers over TCP", recovered(), || {
        Program::new("curl")
            .args(["-sk", "--max-time", "1", &format!("https://{api}/version")])
            .on(&apps)
            .ok(COMMAND)
            .map_err(|error| format!("{error:#}"))
    })?;
    println!("recovered in {:.1?}", began.elapsed());
    Ok(())
}
