//! The loads: bulk, new connections, small requests, idle connections; and the server that they all talk to.
//!
//! The first byte of a connection says what the server does with it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::wait;

use crate::place::Place;

/// Reads to the end, then answers with the number of bytes.
const SINK: u8 = b's';
/// Sends until the client goes.
const SOURCE: u8 = b'd';
/// Sends back what it gets.
pub(crate) const ECHO: u8 = b'e';
/// Sends one byte and closes.
const ONCE: u8 = b'o';

const BUFFER: usize = 256 << 10;
/// Size of a small request.
const SMALL: usize = 64;
/// The longest time that anything may stand still.
const STUCK: Duration = Duration::from_secs(20);

/// The server behind every tunnel.
#[derive(Debug)]
pub(crate) struct Backend {
    address: SocketAddr,
}

impl Backend {
    /// Starts it; it lives until the process ends.
    ///
    /// # Errors
    /// If there is no port.
    pub(crate) fn start(place: &Place) -> anyhow::Result<Self> {
        let listener = place.listen()?;
        let address = SocketAddr::new(place.servers_ip(), listener.local_addr()?.port());
        std::thread::Builder::new()
            .name("backend".to_owned())
            .spawn(move || accept(&listener))?;
        Ok(Self { address })
    }

    /// Where it listens, as everybody reaches it.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let serve = std::thread::Builder::new().stack_size(128 << 10);
        // Whoever is not served sees his connection closed and says so.
        let _thread = serve.spawn(move || serve_one(stream));
    }
}

/// Ends with the connection; an error means that the client went, which is how most loads end.
fn serve_one(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match kind[0] {
        ECHO => {
            let mut buffer = [0; SMALL];
            loop {
                let read = stream.read(&mut buffer)?;
                if read == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..read])?;
            }
        }
        ONCE => stream.write_all(&kind),
        SINK => {
            let mut buffer = vec![0; BUFFER];
            let mut all = 0_u64;
            loop {
                let read = stream.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                all += read as u64;
            }
            stream.write_all(&all.to_be_bytes())
        }
        _ => {
            let buffer = vec![0; BUFFER];
            loop {
                stream.write_all(&buffer)?;
            }
        }
    }
}

/// Which way the bytes of a bulk load go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the server.
    Up,
    /// From the server.
    Down,
}

/// What a bulk load moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bulk {
    pub(crate) bytes: u64,
    time: Duration,
}

impl Bulk {
    /// Bytes per second.
    pub(crate) fn rate(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64()
    }
}

/// How long small requests took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Latency {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Loads on one entry of a tunnel.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) place: &'a Place,
    /// What the applications connect to.
    pub(crate) entry: SocketAddr,
    /// How long each load lasts.
    pub(crate) time: Duration,
}

impl Load<'_> {
    /// Waits until a connection gets through the whole tunnel.
    ///
    /// # Errors
    /// If none does.
    pub(crate) fn ready(&self) -> anyhow::Result<()> {
        self.place.among_apps(|| {
            wait::until_some("a connection gets through", wait::SOON, || {
                once(self.entry).map_err(|error| error.to_string())
            })
        })?
    }

    /// Moves bytes over `flows` connections at once.
    ///
    /// # Errors
    /// If a connection breaks.
    pub(crate) fn bulk(&self, way: Way, flows: usize, time: Duration) -> anyhow::Result<Bulk> {
        let begin = Instant::now();
        let moved = self.many(flows, || match way {
            Way::Up => push(self.entry, time),
            Way::Down => pull(self.entry, time),
        })?;
        Ok(Bulk {
            bytes: moved.into_iter().sum(),
            time: begin.elapsed(),
        })
    }

    /// New connections per second, each with one byte there and one back, `at_once` at a time.
    ///
    /// # Errors
    /// If a connection breaks.
    pub(crate) fn connections(&self, at_once: usize) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let made = self.many(at_once, || {
            let mut made = 0_u64;
            while begin.elapsed() < self.time {
                once(self.entry)?;
                made += 1;
            }
            Ok(made)
        })?;
        Ok(made.into_iter().sum::<u64>() as f64 / begin.elapsed().as_secs_f64())
    }

    /// Small requests over one connection, one after the other.
    ///
    /// # Errors
    /// If the connection breaks.
    pub(crate) fn echoes(&self) -> anyhow::Result<Latency> {
        let mut all = self.many(1, || {
            let mut stream = open(self.entry, ECHO)?;
            let mut buffer = [0; SMALL];
            let mut took = Vec::new();
            let begin = Instant::now();
            while begin.elapsed() < self.time {
                let asked = Instant::now();
                stream.write_all(&buffer)?;
                stream.read_exact(&mut buffer)?;
                took.push(asked.elapsed());
            }
            Ok(took)
        })?;
        let mut took = all.pop().context("one client, one list")?;
        took.sort_unstable();
        anyhow::ensure!(!took.is_empty(), "not one answer");
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        Ok(Latency {
            p50: at(50),
            p99: at(99),
        })
    }

    /// Memory that one idle connection costs the tunnel, in kB; none for a tunnel without a process.
    ///
    /// # Errors
    /// If a connection cannot be made.
    pub(crate) fn idle(
        &self,
        connections: usize,
        resident: impl Fn() -> anyhow::Result<Option<u64>>,
    ) -> anyhow::Result<Option<f64>> {
        let open_all = || -> anyhow::Result<Vec<TcpStream>> {
            let mut streams = Vec::new();
            for _ in 0..connections {
                let mut stream = open(self.entry, ECHO)?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
                streams.push(stream);
            }
            Ok(streams)
        };
        // What the first ones need besides is not theirs alone: tables and pools stay.
        drop(self.place.among_apps(|| {
            (0..connections.min(64))
                .map(|_| open(self.entry, ECHO))
                .collect::<Result<Vec<_>, _>>()
        })??);
        wait::pause(Duration::from_secs(1));
        let Some(before) = resident()? else {
            return Ok(None);
        };
        let streams = self.place.among_apps(open_all)??;
        wait::pause(Duration::from_secs(2));
        let after = resident()?.unwrap_or(before);
        drop(streams);
        Ok(Some(
            after.saturating_sub(before) as f64 * 1.024 / connections as f64,
        ))
    }

    /// Runs `work` on `count` threads of the applications' host.
    fn many<T: Send>(
        &self,
        count: usize,
        work: impl Fn() -> anyhow::Result<T> + Sync,
    ) -> anyhow::Result<Vec<T>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count)
                .map(|_| scope.spawn(|| self.place.among_apps(&work)?))
                .collect();
            let outcome = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<T>>| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))?
            };
            threads.into_iter().map(outcome).collect()
        })
    }
}

/// A connection on which the server does `kind`.
pub(crate) fn open(entry: SocketAddr, kind: u8) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(entry)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STUCK))?;
    stream.set_write_timeout(Some(STUCK))?;
    stream.write_all(&[kind])?;
    Ok(stream)
}

/// One connection that carries a byte each way; the server closes first.
fn once(entry: SocketAddr) -> anyhow::Result<()> {
    let mut stream = open(entry, ONCE)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    anyhow::ensure!(answer == [ONCE], "{answer:?} came back");
    Ok(())
}

/// Sends for so long; how much the server says it got.
fn push(entry: SocketAddr, time: Duration) -> anyhow::Result<u64> {
    let mut stream = open(entry, SINK)?;
    let buffer = vec![0; BUFFER];
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < time {
        stream.write_all(&buffer)?;
        sent += buffer.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut got = [0; 8];
    stream.read_exact(&mut got)?;
    let got = u64::from_be_bytes(got);
    anyhow::ensure!(got == sent, "{sent} bytes were sent and {got} arrived");
    Ok(got)
}

/// Receives for so long.
fn pull(entry: SocketAddr, time: Duration) -> anyhow::Result<u64> {
    let mut stream = open(entry, SOURCE)?;
    let mut buffer = vec![0; BUFFER];
    let begin = Instant::now();
    let mut got = 0;
    while begin.elapsed() < time {
        let read = stream.read(&mut buffer)?;
        anyhow::ensure!(read > 0, "the server ended");
        got += read as u64;
    }
    Ok(got)
}
