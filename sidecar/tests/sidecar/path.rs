//! The path of a connection through a node, and what happens where a part of it is missing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use crate::support::{Counted, Frozen, LONG, Node, Pod, echo, ending, exchange, range, state_dir};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use keel_sidecar::spec::Port;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

async fn resolve(dns: SocketAddr, name: &str) -> Vec<std::net::IpAddr> {
    let mut question = Message::query();
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    question.add_query(Query::query(name, RecordType::A));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket
        .send_to(&question.to_vec().unwrap(), dns)
        .await
        .unwrap();
    let mut buffer = [0; 1500];
    let length = timeout(LONG, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    answer
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .collect()
}

#[tokio::test]
async fn a_published_service_is_reached_by_its_name() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let backend = echo(&mut tasks).await;
    let provider = Pod::start(node.pod("db-0"), "", &format!("mysql:3306={backend}")).await;
    assert!(provider.dns.is_none(), "nothing is mapped, so no DNS");
    let mut config = node.pod("app-0");
    config.ip_range = range(1);
    let mut consumer = Pod::start(config, "mysql", "").await;
    let address = consumer.address().await;
    assert_eq!(address, "127.66.1.1:3306".parse().unwrap());
    assert_eq!(
        resolve(consumer.dns.unwrap(), "mysql.default.svc").await,
        [address.ip()]
    );
    let bytes: Vec<u8> = (0..300_000_u32).map(|i| i as u8).collect();
    assert!(
        exchange(address, &bytes).await.unwrap() == bytes,
        "the bytes differ"
    );
    assert!(consumer.ready.missing().is_empty());
    consumer.stop().await;
    provider.stop().await;
}

#[tokio::test]
async fn the_next_provider_is_tried_if_one_refuses() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    // Nobody listens there; a port that was free a moment ago may be another test's by now.
    let dead = "127.66.2.254:9";
    let backend = echo(&mut tasks).await;
    let _bad = Pod::start(node.pod("db-0"), "", &format!("mysql:3306={dead}")).await;
    let mut config = node.pod("app-0");
    config.ip_range = range(2);
    let mut consumer = Pod::start(config, "mysql:3306", "").await;
    let address = consumer.address().await;
    // The only provider's backend refuses: an RST, and soon.
    let refused = async {
        loop {
            let (took, ended) = ending(address).await;
            if took < Duration::from_secs(1) {
                return ended;
            }
        }
    };
    assert_eq!(
        timeout(LONG, refused).await.unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    let _good = Pod::start(node.pod("db-1"), "", &format!("mysql:3306={backend}")).await;
    // Once both are known every connection is served, whichever is picked first.
    let both = async { while exchange(address, b"ping").await.is_err() {} };
    timeout(LONG, both).await.unwrap();
    for _ in 0..10 {
        assert_eq!(exchange(address, b"ping").await.unwrap(), b"ping");
    }
}

#[tokio::test]
async fn without_a_provider_a_connection_waits_and_then_is_reset() {
    let node = Node::start("a").await;
    let mut config = node.pod("app-0");
    (config.ip_range, config.connect_timeout) = (range(3), Duration::from_millis(400));
    let mut consumer = Pod::start(config, "mysql:3306", "").await;
    let (took, ended) = ending(consumer.address().await).await;
    assert!(took >= Duration::from_millis(400), "{took:?}");
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_connection_that_waits_gets_a_provider_that_comes() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let backend = echo(&mut tasks).await;
    let mut config = node.pod("app-0");
    (config.ip_range, config.connect_timeout) = (range(4), LONG);
    let mut consumer = Pod::start(config, "mysql:3306", "").await;
    let address = consumer.address().await;
    let waiting = exchange(address, b"patience");
    let published = format!("mysql:3306={backend}");
    let coming = Pod::start(node.pod("db-0"), "", &published);
    let (answer, _provider) = tokio::join!(waiting, coming);
    assert_eq!(answer.unwrap(), b"patience");
}

#[tokio::test]
async fn a_restart_without_the_apiserver_resolves_and_connects() {
    let (mut node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let backend = echo(&mut tasks).await;
    let _provider = Pod::start(node.pod("db-0"), "", &format!("mysql:3306={backend}")).await;
    let mut config = node.pod("app-0");
    config.ip_range = range(5);
    let mut first = Pod::start(config.clone(), "redis:1,mysql", "").await;
    let served = async {
        while !first
            .states()
            .iter()
            .any(|state| state.ports.contains_key(&Port::tcp(3306)))
        {
            tokio::task::yield_now().await
        }
    };
    timeout(LONG, served).await.unwrap();
    let before = first.states();
    first.address().await;
    first.stop().await;
    node.lose_apiserver().await;

    let start = Instant::now();
    let second = Pod::start(config, "mysql,redis:1", "").await;
    let address = second
        .states()
        .iter()
        .find(|state| state.target.service.name.as_ref() == "mysql")
        .unwrap()
        .address;
    assert_eq!(
        exchange(SocketAddr::new(address, 3306), b"offline")
            .await
            .unwrap(),
        b"offline"
    );
    assert_eq!(resolve(second.dns.unwrap(), "mysql").await, [address]);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    assert!(
        before
            .iter()
            .any(|state| state.address == address && state.target.service.name.as_ref() == "mysql")
    );
    second.stop().await;
    let dir = state_dir(node.dir.path(), "app-0");
    assert!(dir.join("snapshot.0").exists());
}

#[tokio::test]
async fn a_taken_address_gives_way_and_the_new_one_is_kept() {
    let node = Node::start("a").await;
    let port = 13_306;
    // Only the first address of the range is taken.
    let blocker = TcpListener::bind(("127.66.6.1", port)).await.unwrap();
    let mut config = node.pod("app-0");
    config.ip_range = range(6);
    let mut pod = Pod::start(config.clone(), &format!("mysql:{port}"), "").await;
    assert_eq!(
        pod.address().await,
        SocketAddr::new("127.66.6.2".parse().unwrap(), port)
    );
    let dns = pod.dns.unwrap();
    let follows = async {
        while resolve(dns, "mysql").await != ["127.66.6.2".parse::<std::net::IpAddr>().unwrap()] {}
    };
    timeout(LONG, follows).await.unwrap();
    let ready = async {
        while !pod.ready.missing().is_empty() {
            tokio::task::yield_now().await
        }
    };
    timeout(LONG, ready).await.unwrap();
    pod.stop().await;
    drop(blocker);
    let mut again = Pod::start(config, &format!("mysql:{port}"), "").await;
    assert_eq!(
        again.address().await.ip(),
        "127.66.6.2".parse::<std::net::IpAddr>().unwrap()
    );
    again.stop().await;
}

#[tokio::test]
async fn a_router_that_is_away_costs_one_connection_a_moment_and_the_next_none() {
    let (node, mut tasks) = (Node::start_as("a", "unhealthy").await, JoinSet::new());
    let backend = echo(&mut tasks).await;
    let _provider = Pod::start(node.pod("db-0"), "", &format!("mysql:3306={backend}")).await;
    // Router b claims a healthy provider, which every choice prefers, and does not answer.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    node.claim(
        "b",
        silent.local_addr().unwrap(),
        "mysql",
        3306,
        "/node/a/ns/default/pod/ghost",
    )
    .await;
    let mut config = node.pod("app-0");
    config.ip_range = range(7);
    let mut consumer = Pod::start(config, "mysql", "").await;
    let address = consumer.address().await;
    for _ in 0..4 {
        assert_eq!(exchange(address, b"ping").await.unwrap(), b"ping");
    }
    let start = Instant::now();
    assert_eq!(exchange(address, b"ping").await.unwrap(), b"ping");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn an_open_without_an_answer_goes_to_nobody_else() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let backend = echo(&mut tasks).await;
    let mut config = node.pod("app-0");
    config.ip_range = range(8);
    config.connect_timeout = Duration::from_millis(700);
    let mut consumer = Pod::start(config, "mysql:3306", "").await;
    let address = consumer.address().await;

    // One provider stops as a machine does that is cut off: its router lists it until the connection has timed out.
    let mut frozen = Frozen::start(node.pod("db-0"), format!("mysql:3306={backend}"));
    let served = async { while exchange(address, b"ping").await.is_err() {} };
    timeout(LONG, served).await.unwrap();
    frozen.freeze();
    let counted = Counted::before(backend, &mut tasks).await;
    let published = format!("mysql:3306={}", counted.address);
    let _healthy = Pod::start(node.pod("db-1"), "", &published).await;

    let (mut answered, mut reset) = (0, 0);
    let both = async {
        while answered == 0 || reset == 0 {
            let start = Instant::now();
            match exchange(address, b"ping").await {
                Ok(answer) => {
                    assert_eq!(answer, b"ping");
                    answered += 1;
                }
                Err(error) => {
                    // It may be on its way to the one that is silent, so it waits for that one and for nobody else.
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                    assert!(start.elapsed() >= Duration::from_millis(700));
                    reset += 1;
                }
            }
        }
    };
    timeout(LONG, both).await.unwrap();
    assert_eq!(counted.connections(), answered);
}

#[tokio::test]
async fn whoever_spoke_to_a_silent_provider_is_reset_soon_and_nobody_after_that() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let backend = echo(&mut tasks).await;
    let mut config = node.pod("app-0");
    config.ip_range = range(9);
    config.connect_timeout = LONG;
    let mut consumer = Pod::start(config, "mysql:3306", "").await;
    let address = consumer.address().await;
    let counted = Counted::before(backend, &mut tasks).await;
    let mut spare = node.pod("db-1");
    let last = "mysql=priority:9".parse().unwrap();
    spare.options.add(last, &spare.namespace).unwrap();
    let published = format!("mysql:3306={}", counted.address);
    let _healthy = Pod::start(spare, "", &published).await;
    exchange(address, b"ping").await.unwrap();
    let mut frozen = Frozen::start(node.pod("db-0"), format!("mysql:3306={backend}"));
    let preferred = async {
        loop {
            let before = counted.connections();
            exchange(address, b"ping").await.unwrap();
            if counted.connections() == before {
                break;
            }
        }
    };
    timeout(LONG, preferred).await.unwrap();
    frozen.freeze();
    let before = counted.connections();
    let mut all = JoinSet::new();
    for _ in 0..12 {
        all.spawn(async move {
            let start = Instant::now();
            (exchange(address, b"ping").await, start.elapsed())
        });
    }
    let (mut answered, mut reset) = (0, 0);
    while let Some(ended) = all.join_next().await {
        match ended.unwrap() {
            (Ok(answer), _) => {
                assert_eq!(answer, b"ping");
                answered += 1;
            }
            (Err(error), took) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                assert!(took < Duration::from_secs(5), "{took:?}");
                reset += 1;
            }
        }
    }
    assert!(reset > 0, "nobody spoke to the one that is silent");
    assert_eq!(counted.connections(), before + answered, "said twice");
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(exchange(address, b"ping").await.unwrap(), b"ping");
        assert!(start.elapsed() < Duration::from_secs(1));
    }
    let ends = consumer.series("keel_fabric_flows_ended_total").await;
    let code = r#"code="PROVIDER_SILENT""#;
    let silent = ends.iter().find(|line| line.contains(code)).unwrap();
    assert!(silent.ends_with(&format!(" {reset}")), "{silent}");
}
