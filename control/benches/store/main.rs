//! How much a store costs: ours beside bare SQLite with the same batches, and beside kine's schema and queries, on the same disk;
//! and what is left of that at the other end of the API.
//!
//! `cargo bench -p keel-control --bench store -- [--seconds N] [--rounds N] [--dir FOLDER]`. Every round measures everything once,
//! in turn, so that a machine that changes its speed changes it for all; the tables give medians over the rounds, and ratios of
//! figures of the same round.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for developers"
)]

mod api;
mod bare;
mod keel;
mod kine;
mod measure;
#[path = "../watches/server.rs"]
mod server;

use std::path::PathBuf;
use std::time::Duration;

use measure::{Figures, Load};

/// Objects that are updated.
const OBJECTS: usize = 1000;
/// Bytes of each: a Router with its status.
const BYTES: usize = 2048;
/// Writers that wait for one answer before the next write.
const WRITERS: usize = 256;
/// Watchers that follow meanwhile.
const WATCHERS: usize = 10;
/// Status updates per second that must be borne.
const RATE: u32 = 2000;
/// What a store without batches bears, to compare how fast watchers hear.
const GENTLE: u32 = 500;

/// What must be kept.
const BORNE: &str = "1. updates/s borne of 2,000/s";
const WRITE_P99: &str = "2. write p99 ms at 2,000/s";
const API_BORNE: &str = "API 1. statuses/s borne of 2,000/s";
const API_P99: &str = "API 2. status p99 ms at 2,000/s";

struct Arguments {
    seconds: u64,
    rounds: usize,
    dir: PathBuf,
}

impl Arguments {
    fn parse() -> Result<Self, String> {
        let mut arguments = Self {
            seconds: 5,
            rounds: 3,
            dir: std::env::temp_dir(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            let number = |text: String| {
                text.parse::<u64>()
                    .map_err(|error| format!("{text}: {error}"))
            };
            match word.as_str() {
                // What cargo adds.
                "--bench" => {}
                "--seconds" => arguments.seconds = number(value()?)?.max(1),
                "--rounds" => {
                    arguments.rounds = usize::try_from(number(value()?)?).unwrap_or(1).max(1);
                }
                "--dir" => arguments.dir = value()?.into(),
                _ => {
                    return Err(format!(
                        "{word}: there are --seconds N, --rounds N and --dir FOLDER"
                    ));
                }
            }
        }
        Ok(arguments)
    }
}

fn main() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    if server::is_asked_for() {
        runtime.block_on(server::serve());
        return Ok(());
    }
    let arguments = Arguments::parse()?;
    let time = Duration::from_secs(arguments.seconds);
    let mut figures = Figures::default();
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        let folder = || tempfile::tempdir_in(&arguments.dir).unwrap();
        let load = Load {
            objects: OBJECTS,
            bytes: BYTES,
            writers: WRITERS,
            watchers: WATCHERS,
            time,
        };
        runtime.block_on(async {
            bare::measure(&folder(), &load, &mut figures).await;
            bare::paced(&folder(), &load, RATE, &mut figures).await;
            keel::measure(&folder(), &load, &mut figures).await;
            kine::measure(&folder(), &load, &mut figures).await;
            api::measure(&folder(), &load, &mut figures).await;
        });
    }
    println!(
        "{OBJECTS} objects of {BYTES} bytes, {WATCHERS} watchers, {WRITERS} writers, {} rounds of {} s, on {}\n",
        arguments.rounds,
        arguments.seconds,
        arguments.dir.display()
    );
    figures.print();
    let rate = (0.99 * f64::from(RATE), f64::INFINITY);
    let bounds = [
        (BORNE, rate),
        (WRITE_P99, (0.0, 25.0)),
        (API_BORNE, rate),
        (API_P99, (0.0, 25.0)),
    ];
    let held = bounds.map(|(what, bounds)| figures.held(what, bounds));
    if held.iter().all(|held| *held) {
        Ok(())
    } else {
        Err("a figure is not what it must be".to_owned())
    }
}
