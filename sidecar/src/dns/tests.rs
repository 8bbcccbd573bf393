//! The rules of the mapped names, seen through real sockets.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::forward::Forwarder;
use super::handler::{DnsView, Others, TTL};
use super::names::{NameTable, NamedMapping};
use super::*;
use crate::metrics::DnsMetrics;
use crate::spec::ServiceRef;

/// A running server; the sender changes its table.
struct Server {
    address: SocketAddr,
    view: watch::Sender<DnsView>,
    tasks: JoinSet<()>,
}

fn view(address: &str, synced: bool) -> DnsView {
    let mapping = NamedMapping {
        target: ServiceRef {
            service: "mysql.default".parse().unwrap(),
            cluster: None,
        },
        aliases: BTreeSet::from(["db".parse().unwrap()]),
        address: address.parse().unwrap(),
    };
    let search = ["default.svc.cluster.local".to_owned()];
    let (names, _) = NameTable::build(
        &[mapping],
        &"default".parse().unwrap(),
        &["keel.test".to_owned()],
        &search,
    );
    DnsView {
        names: Arc::new(names),
        synced,
    }
}

async fn serve(view: DnsView, others: Others) -> Server {
    let (sender, receiver) = watch::channel(view);
    let sockets = DnsSockets::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = sockets.address();
    let handler = Handler::new(receiver, others, Arc::new(DnsMetrics::default()));
    let mut tasks = JoinSet::new();
    tasks.spawn(sockets.serve(handler, CancellationToken::new()));
    Server {
        address,
        view: sender,
        tasks,
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    // As it comes from the wire: with the root at the end.
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

async fn exchange(server: SocketAddr, bytes: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(bytes, server).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(Duration::from_secs(5), socket.recv(&mut buffer))
        .await
        .ok()?
        .unwrap();
    Some(Message::from_vec(&buffer[..length]).unwrap())
}

async fn ask(server: &Server, name: &str, kind: RecordType) -> Message {
    let message = question(name, kind);
    let answer = exchange(server.address, &message.to_vec().unwrap())
        .await
        .unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    assert_eq!(answer.queries, message.queries);
    answer
}

async fn ask_tcp(server: &Server, name: &str, kind: RecordType) -> Message {
    let bytes = question(name, kind).to_vec().unwrap();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat())
        .await
        .unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .collect()
}

#[tokio::test]
async fn mapped_names_are_answered_in_any_case_over_udp_and_tcp() {
    let server = serve(view("127.0.66.1", true), Others::Deny).await;
    for name in [
        "mysql.",
        "MySQL.Default.",
        "mysql.default.svc",
        "mysql.default.svc.cluster.local.",
        "mysql.default.svc.clusterset.local.",
        "db",
        "mysql.default.svc.default.svc.cluster.local.",
        "mysql.default.svc.keel.test",
    ] {
        let answer = ask(&server, name, RecordType::A).await;
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::NoError,
            "{name}"
        );
        assert_eq!(
            addresses(&answer),
            ["127.0.66.1".parse::<IpAddr>().unwrap()],
            "{name}"
        );
        assert_eq!(answer.answers[0].ttl, TTL);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_desired);
    }
    assert_eq!(
        addresses(&ask_tcp(&server, "mysql", RecordType::A).await).len(),
        1
    );
}

#[tokio::test]
async fn other_types_of_a_known_name_have_no_data() {
    let four = serve(view("127.0.66.1", true), Others::Deny).await;
    for kind in [
        RecordType::AAAA,
        RecordType::TXT,
        RecordType::MX,
        RecordType::SRV,
        RecordType::HTTPS,
        RecordType::SOA,
    ] {
        let answer = ask(&four, "mysql.default.svc", kind).await;
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::NoError,
            "{kind}"
        );
        assert!(answer.answers.is_empty());
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
    let six = serve(view("fd00:66::1", true), Others::Deny).await;
    assert_eq!(
        addresses(&ask(&six, "mysql", RecordType::AAAA).await).len(),
        1
    );
    assert!(ask(&six, "mysql", RecordType::A).await.answers.is_empty());
}

#[tokio::test]
async fn unknown_names_of_the_own_zone_fail_until_the_table_is_synced() {
    let server = serve(view("127.0.66.1", false), Others::Fail).await;
    for name in ["redis.default.svc.clusterset.local", "x.keel.test"] {
        assert_eq!(
            ask(&server, name, RecordType::A)
                .await
                .metadata
                .response_code,
            ResponseCode::ServFail
        );
    }
    assert_eq!(
        addresses(&ask(&server, "mysql", RecordType::A).await).len(),
        1,
        "mapped names do not wait"
    );
    server.view.send_replace(view("127.0.66.1", true));
    for name in ["redis.default.svc.clusterset.local", "x.keel.test"] {
        let answer = ask(&server, name, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
    let between = ask(&server, "default.svc.clusterset.local", RecordType::A).await;
    assert_eq!(between.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn without_upstream_other_names_fail_and_with_none_they_do_not_exist() {
    let fail = serve(view("127.0.66.1", true), Others::Fail).await;
    assert_eq!(
        ask(&fail, "example.com", RecordType::A)
            .await
            .metadata
            .response_code,
        ResponseCode::ServFail
    );
    let deny = serve(view("127.0.66.1", true), Others::Deny).await;
    for name in ["example.com", "kubernetes.default.svc.cluster.local"] {
        assert_eq!(
            ask(&deny, name, RecordType::A).await.metadata.response_code,
            ResponseCode::NXDomain
        );
    }
}

/// An upstream that answers `big.test` with more than fits, `none.test` with NXDOMAIN and all else with one address.
async fn upstream() -> (SocketAddr, JoinSet<()>) {
    let sockets = DnsSockets::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let (address, mut tasks) = (sockets.address, JoinSet::new());
    let DnsSockets { udp, tcp, .. } = sockets;
    tasks.spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let mut answer = reply(&buffer[..length]);
            if answer.answers.len() > 1 {
                answer = answer.truncate();
            }
            udp.send_to(b"not a message", from).await.unwrap();
            udp.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut packet = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut packet).await.unwrap();
            let bytes = reply(&packet).to_vec().unwrap();
            stream
                .write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat())
                .await
                .unwrap();
        }
    });
    (address, tasks)
}

fn reply(packet: &[u8]) -> Message {
    let question = Message::from_vec(packet).unwrap();
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.queries = question.queries.clone();
    let name = question.queries[0].name().clone();
    match name.to_ascii().trim_end_matches('.') {
        "none.test" => answer.metadata.response_code = ResponseCode::NXDomain,
        "big.test" => {
            for i in 0..100 {
                let text = TXT::new(vec![format!("{i:040}")]);
                answer.add_answer(Record::from_rdata(name.clone(), 60, RData::TXT(text)));
            }
        }
        _ => _ = answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1)))),
    }
    answer
}

fn forwarder(upstreams: &[SocketAddr]) -> Others {
    let range = "127.0.66.0/24".parse().unwrap();
    Others::Forward(Forwarder::new(
        upstreams.to_vec(),
        range,
        Duration::from_millis(500),
    ))
}

#[tokio::test]
async fn other_names_are_forwarded_with_their_code_and_records() {
    let (upstream, _tasks) = upstream().await;
    let server = serve(view("127.0.66.1", true), forwarder(&[upstream])).await;
    let answer = ask(
        &server,
        "kubernetes.default.svc.cluster.local",
        RecordType::A,
    )
    .await;
    assert_eq!(addresses(&answer), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert!(answer.metadata.recursion_available);
    assert_eq!(
        ask(&server, "none.test", RecordType::A)
            .await
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn an_answer_that_was_cut_is_fetched_over_tcp_and_cut_again_for_a_udp_client() {
    let (upstream, _tasks) = upstream().await;
    let server = serve(view("127.0.66.1", true), forwarder(&[upstream])).await;
    assert_eq!(
        ask_tcp(&server, "big.test", RecordType::TXT)
            .await
            .answers
            .len(),
        100
    );
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let query = question("big.test", RecordType::TXT).to_vec().unwrap();
    socket.send_to(&query, server.address).await.unwrap();
    let mut packet = vec![0; 4096];
    let length = timeout(Duration::from_secs(5), socket.recv(&mut packet))
        .await
        .unwrap()
        .unwrap();
    let cut = Message::from_vec(&packet[..length]).unwrap();
    assert!(cut.metadata.truncation && length <= 512);
    // What is left of a record that did not fit is nothing that a strict reader takes.
    assert_eq!(cut.to_vec().unwrap().len(), length);
}

#[tokio::test]
async fn a_dead_upstream_is_passed_over_and_all_dead_is_servfail() {
    let (alive, _tasks) = upstream().await;
    // Bound and silent: no ICMP error shortens the wait.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dead = silent.local_addr().unwrap();
    let server = serve(view("127.0.66.1", true), forwarder(&[dead, alive])).await;
    assert_eq!(
        addresses(&ask(&server, "example.com", RecordType::A).await).len(),
        1
    );
    let start = tokio::time::Instant::now();
    assert_eq!(
        addresses(&ask(&server, "example.org", RecordType::A).await).len(),
        1
    );
    assert!(
        start.elapsed() < Duration::from_millis(400),
        "the dead one is asked last now"
    );
    let lost = serve(view("127.0.66.1", true), forwarder(&[dead])).await;
    assert_eq!(
        ask(&lost, "example.com", RecordType::A)
            .await
            .metadata
            .response_code,
        ResponseCode::ServFail
    );
}

#[tokio::test]
async fn edns_is_answered_within_1232_bytes_and_unknown_versions_are_refused() {
    let (upstream, _tasks) = upstream().await;
    let server = serve(view("127.0.66.1", true), forwarder(&[upstream])).await;
    let mut message = question("big.test", RecordType::TXT);
    message
        .set_edns(Edns::new())
        .edns
        .as_mut()
        .unwrap()
        .set_max_payload(4096);
    let answer = exchange(server.address, &message.to_vec().unwrap())
        .await
        .unwrap();
    assert!(answer.metadata.truncation && answer.to_vec().unwrap().len() <= 1232);
    assert_eq!(answer.edns.unwrap().max_payload(), 1232);
    message.edns.as_mut().unwrap().set_max_payload(600);
    let small = exchange(server.address, &message.to_vec().unwrap())
        .await
        .unwrap();
    assert!(small.metadata.truncation && small.to_vec().unwrap().len() <= 600);
    assert_eq!(small.edns.unwrap().max_payload(), 1232);
    message.edns.as_mut().unwrap().set_version(1);
    let answer = exchange(server.address, &message.to_vec().unwrap())
        .await
        .unwrap();
    // 16 is BADVERS here and BADSIG in a TSIG record.
    assert_eq!(
        u16::from(answer.metadata.response_code),
        u16::from(ResponseCode::BADVERS)
    );
}

#[tokio::test]
async fn answers_and_rubbish_get_no_reply_and_strange_questions_an_error() {
    let server = serve(view("127.0.66.1", true), Others::Deny).await;
    let mut reflected = question("mysql", RecordType::A);
    reflected.metadata.message_type = MessageType::Response;
    let sink = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for packet in [
        reflected.to_vec().unwrap(),
        b"short".to_vec(),
        Vec::new(),
        vec![0xff; 40],
    ] {
        sink.send_to(&packet, server.address).await.unwrap();
    }
    let mut cut = question("mysql", RecordType::A).to_vec().unwrap();
    cut.truncate(14);
    assert_eq!(
        exchange(server.address, &cut)
            .await
            .unwrap()
            .metadata
            .response_code,
        ResponseCode::FormErr
    );
    let mut two = question("mysql", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("db").unwrap(), RecordType::A));
    assert_eq!(
        exchange(server.address, &two.to_vec().unwrap())
            .await
            .unwrap()
            .metadata
            .response_code,
        ResponseCode::FormErr
    );
    let mut update = question("mysql", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(
        exchange(server.address, &update.to_vec().unwrap())
            .await
            .unwrap()
            .metadata
            .response_code,
        ResponseCode::NotImp
    );
    let mut chaos = question("version.bind", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(
        exchange(server.address, &chaos.to_vec().unwrap())
            .await
            .unwrap()
            .metadata
            .response_code,
        ResponseCode::Refused
    );
    let mut buffer = [0; 512];
    assert!(
        sink.try_recv(&mut buffer).is_err(),
        "all later questions were answered, the reflected ones were not"
    );
}

#[tokio::test]
async fn a_silent_tcp_client_does_not_hold_up_others() {
    let mut server = serve(view("127.0.66.1", true), Others::Deny).await;
    let _silent: Vec<_> = {
        let mut all = Vec::new();
        for _ in 0..8 {
            all.push(TcpStream::connect(server.address).await.unwrap());
        }
        all
    };
    assert_eq!(
        addresses(&ask_tcp(&server, "mysql", RecordType::A).await).len(),
        1
    );
    server.tasks.shutdown().await;
}
