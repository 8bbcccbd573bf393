//! Links that lose, reorder, double and damage packets, that stop carrying long ones or one direction: every byte arrives.

use std::time::Duration;

use anyhow::Context;
use keel_tests::lab::{Conditions, Direction, Link, Profile};
use keel_tests::load::{Load, Running};
use keel_tests::need::{self, Need, lacking};
use keel_tests::wait;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::ground::Ground;

/// How soon a byte comes back after a partition: an attempt at a fresh connection a second, a handshake, and what a busy
/// machine adds.
const BACK: Duration = Duration::from_secs(4);

/// Cuts of the long form, and how long they are at most.
const ROUNDS: usize = 50;
const LONGEST: Duration = Duration::from_secs(20);

/// How long each fault lasts.
fn span() -> Duration {
    Duration::from_secs(if need::long() { 20 } else { 3 })
}

/// How long a connection over such links may stand still at most: the way is there, so nothing waits for another one but a few
/// losses in a row.
const HANGS: Duration = Duration::from_secs(15);

/// Two connections that carry what fits, and eight that carry a little.
fn loads(ground: &Ground) -> anyhow::Result<[Running; 2]> {
    // Half a millisecond and a rate, so that a fault meets packets under way and two cores are not all that limits.
    for link in ground.links() {
        link.set(base());
    }
    let bulk = Load {
        length: None,
        ..Load::bulk(2, 0, ground.seed)
    };
    Ok([
        ground.carry(&bulk)?,
        ground.carry(&Load::steady(8, ground.seed + 1))?,
    ])
}

fn base() -> Conditions {
    Conditions {
        delay: Duration::from_millis(5),
        rate: 40_000_000,
        queue: 256 << 10,
        ..Conditions::default()
    }
}

fn all_exact(ground: &Ground, loads: [Running; 2], hangs: Duration) -> anyhow::Result<()> {
    for load in loads {
        let report = load.finish()?;
        println!("{report}");
        report.exact().with_context(|| ground.logs())?;
        anyhow::ensure!(report.stall(1.0) <= hangs, "{report}{}", ground.logs());
    }
    ground.is_quiet(wait::SOON).with_context(|| ground.logs())
}

/// What a link does to packets.
struct Fault {
    name: &'static str,
    conditions: Conditions,
    /// What bulk keeps of its undisturbed rate: the lower one of two long runs (2 cores, November 2026).
    kept: f64,
}

/// The part of [`Fault::kept`] that has to be reached.
const REACHED: f64 = 0.8;

fn faults() -> [Fault; 7] {
    let fault = |name, kept, change: fn(&mut Conditions)| {
        let mut conditions = base();
        change(&mut conditions);
        Fault {
            name,
            conditions,
            kept,
        }
    };
    [
        fault("1 % lost", 0.118, |link| link.loss = 0.01),
        fault("3 % lost in bursts of 6", 0.049, |link| {
            (link.loss, link.burst) = (0.03, 6.0);
        }),
        fault("5 % lost", 0.015, |link| link.loss = 0.05),
        fault("2 % out of order", 0.058, |link| link.reorder = 0.02),
        fault("2 % twice", 0.93, |link| link.duplicate = 0.02),
        fault("2 % damaged", 0.049, |link| link.corrupt = 0.02),
        fault("all of it", 0.020, |link| {
            (link.loss, link.burst) = (0.02, 4.0);
            (link.reorder, link.duplicate, link.corrupt) = (0.02, 0.02, 0.02);
            link.jitter = Duration::from_millis(4);
        }),
    ]
}

#[test]
fn what_the_link_does_to_packets_is_not_seen() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let ground = Ground::new(0x4055_0001, &[])?;
    let loads = loads(&ground)?;
    let undisturbed = loads[0].rate(span());
    println!("undisturbed: {:.0} kB/s", undisturbed / 1e3);
    for Fault {
        name,
        conditions,
        kept,
    } in faults()
    {
        let before = loads.each_ref().map(Running::arrived);
        for link in ground.links() {
            link.set(conditions);
        }
        for load in &loads {
            load.all_move(HANGS)
                .with_context(|| format!("{name}{}", ground.logs()))?;
        }
        let mut moved = Vec::new();
        // Behind a few losses in a row it may stand still for seconds: only what does not go on for several spans hangs.
        for _ in 0..if need::long() { 1 } else { 4 } {
            wait::pause(span());
            let all = loads.iter().zip(before);
            moved = all
                .map(|(load, before)| (load.arrived() - before) / 1000)
                .collect();
            if moved[0] > 20 && moved[1] > 60 {
                break;
            }
        }
        let ratio = moved[0] as f64 * 1e3 / span().as_secs_f64() / undisturbed;
        println!(
            "{name}: {moved:?} kB in {:?}, {ratio:.3} of the undisturbed rate",
            span()
        );
        // Seconds say little of a rate: the short form only sees that it is not next to nothing.
        let enough = if need::long() { kept * REACHED } else { 0.0 };
        anyhow::ensure!(
            moved[0] > 20 && moved[1] > 60 && ratio >= enough,
            "{name}: only {moved:?} kB moved, {ratio:.3} of the undisturbed rate where {enough:.3} is due{}",
            ground.logs()
        );
    }
    for link in ground.links() {
        link.set(base());
        let sums = [Direction::Up, Direction::Down].map(|way| link.tally(way));
        println!("{sums:?}");
        anyhow::ensure!(
            sums.iter()
                .all(|sum| sum.lost > 0 && sum.twice > 0 && sum.late > 0 && sum.damaged > 0),
            "the link did nothing: {sums:?}"
        );
    }
    all_exact(&ground, loads, HANGS)
}

#[test]
fn poor_links_carry_every_byte() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let (all, bytes) = if need::long() {
        (&Profile::ALL[..], 2 << 20)
    } else {
        (&[Profile::ThreeG][..], 128 << 10)
    };
    let ground = Ground::new(0x4055_0004, &[])?;
    for profile in all {
        ground.consumer_link.set(profile.conditions());
        let load = ground.carry(&Load::bulk(2, bytes / 2, ground.seed))?;
        let report = load.complete()?;
        let took = report.flows.iter().map(|flow| flow.at).max();
        println!("{profile:?}: {bytes} bytes both ways in {took:.1?}: {report}");
        report
            .exact()
            .with_context(|| format!("{profile:?}{}", ground.logs()))?;
        anyhow::ensure!(report.stall(1.0) <= HANGS, "{profile:?}: {report}");
    }
    ground.is_quiet(wait::SOON)
}

/// How soon a connection goes on after its way no longer takes long packets.
const PASSED: Duration = Duration::from_secs(5);

#[test]
fn a_hole_for_long_packets_is_passed() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let ground = Ground::new(0x4055_0002, &[])?;
    let loads = loads(&ground)?;
    // Long enough for the connections to have found the length that fits until now.
    wait::pause(Duration::from_secs(2));
    for (link, way) in [
        (&ground.consumer_link, Direction::Up),
        (&ground.provider_link, Direction::Down),
    ] {
        link.set_one(
            way,
            Conditions {
                mtu: 1300,
                ..base()
            },
        );
        let took = loads.each_ref().map(|load| load.all_move(PASSED));
        let [bulk, steady] = took.map(|took| took.with_context(|| ground.logs()));
        let took = (bulk?, steady?);
        loads[0].moves(8 << 20, Duration::from_secs(20))?;
        // Whoever comes now finds its way, too.
        ground.carry(&Load::steady(1, 7))?.finish()?.exact()?;
        let swallowed = link.tally(way).too_long;
        println!("{swallowed} packets swallowed; went on in {took:.1?}");
        anyhow::ensure!(swallowed > 0, "no packet was too long: the hole was none");
    }
    all_exact(&ground, loads, HANGS)
}

/// Cuts one direction of a link for a time and mends it, and waits for bytes.
fn partition(
    ground: &Ground,
    loads: &[Running; 2],
    (link, way): (&Link, Direction),
    time: Duration,
) -> anyhow::Result<()> {
    link.set_one(
        way,
        Conditions {
            cut: true,
            ..base()
        },
    );
    wait::pause(time);
    link.set_one(way, base());
    for load in loads {
        let took = load.all_move(BACK).with_context(|| ground.logs())?;
        println!("{way:?}: all went on {took:.1?} after the cut of {time:.1?}");
    }
    Ok(())
}

#[test]
fn a_partition_of_one_way_is_a_pause() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let ground = Ground::new(0x4055_0003, &[])?;
    let loads = loads(&ground)?;
    let [consumer, provider] = ground.links();
    let (up, down) = (Direction::Up, Direction::Down);
    let cables = [
        (consumer, up),
        (consumer, down),
        (provider, up),
        (provider, down),
    ];
    for cable in cables {
        partition(&ground, &loads, cable, span())?;
    }
    let mut random = SmallRng::seed_from_u64(ground.seed);
    for round in cables.len()..if need::long() { ROUNDS } else { 0 } {
        let time = Duration::from_millis(random.random_range(200..LONGEST.as_millis() as u64));
        partition(&ground, &loads, cables[round % cables.len()], time)?;
    }
    all_exact(&ground, loads, LONGEST + BACK)
}
