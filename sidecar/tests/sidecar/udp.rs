//! Mapped UDP services.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keel_sidecar::spec::Port;
use keel_sidecar::udp::MaxAssociations;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{LONG, Node, Pod, echo, exchange, range};

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
}
