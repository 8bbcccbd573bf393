//! UDP associations: packets keep their borders, live beside each other, and outlive their legs.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use keel_fabric::consumer::{ConsumerFlow, OpenError, Target};
use keel_fabric::metrics::{DropLabels, FabricMetrics};
use keel_fabric::provider::Publication;
use keel_fabric::udp::{self, Inbox};
use keel_fabric::wire::{AbortCode, Protocol, RefuseCode};
use keel_fabric::{EndReason, FlowEnd};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::nobody;
use crate::bounds::only;
use crate::limits::hits;
use crate::world::{Consumer, RunningProvider, RunningRouter, World, publication, soon, target};

/// A backend that sends every packet back.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    /// Where packets came from: one address per association.
    seen: Arc<Mutex<BTreeSet<SocketAddr>>>,
    _task: JoinSet<()>,
}

impl Echo {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let mut task = JoinSet::new();
        let all = Arc::clone(&seen);
        task.spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                all.lock().unwrap().insert(from);
                socket.send_to(&buffer[..length], from).await.unwrap();
            }
        });
        Self {
            address,
            seen,
            _task: task,
        }
    }

    pub(crate) fn sources(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

type Ended = Result<FlowEnd, OpenError>;

/// The mapped side: a socket with an association for each client address.
pub(crate) struct Mapped {
    pub(crate) address: SocketAddr,
    ends: mpsc::Receiver<Ended>,
    _task: JoinSet<()>,
}

pub(crate) async fn map(consumer: &Consumer, target: &Target) -> Mapped {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = socket.local_addr().unwrap();
    let (links, config, target) = (
        consumer.links.clone(),
        consumer.config.clone(),
        target.clone(),
    );
    let (said, ends) = mpsc::channel(64);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut clients: HashMap<SocketAddr, Arc<Inbox>> = HashMap::new();
        let mut associations = JoinSet::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (length, address) = socket.recv_from(&mut buffer).await.unwrap();
            let packet = Bytes::copy_from_slice(&buffer[..length]);
            if let Some(inbox) = clients.get(&address)
                && inbox.push(packet.clone()) != Err(udp::NotTaken::Closed)
            {
                continue;
            }
            let inbox = Arc::new(Inbox::new(&config.limits));
            inbox.push(packet).unwrap();
            clients.insert(address, Arc::clone(&inbox));
            let client = udp::Client {
                inbox,
                socket: Arc::clone(&socket),
                address,
            };
            let service = (target.service.clone(), target.port);
            let mut flow = Box::new(ConsumerFlow::udp(client, service, config.clone()));
            let (links, target, said) = (links.clone(), target.clone(), said.clone());
            associations.spawn(async move {
                let end = match flow.open(&links, &target).await {
                    Ok(()) => Ok(flow.carry().await),
                    Err(error) => Err(error),
                };
                said.send(end).await.unwrap();
            });
        }
    });
    Mapped {
        address,
        ends,
        _task: task,
    }
}

pub(crate) fn over_udp(backend: SocketAddr) -> Publication {
    Publication {
        protocol: Protocol::Udp,
        ..publication("echo.default", 80, backend)
    }
}

pub(crate) async fn published(
    world: &mut World,
    router: &RunningRouter,
    backend: SocketAddr,
) -> (RunningProvider, Target) {
    let live = world.fabric.pod("b", "default", "p");
    let mut provider = world.provider(&live, &[router], vec![over_udp(backend)]);
    provider.published().await;
    let target = target("echo.default", 80, live.identity().subject, router);
    (provider, target)
}

pub(crate) async fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

/// Sends `packet` and waits for its echo.
async fn echoed(client: &UdpSocket, packet: &[u8]) {
    client.send(packet).await.unwrap();
    assert!(answer(client).await == packet, "{} bytes", packet.len());
}

async fn answer(client: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let length = soon(client.recv(&mut buffer)).await.unwrap();
    buffer.truncate(length);
    buffer
}

/// Repeats `packet` until it comes back, as clients of UDP do.
pub(crate) async fn comes_back(client: &UdpSocket, packet: &[u8]) {
    let mut buffer = vec![0; 1 << 16];
    let repeated = async {
        loop {
            client.send(packet).await.unwrap();
            let answer = client.recv(&mut buffer);
            if let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(200), answer).await
                && buffer[..length] == *packet
            {
                return;
            }
        }
    };
    soon(repeated).await;
}

pub(crate) fn dropped(metrics: &FabricMetrics, reason: &'static str) -> u64 {
    metrics
        .packets_dropped
        .get_or_create(&DropLabels { reason })
        .get()
}

/// A free port that no socket without a number of its own gets while the router that had it is away.
fn quiet_port() -> SocketAddr {
    let below_the_kernels = 20_000 + std::process::id() as u16 % 10_000;
    let free = |port: &u16| std::net::UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    let port = (below_the_kernels..32_000).find(free).unwrap();
    ([127, 0, 0, 1], port).into()
}

pub(crate) fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + seed) as u8).collect()
}

#[tokio::test]
async fn packets_of_every_size_keep_their_borders() {
    let mut world = World::new();
    let router = world.router("a").await;
    let echo = Echo::start().await;
    let (_provider, target) = published(&mut world, &router, echo.address).await;
    let mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    // Largest first: it is what the bytes before the answer just hold.
    for round in 0..3 {
        for length in [
            65_507, 0, 1, 1100, 1152, 1153, 1162, 1420, 6400, 6500, 9000, 65_507,
        ] {
            echoed(&client, &pattern(length, round)).await;
        }
    }
    assert_eq!(echo.sources(), 1, "one association, one socket");
    let totals = world.metrics.clone();
    for reason in ["queue", "no_leg", "too_large", "unknown_flow", "malformed"] {
        assert_eq!(dropped(&totals, reason), 0, "{reason}");
    }
    // The payload of a running association, to the byte, whichever way each packet went.
    let bytes = 3 * (2 * 65_507 + 1 + 1100 + 1152 + 1153 + 1162 + 1420 + 6400 + 6500 + 9000);
    crate::counters::until(|| {
        let all = totals.pairs.counts();
        let mut ends = all.iter().filter(|pair| pair.role != "router");
        ends.all(|pair| (pair.bytes_up, pair.bytes_down, pair.active) == (bytes, bytes, 1))
    })
    .await;
    for pair in totals.pairs.counts() {
        assert_eq!(pair.service, "echo.default:80/udp");
        assert!(
            pair.bytes_up >= bytes && pair.bytes_down >= bytes,
            "{pair:?}"
        );
    }
}

#[tokio::test]
async fn a_router_dials_backends_of_its_own() {
    let mut world = World::new();
    let router = world.router("a").await;
    let echo = Echo::start().await;
    router
        .backends
        .send_replace(Arc::new(vec![over_udp(echo.address)]));
    let node = "/node/a".parse().unwrap();
    let target = target("echo.default", 80, node, &router);
    let mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    for length in [100, 1400, 9000] {
        echoed(&client, &pattern(length, 0)).await;
    }
    for role in ["consumer", "provider", "router"] {
        crate::counters::until(|| {
            let all = world.metrics.pairs.counts();
            let mut here = all.iter().filter(|pair| pair.role == role);
            here.any(|pair| (pair.bytes_up, pair.bytes_down) == (10_500, 10_500))
        })
        .await;
    }
}

#[tokio::test]
async fn packets_arrive_in_order_while_nothing_is_lost() {
    let mut world = World::new();
    let router = world.router("a").await;
    let echo = Echo::start().await;
    let (_provider, target) = published(&mut world, &router, echo.address).await;
    let mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    comes_back(&client, b"first").await;
    for burst in 0..50u32 {
        for number in 0..16 {
            client
                .send(&(burst * 16 + number).to_be_bytes())
                .await
                .unwrap();
        }
        for number in 0..16 {
            assert_eq!(answer(&client).await, (burst * 16 + number).to_be_bytes());
        }
    }
}

#[tokio::test]
async fn a_refused_backend_is_a_refusal_before_the_first_answer() {
    let mut world = World::new();
    let router = world.router("a").await;
    let (_provider, target) = published(&mut world, &router, nobody()).await;
    let mut mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    client.send(b"hello").await.unwrap();
    let ended = soon(mapped.ends.recv()).await.unwrap();
    assert!(
        matches!(
            ended,
            Err(OpenError::Refused {
                code: RefuseCode::BackendRefused,
                ..
            })
        ),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_backend_that_goes_away_ends_the_association_and_the_next_packet_starts_another() {
    let mut world = World::new();
    let router = world.router("a").await;
    let echo = Echo::start().await;
    let address = echo.address;
    let (_provider, target) = published(&mut world, &router, address).await;
    let mut mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    echoed(&client, b"before").await;
    drop(echo);
    client.send(b"into the void").await.unwrap();
    let ended = soon(mapped.ends.recv()).await.unwrap().unwrap();
    assert_eq!(ended.reason.name(), "BACKEND_RESET");
    let socket = UdpSocket::bind(address).await.unwrap();
    let mut buffer = [0; 16];
    client.send(b"after").await.unwrap();
    let (length, _) = soon(socket.recv_from(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..length], b"after");
}

#[tokio::test]
async fn silence_ends_an_association_at_both_ends() {
    let mut world = World::new();
    let router = world.router("a").await;
    let echo = Echo::start().await;
    let (_provider, mut target) = published(&mut world, &router, echo.address).await;
    target.options.idle_timeout = Some(Duration::from_millis(500));
    let mut mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    // It lives longer than the timeout while packets go.
    for number in 0..8u8 {
        echoed(&client, &[number; 40]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(echo.sources(), 1);
    let ended = soon(mapped.ends.recv()).await.unwrap().unwrap();
    assert_eq!(ended.reason, EndReason::Done);
    assert_eq!((ended.bytes_up, ended.bytes_down), (320, 320));
    // The provider's end has let go of its socket: a new one is dialled.
    echoed(&client, b"again").await;
    assert_eq!(echo.sources(), 2);
}

#[tokio::test]
async fn an_association_goes_on_over_a_restarted_router_with_the_same_socket() {
    let mut world = World::new();
    let mut router = world.router_at("a", quiet_port().into());
    let echo = Echo::start().await;
    let (mut provider, target) = published(&mut world, &router, echo.address).await;
    let mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    for length in [100, 9000] {
        echoed(&client, &pattern(length, 1)).await;
    }
    for _ in 0..2 {
        let address = router.addr;
        router.stopped().await;
        router = world.router_at("a", address.into());
        provider.published().await;
        comes_back(&client, &pattern(1000, 2)).await;
        comes_back(&client, &pattern(9000, 3)).await;
    }
    assert_eq!(echo.sources(), 1, "the backend saw one client");
}

#[tokio::test]
async fn an_association_leaves_a_dead_router_for_another_one() {
    let mut world = World::new();
    let first = world.router_to_kill("a").await;
    let second = world.router("c").await;
    world.ways = vec![first.peer.clone(), second.peer.clone()];
    let echo = Echo::start().await;
    let live = world.fabric.pod("b", "default", "p");
    let mut provider = world.provider(&live, &[&first, &second], vec![over_udp(echo.address)]);
    let both = |list: &Arc<Vec<keel_fabric::provider::PublishedAt>>| {
        let published = keel_fabric::provider::PublishOutcome::Published;
        list.iter().filter(|at| at.outcome == published).count() == 2
    };
    soon(provider.state.wait_for(both)).await.unwrap();
    let target = target("echo.default", 80, live.identity().subject, &first);
    let mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    comes_back(&client, b"over the first").await;
    world.kill().await;
    let began = Instant::now();
    comes_back(&client, b"over the second").await;
    println!("datagrams went on after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(echo.sources(), 1, "the backend saw one client");
}

#[tokio::test]
async fn the_providers_idle_time_counts_as_well() {
    let mut world = World::new();
    let router = world.router("a").await;
    let echo = Echo::start().await;
    let (provider, target) = published(&mut world, &router, echo.address).await;
    let mut short = over_udp(echo.address);
    short.options.idle_timeout = Some(Duration::from_millis(300));
    provider.publications.send_replace(Arc::new(vec![short]));
    let mut mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    comes_back(&client, b"once").await;
    let ended = soon(mapped.ends.recv()).await.unwrap().unwrap();
    assert_eq!(ended.reason, EndReason::Done);
}

#[tokio::test]
async fn packets_over_the_rate_are_dropped_and_counted() {
    let mut world = World::new();
    let router = world.router("a").await;
    let echo = Echo::start().await;
    let (_provider, mut target) = published(&mut world, &router, echo.address).await;
    target.options.limit = Some("100KB/s".parse().unwrap());
    let mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    comes_back(&client, b"ready").await;
    let began = Instant::now();
    let (mut offered, mut bytes) = (0, 0);
    let mut buffer = [0; 2000];
    while began.elapsed() < Duration::from_secs(2) {
        offered += client.send(&[0; 1000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        while let Ok(length) = client.try_recv(&mut buffer) {
            bytes += length;
        }
    }
    let per_second = |bytes: usize| bytes as f64 / began.elapsed().as_secs_f64();
    let (rate, offered) = (per_second(bytes), per_second(offered));
    println!("{rate:.0} B/s of 100,000 came through, of {offered:.0}");
    assert!(
        rate < 115_000.0 && rate > 0.6 * offered.min(100_000.0),
        "{rate}"
    );
    assert!(dropped(&world.metrics, "rate") > 0);
}

/// A resolver takes a new port for each question, and nothing says that it needs the old one no more.
#[tokio::test]
async fn associations_that_are_not_in_use_make_room_for_others_at_their_provider() {
    let mut world = World::new();
    world.provider_limits.flows = 3;
    let router = world.router("a").await;
    let echo = Echo::start().await;
    let (_provider, target) = published(&mut world, &router, echo.address).await;
    let mapped = map(&world.consumer(), &target).await;
    let mut clients = Vec::new();
    let began = Instant::now();
    for _ in 0..3 {
        let client = client(mapped.address).await;
        echoed(&client, b"question").await;
        clients.push(client);
    }
    assert_eq!(hits(&world), []);
    // None was quiet for long enough yet.
    let mut ends = mapped.ends;
    client(mapped.address).await.send(b"?").await.unwrap();
    let end = soon(ends.recv()).await.unwrap();
    let is_limit = |code| code == RefuseCode::Limit;
    let refused = matches!(end, Err(OpenError::Refused { code, .. }) if is_limit(code));
    assert!(refused || began.elapsed() > Duration::from_secs(1));
    // The first one goes on being used, with packets that no datagram holds, and so stays.
    let quiet = Instant::now() + Duration::from_millis(1200);
    while Instant::now() < quiet {
        echoed(&clients[0], &pattern(20_000, 1)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    echoed(&client(mapped.address).await, b"another").await;
    let end = soon(ends.recv()).await.unwrap();
    assert_eq!(end.unwrap().reason, EndReason::Aborted(AbortCode::Limit));
    echoed(&clients[0], b"still").await;
    only(&world, "provider_flows", 2).await;
}
