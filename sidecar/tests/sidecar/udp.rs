//! Mapped UDP services.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keel_sidecar::spec::Port;
use keel_sidecar::udp::MaxAssociations;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::{Frozen, LONG, Node, Pod, echo, exchange, range};

/// Where packets came from: one address for each association.
type Sources = Arc<Mutex<Vec<SocketAddr>>>;

/// A backend that sends every packet back.
async fn mirror(tasks: &mut JoinSet<()>) -> (SocketAddr, Sources) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let sources = Sources::default();
    let seen = Arc::clone(&sources);
    tasks.spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            seen.lock().unwrap().push(from);
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    (address, sources)
}

async fn client(to: SocketAddr) -> UdpSocket {
    // Connected, so it takes answers from the address that it sends to and from no other.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn mirrored(client: &UdpSocket, packet: &[u8]) {
    client.send(packet).await.unwrap();
    let mut buffer = vec![0; 1 << 16];
    let length = timeout(LONG, client.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert!(buffer[..length] == *packet, "{} bytes", packet.len());
}

fn last(sources: &Sources) -> SocketAddr {
    *sources.lock().unwrap().last().unwrap()
}

#[tokio::test]
async fn tcp_and_udp_of_a_service_share_its_address_and_port() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let tcp = echo(&mut tasks).await;
    let (udp, sources) = mirror(&mut tasks).await;
    let published = format!("dns:5300={tcp},dns:5300/udp={udp}");
    let _provider = Pod::start(node.pod("dns-0"), "", &published).await;
    let mut config = node.pod("app-0");
    config.ip_range = range(40);
    let mut consumer = Pod::start(config, "dns,dns/udp", "").await;
    let both = async {
        while consumer.states()[0].ports.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, both).await.unwrap();
    let state = consumer.states()[0].clone();
    let ports: Vec<Port> = state.ports.keys().copied().collect();
    assert_eq!(ports, [Port::tcp(5300), Port::udp(5300)]);
    let address = consumer.address().await;
    assert_eq!(exchange(address, b"over tcp").await.unwrap(), b"over tcp");
    let (one, two) = (client(address).await, client(address).await);
    for length in [0, 40, 1200, 1452, 9000, 65_507] {
        mirrored(&one, &vec![1; length]).await;
        mirrored(&two, &vec![2; length]).await;
    }
    let distinct: BTreeSet<SocketAddr> = sources.lock().unwrap().iter().copied().collect();
    assert_eq!(distinct.len(), 2, "an association for each client");
    consumer.stop().await;
}

#[tokio::test]
async fn the_first_packet_waits_for_a_provider() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let (udp, _) = mirror(&mut tasks).await;
    let mut config = node.pod("app-0");
    config.ip_range = range(41);
    config.connect_timeout = LONG;
    let mut consumer = Pod::start(config, "ntp:5123/udp", "").await;
    let client = client(consumer.address().await).await;
    client.send(b"early").await.unwrap();
    let _provider = Pod::start(node.pod("ntp-0"), "", &format!("ntp:5123/udp={udp}")).await;
    let mut buffer = [0; 16];
    let length = timeout(LONG, client.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&buffer[..length], b"early");
}

#[tokio::test]
async fn so_many_packets_wait_for_a_provider_and_no_more() {
    let limits = [
        (48, 3, 1 << 20, "waiting_packets"),
        (49, 100, 1000, "waiting_packet_bytes"),
    ];
    for (place, packets, bytes, limit) in limits {
        let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
        let (udp, _) = mirror(&mut tasks).await;
        let mut config = node.pod("app-0");
        (config.ip_range, config.connect_timeout) = (range(place), LONG);
        config.limits.flow.packets = packets;
        config.limits.flow.packet_bytes = bytes;
        let mut consumer = Pod::start(config, "ntp:5123/udp", "").await;
        let client = client(consumer.address().await).await;
        for number in 0..5 {
            client.send(&[number; 300]).await.unwrap();
        }
        let name = format!("keel_fabric_limit_hit_total{{name=\"{limit}\"}}");
        let dropped = async { while count(&consumer, &name).await < 2 {} };
        timeout(LONG, dropped).await.unwrap();
        let _provider = Pod::start(node.pod("ntp-0"), "", &format!("ntp:5123/udp={udp}")).await;
        for number in 0..3 {
            let mut buffer = [9; 300];
            let answer = timeout(LONG, client.recv(&mut buffer)).await.unwrap();
            assert_eq!((answer.unwrap(), buffer[0]), (300, number));
        }
        assert_eq!(count(&consumer, &name).await, 2);
    }
}

#[tokio::test]
async fn the_idlest_association_makes_room_for_a_new_one() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let (udp, sources) = mirror(&mut tasks).await;
    let _provider = Pod::start(node.pod("ntp-0"), "", &format!("ntp:5123/udp={udp}")).await;
    let mut config = node.pod("app-0");
    config.ip_range = range(42);
    config.max_associations = MaxAssociations { port: 3, client: 2 };
    let mut consumer = Pod::start(config, "ntp:5123/udp", "").await;
    let address = consumer.address().await;
    let (a, b, c) = (
        client(address).await,
        client(address).await,
        client(address).await,
    );
    mirrored(&a, b"a").await;
    let of_a = last(&sources);
    mirrored(&b, b"b").await;
    let of_b = last(&sources);
    mirrored(&a, b"a is not the idlest").await;
    assert_eq!(last(&sources), of_a, "exactly two are within the limit");
    mirrored(&c, b"c takes the place of b").await;
    mirrored(&a, b"a has its place").await;
    assert_eq!(last(&sources), of_a);
    mirrored(&b, b"b begins anew").await;
    assert_ne!(last(&sources), of_b);
    // c and the new b.
    assert_eq!(hits(&consumer, "associations_per_client").await, 2);
    assert_eq!(hits(&consumer, "associations").await, 0);
}

#[tokio::test]
async fn all_clients_of_a_port_share_its_associations() {
    let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
    let (udp, sources) = mirror(&mut tasks).await;
    let _provider = Pod::start(node.pod("ntp-0"), "", &format!("ntp:5123/udp={udp}")).await;
    let mut config = node.pod("app-0");
    config.ip_range = range(44);
    config.max_associations = MaxAssociations { port: 2, client: 3 };
    let mut consumer = Pod::start(config, "ntp:5123/udp", "").await;
    let address = consumer.address().await;
    let (a, b, c) = (
        client(address).await,
        client(address).await,
        client(address).await,
    );
    mirrored(&a, b"a").await;
    let of_a = last(&sources);
    mirrored(&b, b"b").await;
    let of_b = last(&sources);
    assert_eq!(hits(&consumer, "associations").await, 0);
    mirrored(&c, b"c takes the place of a").await;
    assert_eq!(hits(&consumer, "associations").await, 1);
    mirrored(&b, b"b has its place").await;
    assert_eq!(last(&sources), of_b);
    mirrored(&a, b"a begins anew").await;
    assert_ne!(last(&sources), of_a);
    assert_eq!(hits(&consumer, "associations").await, 2);
    assert_eq!(hits(&consumer, "associations_per_client").await, 0);
}

/// How often this limit was hit.
async fn hits(pod: &Pod, limit: &str) -> u64 {
    let name = format!("keel_sidecar_limit_hit_total{{name=\"{limit}\"}}");
    count(pod, &name).await
}

/// A counter, which is not shown before it has counted.
async fn count(pod: &Pod, name: &str) -> u64 {
    let lines = pod.series(name).await;
    lines
        .first()
        .map_or(0, |line| line[name.len()..].trim().parse().unwrap())
}

/// Two providers of one service, of which one is stopped as a machine that is cut off.
struct Frosty {
    frozen: Frozen,
    /// Where packets came from at the other one, and at the one that is stopped.
    sources: [Sources; 2],
    consumer: Pod,
    address: SocketAddr,
    _kept: (Node, Pod, JoinSet<()>),
}

impl Frosty {
    async fn new(third: u8) -> Self {
        let (node, mut tasks) = (Node::start("a").await, JoinSet::new());
        let (cold, at_cold) = mirror(&mut tasks).await;
        let (warm, at_warm) = mirror(&mut tasks).await;
        let frozen = Frozen::start(node.pod("ntp-0"), format!("ntp:5123/udp={cold}"));
        let provider = Pod::start(node.pod("ntp-1"), "", &format!("ntp:5123/udp={warm}")).await;
        let mut config = node.pod("app-0");
        config.ip_range = range(third);
        let mut consumer = Pod::start(config, "ntp:5123/udp", "").await;
        let address = consumer.address().await;
        Self {
            frozen,
            sources: [at_warm, at_cold],
            consumer,
            address,
            _kept: (node, provider, tasks),
        }
    }

    /// A client with an association at the provider that is going to be stopped, once both have served some.
    async fn served_by_cold(&self) -> UdpSocket {
        let [warm, cold] = &self.sources;
        loop {
            let client = client(self.address).await;
            let before = cold.lock().unwrap().len();
            mirrored(&client, b"hello").await;
            let by_cold = cold.lock().unwrap().len() > before;
            if by_cold && !warm.lock().unwrap().is_empty() {
                return client;
            }
        }
    }
}

#[tokio::test]
async fn packets_to_a_silent_provider_are_said_to_another_one() {
    let mut frosty = Frosty::new(43).await;
    timeout(LONG, frosty.served_by_cold()).await.unwrap();
    frosty.frozen.freeze();
    // Until some have gone to the one that is silent, which may have been the slower one for a while.
    let mut buffer = [0; 16];
    let noticed = async {
        while frosty.consumer.metric("keel_sidecar_ejections_total").await == 0 {
            let mut clients = Vec::new();
            for _ in 0..12 {
                let client = client(frosty.address).await;
                client.send(b"once").await.unwrap();
                clients.push(client);
            }
            // No packet is sent a second time by its client.
            for client in &clients {
                let answered = timeout(Duration::from_secs(5), client.recv(&mut buffer)).await;
                assert_eq!(&buffer[..answered.unwrap().unwrap()], b"once");
            }
        }
    };
    timeout(LONG, noticed).await.unwrap();
}

#[tokio::test]
async fn an_association_whose_provider_says_nothing_begins_anew_at_another_one() {
    let mut frosty = Frosty::new(44).await;
    let client = timeout(LONG, frosty.served_by_cold()).await.unwrap();
    frosty.frozen.freeze();
    let start = Instant::now();
    let mut buffer = [0; 16];
    let anew = async {
        loop {
            client.send(b"anybody").await.unwrap();
            let answer = timeout(Duration::from_millis(100), client.recv(&mut buffer)).await;
            if let Ok(length) = answer {
                return length.unwrap();
            }
        }
    };
    let length = timeout(LONG, anew).await.unwrap();
    println!("begun anew after {:?}", start.elapsed());
    assert_eq!(&buffer[..length], b"anybody");
}
