//! Each limit of the table is hit by exactly what it bounds, and by nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use keel_fabric::consumer::{OpenError, Target};
use keel_fabric::limits::KEYS;
use keel_fabric::link::ALPN;
use keel_fabric::metrics::{EndLabels, Side};
use keel_fabric::provider::{PublishOutcome, PublishedAt};
use keel_fabric::quic::{ConnectError, Connection, Endpoint, Profile, ReadError};
use keel_fabric::wire::{CloseCode, Decoder, Frame, GoneCode, Open, RefuseCode, ResetCode, Resume};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::admission::connect;
use crate::backend::{Backend, Deaf, stuck};
use crate::headers;
use crate::limits::{cut, hits, silent};
use crate::publications::Alone;
use crate::world::{RunningRouter, World, end, publication, soon, target};

/// Waits until a limit was hit, and for a moment longer: nothing else may be.
pub(crate) async fn only(world: &World, name: &'static str, times: u64) {
    let hit = async {
        while !hits(world).contains(&(name, times)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(hit).await;
    assert_eq!(hits(world), [(name, times)]);
}

/// Which limits were hit at all.
pub(crate) fn names(world: &World) -> Vec<&'static str> {
    hits(world).into_iter().map(|(name, _)| name).collect()
}

/// A client whose handshake goes on for ever: it hears nothing. Its tasks run until the set is dropped.
async fn deaf_client(world: &World, router: &RunningRouter) -> JoinSet<()> {
    let (near, far) = (
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
    );
    let (addr, to) = (near.local_addr().unwrap(), router.addr);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut packet = vec![0; 2000];
        while let Ok((length, _)) = near.recv_from(&mut packet).await {
            far.send_to(&packet[..length], to).await.unwrap();
        }
    });
    let live = world.fabric.pod("d", "default", "deaf");
    tasks.spawn(async move {
        let _ = try_connect(addr, &live).await;
    });
    tasks
}

pub(crate) async fn try_connect(
    addr: SocketAddr,
    live: &keel_certs::LiveIdentity,
) -> Result<Connection, ConnectError> {
    let endpoint = Endpoint::client(Profile::Sidecar).unwrap();
    let tls = live.client_config(&[ALPN], &"r".parse().unwrap());
    soon(endpoint.connect(addr, "127.0.0.1", tls)).await
}

#[tokio::test]
async fn handshake_time() {
    let mut world = World::new();
    world.router_limits.handshake_time = Duration::from_millis(50);
    let router = world.router("r").await;
    let _deaf = deaf_client(&world, &router).await;
    only(&world, "handshake_time", 1).await;
}

#[tokio::test]
async fn handshakes_and_who_proves_its_address_gets_in() {
    let mut world = World::new();
    world.router_limits.handshakes = 1;
    let router = world.router("r").await;
    let _deaf = deaf_client(&world, &router).await;
    let live = world.fabric.pod("a", "default", "c");
    // Until the deaf one's handshake runs, attempts need no proof.
    let proven = async {
        while hits(&world).is_empty() {
            try_connect(router.addr, &live).await.unwrap();
        }
    };
    soon(proven).await;
    assert_eq!(names(&world), ["handshakes"]);
}

#[tokio::test]
async fn incoming() {
    let mut world = World::new();
    world.router_limits.incoming = 1;
    let router = world.router("r").await;
    let _deaf = deaf_client(&world, &router).await;
    let live = world.fabric.pod("a", "default", "c");
    // Whichever of the two comes second is refused.
    let refused = async {
        while hits(&world).is_empty() {
            let _ = try_connect(router.addr, &live).await;
        }
    };
    soon(refused).await;
    assert_eq!(names(&world), ["incoming"]);
}

#[tokio::test]
async fn connections() {
    let mut world = World::new();
    world.router_limits.connections = 1;
    let mut router = world.router("r").await;
    let _first = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    router.shows(|view| view.totals.clients == 1).await;
    let second = connect(&router, &world.fabric.pod("b", "default", "c")).await;
    let lost = soon(second.closed()).await.to_string();
    let code = format!("code {}", CloseCode::Limit.to_wire());
    assert!(lost.contains(&code), "{lost}");
    only(&world, "connections", 1).await;
}

#[tokio::test]
async fn publications() {
    let mut world = World::new();
    world.router_limits.publications = 1;
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let live = world.fabric.pod("b", "default", "p");
    let list = ["a.default", "b.default"].map(|name| publication(name, 80, backend.addr));
    let mut provider = world.provider(&live, &[&router], list.to_vec());
    let one_of_two = |list: &Arc<Vec<PublishedAt>>| {
        let refused = |at: &&PublishedAt| matches!(at.outcome, PublishOutcome::Refused(_));
        list.len() == 2 && list.iter().filter(refused).count() == 1
    };
    soon(provider.state.wait_for(one_of_two)).await.unwrap();
    only(&world, "publications", 1).await;
}

#[tokio::test]
async fn flood() {
    let mut world = World::new();
    world.router_limits.flood = 3;
    let router = world.router("r").await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    for _ in 0..4 {
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.reset(0);
    }
    let lost = soon(connection.closed()).await.to_string();
    let code = format!("code {}", CloseCode::Limit.to_wire());
    assert!(lost.contains(&code), "{lost}");
    only(&world, "flood", 1).await;
}

/// An open of a later version, whose fields that nobody knows have that length.
fn open(target: &Target, rest: usize) -> Open {
    Open {
        window: Some(60_000),
        rest: Bytes::from(vec![0; rest]),
        ..headers::open(target)
    }
}

pub(crate) fn bytes(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out.freeze()
}

#[tokio::test]
async fn header_size() {
    let mut world = World::new();
    world.router_limits.header_size = 512;
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    // Type and length take three bytes.
    let bare = bytes(&Frame::Open(Box::new(open(&target, 200)))).len() - 200 - 3;
    let send = async |rest| {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let header = bytes(&Frame::Open(Box::new(open(&target, rest))));
        send.write_all(&header).await.unwrap();
        soon(recv.read_chunk(100))
            .await
            .map(|answer| (answer, send))
    };
    assert!(send(512 - bare).await.is_ok());
    assert_eq!(hits(&world), []);
    assert!(send(513 - bare).await.is_err());
    only(&world, "header_size", 1).await;
}

#[tokio::test]
async fn hops() {
    let mut world = World::new();
    world.router_limits.hops = 1;
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    let send = async |hops| {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let open = Open {
            hops,
            ..headers::open(&target)
        };
        send.write_all(&bytes(&Frame::Open(Box::new(open))))
            .await
            .unwrap();
        let answer = soon(recv.read_chunk(1000)).await.unwrap().unwrap();
        let mut decoder = Decoder::new();
        decoder.push(answer);
        decoder.next().unwrap().unwrap()
    };
    assert!(matches!(send(0).await, Frame::Accept { .. }));
    assert_eq!(hits(&world), []);
    let refused = send(1).await;
    let code = RefuseCode::TooManyHops;
    assert!(
        matches!(&refused, Frame::Refuse { code: found, .. } if *found == code),
        "{refused:?}"
    );
    only(&world, "hops", 1).await;
}

/// With what a new flow is refused.
async fn refusal(world: &World, target: &Target) -> RefuseCode {
    let consumer = world.consumer();
    let (_client, mut flow) = consumer.flow().await;
    match soon(flow.open(&consumer.links, target)).await {
        Err(OpenError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn parked_resumes() {
    let mut world = World::new();
    world.router_limits.parked = 0;
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    let absent = Target {
        provider: "/node/z".parse().unwrap(),
        ..target
    };
    let resume = Frame::Resume(Box::new(headers::resume(&headers::open(&absent))));
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&bytes(&resume)).await.unwrap();
    assert_eq!(cut(&mut recv).await, ResetCode::LegLost);
    only(&world, "parked", 1).await;
}

/// The answers to two resumes at once.
async fn two_resumes(connection: &Connection, target: &Target) -> [Result<Frame, ResetCode>; 2] {
    let mut answers = Vec::new();
    for _ in 0..2 {
        let resume = Resume {
            from: Some("/node/a".parse().unwrap()),
            ..headers::resume(&headers::open(target))
        };
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let header = bytes(&Frame::Resume(Box::new(resume)));
        send.write_all(&header).await.unwrap();
        answers.push((send, recv.read_chunk(100).await));
    }
    let answer = |(_, answer): (_, Result<Option<Bytes>, ReadError>)| match answer {
        Ok(Some(bytes)) => {
            let mut decoder = Decoder::new();
            decoder.push(bytes);
            Ok(decoder.next().unwrap().unwrap())
        }
        Err(ReadError::Reset(code)) => Err(ResetCode::from_wire(code)),
        other => panic!("{other:?}"),
    };
    answers
        .into_iter()
        .map(answer)
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

const UNKNOWN: Frame = Frame::Gone {
    code: GoneCode::Unknown,
};

#[tokio::test]
async fn resumes() {
    let mut world = World::new();
    world.router_limits.resumes_per_second = 1;
    world.router_limits.resumes_burst = 1;
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    let answers = soon(two_resumes(&connection, &target)).await;
    assert_eq!(answers, [Ok(UNKNOWN), Err(ResetCode::LegLost)]);
    only(&world, "resumes", 1).await;
}

#[tokio::test]
async fn resumes_at_a_provider() {
    let mut world = World::new();
    world.provider_limits.resumes_per_second = 1;
    world.provider_limits.resumes_burst = 1;
    let alone = Alone::new(&mut world).await;
    let connection = alone.connection.clone();
    let target = alone.target.clone();
    let answers = soon(two_resumes(&connection, &target)).await;
    assert_eq!(answers, [Ok(UNKNOWN), Err(ResetCode::Limit)]);
    only(&world, "resumes", 1).await;
}

#[tokio::test]
async fn provider_flows() {
    let mut world = World::new();
    world.provider_limits.flows = 1;
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let (_client, mut flow) = consumer.flow().await;
    soon(flow.open(&consumer.links, &target)).await.unwrap();
    assert_eq!(refusal(&world, &target).await, RefuseCode::Limit);
    only(&world, "provider_flows", 1).await;
}

#[tokio::test]
async fn dial_time() {
    let mut world = World::new();
    world.provider_limits.dial_time = Duration::from_millis(50);
    let router = world.router("r").await;
    let deaf = Deaf::new().await;
    let (_provider, target) = world.echo(&router, deaf.addr).await;
    let refused = refusal(&world, &target).await;
    assert_eq!(refused, RefuseCode::BackendTimeout);
    only(&world, "dial_time", 1).await;
}

#[tokio::test]
async fn park_time() {
    let mut world = World::new();
    world.router_limits.park_time = Duration::from_millis(50);
    let router = world.router("r").await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = silent(&connection).await;
    let target = target("echo.default", 80, "/node/z".parse().unwrap(), &router);
    let resume = Frame::Resume(Box::new(headers::resume(&headers::open(&target))));
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&bytes(&resume)).await.unwrap();
    assert_eq!(cut(&mut recv).await, ResetCode::LegLost);
    only(&world, "park_time", 1).await;
}

#[tokio::test]
async fn remembered_flows() {
    let mut world = World::new();
    world.provider_limits.remembered = 1;
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    for hits_after in [vec![], vec![("remembered", 1)]] {
        let mut tasks = JoinSet::new();
        let client = consumer.carried(&mut tasks, &target).await;
        drop(client);
        end(&mut tasks).await.unwrap();
        let ended = |role| {
            let ends = &world.metrics.flows_ended;
            ends.get_or_create(&EndLabels {
                role,
                how: "done",
                code: "DONE",
            })
            .get()
        };
        let both = || ended(Side::provider) == ended(Side::consumer);
        crate::counters::until(both).await;
        assert_eq!(hits(&world), hits_after);
    }
}

#[tokio::test]
async fn headers_at_a_provider() {
    let mut world = World::new();
    world.provider_limits.headers = 1;
    let alone = Alone::new(&mut world).await;
    let connection = alone.connection.clone();
    let _first = silent(&connection).await;
    let (_send, mut second) = silent(&connection).await;
    assert_eq!(cut(&mut second).await, ResetCode::Limit);
    only(&world, "headers", 1).await;
}

/// Sends until the client's socket takes no more, or is cut; says whether it was.
async fn fill(client: &mut tokio::net::TcpStream) -> bool {
    let zeros = vec![0; 64 << 10];
    loop {
        match tokio::time::timeout(Duration::from_secs(2), client.write_all(&zeros)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return true,
            Err(_) => return false,
        }
    }
}

#[tokio::test]
async fn identity_buffers_refuse_flows_of_that_identity_only() {
    let mut world = World::new();
    // A little more than the window of the only flow, which would grow while the backend's kernel takes what comes.
    world.memory.identity = 270 << 10;
    world.limits.max_window = world.limits.window;
    let router = world.router("r").await;
    let backend = stuck().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let (mut client, mut flow) = consumer.flow().await;
    soon(flow.open(&consumer.links, &target)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(flow.carry());
    assert!(!fill(&mut client).await, "bytes are never dropped");
    assert_eq!(refusal(&world, &target).await, RefuseCode::Limit);
    // On a busy machine the window, which cannot grow, is a limit as well.
    let mut buffers = names(&world);
    buffers.retain(|name| *name != "flow_window_max");
    assert_eq!(buffers, ["identity_buffers"]);
    let other = world.consumer_as(&world.fabric.pod("z", "default", "c"));
    let (_client, mut flow) = other.flow().await;
    soon(flow.open(&other.links, &target)).await.unwrap();
}

#[tokio::test]
async fn a_flow_that_was_promised_too_much_is_cut_and_says_so() {
    let mut world = World::new();
    // Less than the window that the flow was given at its start.
    world.memory.identity = 200 << 10;
    let router = world.router("r").await;
    let backend = stuck().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let (mut client, mut flow) = consumer.flow().await;
    soon(flow.open(&consumer.links, &target)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(flow.carry());
    assert!(fill(&mut client).await, "it is reset");
    let end = soon(tasks.join_next()).await.unwrap().unwrap();
    assert_eq!(end.reason.name(), "LIMIT");
    assert!(client.read_u8().await.is_err());
    assert_eq!(names(&world), ["identity_buffers"]);
}

/// Limits that are hit by tests of their own part: peers of this machine have no prefix, associations are a sidecar's, packets wait
/// only where something is slow, and a window is full only where nothing is fast.
const ELSEWHERE: [&str; 8] = [
    "flow_window_max",
    "handshake_prefix",
    "associations",
    "associations_per_client",
    "queued_packets",
    "queued_packet_bytes",
    "waiting_packets",
    "waiting_packet_bytes",
];

#[test]
fn every_limit_has_a_test() {
    let tests = [
        include_str!("bounds.rs"),
        include_str!("budgets.rs"),
        include_str!("limits.rs"),
        include_str!("memory.rs"),
        include_str!("publications.rs"),
    ]
    .concat();
    for key in KEYS.iter().filter(|key| !key.metric.is_empty()) {
        let named = tests.matches(&format!("\"{}\"", key.metric)).count();
        assert!(named > 0 || ELSEWHERE.contains(&key.metric), "{}", key.name);
    }
}
