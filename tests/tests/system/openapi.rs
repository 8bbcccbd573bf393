//! The APIServer keeps what its OpenAPI documents promise: schemathesis makes the requests and judges the answers.

use std::time::Duration;

use keel_tests::credentials::Credentials;
use keel_tests::lab::Lab;
use keel_tests::need::{self, Need, lacking, python};
use keel_tests::process::Program;
use keel_tests::site::Node;

/// The same requests every time.
const SEED: &str = "20261128";
/// Six documents, some thousand requests each.
const BOUND: Duration = Duration::from_secs(1200);

#[test]
fn the_api_keeps_what_its_openapi_says() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Schemathesis]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let mut node = Node::apiserver(&host, "a", &[])?;
    let admin = Credentials::admin(&node)?;
    let python = python().ok_or_else(|| anyhow::anyhow!("no python"))?;
    let examples = if need::long() { "300" } else { "10" };
    println!("seed {SEED}, {examples} examples for each operation");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/py/openapi.py");
    let said = Program::new(python)
        .args([script, "https://127.0.0.1:7443"])
        .args([&admin.cert, &admin.key, &admin.ca])
        .args([SEED, examples])
        .on(&host)
        .ok(BOUND)?;
    println!("{said}");
    anyhow::ensure!(
        said.lines().count() == 6,
        "one line for each document: {said}"
    );
    anyhow::ensure!(node.process.is_running(), "{}", node.process.log());
    Ok(())
}
