//! Routers that are upgraded: each stops by SIGTERM and comes back, and no connection notices more than a pause.

use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::lab::Lab;
use keel_tests::load::{End, Load, Server};
use keel_tests::need::{self, Need, lacking, long};
use keel_tests::site::{COMMAND, DNS, Node, Sidecar};
use keel_tests::wait::{self, SOON};
use nix::sys::signal::Signal;

use crate::ground::{metrics, sum};

/// The promise is 500 ms. The short form runs beside other tests on a small machine, unoptimised at times.
fn stall() -> Duration {
    Duration::from_millis(if long() { 500 } else { 3000 })
}

/// What a node may take to stop: it waits for its flows to leave, and then for its own part.
const STOP: Duration = Duration::from_secs(25);

fn public(name: &str, lab: &mut Lab, first: Option<&Node>) -> anyhow::Result<(Node, [String; 4])> {
    let host = lab.host(name)?;
    let flags = [
        "--apiserver-listen".to_owned(),
        "0.0.0.0:7443".to_owned(),
        "--advertise".to_owned(),
        format!("{}:7000", host.address),
    ];
    let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
    let token = first
        .map(|first| first.token(&["--node", name]))
        .transpose()?;
    let join = token.map(|token| (format!("@{}", token.path().display()), token));
    if let Some((join, _)) = &join {
        all.extend(["--join", join]);
    }
    let node = Node::up(&host, name, &all)?;
    Ok((node, flags))
}

/// The routers that list a provider of `echo`, as one node sees them.
fn listing(node: &Node) -> anyhow::Result<Vec<String>> {
    let text = node.keel(&["get", "routers", "-o", "json"])?.ok(COMMAND)?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let provides = |service: &serde_json::Value| {
        let providers = service["providers"].as_array();
        service["name"] == "echo" && providers.is_some_and(|all| !all.is_empty())
    };
    let lists = |router: &&serde_json::Value| {
        let services = router["status"]["activeServices"].as_array();
        services.is_some_and(|all| all.iter().any(provides))
    };
    let routers = json["items"].as_array().context("a list")?;
    let names = routers.iter().filter(lists);
    Ok(names
        .map(|router| router["metadata"]["name"].to_string())
        .collect())
}

/// Waits until the first node, which knows all others, says that the routers of all list the provider.
fn published(nodes: &[(Node, [String; 4])]) -> anyhow::Result<()> {
    let (node, _) = nodes.first().context("a node")?;
    let all = wait::until_some("all routers list the provider", SOON * 2, || {
        // A command costs a process and a certificate.
        wait::pause(Duration::from_millis(200));
        match listing(node) {
            Ok(names) if names.len() == nodes.len() => Ok(()),
            Ok(names) => Err(format!("only {names:?}")),
            Err(error) => Err(format!("{error:#}")),
        }
    });
    all.with_context(|| node.process.log())
}

#[test]
fn a_rolling_restart_of_all_routers_resets_nothing() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let seed = need::seed(7);
    println!("KEEL_SEED={seed}");
    let flows = if long() { 200 } else { 20 };
    let mut lab = Lab::new()?;
    let first = public("a", &mut lab, None)?;
    let second = public("b", &mut lab, Some(&first.0))?;
    let third = public("c", &mut lab, Some(&first.0))?;
    let mut nodes = [first, second, third];
    let (servers, apps) = (lab.host("p")?, lab.host("d")?.resolves_by(Some(DNS))?);
    let server = Server::on(&servers, 2003)?;
    let published_service = ["--published-services", "echo=127.0.0.1:2003"];
    let _provider = Sidecar::joining(&servers, "provider", &nodes[0].0, &published_service)?;
    let consumer = Sidecar::joining(
        &apps,
        "consumer",
        &nodes[0].0,
        &["--mapped-services", "echo"],
    )?;
    published(&nodes)?;
    let address = consumer.listens("echo", 2003)?;

    let steady = Load {
        block: if long() { 4096 } else { 1024 },
        ..Load::steady(flows, seed)
    };
    let some = flows as u64 * u64::from(steady.block) * 10;
    let load = steady.start(&apps, address, &server)?;
    load.moves(some, SOON)?;
    let mut stops = Vec::new();
    for index in 0..nodes.len() {
        let (node, flags) = &mut nodes[index];
        let begun = Instant::now();
        stops.push(load.elapsed());
        node.process.stop(STOP)?;
        println!("node {index} stopped in {:?}", begun.elapsed());
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        node.again(&flags)?;
        published(&nodes)?;
        load.moves(some, SOON)?;
    }
    is_told_of_resumes(&nodes, &consumer)?;
    let report = load.finish()?;
    println!(
        "the longest stall that a stop was in {:.0?}; {report}",
        report.stall_after(&stops, 1.0)
    );
    report.exact().with_context(|| consumer.process.log())?;
    assert!(report.stall(1.0) <= stall(), "{report}");
    // Make before break: no leg was lost, all were left for another one.
    let lost = sum(
        &metrics(&consumer)?,
        "keel_fabric_legs_lost_total{role=\"consumer\",cause=\"connection\"}",
    );
    // Where this machine stood still, another connection may have taken the place of one that said nothing.
    let log = consumer.process.log();
    let excused = log.contains("one that does not answer");
    anyhow::ensure!(lost == 0 || excused, "{lost} legs were lost\n{log}");
    assert_eq!(server.open(), 0);
    Ok(())
}

/// Whoever looks for resumes finds them: in the metrics of the end, live at a router, and in its status.
fn is_told_of_resumes(nodes: &[(Node, [String; 4])], consumer: &Sidecar) -> anyhow::Result<()> {
    let own = sum(&metrics(consumer)?, "keel_fabric_service_resumes_total");
    anyhow::ensure!(own > 0, "the consumer counts no resume");
    let said = |words: &[&str], node: &Node| -> Result<u64, String> {
        let text = node.keel(words).and_then(|keel| keel.ok(COMMAND));
        let text = text.map_err(|error| format!("{error:#}"))?;
        let value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        Ok(all(&value, "resumes"))
    };
    for words in [
        &["status", "-o", "json"][..],
        &["get", "routers", "-o", "json"],
    ] {
        // A status is at most 30 s old.
        wait::until_some(&format!("{words:?} tells of resumes"), SOON * 2, || {
            wait::pause(Duration::from_millis(200));
            let mut found = 0;
            for (node, _) in nodes {
                found += said(words, node)?;
            }
            (found > 0).then_some(()).ok_or_else(|| "none".to_owned())
        })?;
    }
    Ok(())
}

/// The sum of all numbers of that name.
fn all(value: &serde_json::Value, name: &str) -> u64 {
    match value {
        serde_json::Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| match value.as_u64() {
                Some(number) if key == name => number,
                _ => all(value, name),
            })
            .sum(),
        serde_json::Value::Array(values) => values.iter().map(|value| all(value, name)).sum(),
        _ => 0,
    }
}

/// How soon flows are at another router after theirs was killed without a word.
const LEFT: Duration = Duration::from_secs(3);

#[test]
fn a_router_that_is_killed_for_good_is_left_for_the_next() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let flows = if long() { 100 } else { 20 };
    let mut lab = Lab::new()?;
    let first = public("a", &mut lab, None)?;
    let second = public("b", &mut lab, Some(&first.0))?;
    let mut nodes = [first, second];
    let (servers, apps) = (lab.host("p")?, lab.host("d")?.resolves_by(Some(DNS))?);
    let server = Server::on(&servers, 2003)?;
    let published_service = ["--published-services", "echo=127.0.0.1:2003"];
    let _provider = Sidecar::joining(&servers, "provider", &nodes[0].0, &published_service)?;
    let mapped = ["--mapped-services", "echo"];
    let consumer = Sidecar::joining(&apps, "consumer", &nodes[0].0, &mapped)?;
    published(&nodes)?;
    let address = consumer.listens("echo", 2003)?;
    let load = Load::steady(flows, 21).start(&apps, address, &server)?;
    load.moves(flows as u64 * 20_000, SOON)?;

    // A sidecar takes its own node's router first.
    let at = load.elapsed();
    nodes[0].0.process.kill()?;
    let bound = if long() { LEFT } else { LEFT * 2 };
    let took = load
        .all_move(bound)
        .with_context(|| consumer.process.log())?;
    load.moves(flows as u64 * 20_000, SOON)?;
    let report = load.finish()?;
    println!("all {flows} were elsewhere after {took:.1?}: {report}");
    report.exact().with_context(|| consumer.process.log())?;
    let stall = report.stall_after(&[at], 1.0);
    // Otherwise they were at the other one before.
    anyhow::ensure!(
        stall > Duration::from_millis(200),
        "nobody noticed: {stall:?}"
    );
    anyhow::ensure!(stall <= bound, "{stall:?}, {report}");
    wait::until("every connection ends at the server", SOON, || {
        server.open() == 0
    })
}

/// A flow that ends in the router itself can go nowhere: it keeps the router until the deadline, or until somebody has no
/// patience.
#[test]
fn a_router_that_drains_says_so_and_ends_at_once_by_a_second_signal() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let (mut node, flags) = public("a", &mut lab, None)?;
    let apps = lab.host("d")?.resolves_by(Some(DNS))?;
    let server = Server::on(&node.host, 2003)?;
    let spec = node.data().join("router.yaml");
    std::fs::write(
        &spec,
        "{apiVersion: edge.example.com/v1, kind: Router, metadata: {name: a}, spec: {advertisedServices: \
         [{name: echo, namespace: default, port: 2003, target: '127.0.0.1:2003'}]}}",
    )?;
    node.keel(&["apply", "-f", &spec.display().to_string()])?
        .ok(COMMAND)?;
    let consumer = Sidecar::joining(&apps, "consumer", &node, &["--mapped-services", "echo"])?;
    let address = consumer.listens("echo", 2003)?;
    let load = Load::steady(1, 9).start(&apps, address, &server)?;
    load.moves(20_000, SOON)?;

    node.process.signal(Signal::SIGTERM)?;
    let begun = Instant::now();
    wait::until_some("the Router's status says that it drains", SOON, || {
        wait::pause(Duration::from_millis(100));
        let text = node
            .keel(&["get", "routers", "-o", "json"])
            .and_then(|keel| keel.ok(COMMAND))
            .map_err(|error| format!("{error:#}"))?;
        match text.contains("\"Draining\"") {
            true => Ok(()),
            false => Err(text),
        }
    })?;
    load.moves(20_000, SOON)?;
    assert!(node.process.is_running());
    // Sooner it would be the echo of the first.
    wait::until("the first signal is a while ago", SOON, || {
        begun.elapsed() > Duration::from_millis(300)
    })?;
    let at_once = Duration::from_secs(if long() { 1 } else { 3 });
    let ended = node.process.end_by(Signal::SIGTERM, at_once)?;
    assert_eq!(ended.code(), Some(130));
    // The one that comes knows nothing of the flow and says so.
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    node.again(&flags)?;
    let report = load.finish()?;
    assert_eq!(report.count(End::Reset), 1, "{report}");
    drop(server);
    Ok(())
}
