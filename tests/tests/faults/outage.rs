//! An outage that is longer than the window in which a flow may go on: an honest end on both sides, and nothing left.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::load::{End, Load};
use keel_tests::need::{self, Need, lacking};
use keel_tests::wait::{self, SOON};

use crate::ground::{Ground, metrics};

/// All that was held must be given back by then.
const GIVEN_BACK: Duration = Duration::from_secs(15);

/// When a flow that is silent at the latest notices that its router is gone: 15 s after the first keep-alive without an
/// answer, which is sent up to 2 s after the last word.
const NOTICED: Duration = Duration::from_secs(15 + 2);

/// The provider's end hears of it when the router gives its connection up, after 15 s, and keeps its flows for 15 s more than
/// the window, because the consumer's end may have noticed later.
const GRACE: Duration = Duration::from_secs(15 + 15);
const BUSY: Duration = Duration::from_secs(5);

#[test]
fn past_the_window_both_ends_are_reset() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let window = Duration::from_secs(if need::long() { 60 } else { 5 });
    let option = format!("load=resume-window:{}s", window.as_secs());
    let ground = Ground::new(0x0417_A6E1, &["--service-option", &option])?;
    // What a first flow leaves for good (a pool, a file) is no leak.
    ground.carry(&Load::steady(8, 1))?.finish()?.exact()?;
    ground.is_quiet(SOON)?;
    let before = ground.holding()?;

    let load = ground.carry(&Load::steady(8, ground.seed))?;
    let mut idle = ground
        .consumer
        .host
        .run(|| TcpStream::connect(ground.address))??;
    idle.set_read_timeout(Some(window + NOTICED + SOON))?;
    // An open that nobody answers is not part of this: the provider's end is there.
    idle.write_all(&[0])?;
    wait::pause(Duration::from_millis(500));

    let began = Instant::now();
    ground.lab.unplug(ground.consumer_nat.public)?;
    let read = idle.read(&mut [0; 16]);
    let after = began.elapsed();
    anyhow::ensure!(
        matches!(&read, Err(error) if error.kind() == ErrorKind::ConnectionReset),
        "{read:?} instead of a reset for the connection that idled{}",
        ground.logs()
    );
    println!("window {window:?}: reset after {after:.1?}");
    anyhow::ensure!(
        after >= window && after < window + NOTICED + BUSY,
        "reset after {after:.1?}"
    );
    wait::until("all connections are reset at the consumer", SOON, || {
        load.ended() == 8
    })?;
    let report = load.finish()?;
    anyhow::ensure!(report.count(End::Reset) == 8, "{report}");
    let left = (window + GRACE + BUSY).saturating_sub(began.elapsed());
    wait::until("all are at the provider", left, || {
        ground.server.open() == 0
    })?;
    println!("the last one at the provider after {:.1?}", began.elapsed());
    let ends = ground.server.ends();
    anyhow::ensure!(
        ends.iter().filter(|end| **end == End::Reset).count() >= 8
            && ends
                .iter()
                .all(|end| matches!(end, End::Reset | End::Exact)),
        "{ends:?}"
    );

    // The cable is still out, and names are answered all the same.
    ground.consumer.resolves("load")?;
    wait::until_some("files and tasks are given back", GIVEN_BACK, || {
        let now = ground.holding().map_err(|error| error.to_string())?;
        let more = now
            .iter()
            .zip(before)
            .any(|(now, then)| now.files > then.files || now.tasks > then.tasks);
        if more {
            Err(format!("{now:?}, before {before:?}"))
        } else {
            Ok(())
        }
    })?;
    ground.is_quiet(BUSY)?;
    for (sidecar, role) in [
        (&ground.consumer, "consumer"),
        (&ground.provider, "provider"),
    ] {
        let expired = format!("role=\"{role}\",how=\"reset\",code=\"WINDOW_EXPIRED\"");
        let counted = metrics(sidecar)?;
        let line = counted.lines().find(|line| line.contains(&expired));
        anyhow::ensure!(
            line.is_some_and(|line| line.ends_with(" 9")),
            "the {role} counts {line:?}{}",
            ground.logs()
        );
        anyhow::ensure!(
            sidecar.process.log().contains("WINDOW_EXPIRED"),
            "the {role} has no reason in its log{}",
            ground.logs()
        );
    }
    ground.lab.plug(ground.consumer_nat.public)?;
    let back = Instant::now();
    // New connections work soon after the network is back.
    ground.carry(&Load::steady(1, 2))?.finish()?.exact()?;
    println!("a new connection carries after {:.1?}", back.elapsed());
    anyhow::ensure!(back.elapsed() <= BUSY, "{:.1?}", back.elapsed());
    Ok(())
}

#[test]
fn just_inside_of_the_window_everything_goes_on() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    // Beside other tests another leg may take some seconds.
    let (window, out) = if need::long() { (60, 58) } else { (20, 14) };
    let (window, out) = (Duration::from_secs(window), Duration::from_secs(out));
    let option = format!("load=resume-window:{}s", window.as_secs());
    let ground = Ground::new(0x0417_A6E2, &["--service-option", &option])?;
    let load = ground.carry(&Load::steady(8, ground.seed))?;
    // On both sides, so that neither end has a word of the other one.
    let nats = [ground.consumer_nat.public, ground.provider_nat.public];
    for nat in nats {
        ground.lab.unplug(nat)?;
    }
    wait::pause(out);
    for nat in nats {
        ground.lab.plug(nat)?;
    }
    let took = load.all_move(BUSY).with_context(|| ground.logs())?;
    println!("window {window:?}: bytes {took:.1?} after an outage of {out:?}");
    let report = load.finish()?;
    report.exact().with_context(|| ground.logs())?;
    ground.is_quiet(SOON)
}
