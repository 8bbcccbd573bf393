//! Tunnels side by side: the same loads over a direct TCP connection, over ours and over what people use today.
//!
//! `tests/compare` builds everything, installs the peers and runs this; `--help` says what can be chosen. Every round
//! measures every tunnel once, in turn, so that a machine that changes its speed changes it for all; the tables give
//! medians over the rounds, and ratios of figures of the same round.

mod arguments;
mod faults;
mod load;
mod machine;
mod place;
mod table;
mod tunnel;

use anyhow::Context;
use clap::Parser;

use arguments::{Arguments, Kind};
use load::Backend;
use place::Place;
use table::Figures;
use tunnel::Tunnel;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let all = if arguments.faults {
        Tunnel::FAULTED
    } else {
        Tunnel::FAST
    };
    let tunnels: Vec<Tunnel> = all
        .iter()
        .copied()
        .filter(|tunnel| arguments.wants(tunnel.name()))
        .filter(|tunnel| match tunnel.missing() {
            None => true,
            Some(why) => {
                eprintln!("SKIPPED {}: {why}", tunnel.name());
                false
            }
        })
        .collect();
    if arguments.faults {
        return faults::table(&tunnels, arguments.check);
    }
    let mut reached = true;
    for link in arguments.links() {
        let place = match Place::new(link) {
            Ok(place) => place,
            Err(error) => {
                eprintln!("SKIPPED {link}: {error:#}");
                continue;
            }
        };
        let mut figures = Figures::default();
        for round in 0..arguments.rounds {
            for tunnel in &tunnels {
                eprintln!(
                    "{link}, round {} of {}: {}",
                    round + 1,
                    arguments.rounds,
                    tunnel.name()
                );
                let measured = measure(*tunnel, &place, &arguments)
                    .with_context(|| format!("{} on {link}", tunnel.name()));
                match measured {
                    Ok(row) => figures.add(*tunnel, round, row),
                    // One that fails must not hide the others; its row shows the gap.
                    Err(error) => eprintln!("FAILED {error:#}"),
                }
            }
        }
        reached &= figures.print(link, &arguments);
    }
    anyhow::ensure!(
        reached || !arguments.check,
        "something was not reached, see the tables"
    );
    Ok(())
}

/// One tunnel, started afresh, under every load.
fn measure(tunnel: Tunnel, place: &Place, arguments: &Arguments) -> anyhow::Result<table::Row> {
    let backend = Backend::start(place)?;
    let running = tunnel.start(place, backend.address())?;
    let load = load::Load {
        place,
        entry: running.entry,
        time: arguments.time(),
    };
    load.ready().with_context(|| running.log())?;
    let mut row = table::Row::default();
    if arguments.loads(Kind::Bulk) {
        // The first connections pay for buffers and for the congestion window.
        load.bulk(load::Way::Up, 1, arguments.time() / 4)?;
        for (way, flows, name) in [
            (load::Way::Up, 1, "up x1"),
            (load::Way::Down, 1, "down x1"),
            (load::Way::Up, 8, "up x8"),
        ] {
            let before = running.cpu()?;
            let bulk = load.bulk(way, flows, arguments.time())?;
            row.set(name, bulk.rate() * 8.0 / 1e9);
            if name == "up x1" {
                let cpu = running.cpu()?.saturating_sub(before);
                row.set("cpu s/GB", cpu.as_secs_f64() / (bulk.bytes as f64 / 1e9));
            }
        }
    }
    if arguments.loads(Kind::Connections) {
        row.set("conn/s x1", load.connections(1)?);
        row.set("conn/s x64", load.connections(64)?);
    }
    if arguments.loads(Kind::Echo) {
        let echo = load.echoes()?;
        row.set("p50 us", echo.p50.as_secs_f64() * 1e6);
        row.set("p99 us", echo.p99.as_secs_f64() * 1e6);
    }
    if arguments.loads(Kind::Memory)
        && let Some(kb) = load.idle(arguments.idle, || running.resident())?
    {
        row.set("idle kB", kb);
    }
    Ok(row)
}
