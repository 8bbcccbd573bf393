//! A flow that carries little goes on beside one that carries all that it can, on one connection over one slow link.
//!
//! The link is what makes it a test: in one line, an echo would stand behind all that the other flow has under way, which is
//! its whole credit. On loopback that is gone before it can be measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::counters::{settled, until};
use crate::relay::{Line, Relay};
use crate::world::{World, publication, soon, target};

/// 10 Mbit/s with a queue of six packets, of 6,500 bytes on loopback: when it is full that takes 30 ms.
const LINE: Line = Line {
    rate: Some((1_250_000, 6)),
    lost: 0,
    late: (0, Duration::ZERO),
    seed: 0,
};
/// Behind the bulk in one line an echo would wait for its credit, 256 KiB at least, to cross the link: 210 ms. In turn with it
/// there is the link's own queue, and a packet or two: 50 ms were measured, and hardly more for the slowest of them.
const BESIDE: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(300)];
/// Beside a bulk that nobody reads there is nothing on the link: 1.2 and 2.2 ms were measured, as alone. Were it the connection
/// that stands still, no echo would come back at all.
const STILL: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(100)];
const ECHOES: usize = 200;
/// A message as people and small questions make them.
const MESSAGE: usize = 64;

/// Which way the bulk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// The end of the bulk that reads, while it may; what it has read is counted.
#[derive(Clone)]
struct Reader {
    reads: watch::Receiver<bool>,
    came: Arc<AtomicI64>,
}

impl Reader {
    async fn run(mut self, mut socket: TcpStream) {
        // What the kernel takes for somebody who does not read would have to cross the link first.
        SockRef::from(&socket)
            .set_recv_buffer_size(128 << 10)
            .unwrap();
        let mut buffer = vec![0; 64 << 10];
        while self.reads.wait_for(|reads| *reads).await.is_ok()
            && let Ok(count @ 1..) = socket.read(&mut buffer).await
        {
            self.came.fetch_add(count as i64, Ordering::Relaxed);
        }
        std::future::pending().await
    }
}

/// The end that sends as much as goes.
async fn send(mut socket: TcpStream) {
    let zeros = vec![0; 64 << 10];
    while socket.write_all(&zeros).await.is_ok() {}
}

/// How long each of these echoes takes, sorted.
async fn echoes(client: &mut TcpStream) -> Vec<Duration> {
    let mut all = Vec::with_capacity(ECHOES);
    let mut back = [0; MESSAGE];
    for number in 0..ECHOES {
        let message = [number as u8; MESSAGE];
        let began = Instant::now();
        client.write_all(&message).await.unwrap();
        soon(client.read_exact(&mut back)).await.unwrap();
        all.push(began.elapsed());
        assert_eq!(back, message);
    }
    all.sort_unstable();
    all
}

/// p50 and p99.
fn percentiles(sorted: &[Duration]) -> [Duration; 2] {
    [sorted[ECHOES / 2], sorted[ECHOES * 99 / 100 - 1]]
}

fn are_within(all: [Duration; 2], bounds: [Duration; 2]) -> bool {
    all.iter().zip(&bounds).all(|(took, most)| took <= most)
}

async fn beside(way: Way) {
    let (go, reads) = watch::channel(true);
    let reader = Reader {
        reads,
        came: Arc::default(),
    };
    let far = reader.clone();
    let bulk = Backend::new(move |socket| {
        let reader = far.clone();
        async move {
            match way {
                Way::Up => reader.run(socket).await,
                Way::Down => send(socket).await,
            }
        }
    })
    .await;
    let echo = Backend::echo().await;
    let mut world = World::new();
    let router = world.router("r").await;
    let live = world.fabric.pod("b", "default", "p");
    let list = [("bulk.default", &bulk), ("echo.default", &echo)];
    let list = list.map(|(name, backend)| publication(name, 80, backend.addr));
    let mut provider = world.provider(&live, &[&router], list.to_vec());
    provider.published().await;
    let relay = Relay::over(&router, LINE).await;
    let to = |service| {
        let mut target = target(service, 80, live.identity().subject, &router);
        target.router = relay.peer.clone();
        target
    };
    let consumer = world.consumer();
    let mut flows = JoinSet::new();
    let mut client = consumer.carried(&mut flows, &to("echo.default")).await;
    let alone = percentiles(&echoes(&mut client).await);
    let connections = world.metrics.links_connected.get();

    let near = consumer.connect(&mut flows, &to("bulk.default")).await;
    let mut ends = JoinSet::new();
    let came = Arc::clone(&reader.came);
    ends.spawn(async move {
        match way {
            Way::Up => send(near).await,
            Way::Down => reader.run(near).await,
        }
    });
    let came = || came.load(Ordering::Relaxed);
    // Its windows have grown by then to more than the link carries in a second.
    until(|| came() > 3 << 20).await;
    let (before, began) = (came(), Instant::now());
    let moving = percentiles(&echoes(&mut client).await);
    let rate = (came() - before) as f64 / began.elapsed().as_secs_f64();

    go.send_replace(false);
    // What has left by then still has to cross the link.
    settled(|| relay.carried()).await;
    let still = came();
    let standing = percentiles(&echoes(&mut client).await);
    let held = world.metrics.flow_buffered.get();
    println!(
        "{way:?}: p50 and p99 {alone:?} alone, {moving:?} beside {rate:.0} B/s, {standing:?} beside {held} bytes that stand still"
    );
    assert!(are_within(moving, BESIDE), "{moving:?}");
    assert!(are_within(standing, STILL), "{standing:?}");
    // That is worth nothing beside a bulk that is slow, or that still moves.
    assert!(rate >= 600_000.0, "{rate}");
    assert_eq!(came(), still, "it was to stand still");
    assert!(held >= 256 << 10, "{held} bytes of its credit are used");
    let one = world.metrics.links_connected.get();
    assert_eq!(one, connections, "both are on one connection");
    go.send_replace(true);
    until(|| came() > still + (1 << 20)).await;
}

#[tokio::test]
async fn an_echo_goes_on_beside_a_download_that_fills_the_link_or_stands_still() {
    beside(Way::Down).await;
}

#[tokio::test]
async fn an_echo_goes_on_beside_an_upload_that_fills_the_link_or_stands_still() {
    beside(Way::Up).await;
}
