//! TCP servers that behave, each in its own way, badly or well: what stands behind a published service in a test.

mod bulk;
mod dns;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt};

pub use bulk::{Digest, random_file};
pub use dns::FakeUpstream;

use crate::lab::Host;

/// How a backend treats a connection.
#[derive(Debug, Clone)]
pub enum Manner {
    /// Sends back what it gets and closes after the peer did.
    Echo,
    /// Speaks first: sends these bytes at once, then behaves as an echo.
    Banner(&'static [u8]),
    /// Reads and never answers a byte.
    Mute,
    /// Reads one byte and answers with an RST.
    Reset,
    /// Sends this many bytes (the pattern of [`pattern`]) and then an RST, without waiting for anything.
    SendThenReset(usize),
    /// Reads until the peer ends its direction, waits a little, then answers with this many bytes of [`pattern`]:
    /// whoever closes both directions at the first end of file loses the answer.
    AnswerAfterEnd(usize),
    /// HTTP/1.1: `GET` sends this file, `PUT` answers with the SHA-256 of the body.
    Http(std::path::PathBuf),
}

/// A running backend. Dropping it ends its threads and connections.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    seen: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Starts one on loopback of `host`; port 0 takes a free one.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn on(host: &Host, port: u16, manner: Manner) -> anyhow::Result<Self> {
        let listener =
            host.run(|| TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))??;
        Self::serve(listener, manner)
    }

    /// Starts one on all addresses of `host`.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn anywhere(host: &Host, port: u16, manner: Manner) -> anyhow::Result<Self> {
        Self::serve(
            host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??,
            manner,
        )
    }

    /// Starts one on loopback of this machine, on a free port.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn here(manner: Manner) -> anyhow::Result<Self> {
        Self::serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, manner)
    }

    fn serve(listener: TcpListener, manner: Manner) -> anyhow::Result<Self> {
        let (listener, seen, open) = (Arc::new(listener), Arc::default(), Arc::default());
        let address = listener.local_addr()?;
        let thread = std::thread::Builder::new()
            .name("backend".to_owned())
            .spawn({
                let (listener, seen, open) =
                    (Arc::clone(&listener), Arc::clone(&seen), Arc::clone(&open));
                move || accept(&listener, &manner, &seen, &open)
            })?;
        Ok(Self {
            address,
            listener,
            seen,
            open,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.seen.load(Ordering::Acquire)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // On Linux this makes a blocked accept return; no address of the namespace has to be dialled.
        let _closed =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        for stream in self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            let _gone = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn accept(
    listener: &TcpListener,
    manner: &Manner,
    seen: &AtomicUsize,
    open: &Mutex<Vec<TcpStream>>,
) {
    // The scope joins the connections' threads; `Backend::drop` makes them end.
    std::thread::scope(|scope| {
        while let Ok((stream, _)) = listener.accept() {
            seen.fetch_add(1, Ordering::AcqRel);
            let resets = matches!(manner, Manner::Reset | Manner::SendThenReset(_));
            // A socket that has a second handle is not closed by dropping the first: no RST would leave.
            if let Some(again) = stream.try_clone().ok().filter(|_| !resets) {
                let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                // Bounded by what is alive: a socket that its peer closed and that we left says so here.
                open.retain(|stream| stream.peer_addr().is_ok());
                open.push(again);
            }
            scope.spawn(move || {
                // The peer of a backend may do anything; what it did is seen at the other end.
                let _ended = treat(&stream, manner);
                if !resets {
                    let _gone = stream.shutdown(Shutdown::Both);
                }
            });
        }
    });
}

fn treat(mut stream: &TcpStream, manner: &Manner) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    match manner {
        Manner::Echo => echo(stream),
        Manner::Banner(greeting) => {
            stream.write_all(greeting)?;
            echo(stream)
        }
        Manner::Mute => {
            std::io::copy(&mut stream, &mut std::io::sink())?;
            Ok(())
        }
        Manner::Reset => {
            stream.read_exact(&mut [0])?;
            reset(stream)
        }
        Manner::SendThenReset(length) => {
            stream.write_all(&pattern(*length))?;
            // An RST throws away what the peer's kernel has not got yet; what it has got stays readable.
            crate::wait::pause(Duration::from_millis(300));
            reset(stream)
        }
        Manner::AnswerAfterEnd(length) => {
            std::io::copy(&mut stream, &mut std::io::sink())?;
            crate::wait::pause(Duration::from_millis(500));
            stream.write_all(&pattern(*length))?;
            Ok(stream.shutdown(Shutdown::Write)?)
        }
        Manner::Http(file) => bulk::serve_http(stream, file),
    }
}

fn echo(mut stream: &TcpStream) -> anyhow::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(stream.shutdown(Shutdown::Write)?);
        }
        stream.write_all(&buffer[..read])?;
    }
}

/// Makes the close of this socket an RST.
fn reset(stream: &TcpStream) -> anyhow::Result<()> {
    setsockopt(
        stream,
        sockopt::Linger,
        &nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .context("SO_LINGER")?;
    Ok(())
}

/// Bytes that tell their own place: a lost, repeated or reordered block shows.
#[must_use]
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length.div_ceil(8))
        .flat_map(|word| {
            (word as u64)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .to_be_bytes()
        })
        .take(length)
        .collect()
}
