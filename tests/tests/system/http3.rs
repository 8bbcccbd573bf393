//! Clients that are not ours, over HTTP/3: libcurl, aioquic and qh3.

use keel_tests::credentials::Credentials;
use keel_tests::lab::Lab;
use keel_tests::need::{Need, lacking, python};
use keel_tests::process::Program;
use keel_tests::site::{COMMAND, Node};
use keel_tests::wait::{self, SOON};

/// How many watches the APIServer serves.
fn watches(node: &Node) -> anyhow::Result<u64> {
    let metrics = node.metrics("/metrics")?;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("keel_api_watches "));
    Ok(line.unwrap_or_default().parse()?)
}

#[test]
fn libcurl_lists_watches_and_cancels() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::CurlCffi, Need::Curl]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let node = Node::public(&host, "a")?;
    let admin = Credentials::admin(&node)?;
    let python = python().ok_or_else(|| anyhow::anyhow!("no python"))?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/py/http3.py");
    let url = format!("https://{}:7443", host.address);
    let client = Program::new(python)
        .arg(script)
        .arg(url)
        .args([&admin.cert, &admin.key])
        .on(&host);
    let before = watches(&node)?;
    let said = client.ok(COMMAND * 2)?;
    assert_eq!(
        said.split_whitespace().collect::<Vec<_>>(),
        ["listed", "created", "watched", "cancelled", "refused"]
    );
    wait::until("no watch of it is left in the server", SOON, || {
        watches(&node).is_ok_and(|after| after <= before)
    })
}

/// What the stacks in Python try one after the other; see `http3_stacks.py`.
const STEPS: [&str; 9] = [
    "listed",
    "created",
    "watched",
    "cancelled",
    "refused",
    "bounded",
    "idled",
    "ready",
    "gone",
];

/// One of them against a node that stops once it is told that the client is ready for that.
fn stack(need: Need, name: &str) -> anyhow::Result<()> {
    if lacking(&[Need::Root, need, Need::Curl]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let mut node = Node::public(&host, "a")?;
    let admin = Credentials::admin(&node)?;
    let python = python().ok_or_else(|| anyhow::anyhow!("no python"))?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/py/http3_stacks.py");
    let before = watches(&node)?;
    let mut client = Program::new(python)
        .args([script, name, &format!("https://{}:7443", host.address)])
        .args([&admin.cert, &admin.key, &admin.ca])
        .on(&host)
        .start()?;
    client.says("ready", COMMAND * 3)?;
    // Its two that run: the idle one, and the one that is to end with the server.
    wait::until("no cancelled watch is left in the server", SOON, || {
        watches(&node).is_ok_and(|after| after <= before + 2)
    })?;
    node.process.stop(COMMAND)?;
    let status = client.end(COMMAND)?;
    anyhow::ensure!(status.success(), "{name}: {}", client.log());
    assert_eq!(client.log().split_whitespace().collect::<Vec<_>>(), STEPS);
    Ok(())
}

#[test]
fn aioquic_does_all_and_is_told_to_go() -> anyhow::Result<()> {
    stack(Need::Aioquic, "aioquic")
}

#[test]
fn qh3_does_all_and_is_told_to_go() -> anyhow::Result<()> {
    stack(Need::Qh3, "qh3")
}
