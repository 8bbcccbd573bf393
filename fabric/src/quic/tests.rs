use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use keel_certs::fixture::Fabric;
use keel_certs::{Clients, NodeName};

use super::*;

const ALPN: &[u8] = b"test/1";

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("it did not happen in time")
}

fn loopback() -> ListenAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn server(fabric: &Fabric, listen: &ListenAddr, keys: &QuicKeys) -> Endpoint {
    let tls = fabric.node("s").server_config(&[ALPN], Clients::Required);
    Endpoint::bind(listen, Some(tls), keys, Profile::Router).unwrap()
}

async fn dial(fabric: &Fabric, client: &Endpoint, addr: SocketAddr) -> Connection {
    let expect: NodeName = "s".parse().unwrap();
    let tls = fabric
        .pod("c", "default", "p")
        .client_config(&[ALPN], &expect);
    soon(client.connect(addr, "127.0.0.1", tls)).await.unwrap()
}

/// Both ends of a connection, and the endpoints that keep it alive.
pub(crate) async fn pair() -> (Connection, Connection, [Endpoint; 2]) {
    let fabric = Fabric::new();
    let server = server(&fabric, &loopback(), &QuicKeys::ephemeral());
    let client = Endpoint::client(Profile::Sidecar).unwrap();
    let accept = async { server.accept().await.unwrap().handshake().await.unwrap() };
    let (near, far) = tokio::join!(
        dial(&fabric, &client, server.local_addrs()[0]),
        soon(accept)
    );
    (near, far, [client, server])
}

#[test]
fn listen_addresses_are_read_and_written() {
    for text in [":7000", "0.0.0.0:7443", "[::1]:1", "127.0.0.1:0"] {
        assert_eq!(text.parse::<ListenAddr>().unwrap().to_string(), text);
    }
    for text in ["", "7000", "localhost:1", ":", ":70000", "::1:7000"] {
        assert!(text.parse::<ListenAddr>().is_err(), "{text}");
    }
    assert_eq!(":7000".parse::<ListenAddr>().unwrap().sockets().len(), 2);
}

#[test]
fn host_ports_are_read_and_written() {
    for text in ["a.example.net:7000", "10.0.0.1:1", "[2001:db8::1]:7000"] {
        assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
    }
    for text in [
        "",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:70000",
        "::1:7000",
        "[::1:7000",
        "[x]:1",
        "a b:1",
    ] {
        assert!(text.parse::<HostPort>().is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let fabric = Fabric::new();
    let first = server(&fabric, &loopback(), &QuicKeys::ephemeral());
    let addr = first.local_addrs()[0];
    let error =
        Endpoint::bind(&addr.into(), None, &QuicKeys::ephemeral(), Profile::Router).unwrap_err();
    assert!(matches!(error, BindError::Taken { .. }));
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
}

#[tokio::test]
async fn both_families_get_the_same_free_port() {
    let any = ListenAddr::any(0);
    let endpoint = Endpoint::bind(&any, None, &QuicKeys::ephemeral(), Profile::Router).unwrap();
    let addrs = endpoint.local_addrs();
    assert!(addrs[0].is_ipv4());
    assert!(
        addrs
            .iter()
            .all(|addr| addr.port() == addrs[0].port() && addr.port() != 0)
    );
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let (near, far, _endpoints) = pair().await;
    assert_eq!(
        near.peer().unwrap().unwrap().identity.subject.path(),
        "/node/s"
    );
    assert_eq!(
        far.peer().unwrap().unwrap().identity.subject.path(),
        "/node/c/ns/default/pod/p"
    );
    assert_eq!(far.alpn().as_deref(), Some(ALPN));
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_cut_and_not_ended() {
    let (near, far, _endpoints) = pair().await;
    let (mut send, _recv) = near.open_bi().await.unwrap();
    send.write_all(b"abc").await.unwrap();
    let (_, mut recv) = soon(far.accept_bi()).await.unwrap();
    assert_eq!(soon(recv.read_chunk(10)).await.unwrap().unwrap(), "abc");
    drop(send);
    assert_eq!(soon(recv.read_chunk(10)).await, Err(ReadError::Reset(0)));
}

#[tokio::test]
async fn the_allowance_of_streams_grows_with_their_number() {
    let (near, far, _endpoints) = pair().await;
    let (allowed, most) = Profile::Router.bidi();
    let wanted = allowed + 100;
    assert!(wanted < most);
    let open = async {
        let mut streams = Vec::new();
        for _ in 0..wanted {
            let mut stream = near.open_bi().await.unwrap();
            stream.0.write_all(b"x").await.unwrap();
            streams.push(stream);
        }
        streams
    };
    let take = async {
        let mut streams = Vec::new();
        for _ in 0..wanted {
            streams.push(far.accept_bi().await.unwrap());
        }
        streams
    };
    let (opened, taken) = soon(async { tokio::join!(open, take) }).await;
    assert_eq!(opened.len(), taken.len());
}

#[tokio::test]
async fn a_connection_ends_at_the_end_of_its_peers_certificate() {
    let (near, far, _endpoints) = pair().await;
    far.expire_at(SystemTime::now() + Duration::from_millis(20));
    let lost = soon(near.closed()).await;
    assert!(
        lost.to_string().contains("certificate has expired"),
        "{lost}"
    );
}

#[tokio::test]
async fn a_killed_server_is_noticed_by_the_next_packet_to_its_successor() {
    let fabric = Fabric::new();
    let keys = QuicKeys::ephemeral();
    let client = Endpoint::client(Profile::Sidecar).unwrap();
    // A runtime of its own, dropped without a word to the peers.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let first = {
        let _inside = runtime.enter();
        server(&fabric, &loopback(), &keys)
    };
    let addr = first.local_addrs()[0];
    let accepting = first.clone();
    let accepted =
        runtime.spawn(async move { accepting.accept().await.unwrap().handshake().await.unwrap() });
    let near = dial(&fabric, &client, addr).await;
    let far = accepted.await.unwrap();
    // What is dropped before it has ended says goodbye.
    let ended = std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(5)));
    ended.join().unwrap();
    drop((far, first));
    let mut second = None;
    let bound = async {
        while second.is_none() {
            // The old socket is closed when the last task of its runtime is gone.
            let tls = fabric.node("s").server_config(&[ALPN], Clients::Required);
            second = Endpoint::bind(&addr.into(), Some(tls), &keys, Profile::Router).ok();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(bound).await;
    // An acknowledgement that was under way may have told it before.
    if let Ok(mut stream) = near.open_bi().await {
        stream.0.write_all(b"anybody there?").await.ok();
    }
    let noticed = tokio::time::timeout(Duration::from_secs(5), near.closed()).await;
    assert_eq!(noticed.unwrap(), Lost::Restarted);
}

/// Keeps what it takes.
#[derive(Debug, Default)]
pub(crate) struct Taken(pub(crate) std::sync::Mutex<Vec<bytes::Bytes>>);

impl Sink for Taken {
    fn take(&self, packet: bytes::Bytes) {
        self.0.lock().unwrap().push(packet);
    }
}

#[tokio::test]
async fn datagrams_reach_their_stream_and_one_for_nobody_is_counted() {
    let (near, far, _endpoints) = pair().await;
    let metrics = std::sync::Arc::new(crate::metrics::FabricMetrics::default());
    let taken = std::sync::Arc::new(Taken::default());
    let route = far.datagrams().route(1 << 40, taken.clone(), &metrics);
    let nobody = near.datagrams().sender(4);
    let sender = near.datagrams().sender(1 << 40);
    nobody.send(b"lost").unwrap();
    sender.send(b"").unwrap();
    sender.send(&vec![7; SAFE_DATAGRAM as usize]).unwrap();
    let too_large = vec![0; near.datagrams().max_packet() as usize + 1];
    assert_eq!(sender.send(&too_large), Err(NotSent::TooLarge));
    let unknown = || {
        let reason = "unknown_flow";
        metrics
            .packets_dropped
            .get_or_create(&crate::metrics::DropLabels { reason })
            .get()
    };
    let arrived = async {
        while taken.0.lock().unwrap().len() < 2 || unknown() < 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(arrived).await;
    let lengths: Vec<usize> = taken.0.lock().unwrap().iter().map(|p| p.len()).collect();
    assert_eq!(lengths, [0, SAFE_DATAGRAM as usize]);
    drop(route);
    sender.send(b"late").unwrap();
    soon(async {
        while unknown() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// How much of what nobody reads the peer lets through: all is sent, or nothing moves any more.
async fn let_through(near: &Connection) -> u64 {
    let (mut before, mut still) = (near.sent(), 0);
    let stopped = async {
        while still < 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = near.sent();
            // An acknowledgement or a keep-alive at most.
            still = if now - before < 1000 { still + 1 } else { 0 };
            before = now;
        }
    };
    soon(stopped).await;
    before
}

#[tokio::test]
async fn the_later_connections_of_a_peer_hold_less() {
    const MIB: u64 = 1 << 20;
    let (near, far, _endpoints) = pair().await;
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (mut send, recv) = near.open_bi().await.unwrap();
        streams.spawn(async move {
            send.write_all(&vec![0; 2 << 20]).await.unwrap();
            std::future::pending::<()>().await;
            drop((send, recv));
        });
    }
    // Nobody has said yet who the peer is.
    let through = let_through(&near).await;
    assert!((MIB..MIB * 5 / 4).contains(&through), "{through}");
    far.set_rank(4);
    let through = let_through(&near).await;
    assert!((7 * MIB..8 * MIB).contains(&through), "{through}");
    far.set_rank(2);
    let through = let_through(&near).await;
    assert!(through > 20 * MIB, "{through}");
}
