//! One node by itself: killed while it is written to, stopped, and looked at.

use std::time::Duration;

use keel_tests::credentials::Credentials;
use keel_tests::lab::Lab;
use keel_tests::need::{Need, find, lacking};
use keel_tests::process::Program;
use keel_tests::site::{COMMAND, Node};
use keel_tests::wait::{self, SOON};

/// How often the APIServer is killed. Each cycle acknowledges a few hundred writes.
const CYCLES: usize = 6;

#[test]
fn no_acknowledged_write_is_lost() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Curl]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let mut node = Node::public(&host, "a")?;
    let admin = Credentials::admin(&node)?;
    let python = find("python3").ok_or_else(|| anyhow::anyhow!("no python3"))?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/py/write_loop.py");
    let advertise = format!("{}:7000", host.address);
    let mut acknowledged = Vec::new();
    let mut newest = 0_u64;
    for cycle in 0..CYCLES {
        let files = [&admin.cert, &admin.key, &admin.ca];
        let mut writer = Program::new(&python)
            .arg(script)
            .arg(cycle.to_string())
            .args(files)
            .on(&host)
            .start()?;
        // Killed at a different depth each time, always with writes under way.
        writer.says(&format!("w{cycle}-{} ", 40 + 37 * cycle), SOON)?;
        node.process.kill()?;
        writer.end(SOON)?;
        acknowledged.extend(writer.log().lines().filter_map(|line| {
            line.split_once(' ')
                .map(|(name, number)| (name.to_owned(), number.to_owned()))
        }));
        node.again(&[
            "--apiserver-listen",
            "0.0.0.0:7443",
            "--advertise",
            &advertise,
        ])?;

        let list = admin
            .curl()
            .arg("https://127.0.0.1:7443/apis/edge.example.com/v1/routers")
            .on(&host)
            .ok(COMMAND)?;
        let list: serde_json::Value =
            serde_json::from_str(list.rsplit_once('\n').map_or("", |(body, _)| body))?;
        let found: std::collections::BTreeMap<_, _> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|item| {
                (
                    item["metadata"]["name"].as_str(),
                    item["metadata"]["resourceVersion"].as_str(),
                )
            })
            .collect();
        for (name, number) in &acknowledged {
            assert_eq!(
                found.get(&Some(name.as_str())),
                Some(&Some(number.as_str())),
                "{name} was acknowledged before kill {cycle}"
            );
        }
        let revision: u64 = list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default()
            .parse()?;
        assert!(
            revision > newest,
            "revisions only grow: {newest}, then {revision}"
        );
        newest = revision;
    }
    println!(
        "{} acknowledged writes over {CYCLES} kills",
        acknowledged.len()
    );
    Ok(())
}

#[test]
fn parts_run_alone_and_stop_cleanly() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Curl]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let mut node = Node::public(&host, "a")?;
    wait::until("it is ready", SOON, || node.metrics("/readyz").is_ok())?;
    node.metrics("/healthz")?;
    let metrics = node.metrics("/metrics")?;
    assert!(
        metrics.ends_with("# EOF\n") && metrics.contains("keel_"),
        "OpenMetrics under our name: {metrics}"
    );
    let status = node.keel(&["status"])?.ok(COMMAND)?;
    assert!(
        status.contains(&format!("{}:7000", host.address)),
        "keel status names the router's address: {status}"
    );
    let json = node.keel(&["status", "-o", "json"])?;
    let flows_live = || -> anyhow::Result<serde_json::Value> {
        let status: serde_json::Value = serde_json::from_str(&json.ok(COMMAND)?)?;
        Ok(status["flowsLive"].clone())
    };
    assert_eq!(flows_live()?, true);
    node.process.stop(SOON)?;
    assert!(
        node.process
            .log()
            .lines()
            .all(|line| !line.contains("panicked")),
        "{}",
        node.process.log()
    );

    // The same directory, part by part.
    let start = |name: &str, flags: &[&str]| {
        let part = Program::ours(name)?
            .arg("--data-dir")
            .arg(node.data())
            .args(flags);
        part.on(&host).start()
    };
    let advertise = format!("{}:7000", host.address);
    let apiserver = || {
        start(
            "keel-apiserver",
            &["--node-name", "a", "--apiserver-listen", "0.0.0.0:7443"],
        )
    };
    // In the wrong order: each waits for what it needs.
    let mut syncer = start("keel-syncer", &[])?;
    let mut router = start("keel-router", &["--advertise", &advertise])?;
    wait::pause(Duration::from_secs(2));
    anyhow::ensure!(
        router.is_running() && syncer.is_running(),
        "they wait: {}{}",
        router.log(),
        syncer.log()
    );
    let mut first = apiserver()?;
    first.says("ready node=a", SOON)?;
    router.says("router listens", SOON)?;
    let routers = node.keel(&["get", "routers", "-o", "json"])?;
    let reported = || {
        routers
            .ok(COMMAND)
            .is_ok_and(|json| json.contains(&advertise))
    };
    wait::until("the router reports to the APIServer", SOON, reported)?;

    // Another APIServer under running parts, and the Router is deleted there: the router reports again, long before its interval ends.
    first.kill()?;
    let mut second = apiserver()?;
    second.says("ready node=a", SOON)?;
    assert_eq!(flows_live()?, false, "the router is another process");
    node.keel(&["delete", "router", "a"])?.ok(COMMAND)?;
    wait::until("the router makes its Router again", SOON, reported)?;
    let mut apiserver = second;
    for part in [&mut syncer, &mut router, &mut apiserver] {
        part.stop(SOON)?;
    }
    Ok(())
}

/// As on a full disk, or when whoever reads the log has gone.
#[test]
fn a_log_that_cannot_be_written_stops_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let full = ["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"];
    let listeners = ["--apiserver-listen", "--router-listen", "--metrics-listen"];
    let mut node = Program::ours("keel")?
        .args(["up", "--node-name", "a", "--data-dir"])
        .arg(folder.path())
        .args(listeners.iter().flat_map(|flag| [*flag, "127.0.0.1:0"]))
        .behind(full)
        .start()?;
    let get = || {
        Program::ours("keel")?
            .args(["get", "routers", "--data-dir"])
            .arg(folder.path())
            .output(COMMAND)
    };
    wait::until("its Router is shown", SOON, || {
        get().is_ok_and(|said| said.code() == Some(0) && said.stdout().contains("a "))
    })?;
    // Each is a line in the log for the identity that it gets.
    for _ in 0..5 {
        let said = get()?;
        anyhow::ensure!(said.code() == Some(0), "{}", said.stderr());
    }
    node.stop(SOON)
}
