//! Links that lose, reorder, double and damage packets, that stop carrying long ones or one direction: every byte arrives.

use std::time::Duration;

use anyhow::Context;
use keel_tests::lab::{Conditions, Direction, Link};
use keel_tests::load::{Load, Running};
use keel_tests::need::{self, Need, lacking};
use keel_tests::wait;

use crate::ground::Ground;

/// How soon a byte comes back after a partition: an attempt at a fresh connection a second, a handshake, and what a busy
/// machine adds.
const BACK: Duration = Duration::from_secs(4);

/// How long each fault lasts.
fn span() -> Duration {
    Duration::from_secs(if need::long() { 20 } else { 3 })
}

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

fn all_exact(ground: &Ground, loads: [Running; 2]) -> anyhow::Result<()> {
    for load in loads {
        let report = load.finish()?;
        println!("{report}");
        report.exact().with_context(|| ground.logs())?;
    }
    ground.is_quiet(wait::SOON).with_context(|| ground.logs())
}

#[test]
fn what_the_link_does_to_packets_is_not_seen() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let ground = Ground::new(0x4055_0001, &[])?;
    let loads = loads(&ground)?;
    let faults = [
        (
            "1 % lost",
            Conditions {
                loss: 0.01,
                ..base()
            },
        ),
        (
            "3 % lost in bursts of 6",
            Conditions {
                loss: 0.03,
                burst: 6.0,
                ..base()
            },
        ),
        (
            "5 % lost",
            Conditions {
                loss: 0.05,
                ..base()
            },
        ),
        (
            "2 % out of order",
            Conditions {
                reorder: 0.02,
                ..base()
            },
        ),
        (
            "2 % twice",
            Conditions {
                duplicate: 0.02,
                ..base()
            },
        ),
        (
            "2 % damaged",
            Conditions {
                corrupt: 0.02,
                ..base()
            },
        ),
        (
            "all of it",
            Conditions {
                loss: 0.02,
                burst: 4.0,
                reorder: 0.02,
                duplicate: 0.02,
                corrupt: 0.02,
                jitter: Duration::from_millis(4),
                ..base()
            },
        ),
    ];
    for (name, conditions) in faults {
        let before = loads.each_ref().map(Running::arrived);
        for link in ground.links() {
            link.set(conditions);
        }
        wait::pause(span());
        let moved: Vec<_> = loads
            .iter()
            .zip(before)
            .map(|(load, before)| (load.arrived() - before) / 1000)
            .collect();
        println!("{name}: {moved:?} kB in {:?}", span());
        anyhow::ensure!(
            moved[0] > 20 && moved[1] > 60,
            "{name}: only {moved:?} kB moved{}",
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
    all_exact(&ground, loads)
}

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
        let took = loads[0]
            .moves(1 << 20, Duration::from_secs(10))
            .and_then(|took| Ok((took, loads[1].moves(200_000, Duration::from_secs(10))?)));
        let took = took.with_context(|| ground.logs())?;
        let swallowed = link.tally(way).too_long;
        println!("{swallowed} packets swallowed; went on in {took:.1?}");
        anyhow::ensure!(swallowed > 0, "no packet was too long: the hole was none");
    }
    all_exact(&ground, loads)
}

/// Cuts one direction of a link and mends it, and waits for bytes.
fn partition(
    ground: &Ground,
    loads: &[Running; 2],
    link: &Link,
    way: Direction,
) -> anyhow::Result<()> {
    link.set_one(
        way,
        Conditions {
            cut: true,
            ..base()
        },
    );
    wait::pause(span());
    link.set_one(way, base());
    for load in loads {
        let took = load.all_move(BACK).with_context(|| ground.logs())?;
        println!(
            "{way:?}: all went on {took:.1?} after the cut of {:?}",
            span()
        );
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
    for link in ground.links() {
        for way in [Direction::Up, Direction::Down] {
            partition(&ground, &loads, link, way)?;
        }
    }
    all_exact(&ground, loads)
}
