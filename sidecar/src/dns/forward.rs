//! Asking an upstream server: own random id and port for every question, 2 s, two tries, TCP when the answer was cut.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::zone_handler::MessageRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use super::handler::MAX_UDP;

/// Time for one try at one server.
pub const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Questions to the upstreams altogether for one question of ours; a C library gives up after 5 s itself.
const TRIES: usize = 2;

/// For how long a server that did not answer is asked last.
const COOL_DOWN: Duration = Duration::from_secs(5);

/// Asks a set of servers, those that answered lately first.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    try_timeout: Duration,
    /// When each server last failed; a short map touch, never held across an await.
    failed: Mutex<Vec<Option<Instant>>>,
}

impl Forwarder {
    /// A forwarder to `upstreams`, in order of preference; with none it always fails.
    pub fn new(upstreams: Vec<SocketAddr>, try_timeout: Duration) -> Self {
        let failed = Mutex::new(vec![None; upstreams.len()]);
        Self {
            upstreams,
            try_timeout,
            failed,
        }
    }

    /// The servers.
    pub fn upstreams(&self) -> &[SocketAddr] {
        &self.upstreams
    }

    /// The answer of the first server that has one; NXDOMAIN and NODATA are answers. `None` if all failed.
    ///
    /// SERVFAIL and REFUSED of one server send the question to the next; if nothing better comes they are the answer.
    pub async fn ask(&self, request: &MessageRequest, query: &Query) -> Option<Message> {
        let order = self.order();
        let mut worst = None;
        for &index in order.iter().cycle().take(TRIES.max(order.len())) {
            let answer = timeout(
                self.try_timeout,
                self.ask_one(self.upstreams[index], request, query),
            )
            .await;
            let failed = !matches!(answer, Ok(Ok(_)));
            self.note(index, failed);
            let Ok(Ok(answer)) = answer else { continue };
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

    async fn ask_one(
        &self,
        upstream: SocketAddr,
        request: &MessageRequest,
        query: &Query,
    ) -> io::Result<Message> {
        let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = request.metadata.recursion_desired;
        question.metadata.checking_disabled = request.metadata.checking_disabled;
        question.add_query(query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        edns.set_dnssec_ok(
            request
                .edns
                .as_ref()
                .is_some_and(|edns| edns.flags().dnssec_ok),
        );
        question.set_edns(edns);
        let bytes = question.to_vec().map_err(io::Error::other)?;

        let answer = over_udp(upstream, &bytes, &question).await?;
        if answer.metadata.truncation {
            over_tcp(upstream, &bytes, &question).await
        } else {
            Ok(answer)
        }
    }

    /// Indices of the servers: those that failed just now at the end.
    fn order(&self) -> Vec<usize> {
        let failed = self
            .failed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let resting = |index: &usize| failed[*index].is_some_and(|at| at.elapsed() < COOL_DOWN);
        let (last, mut first): (Vec<_>, Vec<_>) = (0..failed.len()).partition(resting);
        first.extend(last);
        first
    }

    fn note(&self, index: usize, failed: bool) {
        let mut all = self
            .failed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        all[index] = failed.then(Instant::now);
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
