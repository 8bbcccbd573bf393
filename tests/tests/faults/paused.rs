//! Processes that stand still, as a laptop that sleeps or a container that is frozen.

use std::time::Duration;

use anyhow::Context;
use keel_tests::load::{Load, Running};
use keel_tests::need::{self, Need, lacking};
use keel_tests::process::Process;
use keel_tests::wait;
use nix::sys::signal::Signal;

use crate::ground::Ground;

/// How soon bytes come after the process goes on.
const BACK: Duration = Duration::from_secs(5);

fn pause(process: &Process, load: &Running) -> anyhow::Result<Duration> {
    process.signal(Signal::SIGSTOP)?;
    // Whoever fails here must not leave a process that cannot end.
    wait::pause(Duration::from_secs(if need::long() { 20 } else { 3 }));
    process.signal(Signal::SIGCONT)?;
    load.all_move(BACK)
}

#[test]
fn a_paused_process_is_a_pause() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let ground = Ground::new(0x5106_5701, &[])?;
    let load = ground.carry(&Load::steady(20, ground.seed))?;
    for (name, process) in [
        ("consumer", &ground.consumer.process),
        ("node", &ground.node.process),
        ("provider", &ground.provider.process),
    ] {
        let took = pause(process, &load).with_context(|| format!("{name}{}", ground.logs()))?;
        println!("the {name} was paused: bytes on all connections {took:.1?} after it went on");
    }
    let report = load.finish()?;
    println!("{report}");
    report.exact().with_context(|| ground.logs())?;
    ground.is_quiet(wait::SOON)
}
