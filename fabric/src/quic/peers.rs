//! The peers of an endpoint, kept on disk, so that its successor can tell them at once that the connections are gone.
//!
//! A stateless reset answers a packet, so a peer that says nothing would learn of a restart at its next keep-alive only,
//! and one that waits for an answer at its next repetition, which comes later and later. A starting endpoint therefore
//! sends resets unasked: for each peer address, with the token of the connection id that the peer used last.
//!
//! The file is a hint. It is not fsynced; what is missing, old or wrong in it costs nothing but the hint.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::future::poll_fn;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use quinn::udp::Transmit;
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator as _};
use tokio::sync::Notify;

use super::QuicKeys;
use super::cid::{CID_LEN, KeyedCids};

/// Addresses that are kept at most.
const MAX: usize = 16_384;
/// Addresses that are kept of one connection id, the last ones: whoever has one could invent any number.
const MAX_OF_ID: usize = 8;
/// Bytes of a file that are read at most; a line is shorter than 128 bytes.
const MAX_FILE: u64 = MAX as u64 * 128;
/// A file of that age is of no use to anybody: every connection has long timed out.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// A peer that was silent for so long is gone: keep-alives are more frequent.
const SILENT: Duration = Duration::from_secs(60);
/// How long changes are gathered before the file is written.
const GATHER: Duration = Duration::from_millis(200);
/// Least time between two writes: flash wears out.
const REST: Duration = Duration::from_secs(1);
/// First line of the file; the seconds since 1970 follow.
const TITLE: &str = "keel quic peers 1 ";

type Cid = [u8; CID_LEN];

/// What a reset needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    cid: Cid,
    from: From,
}

/// Where packets with a connection id come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct From {
    addr: SocketAddr,
    /// The address of ours that the peer uses.
    local: Option<IpAddr>,
}

/// From where each connection id came, and when last.
#[derive(Default)]
struct Seen {
    ids: HashMap<Cid, Vec<(From, Instant)>>,
    /// Addresses of all ids.
    count: usize,
    swept: Option<Instant>,
}

impl Seen {
    fn sweep(&mut self, now: Instant) {
        self.ids.retain(|_, peers| {
            peers.retain(|(_, last)| now.duration_since(*last) < SILENT);
            !peers.is_empty()
        });
        self.count = self.ids.values().map(Vec::len).sum();
        self.swept = Some(now);
    }

    /// Whether there is room for one more. Looks for silent ones only now and then: it takes a while.
    fn has_room(&mut self, now: Instant) -> bool {
        let due = self
            .swept
            .is_none_or(|swept| now.duration_since(swept) >= REST);
        if self.count >= MAX && due {
            self.sweep(now);
        }
        self.count < MAX
    }

    /// Notes the time of a peer that is known.
    fn renew(&mut self, cid: &Cid, from: From, now: Instant) -> bool {
        let mut peers = self.ids.get_mut(cid).into_iter().flatten();
        let known = peers.find(|(known, _)| *known == from);
        known.map(|(_, last)| *last = now).is_some()
    }

    /// Takes one more; whether there are more now, which is worth a new file.
    fn add(&mut self, cid: Cid, from: From, now: Instant) -> bool {
        if let Some(peers) = self.ids.get_mut(&cid)
            && peers.len() >= MAX_OF_ID
            && let Some(oldest) = peers.iter_mut().min_by_key(|(_, last)| *last)
        {
            *oldest = (from, now);
            return false;
        }
        if !self.has_room(now) {
            return false;
        }
        self.ids.entry(cid).or_default().push((from, now));
        self.count += 1;
        true
    }
}

/// The peers of the sockets of one endpoint.
pub(super) struct Peers {
    path: PathBuf,
    keys: QuicKeys,
    cids: KeyedCids,
    seen: Mutex<Seen>,
    changed: Notify,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("path", &self.path).finish()
    }
}

impl Peers {
    pub(super) fn new(path: PathBuf, keys: &QuicKeys) -> Arc<Self> {
        Arc::new(Self {
            path,
            keys: keys.clone(),
            cids: keys.cids(0),
            seen: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing is left half changed here, so a panic elsewhere does not spoil it.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A packet came in. Only those with an id that we gave out count.
    pub(super) fn note(
        &self,
        packet: &[u8],
        addr: SocketAddr,
        local: Option<IpAddr>,
        now: Instant,
    ) {
        const LONG_HEADER: u8 = 0x80;
        let Some((first, rest)) = packet.split_first() else {
            return;
        };
        let Some(cid) = rest.first_chunk::<CID_LEN>() else {
            return;
        };
        if first & LONG_HEADER != 0 {
            return;
        }
        let from = From { addr, local };
        let mut seen = self.seen();
        if seen.renew(cid, from, now) || self.cids.validate(&ConnectionId::new(cid)).is_err() {
            return;
        }
        if seen.add(*cid, from, now) {
            drop(seen);
            self.changed.notify_one();
        }
    }

    /// Tells the peers of the process before that their connections are gone, then keeps the file current. Ends never.
    pub(super) async fn keep(self: Arc<Self>, sockets: Vec<Arc<dyn AsyncUdpSocket>>) {
        self.reset_former(sockets).await;
        loop {
            self.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            let (path, text) = (self.path.clone(), self.text());
            let written = tokio::task::spawn_blocking(move || write(&path, &text)).await;
            if let Ok(Err(error)) = written {
                tracing::debug!(path = %self.path.display(), %error, "the peers cannot be kept for the next start");
            }
            tokio::time::sleep(REST).await;
        }
    }

    async fn reset_former(&self, sockets: Vec<Arc<dyn AsyncUdpSocket>>) {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let peers = read.unwrap_or_default();
        for socket in sockets {
            let Ok(own) = socket.local_addr() else {
                continue;
            };
            let mut poller = Arc::clone(&socket).create_io_poller();
            for Peer { cid, from } in &peers {
                if from.addr.is_ipv4() != own.is_ipv4() {
                    continue;
                }
                let reset = self.reset(cid);
                let transmit = Transmit {
                    destination: from.addr,
                    ecn: None,
                    contents: &reset,
                    segment_size: None,
                    src_ip: from.local.filter(|_| own.ip().is_unspecified()),
                };
                while let Err(error) = socket.try_send(&transmit)
                    && error.kind() == io::ErrorKind::WouldBlock
                {
                    if poll_fn(|cx| poller.as_mut().poll_writable(cx))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            }
        }
        if !peers.is_empty() {
            tracing::info!(
                peers = peers.len(),
                "told the peers of before that their connections are gone"
            );
        }
    }

    /// A stateless reset for a connection id: what looks like a short header, noise, and the token.
    fn reset(&self, cid: &Cid) -> Vec<u8> {
        const NOISE: usize = 25;
        const TOKEN: usize = 16;
        let key = self.keys.reset_key();
        let mut signature = vec![0; key.signature_len()];
        key.sign(cid, &mut signature);
        let mut packet = vec![0; NOISE];
        rand::fill(&mut packet[..]);
        packet[0] = 0x40 | packet[0] >> 2;
        packet.extend_from_slice(&signature[..TOKEN]);
        packet
    }

    fn text(&self) -> String {
        let now = Instant::now();
        let mut seen = self.seen();
        seen.sweep(now);
        let mut text = String::with_capacity(64 * (seen.count + 1));
        text.push_str(TITLE);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", unix_seconds());
        let of_id = |(cid, peers)| std::iter::repeat(cid).zip(peers);
        for (cid, (From { addr, local }, _)) in seen.ids.iter().flat_map(of_id) {
            let _ = write!(text, "{addr} ");
            for byte in cid {
                let _ = write!(text, "{byte:02x}");
            }
            if let Some(local) = local {
                let _ = write!(text, " {local}");
            }
            text.push('\n');
        }
        text
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn read(path: &Path) -> Vec<Peer> {
    let mut text = String::new();
    let all = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    match all {
        Ok(_) => parse(&text, unix_seconds()),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!(path = %path.display(), %error, "the peers of before cannot be read");
            }
            Vec::new()
        }
    }
}

/// What can be understood of a file, unless it is too old.
fn parse(text: &str, now: u64) -> Vec<Peer> {
    let mut lines = text.lines();
    let title = lines.next().and_then(|line| line.strip_prefix(TITLE));
    let written = title.and_then(|written| written.parse::<u64>().ok());
    // A clock that was set back makes a file from the future; it is as good as one of now.
    match written {
        Some(written) if now.saturating_sub(written) <= MAX_AGE.as_secs() => {}
        _ => return Vec::new(),
    }
    lines.take(MAX).filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Peer> {
    let mut words = line.split(' ');
    let (addr, hex, local) = (words.next()?, words.next()?, words.next());
    let mut cid = [0; CID_LEN];
    if hex.len() != 2 * CID_LEN || !hex.is_ascii() {
        return None;
    }
    for (byte, digits) in cid.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    let from = From {
        addr: addr.parse().ok()?,
        local: local.map(str::parse).transpose().ok()?,
    };
    Some(Peer { cid, from })
}

/// Writes beside and renames, so that no half file is read.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Arc<Peers> {
        Peers::new(PathBuf::from("/nowhere"), &QuicKeys::ephemeral())
    }

    fn packet(cid: &[u8]) -> Vec<u8> {
        [&[0x43], cid, &[0; 20]].concat()
    }

    #[test]
    fn what_is_kept_is_what_came_with_an_id_of_ours() {
        let peers = peers();
        let mut cids = peers.cids.clone();
        let (cid, now) = (cids.generate_cid(), Instant::now());
        let from = |text: &str| text.parse::<SocketAddr>().unwrap();
        let local = Some("192.0.2.1".parse().unwrap());
        peers.note(&packet(&cid), from("198.51.100.7:4711"), local, now);
        peers.note(&packet(&cid), from("[2001:db8::7]:4711"), None, now);
        peers.note(&packet(&[7; CID_LEN]), from("198.51.100.8:1"), None, now);
        peers.note(&[0xc3; 60], from("198.51.100.8:2"), None, now);
        for short in [0, 1, CID_LEN] {
            peers.note(&[0x40; CID_LEN][..short], from("198.51.100.8:3"), None, now);
        }
        let text = peers.text();
        let mut read = parse(&text, unix_seconds());
        read.sort_by_key(|peer| peer.from.addr);
        assert_eq!(read.len(), 2, "{text}");
        assert_eq!(
            (read[0].from.addr, read[0].from.local),
            (from("198.51.100.7:4711"), local)
        );
        assert_eq!(read[1].from.addr, from("[2001:db8::7]:4711"));
        assert!(read.iter().all(|peer| peer.cid[..] == cid[..]));
    }

    #[test]
    fn an_old_file_and_lines_without_sense_are_passed_over() {
        let good = "192.0.2.1:5 00112233445566778899";
        let file = |title: &str| {
            format!("{title}\nnonsense\n{good}\n192.0.2.1:5 zz112233445566778899\n{good} x\n")
        };
        let at = |seconds: u64| file(&format!("{TITLE}{seconds}"));
        assert_eq!(parse(&at(1000), 1000 + 24 * 3600).len(), 1);
        assert_eq!(parse(&at(1000), 900).len(), 1);
        assert_eq!(parse(&at(1000), 1001 + 24 * 3600), []);
        assert_eq!(parse(&file("something else"), 1000), []);
        assert_eq!(parse("", 1000), []);
    }

    #[test]
    fn peers_are_bounded_and_silent_ones_make_room() {
        let peers = peers();
        let mut cids = peers.cids.clone();
        let begun = Instant::now();
        let addr = "192.0.2.1:5".parse().unwrap();
        for _ in 0..MAX + 10 {
            peers.note(&packet(&cids.generate_cid()), addr, None, begun);
        }
        assert_eq!(peers.seen().count, MAX);
        let later = begun + SILENT;
        peers.note(&packet(&cids.generate_cid()), addr, None, later);
        assert_eq!(peers.seen().count, 1);
    }
    #[test]
    fn one_id_has_the_last_few_of_its_addresses() {
        let peers = peers();
        let mut cids = peers.cids.clone();
        let (invented, other) = (cids.generate_cid(), cids.generate_cid());
        let begun = Instant::now();
        let from = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        peers.note(&packet(&other), from(1), None, begun);
        for port in 1..=20_000 {
            let now = begun + Duration::from_micros(port.into());
            peers.note(&packet(&invented), from(port), None, now);
        }
        let read = parse(&peers.text(), unix_seconds());
        let mut ports: Vec<_> = read.iter().map(|peer| peer.from.addr.port()).collect();
        ports.sort_unstable();
        let last = 20_000 - MAX_OF_ID as u16 + 1..=20_000;
        assert_eq!(ports, [1].into_iter().chain(last).collect::<Vec<_>>());
    }
}
