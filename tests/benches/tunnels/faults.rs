//! What becomes of a connection through a tunnel when something breaks below it.
//!
//! A client sends a numbered message twenty times a second and expects it back. The server's side dials out from behind
//! a NAT; the relay is public. stunnel's server cannot dial out: it is public, and the client is behind the NAT. A relay that is itself an end of the connection, as those of the peers are, takes the
//! connection with it when it dies: that is the point of the comparison.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::wait;

use crate::load::{self, Backend, Load};
use crate::place::Place;
use crate::tunnel::{Running, Tunnel};

/// How often a message is sent.
const EVERY: Duration = Duration::from_millis(50);
/// How long the connection runs before anything breaks, and how long it is watched after everything is whole again.
const CALM: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(20);

/// What breaks.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The relay is killed and is back after a second; stunnel's is its server.
    RelayKilled,
    /// The side behind the NAT loses its cable for ten seconds.
    Outage,
    /// The NAT gives every flow another outside port.
    Rebinding,
}

impl Fault {
    const ALL: [Self; 3] = [Self::RelayKilled, Self::Outage, Self::Rebinding];

    const fn name(self) -> &'static str {
        match self {
            Self::RelayKilled => "relay killed, back after 1 s",
            Self::Outage => "no network for 10 s",
            Self::Rebinding => "NAT changes its ports",
        }
    }

    fn strike(self, place: &Place, running: &mut Running) -> anyhow::Result<()> {
        match self {
            Self::RelayKilled => {
                running.kill_relay()?;
                wait::pause(Duration::from_secs(1));
                running.relay_again()
            }
            Self::Outage => place.outage(Duration::from_secs(10)),
            Self::Rebinding => place.rebind(),
        }
    }
}

/// What the client saw.
#[derive(Debug)]
struct Seen {
    end: End,
    /// The longest time between two answers.
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The connection went on, every byte right.
    Alive,
    Reset,
    /// An end of file that the server did not send.
    Closed,
    /// No answer until the end of the watch.
    Silent,
    /// Another byte than the one that was sent.
    Wrong,
    Odd(ErrorKind),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            End::Alive => write!(
                f,
                "goes on, longest pause {:.1} s",
                self.pause.as_secs_f64()
            ),
            End::Reset => write!(f, "reset"),
            End::Closed => write!(f, "ends as if the server had closed it"),
            End::Silent => write!(f, "hangs for more than {:.0} s", self.pause.as_secs_f64()),
            End::Wrong => write!(f, "WRONG BYTES"),
            End::Odd(kind) => write!(f, "{kind:?}"),
        }
    }
}

/// Prints one table: tunnels down, faults across.
///
/// # Errors
/// If a connection through ours does not survive one of them, or that could not be seen, and `check` asks for that.
#[allow(
    clippy::print_stdout,
    reason = "the table is the product of this program"
)]
pub(crate) fn table(tunnels: &[Tunnel], check: bool) -> anyhow::Result<()> {
    println!("\n### What becomes of a connection\n");
    let names: Vec<_> = Fault::ALL.iter().map(|fault| fault.name()).collect();
    println!("| tunnel | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    let mut missed = Vec::new();
    for tunnel in tunnels {
        let cells: Vec<_> = Fault::ALL
            .iter()
            .map(|fault| {
                eprintln!("{}: {}", tunnel.name(), fault.name());
                let seen = watch(*tunnel, *fault);
                let goes_on = seen.as_ref().is_ok_and(|seen| seen.end == End::Alive);
                if matches!(tunnel, Tunnel::KeelSidecars) && !goes_on {
                    missed.push(format!("{}: {}", tunnel.name(), fault.name()));
                }
                match seen {
                    Ok(seen) => seen.to_string(),
                    Err(error) => {
                        eprintln!("FAILED {error:#}");
                        "-".to_owned()
                    }
                }
            })
            .collect();
        let place = if tunnel.reaches_out() {
            ""
        } else {
            " (server public, client behind the NAT)"
        };
        println!("| {}{place} | {} |", tunnel.name(), cells.join(" | "));
    }
    anyhow::ensure!(
        !check || missed.is_empty(),
        "a connection through ours does not go on: {}",
        missed.join(", ")
    );
    Ok(())
}

fn watch(tunnel: Tunnel, fault: Fault) -> anyhow::Result<Seen> {
    let place = Place::behind_nat(tunnel.reaches_out())?;
    let backend = Backend::start(&place)?;
    let mut running = tunnel.start(&place, backend.address())?;
    let entry = running.entry;
    let load = Load {
        place: &place,
        entry,
        time: CALM,
    };
    load.ready().with_context(|| running.log())?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| place.among_apps(|| converse(entry, &over)));
        wait::pause(CALM);
        let struck = fault.strike(&place, &mut running);
        if struck.is_ok() {
            wait::pause(AFTER);
        }
        over.store(true, Ordering::Release);
        let seen = client
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?;
        struck?;
        seen?
    })
}

/// Sends and compares until told to stop or until the connection ends.
fn converse(entry: SocketAddr, over: &AtomicBool) -> anyhow::Result<Seen> {
    let mut stream = load::open(entry, load::ECHO)?;
    stream.set_read_timeout(Some(EVERY))?;
    let mut last = Instant::now();
    let mut pause = Duration::ZERO;
    let mut number = 0_u64;
    let end = loop {
        match exchange(&mut stream, number, over) {
            Ok(true) => {
                pause = pause.max(last.elapsed());
                last = Instant::now();
                number += 1;
            }
            Ok(false) => {
                break if last.elapsed() > AFTER / 2 {
                    End::Silent
                } else {
                    End::Alive
                };
            }
            Err(end) => break end,
        }
        if over.load(Ordering::Acquire) {
            break End::Alive;
        }
        wait::pause(EVERY);
    };
    Ok(Seen {
        end,
        pause: pause.max(last.elapsed()),
    })
}

/// One message there and back; false if told to stop before.
fn exchange(stream: &mut TcpStream, number: u64, over: &AtomicBool) -> Result<bool, End> {
    let ended = |error: std::io::Error| match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Reset,
        other => End::Odd(other),
    };
    stream.write_all(&number.to_be_bytes()).map_err(ended)?;
    let mut answer = [0; 8];
    let mut got = 0;
    while got < answer.len() {
        match stream.read(&mut answer[got..]) {
            Ok(0) => return Err(End::Closed),
            Ok(count) => got += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if over.load(Ordering::Acquire) {
                    return Ok(false);
                }
            }
            Err(error) => return Err(ended(error)),
        }
    }
    if answer == number.to_be_bytes() {
        Ok(true)
    } else {
        Err(End::Wrong)
    }
}
