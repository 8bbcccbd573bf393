//! Flows that stall hold what they may, and slow nobody.
//!
//! The bounds are those of a busy machine; with `KEEL_LONG` they are the ones that are promised, over longer times.

use std::time::{Duration, Instant};

use keel_fabric::consumer::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::backend::{Backend, stuck};
use crate::counters::{settled, until};
use crate::limits::hits;
use crate::world::{Consumer, World, publication, soon};

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
    let (time, rounds, least) = if crate::long() {
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
        free += one.0;
        held += other.0;
    }
    let ratio = held / free;
    println!("ratio {ratio:.3}");
    assert!(ratio >= least, "{ratio}");
    assert_eq!(tasks.len(), 3 * FLOWS);
    assert!(tasks.try_join_next().is_none(), "a flow ended");
}

/// One after the other, so that it is seen what each of them adds. Nothing else is near its bound: only the windows can hold
/// them back. Twice a window is what is promised; once the receiving end has said what it owns, the sending one keeps nothing.
#[tokio::test]
async fn a_stalled_flow_holds_no_more_than_its_window_at_both_ends_together() {
    const WINDOW: usize = 64 << 10;
    const LARGEST: usize = 512 << 10;
    const EACH: usize = 8;
    let mut world = World::new();
    world.limits.window = WINDOW;
    world.limits.max_window = LARGEST;
    let router = world.router("r").await;
    let (from, to) = (source().await, stuck().await);
    let live = world.fabric.pod("b", "default", "p");
    let list = [("down.default", &from), ("up.default", &to)];
    let list = list.map(|(name, backend)| publication(name, 80, backend.addr));
    let mut provider = world.provider(&live, &[&router], list.to_vec());
    provider.published().await;
    let consumer = world.consumer();
    let held = || world.metrics.flow_buffered.get();
    let (mut flows, mut clients) = (JoinSet::new(), JoinSet::new());
    for (name, writes) in [("down.default", false), ("up.default", true)] {
        let subject = live.identity().subject;
        let target = crate::world::target(name, 80, subject, &router);
        let mut most = 0;
        for _ in 0..EACH {
            let before = held();
            let (mut client, mut flow) = consumer.flow().await;
            soon(flow.open(&consumer.links, &target)).await.unwrap();
            flows.spawn(flow.carry());
            clients.spawn(async move {
                let zeros = vec![0; 64 << 10];
                while writes && client.write_all(&zeros).await.is_ok() {}
                std::future::pending::<()>().await;
            });
            until(|| held() - before >= WINDOW as i64).await;
            let added = settled(held).await - before;
            assert!(added <= LARGEST as i64, "{added} bytes {name}");
            most = most.max(added);
        }
        println!("{name}: at most {most} bytes of a flow with windows of {LARGEST}");
    }
    assert!(flows.try_join_next().is_none(), "a flow ended");
    let tight = hits(&world)
        .into_iter()
        .any(|(name, _)| name.contains("buffers"));
    assert!(!tight, "{:?}", hits(&world));
}
