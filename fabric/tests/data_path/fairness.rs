//! One flow that stalls, or one identity that floods, does not slow down others.
//!
//! The bounds are those of a busy machine; with `KEEL_LONG` they are the ones that are promised, over longer times.

use std::time::{Duration, Instant};

use keel_fabric::consumer::Target;
use keel_fabric::wire::{Frame, Generation, Open, Resume, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::admission::connect;
use crate::backend::Backend;
use crate::bounds::bytes;
use crate::headers;
use crate::limits::{answer, hits};
use crate::world::{Consumer, World, publication, soon};

fn long() -> bool {
    std::env::var_os("KEEL_LONG").is_some()
}

/// Sends as much as goes.
async fn source() -> Backend {
    Backend::new(|mut socket| async move {
        let zeros = vec![0; 64 << 10];
        while socket.write_all(&zeros).await.is_ok() {}
    })
    .await
}

const FLOWS: usize = 50;

/// Flows whose clients are handed out unread.
async fn flows(
    consumer: &Consumer,
    target: &Target,
    tasks: &mut JoinSet<keel_fabric::FlowEnd>,
) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    for _ in 0..FLOWS {
        let (client, mut flow) = consumer.flow().await;
        soon(flow.open(&consumer.links, target)).await.unwrap();
        tasks.spawn(flow.carry());
        clients.push(client);
    }
    clients
}

/// Bytes per second that these receive together, and the least that one of them received.
async fn goodput(clients: &mut [TcpStream], time: Duration) -> (f64, usize) {
    let end = Instant::now() + time;
    let all = clients.iter_mut().map(|client| async move {
        let mut buffer = vec![0; 64 << 10];
        let mut bytes = 0;
        // Around all reads: a deadline around each of them is not looked at while there is always something to read.
        let reads = async {
            while let Ok(count @ 1..) = client.read(&mut buffer).await {
                bytes += count;
            }
        };
        let _ = tokio::time::timeout_at(end.into(), reads).await;
        bytes
    });
    let each = futures_util::future::join_all(all).await;
    let least = each.iter().min().copied().unwrap_or_default();
    (
        each.iter().sum::<usize>() as f64 / time.as_secs_f64(),
        least,
    )
}

/// Two consumers with a provider each use the same router at the same time, so that whatever else this machine does slows
/// both alike. One of them has as many flows that nobody reads on the connection of its fast ones.
#[tokio::test]
async fn stalled_flows_slow_nobody_on_the_same_connection() {
    let (time, rounds, least) = if long() {
        (Duration::from_secs(5), 5, 0.9)
    } else {
        (Duration::from_secs(1), 4, 0.6)
    };
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = source().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let live = world.fabric.pod("d", "default", "p");
    let list = vec![publication("other.default", 80, backend.addr)];
    let mut provider = world.provider(&live, &[&router], list);
    provider.published().await;
    let other = crate::world::target("other.default", 80, live.identity().subject, &router);
    let beside = world.consumer();
    let alone = world.consumer_as(&world.fabric.pod("e", "default", "c"));
    let mut tasks = JoinSet::new();
    let _stalled = flows(&beside, &target, &mut tasks).await;
    let mut beside = flows(&beside, &target, &mut tasks).await;
    let mut alone = flows(&alone, &other, &mut tasks).await;
    let both = async |alone: &mut Vec<TcpStream>, beside: &mut Vec<TcpStream>, time| {
        tokio::join!(goodput(alone, time), goodput(beside, time))
    };
    // Windows have grown to what they need by then, and the others have come to a standstill.
    both(&mut alone, &mut beside, 2 * time).await;
    let (mut free, mut held) = (0.0, 0.0);
    for round in 0..rounds {
        let (one, other) = both(&mut alone, &mut beside, time).await;
        let bytes = world.metrics.flow_buffered.get();
        println!(
            "round {round}: {:.2e} B/s alone (least {} B), {:.2e} beside {FLOWS} stalled (least {} B); {bytes} B held",
            one.0, one.1, other.0, other.1
        );
        assert!(other.1 > 0, "a flow was starved");
        // Both ends of every flow are in this process.
        let each = bytes as f64 / (3 * FLOWS * 2) as f64;
        assert!(
            each <= world.limits.max_window as f64,
            "{each} bytes per end"
        );
        free += one.0;
        held += other.0;
    }
    let ratio = held / free;
    println!("ratio {ratio:.3}");
    assert!(ratio >= least, "{ratio}");
    assert_eq!(tasks.len(), 3 * FLOWS);
    assert!(tasks.try_join_next().is_none(), "a flow ended");
}

/// Latencies of echoes one after another, sorted.
async fn echoes(client: &mut TcpStream, count: usize) -> Vec<Duration> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        client.write_all(b"x").await.unwrap();
        soon(client.read_u8()).await.unwrap();
        all.push(started.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    all.sort_unstable();
    all
}

fn p99(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100 - 1]
}

#[test]
fn an_identity_that_floods_does_not_slow_others() {
    let (count, factor, floor) = if long() {
        (3000, 2.0, Duration::from_millis(2))
    } else {
        // Flooder, router and victim share what cores there are, with other tests.
        (300, 3.0, Duration::from_millis(500))
    };
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    runtime().block_on(async {
        let mut world = World::new();
        world.router_limits.opens_per_second = 200;
        world.router_limits.opens_burst = 100;
        let router = world.router("r").await;
        let backend = Backend::echo().await;
        let (_provider, target) = world.echo(&router, backend.addr).await;
        let consumer = world.consumer();
        let (mut client, mut flow) = consumer.flow().await;
        soon(flow.open(&consumer.links, &target)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(flow.carry());
        echoes(&mut client, 100).await;
        let alone = echoes(&mut client, count).await;

        let flooder = world.fabric.pod("z", "default", "flooder");
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let addr = router.addr;
        let flooding =
            std::thread::spawn(move || runtime().block_on(flood(addr, &flooder, stopped)));
        let limited = || {
            let labels = keel_fabric::metrics::LimitLabels { name: "opens" };
            world.metrics.limit_hit.get_or_create(&labels).get()
        };
        let hit = async {
            while limited() < 1000 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        soon(hit).await;
        let beside = echoes(&mut client, count).await;
        stop.send_replace(true);
        let opened = flooding.join().unwrap();
        let (alone, beside) = (p99(&alone), p99(&beside));
        println!(
            "p99 {alone:?} alone, {beside:?} beside {opened} opens, {} of them cut",
            limited()
        );
        assert!(
            beside <= alone.mul_f64(factor).max(floor),
            "{beside:?} against {alone:?}"
        );
    });
}

/// Repeats opens of flows that nobody knows, as fast as it goes, until told to stop.
async fn repeat(
    addr: std::net::SocketAddr,
    live: &keel_certs::LiveIdentity,
    target: &Target,
    stopped: tokio::sync::watch::Receiver<bool>,
) {
    let connection = crate::bounds::try_connect(addr, live).await.unwrap();
    let _control = connection.open_bi().await.unwrap();
    while !*stopped.borrow() {
        let opened = tokio::time::timeout(Duration::from_millis(100), connection.open_bi()).await;
        let Ok(Ok((mut send, mut recv))) = opened else {
            continue;
        };
        let open = Open {
            generation: Generation(2),
            ..headers::open(target)
        };
        // One that is cut already is one more.
        let _ = send.write_all(&bytes(&Frame::Open(Box::new(open)))).await;
        send.finish();
        recv.stop(0);
    }
}

#[tokio::test]
async fn an_identity_that_floods_with_known_flows_keeps_nobody_from_coming_back() {
    let mut world = World::new();
    world.router_limits.resumes_per_second = 200;
    world.router_limits.resumes_burst = 20;
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
    let _control = connection.open_bi().await.unwrap();
    let open = headers::open(&target);
    let (accepted, _first) = answer(&connection, Frame::Open(Box::new(open.clone()))).await;
    assert!(matches!(accepted, Frame::Accept { .. }), "{accepted:?}");

    let flooder = world.fabric.pod("z", "default", "flooder");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let addr = router.addr;
    let flooding = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(repeat(addr, &flooder, &target, stopped));
    });
    let cut = || {
        let limits = hits(&world);
        let resumes = limits.iter().find(|(name, _)| *name == "resumes");
        resumes.map_or(0, |(_, times)| *times)
    };
    // It has used up what it may have at once.
    crate::counters::until(|| cut() > 1000).await;
    let mut legs = Vec::new();
    for generation in 2..22 {
        let generation = Generation(generation);
        let resume = Resume {
            generation,
            proof: open.secret.prove(open.flow, generation, Role::Initiator),
            ..headers::resume(&open)
        };
        let (resumed, leg) = answer(&connection, Frame::Resume(Box::new(resume))).await;
        assert!(matches!(resumed, Frame::Resumed { .. }), "{resumed:?}");
        legs.push(leg);
    }
    stop.send_replace(true);
    flooding.join().unwrap();
}

/// Opens streams as fast as it goes, each with a byte, until told to stop; how many.
async fn flood(
    addr: std::net::SocketAddr,
    live: &keel_certs::LiveIdentity,
    stopped: tokio::sync::watch::Receiver<bool>,
) -> usize {
    let mut count = 0;
    let mut connection = None;
    while !*stopped.borrow() {
        // A connection that was closed because of the flood is made anew.
        let current = match connection.take() {
            Some(current) => current,
            None => match crate::bounds::try_connect(addr, live).await {
                Ok(new) => (new.open_bi().await, new),
                Err(_) => continue,
            },
        };
        let opened = tokio::time::timeout(Duration::from_millis(100), current.1.open_bi()).await;
        let Ok(Ok((mut send, mut recv))) = opened else {
            continue;
        };
        connection = Some(current);
        count += 1;
        // One that is cut already is one more.
        let _ = send.write_all(&[1]).await;
        recv.stop(0);
        send.reset(0);
    }
    count
}
