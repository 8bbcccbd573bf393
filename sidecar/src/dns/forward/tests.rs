use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::DnsSockets;
use super::super::handler::{DnsView, Handler, Others};
use super::*;
use crate::metrics::DnsMetrics;

const LONG: Duration = Duration::from_secs(10);

fn forwarder(upstreams: Vec<SocketAddr>) -> Forwarder {
    Forwarder::new(upstreams, "127.0.66.0/24".parse().unwrap(), TRY_TIMEOUT)
}

/// Serves nothing of its own on `sockets`.
fn serve(sockets: DnsSockets, forwarder: &Forwarder, tasks: &mut JoinSet<()>) {
    let (view, metrics) = (
        watch::channel(DnsView::default()).1,
        Arc::new(DnsMetrics::default()),
    );
    let handler = Handler::new(view, Others::Forward(forwarder.clone()), metrics);
    tasks.spawn(sockets.serve(handler, CancellationToken::new()));
}

async fn sockets() -> DnsSockets {
    DnsSockets::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap()
}

fn www() -> Query {
    let mut name = Name::from_ascii("www.example.com.").unwrap();
    name.set_fqdn(true);
    Query::query(name, RecordType::A)
}

/// A server that gives every question the same answer.
async fn answers(records: Vec<Record>, tasks: &mut JoinSet<()>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tasks.spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(request.metadata.id, OpCode::Query);
            answer.queries = request.queries;
            answer.metadata.authentic_data = true;
            answer.answers.clone_from(&records);
            socket
                .send_to(&answer.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
    address
}

#[tokio::test]
async fn two_servers_that_name_each_other_stop_asking_each_other() {
    let (first, second, mut tasks) = (sockets().await, sockets().await, JoinSet::new());
    let good = answers(Vec::new(), &mut tasks).await;
    let address = first.address();
    let one = forwarder(vec![second.address(), good]);
    let other = forwarder(vec![address]);
    serve(first, &one, &mut tasks);
    serve(second, &other, &mut tasks);
    timeout(LONG, one.probe()).await.unwrap();
    let left: Vec<SocketAddr> = one
        .order()
        .iter()
        .map(|upstream| upstream.address)
        .collect();
    assert_eq!(
        left,
        [good],
        "the one that leads back is dropped, the other stays"
    );
    // The ring is cut: the other one asks us and gets the good one's answer, and stays with that.
    timeout(LONG, other.probe()).await.unwrap();
    assert_eq!(other.order().len(), 1);
    let answer = timeout(LONG, exchange(address, &question(www())))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn a_server_that_only_leads_back_leaves_none() {
    let (first, second, mut tasks) = (sockets().await, sockets().await, JoinSet::new());
    let (one, other) = (
        forwarder(vec![second.address()]),
        forwarder(vec![first.address()]),
    );
    let address = first.address();
    serve(first, &one, &mut tasks);
    serve(second, &other, &mut tasks);
    timeout(LONG, one.probe()).await.unwrap();
    let answer = timeout(LONG, exchange(address, &question(www())))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn foreign_names_never_lead_to_our_own_listeners() {
    let mut tasks = JoinSet::new();
    let name = www().name().clone();
    let record = |data| Record::from_rdata(name.clone(), 60, data);
    let alias = record(RData::CNAME(CNAME(
        Name::from_ascii("evil.example.").unwrap(),
    )));
    let public = record(RData::A(A::new(203, 0, 113, 9)));
    let upstream = answers(
        vec![
            alias.clone(),
            record(RData::A(A::new(127, 0, 66, 1))),
            public.clone(),
            record(RData::AAAA(AAAA("::ffff:127.0.66.1".parse().unwrap()))),
        ],
        &mut tasks,
    )
    .await;
    let sockets = sockets().await;
    let address = sockets.address();
    serve(sockets, &forwarder(vec![upstream]), &mut tasks);
    let answer = timeout(LONG, exchange(address, &question(www())))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.answers, [alias, public]);
    assert!(!answer.metadata.authentic_data);
}
