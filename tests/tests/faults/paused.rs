//! Processes that stand still, as a laptop that sleeps or a container that is frozen.

use std::time::Duration;

use anyhow::Context;
use keel_tests::load::{Load, Running};
use keel_tests::need::{self, Need, lacking};
use keel_tests::process::Process;
use keel_tests::wait;
use nix::sys::signal::Signal;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::ground::Ground;

/// How soon bytes come after the process goes on.
const BACK: Duration = Duration::from_secs(5);

/// Pauses of the long form, after one of each process: shorter and longer than a connection lives without a word.
const ROUNDS: usize = 50;

/// Lets a process stand still for a time; how soon all connections carry then.
fn pause(process: &Process, load: &Running, time: Duration) -> anyhow::Result<Duration> {
    process.signal(Signal::SIGSTOP)?;
    // Whoever fails here must not leave a process that cannot end.
    wait::pause(time);
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
    let processes = [
        ("consumer", &ground.consumer.process),
        ("node", &ground.node.process),
        ("provider", &ground.provider.process),
    ];
    let long = need::long();
    let time = Duration::from_secs(if long { 20 } else { 3 });
    let mut pauses: Vec<_> = processes.map(|process| (process, time)).into();
    let mut random = SmallRng::seed_from_u64(ground.seed);
    for _ in 0..if long { ROUNDS } else { 0 } {
        let time = Duration::from_millis(random.random_range(500..20_000));
        pauses.push((processes[random.random_range(0..3)], time));
    }
    for ((name, process), time) in pauses {
        let took =
            pause(process, &load, time).with_context(|| format!("{name}{}", ground.logs()))?;
        println!(
            "the {name} was paused for {time:.1?}: bytes on all connections {took:.1?} after it went on"
        );
    }
    let report = load.finish()?;
    println!("{report}");
    report.exact().with_context(|| ground.logs())?;
    ground.is_quiet(wait::SOON)
}
