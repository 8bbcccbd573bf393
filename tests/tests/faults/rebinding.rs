//! A NAT that forgets its mappings again and again.

use std::time::Duration;

use keel_tests::lab::Profile;
use keel_tests::load::Load;
use keel_tests::need::{self, Need, lacking};
use keel_tests::wait;

use crate::ground::{Ground, metrics, sum};

/// From one rebinding to the next.
const EVERY: Duration = Duration::from_secs(5);
/// How much of the undisturbed rate must be left.
const LEFT: f64 = 0.7;

#[test]
fn a_nat_that_rebinds_costs_little() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let rounds = if need::long() { 12 } else { 3 };
    let ground = Ground::new(0x4E41_5401, &[])?;
    ground.consumer_link.set(Profile::Interop.conditions());
    let load = ground.carry(&Load {
        length: None,
        ..Load::bulk(2, 0, ground.seed)
    })?;
    // The first seconds find the rate.
    wait::pause(Duration::from_secs(2));
    let before_it = load.rate(EVERY);
    let connected = || -> anyhow::Result<u64> {
        let text = metrics(&ground.consumer)?;
        Ok(sum(&text, "keel_fabric_links_connected_total"))
    };
    let connections = connected()?;
    let (began, before) = (std::time::Instant::now(), load.arrived());
    for _ in 0..rounds {
        ground.consumer_nat.rebind()?;
        wait::pause(EVERY);
    }
    let disturbed = (load.arrived() - before) as f64 / began.elapsed().as_secs_f64();
    // Half before and half after: what else the machine does is in both.
    let undisturbed = f64::midpoint(before_it, load.rate(EVERY));
    let more = connected()? - connections;
    let report = load.finish()?;
    println!(
        "{more} connections made anew, {:.0} kB/s undisturbed, {:.0} kB/s over {rounds} rebindings ({:.0} %); {report}",
        undisturbed / 1e3,
        disturbed / 1e3,
        100.0 * disturbed / undisturbed
    );
    report.exact()?;
    // One may be made anew by suspicion, when the machine itself stands still.
    anyhow::ensure!(
        more <= 1,
        "the connection to the router does not survive: {more} were made anew"
    );
    anyhow::ensure!(
        undisturbed > 600_000.0,
        "10 Mbit/s is 1,250 kB/s: {undisturbed:.0} B/s is no base to compare with"
    );
    anyhow::ensure!(
        disturbed >= LEFT * undisturbed,
        "{disturbed:.0} B/s instead of {undisturbed:.0}{}",
        ground.logs()
    );
    Ok(())
}
