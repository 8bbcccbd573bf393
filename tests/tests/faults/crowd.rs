//! Very many connections through all the faults at once, and afterwards nothing is left of them.

use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::lab::{Conditions, Direction, Profile};
use keel_tests::load::{Load, Running};
use keel_tests::need::{self, Need, lacking};
use keel_tests::wait::{self, SOON};
use nix::sys::signal::Signal;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::ground::{Ground, Holding};

/// How long a flow without a leg is kept.
const WINDOW: Duration = Duration::from_secs(60);

/// What memory may keep besides 5 % in the short form, whose first storm is too short to fill all pools: each thread keeps some
/// hundred free pieces for itself, which hold on to the pages around them.
const SLACK_KIB: u64 = 512;

/// Memory is given back some seconds after a crowd has gone, and again when its connections were made anew: it rests when it has not
/// become less for longer than that.
const REST: Duration = Duration::from_secs(20);

/// How soon connections carry again after a fault: some of them, and after this many faults every one, besides the time from
/// one of its blocks to the next.
const BACK: Duration = Duration::from_secs(10);
const TOGETHER: usize = 4;

/// One fault, chosen by chance.
fn fault(ground: &Ground, random: &mut SmallRng) -> anyhow::Result<&'static str> {
    let link = ground.links()[random.random_range(0..2)];
    let short = Duration::from_millis(random.random_range(200..1500));
    let name = match random.random_range(0..8) {
        0 => {
            ground.consumer_nat.rebind()?;
            "the consumer's NAT rebinds"
        }
        1 => {
            ground.provider_nat.rebind()?;
            "the provider's NAT rebinds"
        }
        2 => {
            link.change(|conditions| conditions.cut = true);
            wait::pause(short);
            "an outage"
        }
        3 => {
            link.set(Profile::Wifi.conditions());
            wait::pause(short);
            "a bad link"
        }
        4 => {
            link.set(Conditions {
                loss: 0.03,
                reorder: 0.02,
                duplicate: 0.02,
                corrupt: 0.01,
                ..Conditions::default()
            });
            wait::pause(short);
            "a rough link"
        }
        5 => {
            let processes = [
                &ground.consumer.process,
                &ground.provider.process,
                &ground.node.process,
            ];
            let process = processes[random.random_range(0..3)];
            process.signal(Signal::SIGSTOP)?;
            wait::pause(short);
            process.signal(Signal::SIGCONT)?;
            "a process stands still"
        }
        6 => {
            let way = [Direction::Up, Direction::Down][random.random_range(0..2)];
            let cut = Conditions {
                cut: true,
                ..Conditions::default()
            };
            link.set_one(way, cut);
            // Longer than a connection lives without a word, at times.
            wait::pause(short * 12);
            "one way is cut"
        }
        _ => {
            link.change(|conditions| conditions.mtu = 1300);
            wait::pause(short);
            "a hole for long packets"
        }
    };
    link.set(Conditions::default());
    Ok(name)
}

fn back_to(before: [Holding; 3], now: [Holding; 3]) -> Result<(), String> {
    let slack = if need::long() { 0 } else { SLACK_KIB };
    for (before, now) in before.iter().zip(now) {
        let more = |count: u64| count * 105 / 100;
        if now.files > before.files
            || now.tasks > more(before.tasks)
            || now.resident_kib > more(before.resident_kib) + slack
        {
            return Err(format!("{now:?} is more than {before:?}"));
        }
    }
    Ok(())
}

/// What the processes hold once no memory is given back any more.
fn at_rest(ground: &Ground) -> anyhow::Result<[Holding; 3]> {
    let mut before = ground.holding()?;
    loop {
        wait::pause(REST);
        let now = ground.holding()?;
        let falls =
            |(before, now): (&Holding, &Holding)| now.resident_kib < before.resident_kib * 99 / 100;
        if !before.iter().zip(&now).any(falls) {
            return Ok(now);
        }
        before = now;
    }
}

/// Faults for so long, one after another; how many.
fn storm(
    ground: &mut Ground,
    load: &Running,
    random: &mut SmallRng,
    (span, pause): (Duration, Duration),
) -> anyhow::Result<usize> {
    let (began, mut faults) = (Instant::now(), 0);
    // The node dies in the middle, always at the same time: what it holds afterwards depends on how long it runs.
    let mut deaths = [span / 4, span / 2].into_iter().peekable();
    while began.elapsed() < span {
        let name = if deaths.next_if(|at| began.elapsed() >= *at).is_some() {
            ground.node.process.kill()?;
            ground.node.public_again()?;
            "the node was killed"
        } else {
            fault(ground, random)?
        };
        faults += 1;
        // Most faults meet connections that are still busy with the one before.
        let took = if faults % TOGETHER == 0 {
            load.all_move(BACK + pause)
        } else {
            load.moves(50_000, BACK)
        };
        let took = took.with_context(|| format!("after {name}{}", ground.logs()))?;
        println!("{name}: went on after {took:.1?}");
    }
    Ok(faults)
}

#[test]
fn a_crowd_leaves_nothing_behind() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let (flows, span) = if need::long() {
        (2000, Duration::from_secs(600))
    } else {
        (200, Duration::from_secs(20))
    };
    let mut ground = Ground::new(0xC20D_0001, &[])?;
    let mut random = SmallRng::seed_from_u64(ground.seed);
    // 800 blocks a second, however many share them: the machine is to carry the faults, not the bytes.
    let pause = Duration::from_micros(1250) * flows as u32;
    let crowd = |seed| Load {
        block: 512,
        pause,
        ..Load::steady(flows, seed)
    };
    // The same crowd in a storm is the baseline: what it leaves are pools and caches, which a second one fills no further. In the
    // long form it is as long as the second one: a node's store and its answers grow into their sizes over minutes.
    let load = ground.carry(&crowd(1))?;
    let first = if need::long() { span } else { span / 10 };
    storm(&mut ground, &load, &mut random, (first, pause))?;
    load.finish()?.exact().with_context(|| ground.logs())?;
    ground.is_quiet(SOON)?;
    let before = at_rest(&ground)?;

    let load = ground.carry(&crowd(ground.seed))?;
    let faults = storm(&mut ground, &load, &mut random, (span, pause))?;
    let report = load.finish()?;
    println!("{faults} faults in {span:?}: {report}");
    report.exact().with_context(|| ground.logs())?;
    // Whoever stands still for longer has an RST instead.
    anyhow::ensure!(report.stall(1.0) <= WINDOW, "{report}");

    ground.is_quiet(SOON).with_context(|| ground.logs())?;
    let after = at_rest(&ground)?;
    println!("before {before:?}\nafter  {after:?}");
    wait::until_some("all is given back", SOON, || {
        back_to(before, ground.holding().map_err(|error| error.to_string())?)
    })
}
