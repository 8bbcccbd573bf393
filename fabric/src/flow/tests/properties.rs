use super::bugs::Bug;
use super::legs::Random;
use super::world::{Report, World};

/// Every failing seed is printed; a world is the same for the same seed.
#[test]
fn random_worlds_keep_all_invariants() {
    let mut total = Report::default();
    let mut failed = Vec::new();
    for seed in 0..SEEDS {
        match World::new(scramble(seed), None).run() {
            Ok(report) => {
                total.breaks += report.breaks;
                total.resumes += report.resumes;
                total.done += report.done;
                total.expired += report.expired;
                total.refused += report.refused;
                total.lapses += report.lapses;
                total.bytes += report.bytes;
            }
            Err(error) => failed.push(format!("seed {seed}: {error}")),
        }
        if failed.len() >= 5 {
            break;
        }
    }
    println!("{SEEDS} worlds: {total:?}");
    assert!(
        failed.is_empty(),
        "{SEEDS} worlds, the first that failed:\n{}",
        failed.join("\n")
    );
    // The worlds must not become peaceful unnoticed.
    assert!(
        total.resumes > SEEDS
            && total.done > SEEDS / 2
            && total.expired > 0
            && total.refused > 0
            && total.lapses > 0,
        "{total:?}"
    );
}

/// A checker that never complains proves nothing: each planted bug is caught, by the invariant it breaks.
#[test]
fn planted_bugs_are_caught() {
    for (bug, signs) in [
        (Bug::SwappedByte, &["I1"][..]),
        (Bug::LostFin, &["I7"]),
        (
            Bug::StaleGenerationAccepted,
            &["expected", "I3", "acknowledged", "unexpected", "I5"],
        ),
        (Bug::DoubleDial, &["I8"]),
        (Bug::CutTakenForEnd, &["I2"]),
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

const SEEDS: u64 = 600;
const BUG_SEEDS: u64 = 200;
