//! One question, one answer: ours, somebody else's, or nobody's. Knows no socket but the forwarder's.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use hickory_proto::op::{
    Edns, Header, HeaderCounts, Message, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecoder, BinEncoder};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder, Queries};
use tokio::sync::{Semaphore, watch};

use super::forward::Forwarder;
use super::names::{NameTable, Verdict};
use crate::metrics::{DnsMetrics, DnsOutcome};

/// How long an answer may be kept: short, because a taken address or a new mapping changes it.
pub const TTL: u32 = 5;

/// Largest UDP answer (the value of the DNS flag day 2020): never fragmented on any path.
pub const MAX_UDP: u16 = 1232;

/// Most questions in work at a time; beyond it the answer is SERVFAIL at once.
pub const MAX_QUESTIONS: usize = 512;

/// Most questions that wait for an upstream at a time; beyond it the answer is SERVFAIL at once.
pub const MAX_FORWARDS: usize = 256;

/// The state of the table of names.
#[derive(Debug, Clone, Default)]
pub struct DnsView {
    /// What is mapped.
    pub names: Arc<NameTable>,
    /// True once what can be mapped is known, from the network or from a snapshot: from then on an unknown name does not exist.
    pub synced: bool,
}

/// Where names that are not ours go.
#[derive(Debug)]
pub enum Others {
    /// To upstream servers.
    Forward(Forwarder),
    /// Nowhere: they do not exist (`--dns-upstream none`).
    Deny,
    /// Nobody is left to ask.
    Fail,
}

/// Answers questions by the rules of the mapped names.
#[derive(Debug)]
pub struct Handler {
    view: watch::Receiver<DnsView>,
    others: Others,
    questions: Semaphore,
    forwards: Semaphore,
    metrics: Arc<DnsMetrics>,
}

impl Handler {
    /// A handler that always reads the newest `view`.
    pub fn new(view: watch::Receiver<DnsView>, others: Others, metrics: Arc<DnsMetrics>) -> Self {
        Self {
            view,
            others,
            questions: Semaphore::new(MAX_QUESTIONS),
            forwards: Semaphore::new(MAX_FORWARDS),
            metrics,
        }
    }

    /// The answer to `request`, of any size.
    async fn answer(&self, request: &Request) -> Message {
        let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
        reply.metadata = Metadata::response_from_request(&request.metadata);
        reply.metadata.recursion_available = matches!(self.others, Others::Forward(_));
        reply.edns = request.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP);
            edns
        });
        // hickory starts a task for every packet: this is what ends those that are too many before they hold anything.
        let outcome = match self.questions.try_acquire() {
            Ok(_room) => self.fill(request, &mut reply).await,
            Err(_) => {
                self.metrics.limit_hit("dns_questions");
                reply.metadata.response_code = ResponseCode::ServFail;
                DnsOutcome::Failed
            }
        };
        self.metrics.answered(outcome);
        reply
    }

    async fn fill(&self, request: &Request, reply: &mut Message) -> DnsOutcome {
        let [query] = request.queries.queries() else {
            reply.metadata.response_code = ResponseCode::FormErr;
            return DnsOutcome::Refused;
        };
        let query = query.original();
        let refusal = if request.metadata.op_code != OpCode::Query {
            Some(ResponseCode::NotImp)
        } else if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            Some(ResponseCode::BADVERS)
        } else if query.query_class() != DNSClass::IN
            || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR)
        {
            Some(ResponseCode::Refused)
        } else {
            None
        };
        if let Some(code) = refusal {
            reply.metadata.response_code = code;
            return DnsOutcome::Refused;
        }
        let name = plain(query.name());
        let view = self.view.borrow().clone();
        match view.names.verdict(&name) {
            Verdict::Address(address) => own(query, address, &view.names, reply),
            Verdict::Empty => no_data(query, &view.names, reply),
            Verdict::Absent if view.synced => {
                no_data(query, &view.names, reply);
                reply.metadata.response_code = ResponseCode::NXDomain;
                DnsOutcome::Absent
            }
            Verdict::Absent => {
                reply.metadata.response_code = ResponseCode::ServFail;
                DnsOutcome::Failed
            }
            Verdict::Foreign => self.foreign(request, query, reply).await,
        }
    }

    async fn foreign(&self, request: &Request, query: &Query, reply: &mut Message) -> DnsOutcome {
        let forwarder = match &self.others {
            Others::Forward(forwarder) => forwarder,
            Others::Deny => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                return DnsOutcome::Absent;
            }
            Others::Fail => {
                reply.metadata.response_code = ResponseCode::ServFail;
                return DnsOutcome::Failed;
            }
        };
        let answer = match self.forwards.try_acquire() {
            Ok(_permit) => forwarder.ask(request, query).await,
            Err(_) => {
                self.metrics.limit_hit("dns_forwards");
                None
            }
        };
        match answer {
            Some(answer) => {
                reply.metadata.response_code = answer.metadata.response_code;
                reply.metadata.authentic_data = answer.metadata.authentic_data;
                reply.answers = answer.answers;
                reply.authorities = answer.authorities;
                reply.additionals = answer.additionals;
                if reply.edns.is_none() && answer.metadata.response_code.high() > 0 {
                    reply.metadata.response_code = ResponseCode::ServFail;
                }
                DnsOutcome::Forwarded
            }
            None => {
                reply.metadata.response_code = ResponseCode::ServFail;
                DnsOutcome::Failed
            }
        }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    /// Rubbish and answers do not come here: hickory says FORMERR to the first and drops the second.
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut client: R,
    ) -> ResponseInfo {
        let reply = self.answer(request).await;
        // Several questions are an error whose answer need not repeat them, and might not have the room.
        let nothing = if request.queries.len() == 1 {
            None
        } else {
            Queries::read(&mut BinDecoder::new(&[]), 0).ok()
        };
        let queries = nothing.as_ref().unwrap_or(&request.queries);
        let reply = fit(reply, queries, request);
        match client.send_response(response(queries, &reply)).await {
            Ok(info) => info,
            Err(error) => {
                // The client is gone, or the server stops; nobody is left to tell.
                tracing::debug!(%error, "a DNS answer was not sent");
                ResponseInfo::from(Header {
                    metadata: reply.metadata,
                    counts: HeaderCounts::default(),
                })
            }
        }
    }
}

fn own(query: &Query, address: IpAddr, names: &NameTable, reply: &mut Message) -> DnsOutcome {
    let (kind, data) = match address {
        IpAddr::V4(v4) => (RecordType::A, RData::A(A(v4))),
        IpAddr::V6(v6) => (RecordType::AAAA, RData::AAAA(AAAA(v6))),
    };
    if query.query_type() != kind && query.query_type() != RecordType::ANY {
        return no_data(query, names, reply);
    }
    reply.metadata.authoritative = true;
    // The name goes back as it was asked, upper case included (DNS 0x20).
    reply
        .answers
        .push(Record::from_rdata(query.name().clone(), TTL, data));
    DnsOutcome::Own
}

/// An empty answer with the SOA that says for how long it may be remembered (RFC 2308).
fn no_data(query: &Query, names: &NameTable, reply: &mut Message) -> DnsOutcome {
    reply.metadata.authoritative = true;
    let zone = names
        .zone_of(&plain(query.name()))
        .and_then(|zone| Name::from_ascii(format!("{zone}.")).ok());
    let apex = zone.as_ref().is_some_and(|zone| zone == query.name());
    // Outside of our zone we own the single name only, so the name itself is the zone.
    let record = soa(zone.unwrap_or_else(|| query.name().clone()));
    if apex && matches!(query.query_type(), RecordType::SOA | RecordType::ANY) {
        reply.answers.push(record);
    } else {
        reply.authorities.push(record);
    }
    DnsOutcome::Own
}

fn soa(zone: Name) -> Record {
    let label = |label: &str| {
        Name::from_ascii(label)
            .and_then(|l| l.append_domain(&zone))
            .unwrap_or_else(|_| zone.clone())
    };
    let data = SOA::new(label("ns"), label("keel"), 1, 60, 60, 60, TTL);
    Record::from_rdata(zone.clone(), TTL, RData::SOA(data))
}

/// Lower case, without the trailing dot; labels that are not text never match anything of ours.
fn plain(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// The reply as hickory sends it, with the questions byte for byte as they came.
fn response<'a>(
    queries: &'a Queries,
    reply: &'a Message,
) -> MessageResponse<
    'a,
    'a,
    impl Iterator<Item = &'a Record> + Send + 'a,
    impl Iterator<Item = &'a Record> + Send + 'a,
    impl Iterator<Item = &'a Record> + Send + 'a,
    impl Iterator<Item = &'a Record> + Send + 'a,
> {
    MessageResponseBuilder::new(queries, reply.edns.as_ref()).build(
        reply.metadata,
        &reply.answers,
        &reply.authorities,
        [],
        &reply.additionals,
    )
}

/// What the client of `request` can take: over UDP what its EDNS allows, up to [`MAX_UDP`].
///
/// hickory sends as much as *our* OPT record says, and drops that record first, and without EDNS it cuts in the middle of a record; so
/// an answer that does not fit becomes a short one with TC here.
fn fit(reply: Message, queries: &Queries, request: &Request) -> Message {
    let limit = match (request.protocol(), &request.edns) {
        (Protocol::Udp, Some(edns)) => edns.max_payload().clamp(512, MAX_UDP),
        (Protocol::Udp, None) => 512,
        _ => u16::MAX,
    };
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    match response(queries, &reply).destructive_emit(&mut encoder) {
        Ok(sent) if sent.truncation => reply.truncate(),
        _ => reply,
    }
}
