//! Join tokens, good and bad, and sidecars that have nowhere to join.

use std::net::Ipv4Addr;
use std::time::Duration;

use keel_tests::lab::{Host, Lab};
use keel_tests::need::{Need, lacking};
use keel_tests::process::{Finished, Program};
use keel_tests::site::{COMMAND, Node, Sidecar};
use keel_tests::wait::{self, SOON};

/// `keel up --join` with a token, in a fresh directory, until it ends.
fn join(host: &Host, name: &str, token: &str) -> anyhow::Result<Finished> {
    let (data, file) = (tempfile::tempdir()?, tempfile::NamedTempFile::new()?);
    std::fs::write(file.path(), token)?;
    Node::command(
        host,
        name,
        data.path(),
        &["--join", &format!("@{}", file.path().display())],
    )?
    .output(COMMAND)
}

fn text(token: &tempfile::NamedTempFile) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(token.path())?.trim().to_owned())
}

#[test]
fn tokens_bad_in_every_way() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let first = Node::public(&lab.host("a")?, "a")?;
    let foreign = Node::public(&lab.host("x")?, "x")?;
    let host = lab.host("b")?;

    let expired = text(&first.token(&["--node", "b", "--ttl", "1s"])?)?;
    wait::pause(Duration::from_secs(2));
    join(&host, "b", &expired)?.complains(1, &["expired"])?;

    let mine = text(&first.token(&["--node", "c"])?)?;
    join(&host, "b", &mine)?.complains(1, &["token", "c"])?;

    let parts: Vec<_> = mine.splitn(5, '.').collect();
    let [kind, id, secret, pin, endpoint] = parts[..] else {
        anyhow::bail!("not a token: {mine}")
    };
    let elsewhere = text(&foreign.token(&["--node", "b"])?)?;
    let foreign_pin = elsewhere.split('.').nth(3).unwrap_or_default();
    // Another trust domain's APIServer answers at the endpoint: nothing is sent to it.
    let endpoint_of_other = [
        kind,
        id,
        secret,
        pin,
        elsewhere.splitn(5, '.').nth(4).unwrap_or_default(),
    ]
    .join(".");
    join(&host, "c", &endpoint_of_other)?.complains(1, &["root"])?;
    join(
        &host,
        "c",
        &[kind, id, secret, foreign_pin, endpoint].join("."),
    )?
    .complains(1, &["root"])?;
    // Another secret of the right form: that of another token.
    let other = elsewhere.split('.').nth(2).unwrap_or_default();
    join(&host, "c", &[kind, id, other, pin, endpoint].join("."))?.complains(1, &["token"])?;
    for garbage in [
        "",
        "keel1",
        "keel2.a.b.c.d:1",
        &mine[..mine.len() / 2],
        "keel1.....",
        "\u{0}\u{7}",
    ] {
        join(&host, "c", garbage)?
            .complains(2, &["token"])
            .map_err(|error| error.context(format!("{garbage:?}")))?;
    }
    for said in [&expired, &mine] {
        let secret = said.split('.').nth(2).unwrap_or_default();
        assert!(
            !first.process.log().contains(secret),
            "a secret is in the log"
        );
    }

    // After all that it is good for one node, once.
    let token = tempfile::NamedTempFile::new()?;
    std::fs::write(token.path(), &mine)?;
    let node = Node::up(
        &host,
        "c",
        &["--join", &format!("@{}", token.path().display())],
    )?;
    join(&lab.host("d")?, "c", &mine)?.complains(1, &["used"])?;
    let revoked = text(&first.token(&["--node", "e"])?)?;
    let id = revoked.split('.').nth(1).unwrap_or_default();
    assert!(
        first.keel(&["token", "list"])?.ok(COMMAND)?.contains(id),
        "the list names it"
    );
    first.keel(&["token", "revoke", id])?.ok(COMMAND)?;
    join(&lab.host("e")?, "e", &revoked)?.complains(1, &["token"])?;

    // Node tokens are made where the root key is; loopback is no endpoint for others.
    node.keel(&["token", "create", "--node", "f"])?
        .output(COMMAND)?
        .complains(1, &["a"])?;
    let local = Node::up(&lab.host("local")?, "local", &[])?;
    local
        .keel(&["token", "create", "--node", "f"])?
        .output(COMMAND)?
        .complains(1, &["--apiserver-listen"])
}

#[test]
fn a_used_directory_goes_on_as_what_it_is() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let first = Node::public(&lab.host("a")?, "a")?;
    let foreign = Node::public(&lab.host("x")?, "x")?;
    let mut node = Node::joining(&lab.host("b")?, "b", &first)?;
    node.process.stop(SOON)?;
    let token = foreign.token(&["--node", "b"])?;
    node.again(&["--join", &format!("@{}", token.path().display())])?;
    node.process.says("WARN", SOON)?;
    let routers = node.keel(&["get", "routers"])?;
    wait::until(
        "it still syncs with the node that it joined first",
        SOON,
        || {
            routers
                .ok(COMMAND)
                .is_ok_and(|table| table.lines().any(|line| line.starts_with("a ")))
        },
    )
}

#[test]
fn neither_socket_nor_token() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Curl, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let data = tempfile::tempdir()?;
    let program = || anyhow::Ok(Program::ours("keel-sidecar")?.env("KEEL_DATA_DIR", data.path()));
    let mut waiting = Sidecar::start(
        program()?,
        &host,
        "waiting",
        &["--mapped-services", "mysql"],
    )?;
    waiting.process.says("--join", SOON)?;
    waiting.process.says("workload.sock", SOON)?;
    let probe = |path: &str| {
        let url = format!("http://127.0.0.1:1080{path}");
        Program::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url])
            .on(&host)
            .ok(COMMAND)
    };
    wait::until("it is alive and not ready", SOON, || {
        probe("/healthz").is_ok_and(|code| code == "200")
            && probe("/readyz").is_ok_and(|code| code == "503")
    })?;

    // The node comes later, on that directory: the sidecar goes on by itself.
    let mut late = Node::command(&host, "late", data.path(), &[])?.start()?;
    late.says("ready node=", SOON)?;
    wait::until("it gets ready", SOON, || {
        probe("/readyz").is_ok_and(|code| code == "200")
    })?;
    assert_eq!(waiting.resolves("mysql")?, Ipv4Addr::new(127, 0, 66, 1));
    Ok(())
}

#[test]
fn a_clock_that_is_far_off() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Faketime]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let first = Node::public(&lab.host("a")?, "a")?;
    let host = lab.host("b")?;
    for (clock, word) in [("+400d", "expired"), ("-400d", "not yet valid")] {
        let token = first.token(&["--node", "b"])?;
        let data = tempfile::tempdir()?;
        let join = format!("@{}", token.path().display());
        let node = Node::command(&host, "b", data.path(), &["--join", &join])?;
        let finished = node
            .behind(["faketime", "-f", clock])
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .output(COMMAND)?;
        finished
            .complains(1, &["clock"])
            .map_err(|error| error.context(format!("{clock}: {word}")))?;
    }
    Ok(())
}
