//! Random schedules of both applications, direct and through the fabric: the same. Nothing here knows what should come out.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::alone::beside;
use crate::plan::{Ending, schedule};
use crate::script::Case;
use crate::ways::{Through, direct, whole};
use crate::{bad, long};

/// Schedules beside each other.
const AT_ONCE: usize = 64;
/// Schedules of one router: its provider publishes a service for each.
const BATCH: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_schedules_are_seen_through_the_fabric_as_they_are_seen_direct() {
    let _turn = beside().await;
    // Half of the seeds are the same every time, the others new ones, or those from `$KEEL_SEED` on.
    let fresh = std::env::var("KEEL_SEED").map(|seed| seed.parse());
    let fresh: u64 = fresh.map_or_else(|_| rand::random(), Result::unwrap);
    println!("KEEL_SEED={fresh}");
    let half = if long() { 5_000 } else { 50 };
    let seeds = (0..half).chain((0..half).map(|number| fresh.wrapping_add(number)));
    let (cases, endings): (Vec<Case>, BTreeSet<Ending>) = seeds.map(schedule).unzip();
    assert_eq!(endings.len(), Ending::ALL.len());
    let steps: usize = cases
        .iter()
        .map(|case| case.client.len() + case.server.iter().flatten().count())
        .sum();

    let began = Instant::now();
    let mut wrong = Vec::new();
    for cases in cases.chunks(BATCH) {
        let plain = whole(direct(cases, AT_ONCE)).await;
        let again = whole(direct(cases, AT_ONCE)).await;
        let through = async { Through::new(cases).await.play(cases, AT_ONCE).await };
        let fabric = whole(through).await;
        for (index, case) in cases.iter().enumerate() {
            let (seen, again, through) = (&plain[index], &again[index], &fabric[index]);
            if seen != again || seen != through || bad(seen) {
                wrong.push(format!(
                    "{}\n  {:?}\n  {:?}\n  direct: {seen}\n   again: {again}\n  fabric: {through}",
                    case.name,
                    case.client,
                    case.server.as_deref().unwrap_or_default()
                ));
            }
        }
    }
    println!(
        "{} schedules of {steps} steps in {:?}",
        cases.len(),
        began.elapsed()
    );
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}
