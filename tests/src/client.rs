//! The application's side of a connection: connects on a host and says in one word how the connection ended.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::lab::Host;

/// How a connection ended for the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A clean end of file.
    Closed,
    /// `ECONNRESET`, or `ECONNREFUSED` at the connect.
    Reset,
    /// Nothing happened until the deadline.
    Silent,
    /// Any other error.
    Odd(ErrorKind),
}

/// What an application saw on one connection.
#[derive(Debug)]
pub struct Seen {
    /// All bytes that arrived before the end.
    pub bytes: Vec<u8>,
    /// How it ended.
    pub end: End,
    /// From the connect to the end.
    pub took: Duration,
}

/// What an application does on one connection: sends, perhaps ends its direction, reads to the end.
#[derive(Debug, Clone)]
pub struct Exchange<'a> {
    /// What is sent right after the connect.
    pub send: &'a [u8],
    /// Whether the sending direction is ended then (half-close).
    pub finish: bool,
    /// How long is read for the end.
    pub bound: Duration,
}

impl Exchange<'_> {
    /// Runs the exchange from `host` with `server`.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn run(&self, host: &Host, server: SocketAddr) -> anyhow::Result<Seen> {
        host.run(|| self.here(server))
    }

    /// Runs the exchange from this machine itself.
    #[must_use]
    pub fn here(&self, server: SocketAddr) -> Seen {
        let start = Instant::now();
        let mut bytes = Vec::new();
        let end = self.attempt(server, start + self.bound, &mut bytes);
        Seen {
            bytes,
            end,
            took: start.elapsed(),
        }
    }

    fn attempt(&self, server: SocketAddr, deadline: Instant, bytes: &mut Vec<u8>) -> End {
        let connected = TcpStream::connect_timeout(&server, self.bound);
        let mut stream = match connected {
            Ok(stream) => stream,
            Err(error) => return end_of(error.kind()),
        };
        let sent = stream.write_all(self.send).and_then(|()| {
            if self.finish {
                stream.shutdown(Shutdown::Write)
            } else {
                Ok(())
            }
        });
        if let Err(error) = sent {
            return end_of(error.kind());
        }
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
                return End::Silent;
            }
            match stream.read(&mut buffer) {
                Ok(0) => return End::Closed,
                Ok(read) => bytes.extend(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return end_of(error.kind()),
            }
        }
    }
}

fn end_of(kind: ErrorKind) -> End {
    match kind {
        ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused | ErrorKind::BrokenPipe => {
            End::Reset
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Silent,
        other => End::Odd(other),
    }
}
