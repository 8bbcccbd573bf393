//! Which way connections take, and who waits for one.

use std::io::ErrorKind;
use std::time::Duration;

use keel_fabric::provider::Publication;
use keel_fabric::wire::Protocol;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::{LONG, Node, Pod, echo, ending, exchange, range};

#[tokio::test]
async fn so_many_connections_wait_for_a_provider_and_no_more() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let backend = echo(&mut tasks).await;
    let mut config = node.pod("app-0");
    (config.ip_range, config.connect_timeout) = (range(32), LONG);
    config.limits.consumer.waiting = 1;
    let mut consumer = Pod::start(config, "mysql:3306", "").await;
    let address = consumer.address().await;
    timeout(LONG, consumer.settled()).await.unwrap();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { exchange(address, b"first").await });
    let accepted = async {
        while consumer
            .metric("keel_sidecar_connections_accepted_total")
            .await
            == 0
        {}
    };
    timeout(LONG, accepted).await.unwrap();
    let (_, reset) = ending(address).await;
    assert_eq!(reset.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let limited = "keel_sidecar_limit_hit_total{name=\"parked\"}";
    assert_eq!(consumer.metric(limited).await, 1);
    let published = format!("mysql:3306={backend}");
    let _provider = Pod::start(node.pod("db-0"), "", &published).await;
    let answer = waiting.join_next().await.unwrap();
    assert_eq!(answer.unwrap().unwrap(), b"first");
}

#[tokio::test]
async fn so_many_connections_are_carried_at_once_and_the_next_one_waits() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let backend = echo(&mut tasks).await;
    let published = format!("mysql:3306={backend}");
    let _provider = Pod::start(node.pod("db-0"), "", &published).await;
    let mut config = node.pod("app-0");
    (config.ip_range, config.connect_timeout) = (range(34), LONG);
    config.limits.consumer.connections = 1;
    // What nobody connects to takes no place away.
    let mut consumer = Pod::start(config, "mysql:3306,redis:6379,web:80", "").await;
    timeout(LONG, consumer.settled()).await.unwrap();
    let address = consumer.address().await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"first").await.unwrap();
    let accepted = "keel_sidecar_connections_accepted_total";
    let carried = async { while consumer.metric(accepted).await == 0 {} };
    timeout(LONG, carried).await.unwrap();
    let limited = "keel_sidecar_limit_hit_total{name=\"connections\"}";
    assert!(consumer.series(limited).await.is_empty());
    let mut second = JoinSet::new();
    second.spawn(async move { exchange(address, b"second").await });
    let early = timeout(Duration::from_millis(300), second.join_next()).await;
    assert!(early.is_err(), "it was carried beside the first");
    assert_eq!(consumer.metric(limited).await, 1);
    drop(first);
    let answer = timeout(LONG, second.join_next()).await.unwrap().unwrap();
    assert_eq!(answer.unwrap().unwrap(), b"second");
}

#[tokio::test]
async fn a_router_that_is_slow_to_be_reached_loses_the_race_to_another_one() {
    let (mut node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let own = Publication {
        service: "mysql.default".parse().unwrap(),
        port: 3306,
        protocol: Protocol::Tcp,
        backend: echo(&mut tasks).await.into(),
        options: Default::default(),
    };
    node.another_router("b", vec![own]);
    // Nobody answers there, though it is said to list the same provider.
    let hole = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let nowhere = hole.local_addr().unwrap();
    node.claim("x", nowhere, "mysql", 3306, "/node/b").await;
    let mut config = node.pod("app-0");
    config.ip_range = range(33);
    let mut consumer = Pod::start(config, "mysql:3306", "").await;
    let address = consumer.address().await;
    let raced = async {
        // At first only one of the two may be known.
        while hole.try_recv_from(&mut [0; 2048]).is_err() {
            let start = Instant::now();
            assert_eq!(exchange(address, b"ping").await.unwrap(), b"ping");
            let took = start.elapsed();
            assert!(took < Duration::from_millis(1500), "{took:?}");
        }
    };
    timeout(LONG, raced).await.unwrap();
}

#[tokio::test]
async fn a_router_that_says_nothing_keeps_nobody_beyond_the_connect_timeout() {
    let node = Node::start("a").await;
    let hole = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let nowhere = hole.local_addr().unwrap();
    node.claim("x", nowhere, "mysql", 3306, "/node/b").await;
    let mut config = node.pod("app-0");
    // Shorter than an attempt at a router takes.
    (config.ip_range, config.connect_timeout) = (range(35), Duration::from_millis(500));
    let mut consumer = Pod::start(config, "mysql:3306", "").await;
    let address = consumer.address().await;
    // At first nobody may be known.
    while hole.try_recv_from(&mut [0; 2048]).is_err() {
        let (took, ended) = ending(address).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}
