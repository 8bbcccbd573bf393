//! One look at a backend.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::options::Probe;
use crate::provider::dial::dial;
use crate::quic::HostPort;

/// Answers that another one follows.
const INTERIM: [u16; 3] = [100, 102, 103];
/// Bytes within which a status line must end.
const STATUS_LINE: usize = 1024;
/// What is read of an answer so that the server can end it in peace; the verdict does not depend on it.
const MOST: usize = 64 << 10;
/// How long that may take.
const PEACE: Duration = Duration::from_millis(250);

/// What was wrong with a backend.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("{0}")]
    Dial(String),
    #[error("it reset the connection at once")]
    Reset,
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the answer cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("the answer is no HTTP: {0:?}")]
    NotHttp(String),
    #[error("status {0}")]
    Status(u16),
}

/// Looks once, within `time`.
pub(super) async fn probe(backend: &HostPort, probe: &Probe, time: Duration) -> Result<(), Failed> {
    let look = async {
        let dialled = dial(backend, backend.resolve(), time).await;
        let dialled = dialled.map_err(|(_, text)| Failed::Dial(text))?;
        if dialled.reset.is_some() {
            return Err(Failed::Reset);
        }
        let socket = dialled.socket;
        // The dialler's sockets end with RST, which servers log as a fault of the client.
        SockRef::from(&socket).set_linger(None)?;
        match probe {
            Probe::Tcp => Ok(()),
            Probe::Http(path) => get(socket, backend, path).await,
        }
    };
    tokio::time::timeout(time, look)
        .await
        .unwrap_or(Err(Failed::Late(time)))
}

async fn get(mut socket: TcpStream, backend: &HostPort, path: &str) -> Result<(), Failed> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {backend}\r\nUser-Agent: keel-check/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(STATUS_LINE);
    let mut left = MOST;
    let status = loop {
        if let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
            let status = status(&answer[..end])?;
            if !INTERIM.contains(&status) {
                break status;
            }
            // RFC 9110, section 15.2: the answer comes behind it, after an empty line.
            if let Some(rest) = behind_head(&answer) {
                answer.drain(..rest);
                continue;
            }
        } else if answer.len() >= STATUS_LINE {
            return Err(not_http(&answer));
        }
        if left == 0 {
            return Err(not_http(&answer));
        }
        let mut part = [0; 256];
        match socket.read(&mut part).await? {
            0 => return Err(not_http(&answer)),
            got => {
                left = left.saturating_sub(got);
                answer.extend_from_slice(&part[..got]);
            }
        }
    };
    // What comes of the rest changes nothing.
    let _ = tokio::time::timeout(PEACE, drain(&mut socket)).await;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(Failed::Status(status))
    }
}

async fn drain(socket: &mut TcpStream) {
    let mut part = [0; 4096];
    let mut left = MOST;
    while let Ok(got @ 1..) = socket.read(&mut part).await {
        left = left.saturating_sub(got);
        if left == 0 {
            return;
        }
    }
}

/// Where what follows a head begins, if all of it is there.
fn behind_head(answer: &[u8]) -> Option<usize> {
    let ends = |end: &[u8]| {
        let at = answer.windows(end.len()).position(|part| part == end)?;
        Some(at + end.len())
    };
    let both = [ends(b"\r\n\r\n"), ends(b"\n\n")];
    both.into_iter().flatten().min()
}

/// `HTTP/1.1 200 OK`: the number.
fn status(line: &[u8]) -> Result<u16, Failed> {
    let number = line.strip_prefix(b"HTTP/1.").and_then(|rest| {
        let [b'0'..=b'9', b' ', digits @ ..] = rest else {
            return None;
        };
        let digits = digits.get(..3)?;
        let ends = rest.get(5).is_none_or(|next| matches!(next, b' ' | b'\r'));
        if !ends || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        std::str::from_utf8(digits).ok()?.parse().ok()
    });
    number.ok_or_else(|| not_http(line))
}

fn not_http(answer: &[u8]) -> Failed {
    let shown = &answer[..answer.len().min(40)];
    Failed::NotHttp(String::from_utf8_lossy(shown).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read_strictly() {
        for (line, expected) in [
            ("HTTP/1.1 200 OK\r", Some(200)),
            ("HTTP/1.0 404\r", Some(404)),
            ("HTTP/1.1 204 ", Some(204)),
            ("HTTP/1.1 20", None),
            ("HTTP/1.1 2000", None),
            ("HTTP/1.1 +20 OK", None),
            ("HTTP/2 200", None),
            ("SSH-2.0-OpenSSH_9", None),
            ("", None),
        ] {
            assert_eq!(status(line.as_bytes()).ok(), expected, "{line}");
        }
    }
}
