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

/// All three together are 2 x 10^7: 40 s on two cores. The long form has so many times as much.
const HEADERS: u64 = 6_000_000;
const FRAMES: u64 = 12_000_000;
const SESSIONS: u64 = 2_000_000;
const LONG: u64 = 5;

/// Whether the long form runs (`KEEL_LONG=1`). Read as everywhere in this repository: an empty value and `0` are no.
fn long() -> bool {
    std::env::var_os("KEEL_LONG").is_some_and(|value| !value.is_empty() && value != "0")
}

/// What the program may ever have used of memory, whatever it was given. Each input of a target is over before the next one
/// begins, so all that is used at once is the code, each thread's input, and what its ends may hold: 5 MiB were measured. A
/// target that kept two bytes of each input would be over it.
const MEMORY: u64 = 32 << 20;

/// Checks that bound, which is the kernel's count and not one of our own.
fn check_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let most: u64 = most
        .and_then(|most| most.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    println!("{most} KiB were used at most");
    assert!(most << 10 <= MEMORY, "{most} KiB of memory were used");
}

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
    let inputs = if long() { LONG * inputs } else { inputs };
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
    check_memory();
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
