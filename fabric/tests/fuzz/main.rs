//! What anybody may send: targets that take any bytes, and a seeded mutator that knows the protocol.
//!
//! The targets are plain functions of bytes ([`header::target`], [`frames::target`], [`session::target`]), so that any
//! fuzzer can drive them. Each says what must hold beyond "no panic".

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that panics has failed, and one that counts says so"
)]

mod corpus;
mod frames;
mod header;
mod mutate;
mod session;

use std::time::Instant;

use mutate::{Mutator, Random};

/// All three together are 2 x 10^7; the short form runs a tenth of it.
const HEADERS: u64 = 6_000_000;
const FRAMES: u64 = 12_000_000;
const SESSIONS: u64 = 2_000_000;
const SHORT: u64 = 10;

/// Says which input it was if the target panics.
struct Shown<'a> {
    bytes: &'a [u8],
    name: &'a str,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self
                .bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            eprintln!("{}: this input did it: {hex}", self.name);
        }
    }
}

/// Runs `target` with so many inputs on two threads: one tries the same inputs every time, the other new ones, or those of
/// `$KEEL_SEED`.
fn drive(
    name: &str,
    inputs: u64,
    make: impl Fn(&mut Mutator) -> Vec<u8> + Sync,
    target: impl Fn(&[u8]) + Sync,
) {
    let long = std::env::var_os("KEEL_LONG").is_some();
    let inputs = if long { inputs } else { inputs / SHORT };
    let fresh = std::env::var("KEEL_SEED").map(|seed| seed.parse());
    let fresh: u64 = fresh.map_or_else(|_| rand::random(), Result::unwrap);
    println!("{name}: KEEL_SEED={fresh}");
    let began = Instant::now();
    std::thread::scope(|scope| {
        for seed in [0, fresh] {
            let (make, target) = (&make, &target);
            scope.spawn(move || {
                let mut mutator = Mutator::new(Random::new(seed));
                for _ in 0..inputs / 2 {
                    let bytes = make(&mut mutator);
                    let shown = Shown {
                        bytes: &bytes,
                        name,
                    };
                    target(shown.bytes);
                }
            });
        }
    });
    let took = began.elapsed();
    println!(
        "{name}: {inputs} inputs in {took:?}, {:.1} us each and thread",
        took.as_secs_f64() * 2e6 / inputs as f64
    );
}

#[test]
fn headers() {
    drive("headers", HEADERS, Mutator::header, header::target);
}

#[test]
fn frames_and_the_machines_that_take_them() {
    drive("frames", FRAMES, Mutator::frames, frames::target);
}

#[test]
fn pairs_of_ends() {
    drive(
        "session pairs",
        SESSIONS,
        Mutator::operations,
        session::target,
    );
}

/// Inputs that once did harm, and the corpus as it is.
#[test]
fn the_corpus_passes() {
    for (_, bytes) in corpus::golden() {
        header::target(&bytes);
        frames::target(&bytes);
        session::target(&bytes);
    }
}
