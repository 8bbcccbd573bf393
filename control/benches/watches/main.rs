//! How far one APIServer's watches reach: a change of one of many Routers is told to all watches, over few connections.
//!
//! `cargo bench -p keel-control --bench watches -- [--seconds N] [--rate N] [--objects N] [--watches N] [--connections N]`. The server is
//! a process of its own, so that its memory is its own; all clients are in this one, on the same processors.
//!
//! With `--herd N` something else: so many clients, each with a connection and a watch, lose their server and come back to the next.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for developers"
)]

mod fan;
mod herd;
mod server;

use std::time::Duration;

/// What is measured, and how long.
#[derive(Clone, Copy, Debug)]
struct Load {
    time: Duration,
    /// Changes per second.
    rate: u32,
    objects: usize,
    watches: usize,
    connections: usize,
    herd: Option<usize>,
}

impl Load {
    fn parse() -> Result<Self, String> {
        let mut load = Self {
            time: Duration::from_secs(20),
            rate: 10,
            objects: 10_000,
            watches: 1000,
            connections: 50,
            herd: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            // What cargo adds.
            if word == "--bench" {
                continue;
            }
            let value = words.next().ok_or(format!("{word} needs a value"))?;
            let number: u32 = value.parse().map_err(|error| format!("{value}: {error}"))?;
            let number = number.max(1);
            match word.as_str() {
                "--seconds" => load.time = Duration::from_secs(number.into()),
                "--rate" => load.rate = number,
                "--objects" => load.objects = number as usize,
                "--watches" => load.watches = number as usize,
                "--connections" => load.connections = number as usize,
                "--herd" => load.herd = Some(number as usize),
                _ => {
                    return Err(format!(
                        "{word}: there are --seconds, --rate, --objects, --watches, --connections and --herd"
                    ));
                }
            }
        }
        Ok(load)
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
    if herd::is_asking() {
        runtime.block_on(herd::ask_for_ever());
        return Ok(());
    }
    let load = Load::parse()?;
    let held = match load.herd {
        Some(herd) => runtime.block_on(herd::measure(herd)),
        None => runtime.block_on(fan::measure(load)),
    };
    if held {
        Ok(())
    } else {
        Err("a figure is not below what it must be below".to_owned())
    }
}
