//! Asking an upstream server: own random id and port for every question, 2 s, two tries, TCP when the answer was cut.
//!
//! What foreign names lead to is never one of the addresses that our own listeners have: a web page of somebody else could
//! reach the mapped services by a name of its own (DNS rebinding).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_server::zone_handler::MessageRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};

use super::handler::MAX_UDP;
use crate::vip::IpRange;

/// Time for one try at one server.
pub const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Questions to the upstreams altogether for one question of ours; a C library gives up after 5 s itself.
const TRIES: usize = 2;

/// For how long a server that did not answer is asked last.
const COOL_DOWN: Duration = Duration::from_secs(5);

/// Tries to find out whether a server leads back to us, and the pause between them: it may start when we do.
const PROBES: usize = 5;

/// See [`PROBES`].
const PROBE_PAUSE: Duration = Duration::from_secs(2);

/// Asks a set of servers, those that answered lately first. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Forwarder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstreams: Vec<Upstream>,
    ours: IpRange,
    try_timeout: Duration,
}

#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    /// A name that nobody else asks for: if it comes to us, the server leads back to us.
    probe: Name,
    looped: AtomicBool,
    /// When it last failed; a short touch, never held across an await.
    failed: Mutex<Option<Instant>>,
}

impl Forwarder {
    /// A forwarder to `upstreams`, in order of preference; with none it always fails. Addresses in `ours` are taken out of
    /// their answers.
    pub fn new(upstreams: Vec<SocketAddr>, ours: IpRange, try_timeout: Duration) -> Self {
        let upstream = |address| Upstream {
            address,
            probe: probe_name(),
            looped: AtomicBool::new(false),
            failed: Mutex::default(),
        };
        Self(Arc::new(Inner {
            upstreams: upstreams.into_iter().map(upstream).collect(),
            ours,
            try_timeout,
        }))
    }

    /// Asks each server for a name that only we know, until it has answered; one whose question comes back to us is asked no
    /// more. Ends after some tries; cancel safe.
    pub async fn probe(&self) {
        let each = self.0.upstreams.iter().map(|upstream| async {
            for _ in 0..PROBES {
                let question = question(Query::query(upstream.probe.clone(), RecordType::TXT));
                let asked = exchange(upstream.address, &question);
                let answered = matches!(timeout(self.0.try_timeout, asked).await, Ok(Ok(_)));
                if answered || upstream.looped.load(Ordering::Relaxed) {
                    return;
                }
                sleep(PROBE_PAUSE).await;
            }
        });
        join_all(each).await;
    }

    /// True if `query` is a probe of ours that an upstream has sent back.
    fn is_back(&self, query: &Query) -> bool {
        let all = &self.0.upstreams;
        let Some(upstream) = all.iter().find(|upstream| upstream.probe == *query.name()) else {
            return false;
        };
        if !upstream.looped.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                upstream = %upstream.address,
                "this DNS server asks us for what we ask it; it is asked no more (give others with --dns-upstream)"
            );
        }
        true
    }

    /// The answer of the first server that has one; NXDOMAIN and NODATA are answers. `None` if all failed.
    ///
    /// SERVFAIL and REFUSED of one server send the question to the next; if nothing better comes they are the answer.
    pub async fn ask(&self, request: &MessageRequest, query: &Query) -> Option<Message> {
        if self.is_back(query) {
            return None;
        }
        let mut question = question(query.clone());
        question.metadata.recursion_desired = request.metadata.recursion_desired;
        question.metadata.checking_disabled = request.metadata.checking_disabled;
        if let (Some(edns), Some(asked)) = (&mut question.edns, &request.edns) {
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
        }
        let order = self.order();
        let mut worst = None;
        for upstream in order.iter().cycle().take(TRIES.max(order.len())) {
            question.metadata.id = rand::random();
            let asked = exchange(upstream.address, &question);
            let answer = timeout(self.0.try_timeout, asked).await;
            upstream.note(!matches!(answer, Ok(Ok(_))));
            let Ok(Ok(mut answer)) = answer else { continue };
            self.without_ours(&mut answer);
            if !matches!(
                answer.metadata.response_code,
                ResponseCode::ServFail | ResponseCode::Refused
            ) {
                return Some(answer);
            }
            worst = Some(answer);
            if order.len() == 1 {
                break;
            }
        }
        worst
    }

    /// Takes out what leads to our own listeners.
    fn without_ours(&self, answer: &mut Message) {
        let all = [&mut answer.answers, &mut answer.additionals];
        let before: usize = all.iter().map(|records| records.len()).sum();
        let mut after = 0;
        for records in all {
            let address = |record: &Record| record.data.ip_addr();
            records.retain(|record| address(record).is_none_or(|ip| !self.0.ours.contains(ip)));
            after += records.len();
        }
        if after < before {
            // What is left is no longer what was signed.
            answer.metadata.authentic_data = false;
            tracing::warn!(
                query = ?answer.queries.first().map(|query| query.name().to_string()),
                "an upstream's answer led into the range of the mapped services; that address was left out"
            );
        }
    }

    /// The servers: those that failed just now at the end, those that lead back to us nowhere.
    fn order(&self) -> Vec<&Upstream> {
        let all = self.0.upstreams.iter();
        let (last, mut first): (Vec<_>, Vec<_>) = all
            .filter(|upstream| !upstream.looped.load(Ordering::Relaxed))
            .partition(|upstream| upstream.rests());
        first.extend(last);
        first
    }
}

impl Upstream {
    fn rests(&self) -> bool {
        self.lock().is_some_and(|at| at.elapsed() < COOL_DOWN)
    }

    fn note(&self, failed: bool) {
        *self.lock() = failed.then(Instant::now);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two labels of 64 random bits each, as no name in use has them: such names are passed on by every kind of resolver.
fn probe_name() -> Name {
    let [first, second]: [u64; 2] = rand::random();
    // Sixteen hexadecimal digits are always a label; the root is a name nobody is asked for.
    Name::from_ascii(format!("{first:016x}.{second:016x}.")).unwrap_or_else(|_| Name::root())
}

fn question(query: Query) -> Message {
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP);
    question.set_edns(edns);
    question
}

async fn exchange(upstream: SocketAddr, question: &Message) -> io::Result<Message> {
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let answer = over_udp(upstream, &bytes, question).await?;
    if answer.metadata.truncation {
        over_tcp(upstream, &bytes, question).await
    } else {
        Ok(answer)
    }
}

async fn over_udp(upstream: SocketAddr, bytes: &[u8], question: &Message) -> io::Result<Message> {
    let any: SocketAddr = if upstream.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    // Connected: only this server's packets arrive, and its ICMP errors too.
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(MAX_UDP)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not belong to the question is a late or forged packet: wait on for the right one.
        if let Some(answer) = belongs(&buffer[..length], question) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, bytes: &[u8], question: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await?;
    belongs(&buffer, question).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The message, if it answers `question`: same id, same query.
fn belongs(bytes: &[u8], question: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let right = answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == question.metadata.id
        // A server that could not read the question may leave it out of its error.
        && (answer.queries == question.queries
            || (answer.queries.is_empty() && answer.metadata.response_code != ResponseCode::NoError));
    right.then_some(answer)
}

#[cfg(test)]
mod tests;
