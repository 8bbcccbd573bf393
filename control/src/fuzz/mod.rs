//! What anybody may send to the control plane: seeded makers of nearly right input, for targets that lie beside what they try.
//!
//! The short form runs in every test run, `KEEL_LONG=1` twenty times as much. An input that makes its target panic is printed.

mod json;
mod text;

use std::time::Instant;

pub(crate) use json::Json;
pub(crate) use text::hurt;

/// The long form runs so many times as much.
const LONG: u64 = 20;

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or_default()
    }

    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub(crate) fn word(&mut self, all: &[&'static str]) -> &'static str {
        all[self.below(all.len())]
    }

    pub(crate) fn text(&mut self, all: &[&str]) -> String {
        (*self.pick(all)).to_owned()
    }
}

/// Says which input it was if the target panics.
struct Shown<'a, T: std::fmt::Debug> {
    name: &'a str,
    seed: u64,
    input: &'a T,
}

impl<T: std::fmt::Debug> Drop for Shown<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let input: String = format!("{:?}", self.input).chars().take(20_000).collect();
            eprintln!(
                "{}: seed {}: this input did it: {input}",
                self.name, self.seed
            );
        }
    }
}

/// Runs `target` with so many inputs on two threads, each with a runtime and a `start` of its own: one tries the same inputs every time,
/// the other new ones, or those from `$KEEL_SEED` on.
pub(crate) fn drive<S, T: std::fmt::Debug>(
    name: &str,
    inputs: u64,
    start: impl AsyncFn() -> S + Sync,
    make: impl Fn(&mut Random) -> T + Sync,
    target: impl AsyncFn(&S, &T) + Sync,
) {
    let long = std::env::var_os("KEEL_LONG").is_some_and(|value| value != "0");
    let inputs = if long { inputs * LONG } else { inputs };
    let fresh = std::env::var("KEEL_SEED").map(|seed| seed.parse::<u64>());
    let fresh = fresh.map_or_else(|_| rand::random(), Result::unwrap);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for first in [0, fresh] {
            let (start, make, target) = (&start, &make, &target);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let subject = start().await;
                    for round in 0..inputs / 2 {
                        let seed = first.wrapping_add(round);
                        let input = make(&mut Random::new(seed));
                        let shown = Shown {
                            name,
                            seed,
                            input: &input,
                        };
                        target(&subject, shown.input).await;
                    }
                });
            });
        }
    });
    let took = began.elapsed();
    println!("{name}: {inputs} inputs, half from seed 0 on and half from {fresh} on, in {took:?}");
}
