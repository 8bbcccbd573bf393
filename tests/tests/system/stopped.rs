//! A Syncer that stands still while others go on.

use std::time::{Duration, Instant};

use keel_tests::lab::Lab;
use keel_tests::need::{self, Need, lacking};
use keel_tests::process::{Process, Program};
use keel_tests::site::{COMMAND, Node, Sidecar};
use keel_tests::wait::{self, SOON};
use nix::sys::signal::Signal;

/// How soon everything that was missed is there.
const CAUGHT_UP: Duration = Duration::from_secs(10);

/// What a node has of the Router `a`: the number that `a` gave it, and the services.
fn held(node: &Node) -> anyhow::Result<(u64, Vec<String>)> {
    let json = node.keel(&["get", "router", "a", "-o", "json"])?;
    let router: serde_json::Value = serde_json::from_str(&json.ok(COMMAND)?)?;
    let status = &router["status"];
    let number = status["source"]["revision"].as_str().unwrap_or_default();
    let services = status["activeServices"].as_array().into_iter().flatten();
    let names = services.filter_map(|service| service["name"].as_str());
    Ok((
        number.parse().unwrap_or_default(),
        names.map(str::to_owned).collect(),
    ))
}

fn provides(node: &Node, name: &str) -> anyhow::Result<Sidecar> {
    let published = format!("{name}=127.0.0.1:3306");
    Sidecar::beside(node, name, &["--published-services", &published])
}

/// The APIServer and the Syncer of a node, each in a process of its own.
fn parts(node: &Node) -> anyhow::Result<[Process; 2]> {
    let part = |name: &str, flags: &[&str]| {
        let program = Program::ours(name)?
            .arg("--data-dir")
            .arg(node.data())
            .args(flags);
        program.on(&node.host).start()
    };
    let mut apiserver = part("keel-apiserver", &["--node-name", "b"])?;
    apiserver.says("ready node=b", SOON)?;
    Ok([apiserver, part("keel-syncer", &[])?])
}

#[test]
fn a_syncer_that_stood_still_catches_up_and_never_goes_back() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let pause = Duration::from_secs(if need::long() { 600 } else { 20 });
    let mut lab = Lab::new()?;
    let public = Node::public(&lab.host("a")?, "a")?;
    let mut edge = Node::joining(&lab.host("b")?, "b", &public)?;
    edge.process.stop(SOON)?;
    let [_apiserver, syncer] = parts(&edge)?;
    let shows = |name: &str| held(&edge).is_ok_and(|(_, names)| names.contains(&name.to_owned()));
    let _first = provides(&public, "first")?;
    wait::until("the Syncer works", SOON, || shows("first"))?;

    syncer.signal(Signal::SIGSTOP)?;
    let (before, _) = held(&edge)?;
    let stopped = Instant::now();
    let mut gone = provides(&public, "gone")?;
    wait::until("one comes", SOON, || {
        held(&public).is_ok_and(|(_, names)| names.contains(&"gone".to_owned()))
    })?;
    gone.process.stop(SOON)?;
    let _last = provides(&public, "last")?;
    wait::pause(pause.saturating_sub(stopped.elapsed()));
    assert_eq!(held(&edge)?.0, before, "nobody else writes it");

    syncer.signal(Signal::SIGCONT)?;
    let woken = Instant::now();
    let mut newest = before;
    loop {
        let (number, names) = held(&edge)?;
        assert!(number >= newest, "{number} came after {newest}");
        newest = number;
        if names == ["first", "last"] {
            break;
        }
        anyhow::ensure!(
            woken.elapsed() < CAUGHT_UP,
            "{names:?} after {:?}: {}",
            woken.elapsed(),
            syncer.log()
        );
    }
    println!("caught up {:?} after {pause:?}", woken.elapsed());
    // What comes from now on comes as before.
    let _later = provides(&public, "later")?;
    wait::until("it goes on", CAUGHT_UP, || shows("later"))
}
