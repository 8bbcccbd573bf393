use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::bugs::Bug;
use super::legs::Random;
use super::world::{Report, World};

/// Half of the seeds are the same every time, the others new ones, or those from `$KEEL_SEED` on. Every failing seed is
/// printed; a world is the same for the same seed.
#[test]
fn random_worlds_keep_all_invariants() {
    let fresh = std::env::var("KEEL_SEED").map(|seed| seed.parse());
    let fresh: u64 = fresh.map_or_else(|_| rand::random(), |seed| seed.expect("a number"));
    println!("KEEL_SEED={fresh}");
    let seeds =
        if std::env::var_os("KEEL_LONG").is_some_and(|value| !value.is_empty() && value != "0") {
            LONG
        } else {
            SEEDS
        };
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let run = || {
        let (mut total, mut failed) = (Report::default(), Vec::new());
        while failed.len() < 5 {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= seeds {
                break;
            }
            let seed = match number.checked_sub(seeds / 2) {
                Some(number) => fresh.wrapping_add(number),
                None => number,
            };
            match World::new(scramble(seed), None).run() {
                Ok(report) => total.add(&report),
                Err(error) => failed.push(format!("KEEL_SEED={seed}: {error}")),
            }
        }
        (total, failed)
    };
    let (total, failed) = std::thread::scope(|scope| {
        let other = scope.spawn(run);
        let (mut total, mut failed) = run();
        let (more, also) = other.join().expect("a world does not panic");
        total.add(&more);
        failed.extend(also);
        (total, failed)
    });
    let faults = total.faults.total();
    println!(
        "{seeds} worlds, {faults} faults, {:?}: {total:?}",
        began.elapsed()
    );
    assert!(
        failed.is_empty(),
        "{seeds} worlds, the first that failed:\n{}",
        failed.join("\n")
    );
    // The worlds must not become peaceful unnoticed.
    assert!(faults >= 50 * seeds, "only {faults} faults");
    assert_eq!(total.faults.kinds(), KINDS, "{:?}", total.faults);
    assert!(
        total.resumes > seeds
            && total.done > seeds / 3
            && total.expired > 0
            && total.refused > 0
            && total.lapses > 0
            && total.strangers > 0,
        "{total:?}"
    );
}

/// Otherwise a seed that failed could not be looked at again.
#[test]
fn a_world_is_the_same_for_the_same_seed() {
    let trace = |seed| {
        let world = World::new(scramble(seed), None).run();
        world.map(|report| (report.trace, report.faults.total(), report.bytes))
    };
    let mut all = Vec::new();
    for seed in 0..TWICE {
        let first = trace(seed);
        assert_eq!(first, trace(seed), "seed {seed}");
        all.push(first.map(|(trace, ..)| trace));
    }
    let distinct = all.iter().filter(|one| **one == all[0]).count();
    assert_eq!(distinct, 1, "other seeds, other worlds");
}

/// A checker that never complains proves nothing: each planted bug is caught, by the invariant it breaks.
#[test]
fn planted_bugs_are_caught() {
    for (bug, signs) in [
        (Bug::SwappedByte, &["I1"][..]),
        (Bug::LostFin, &["I7"]),
        (
            Bug::StaleGenerationAccepted,
            &["I3", "I5", "bytes at offset", "which is outside of"],
        ),
        (Bug::DoubleDial, &["I8"]),
        (Bug::CutTakenForEnd, &["I2"]),
        (
            Bug::ForgeryAccepted,
            &["I3: a forged RESUME", "without a reason"],
        ),
        (Bug::YoungProcessBelieved, &["I8"]),
    ] {
        let found =
            (0..BUG_SEEDS).find_map(|seed| World::new(scramble(seed), Some(bug)).run().err());
        let error = found.unwrap_or_else(|| panic!("{bug:?} was not caught in {BUG_SEEDS} worlds"));
        println!("{bug:?}: {error}");
        assert!(
            signs.iter().any(|sign| error.contains(sign)),
            "{bug:?} was caught as something else: {error}"
        );
    }
}

/// Neighbouring seeds give unlike worlds.
fn scramble(seed: u64) -> u64 {
    Random(seed).next()
}

const SEEDS: u64 = 2_000;
const LONG: u64 = 20_000;
const TWICE: u64 = 20;
/// All that [`Fault`](super::faults::Fault) names.
const KINDS: usize = 15;
const BUG_SEEDS: u64 = 200;
