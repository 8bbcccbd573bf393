//! UDP associations over bad links, over a drain, and beside TCP on a link that is full.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keel_fabric::provider::Publication;
use keel_fabric::wire::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::counters::until;
use crate::relay::{Line, Relay};
use crate::udp::{Echo, client, comes_back, dropped, map, over_udp, pattern, published};
use crate::world::{World, publication, soon, target};

/// The numbers of the packets that came back; each packet must be whole.
fn returned(client: &UdpSocket, length: usize, numbers: &mut Vec<usize>) {
    let mut buffer = [0; 2000];
    while let Ok(came) = client.try_recv(&mut buffer) {
        let number = usize::from(buffer[0]) << 8 | usize::from(buffer[1]);
        assert_eq!(buffer[2..came], pattern(length - 2, number), "{number}");
        numbers.push(number);
    }
}

#[tokio::test]
async fn packets_are_lost_and_late_as_on_any_bad_link_and_never_spoilt() {
    const SEED: u64 = 4711;
    const PACKETS: usize = 600;
    println!("seed {SEED}");
    let mut world = World::new();
    let router = world.router("a").await;
    let echo = Echo::start().await;
    let (_provider, mut target) = published(&mut world, &router, echo.address).await;
    let line = Line {
        lost: 50,
        late: (100, Duration::from_millis(15)),
        seed: SEED,
        ..Line::default()
    };
    let relay = Relay::over(&router, line).await;
    target.router = relay.peer.clone();
    let mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    comes_back(&client, b"ready").await;
    let mut numbers = Vec::new();
    for number in 0..PACKETS {
        let mut packet = vec![(number >> 8) as u8, number as u8];
        packet.extend(pattern(998, number));
        client.send(&packet).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        returned(&client, 1000, &mut numbers);
    }
    // Too large for a datagram: these are repeated by the fabric and not by their client.
    for number in 0..10 {
        let packet = pattern(9000, number);
        let mut buffer = [0; 10_000];
        client.send(&packet).await.unwrap();
        let whole = async {
            loop {
                let came = client.recv(&mut buffer).await.unwrap();
                if came == packet.len() {
                    return came;
                }
                let number = usize::from(buffer[0]) << 8 | usize::from(buffer[1]);
                numbers.push(number);
            }
        };
        let came = soon(whole).await;
        assert_eq!(buffer[..came], packet);
    }
    let came = numbers.len();
    let in_order = numbers.is_sorted();
    numbers.sort_unstable();
    numbers.dedup();
    println!("{came} of {PACKETS} came back, in order: {in_order}");
    assert_eq!(numbers.len(), came, "a packet came twice");
    assert!((PACKETS * 7 / 10..PACKETS).contains(&came), "{came}");
    assert_eq!(echo.sources(), 1, "the backend saw one client");
}

#[tokio::test]
async fn an_association_leaves_a_router_that_stops_and_loses_next_to_nothing() {
    let mut world = World::new();
    let first = world.router("a").await;
    let second = world.router("c").await;
    world.ways = vec![first.peer.clone(), second.peer.clone()];
    let echo = Echo::start().await;
    let live = world.fabric.pod("b", "default", "p");
    let mut provider = world.provider(&live, &[&first, &second], vec![over_udp(echo.address)]);
    provider.published().await;
    let target = target("echo.default", 80, live.identity().subject, &first);
    let mapped = map(&world.consumer(), &target).await;
    let client = client(mapped.address).await;
    comes_back(&client, b"ready").await;
    let (mut sent, mut numbers) = (0, Vec::new());
    let mut send = async |numbers: &mut Vec<usize>| {
        let mut packet = vec![(sent >> 8) as u8, sent as u8];
        packet.extend(pattern(98, sent));
        client.send(&packet).await.unwrap();
        sent += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
        returned(&client, 100, numbers);
    };
    for _ in 0..20 {
        send(&mut numbers).await;
    }
    let began = Instant::now();
    first.stop.cancel();
    let mut gap = Duration::ZERO;
    let (mut last, mut came) = (Instant::now(), numbers.len());
    let mut after = 0;
    while after < 100 {
        send(&mut numbers).await;
        if numbers.len() > came {
            gap = gap.max(last.elapsed());
            (last, came) = (Instant::now(), numbers.len());
        }
        after += usize::from(first.is_done());
        assert!(began.elapsed() < Duration::from_secs(25), "it does not end");
    }
    let lost = sent - numbers.len();
    println!("{lost} of {sent} packets lost, longest silence {gap:?}");
    assert!(gap < Duration::from_secs(2), "{gap:?}");
    comes_back(&client, b"over the second").await;
    assert_eq!(echo.sources(), 1, "the backend saw one client");
}

/// After this a packet counts as lost: far more than a full line of packets takes on the link.
const LOST: Duration = Duration::from_millis(400);

/// How long the echo of each of these packets takes, sorted; those that were lost, or whose echo was, are missing.
async fn echoes(client: &UdpSocket, packets: u32) -> Vec<Duration> {
    let mut all = Vec::new();
    let mut buffer = [0; 2000];
    for number in 0..packets {
        let (packet, began) = (number.to_be_bytes(), Instant::now());
        client.send(&packet).await.unwrap();
        let own = async {
            // What comes too late for its own packet is no answer to this one.
            while client.recv(&mut buffer).await.unwrap() != 4 || buffer[..4] != packet {}
        };
        if tokio::time::timeout(LOST, own).await.is_ok() {
            all.push(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    all.sort_unstable();
    all
}

/// A backend that sends back what is short, and says nothing to a flood.
async fn short_echo() -> (SocketAddr, JoinSet<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            if length < 100 {
                socket.send_to(&buffer[..length], from).await.unwrap();
            }
        }
    });
    (address, task)
}

/// Two associations on one connection, over a link that is full of what one of them sends. Packets that stand in line with the
/// flood are dropped with it, as those of its own association show; behind it, none would come back before its line of 128
/// has left.
#[tokio::test]
async fn a_flood_of_packets_neither_delays_nor_drops_those_of_others() {
    const PACKETS: u32 = 200;
    const OWN: u32 = 20;
    let mut world = World::new();
    let router = world.router("r").await;
    let (backend, _echo) = short_echo().await;
    let (_provider, mut target) = published(&mut world, &router, backend).await;
    let line = Line {
        rate: Some((2_500_000, 16)),
        ..Line::default()
    };
    let relay = Relay::over(&router, line).await;
    target.router = relay.peer.clone();
    let mapped = map(&world.consumer(), &target).await;
    let quiet = client(mapped.address).await;
    comes_back(&quiet, b"ready").await;
    let flooder = Arc::new(client(mapped.address).await);
    comes_back(&flooder, b"ready").await;
    let alone = echoes(&quiet, OWN).await;
    let mut tasks = JoinSet::new();
    let from = Arc::clone(&flooder);
    tasks.spawn(async move {
        let packet = pattern(1100, 0);
        loop {
            // Four times what the link takes.
            for _ in 0..45 {
                from.send(&packet).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    // Its line is full by then.
    until(|| dropped(&world.metrics, "queue") > 1000).await;
    let took = echoes(&quiet, PACKETS).await;
    let own = echoes(&flooder, OWN).await;
    let lost = PACKETS as usize - took.len();
    let (p50, p90) = (took[took.len() / 2], took[took.len() * 9 / 10]);
    println!(
        "alone {:?}; beside the flood p50 {p50:?}, p90 {p90:?}, {lost} of {PACKETS} lost; {} of {OWN} in its own line came back: {own:?}",
        alone[alone.len() / 2],
        own.len()
    );
    // A few are lost on the link itself, where nobody can tell them from the flood.
    assert!(lost <= PACKETS as usize / 10, "{lost} packets were lost");
    assert!(p90 < LOST / 4, "{p90:?}");
    // In the flood's own line it is otherwise, or all of this would prove nothing.
    assert!(own.len() <= OWN as usize * 4 / 5 && own[0] > p90, "{own:?}");
}

/// Bytes that come at a backend in `time`.
async fn rate(came: &AtomicU64, time: Duration) -> u64 {
    let before = came.load(Ordering::Relaxed);
    tokio::time::sleep(time).await;
    came.load(Ordering::Relaxed) - before
}

#[tokio::test]
async fn a_flood_of_packets_leaves_tcp_its_share_of_a_full_link() {
    const WINDOW: Duration = Duration::from_secs(3);
    let came = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&came);
    let bulk = Backend::new(move |mut socket| {
        let count = Arc::clone(&count);
        async move {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(length @ 1..) = socket.read(&mut buffer).await {
                count.fetch_add(length as u64, Ordering::Relaxed);
            }
        }
    })
    .await;
    let sink = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut world = World::new();
    let router = world.router("r").await;
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![
        publication("bulk.default", 80, bulk.addr),
        Publication {
            protocol: Protocol::Udp,
            ..publication("flood.default", 80, sink.local_addr().unwrap())
        },
    ];
    let mut provider = world.provider(&live, &[&router], list);
    provider.published().await;
    let line = Line {
        rate: Some((1_250_000, 16)),
        ..Line::default()
    };
    let relay = Relay::over(&router, line).await;
    let subject = live.identity().subject;
    let to = |service| {
        let mut target = target(service, 80, subject.clone(), &router);
        target.router = relay.peer.clone();
        target
    };
    let consumer = world.consumer();
    let mut flows = JoinSet::new();
    let mut upload = consumer.connect(&mut flows, &to("bulk.default")).await;
    let mapped = map(&consumer, &to("flood.default")).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let bytes = vec![7; 64 << 10];
        while upload.write_all(&bytes).await.is_ok() {}
    });
    rate(&came, Duration::from_secs(1)).await;
    let alone = rate(&came, WINDOW).await;

    let flooder = client(mapped.address).await;
    let packets = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&packets);
    tasks.spawn(async move {
        let packet = pattern(1100, 0);
        loop {
            // Four times what the link takes.
            for _ in 0..25 {
                flooder.send(&packet).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    tasks.spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok(length) = sink.recv(&mut buffer).await {
            counted.fetch_add(length as u64, Ordering::Relaxed);
        }
    });
    // What the queues hold already goes first.
    rate(&came, Duration::from_secs(1)).await;
    let (beside, flood) = tokio::join!(rate(&came, WINDOW), rate(&packets, WINDOW));
    println!("{alone} bytes alone, {beside} beside {flood} of the flood");
    assert!(beside >= alone / 4, "{beside} of {alone}");
    assert!(flood >= alone / 8, "{flood} of {alone}");
}
