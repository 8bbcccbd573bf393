//! The bound on what all flows of a process hold, reached by bytes that nobody reads.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use keel_fabric::EndReason;
use keel_fabric::consumer::{OpenError, Target};
use keel_fabric::flow::FlowLimits;
use keel_fabric::limits::MemoryLimits;
use keel_fabric::memory::Memory;
use keel_fabric::metrics::FabricMetrics;
use keel_fabric::wire::{AbortCode, RefuseCode};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::backend::{Backend, noise};
use crate::counters::{settled, until};
use crate::limits::hits_in;
use crate::world::{Consumer, World, echoes, end, soon};

/// The least that the key `processBuffers` takes.
const PROCESS: usize = 1 << 20;
/// What a flow that stands still holds: four of them leave a little for those that go on.
const WINDOW: usize = 240 << 10;
const STILL: usize = 4;
/// What arrives of one flow before its end looks at it, at most: the window of its QUIC stream in a sidecar. By so much a
/// flow whose credit was given before can be over the bound until it is cut.
const AT_ONCE: usize = (1 << 20) + (64 << 10);

/// Bytes after which a backend sends as much as goes, or reads no more.
const SEND: u8 = b'!';
const STAND: u8 = b'.';
const BLOCK: usize = 64 << 10;

/// Gives every byte back until it is told to do something else.
async fn backend() -> Backend {
    Backend::new(|mut socket| async move {
        while let Ok(byte) = socket.read_u8().await {
            match byte {
                SEND => {
                    let block = noise(1, BLOCK);
                    while socket.write_all(&block).await.is_ok() {}
                }
                STAND => std::future::pending().await,
                _ => socket.write_u8(byte).await.unwrap_or_default(),
            }
        }
    })
    .await
}

/// Windows that do not grow, so that it is known what a flow may hold.
fn windows(bytes: usize) -> FlowLimits {
    FlowLimits {
        window: bytes,
        max_window: bytes,
        ..FlowLimits::default()
    }
}

/// A consumer that is a process of its own: it counts what its own flows hold, and nothing else.
fn process(world: &World, bytes: usize) -> Consumer {
    let mut consumer = world.consumer();
    let metrics = Arc::<FabricMetrics>::default();
    let limits = MemoryLimits {
        process: bytes as u64,
        ..MemoryLimits::default()
    };
    consumer.config.memory = Memory::new(limits, Arc::clone(&metrics));
    consumer.config.metrics = metrics;
    consumer.config.limits = windows(WINDOW);
    consumer
}

fn held(metrics: &FabricMetrics) -> usize {
    usize::try_from(metrics.flow_buffered.get()).unwrap()
}

/// How often the bound was hit. That of an identity may not have been; windows that do not grow are hit as well.
fn buffers(metrics: &FabricMetrics) -> u64 {
    let mut all = hits_in(metrics);
    all.retain(|(name, _)| name.ends_with("buffers"));
    match all[..] {
        [] => 0,
        [("buffers", times)] => times,
        ref other => panic!("{other:?}"),
    }
}

/// Looks all the time at what is held, beside the thread of the flows: what is too much is cut within one turn of theirs.
struct Watch {
    over: Arc<AtomicBool>,
    looking: JoinHandle<usize>,
}

impl Watch {
    fn over(metrics: &Arc<FabricMetrics>) -> Self {
        let (metrics, over) = (Arc::clone(metrics), Arc::<AtomicBool>::default());
        let ends = Arc::clone(&over);
        let looking = std::thread::spawn(move || {
            let mut most = 0;
            while !ends.load(Ordering::Relaxed) {
                most = most.max(held(&metrics));
            }
            most
        });
        Self { over, looking }
    }

    /// The most that was seen.
    fn most(self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.looking.join().unwrap()
    }
}

async fn refused(consumer: &Consumer, target: &Target) -> String {
    let (_client, mut flow) = consumer.flow().await;
    let error = soon(flow.open(&consumer.links, target)).await.unwrap_err();
    error.to_string()
}

/// Takes the block of a backend that sends so many times, and looks at each byte.
async fn takes(client: &mut TcpStream, blocks: usize) {
    let (block, mut came) = (noise(1, BLOCK), vec![0; BLOCK]);
    for _ in 0..blocks {
        soon(client.read_exact(&mut came)).await.unwrap();
        assert!(came == block, "other bytes came");
    }
}

#[tokio::test]
async fn flows_that_nobody_reads_fill_a_consumer_up_to_its_bound_and_not_further() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = backend().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = process(&world, PROCESS);
    let metrics = Arc::clone(&consumer.config.metrics);
    // All are there before anything is held. The last one was promised more than there is, and credit is not taken back.
    let mut ends = JoinSet::new();
    let mut other = consumer.carried(&mut ends, &target).await;
    let mut still = Vec::new();
    for _ in 0..STILL {
        still.push(consumer.carried(&mut ends, &target).await);
    }
    let mut greedy = Consumer {
        links: consumer.links.clone(),
        config: consumer.config.clone(),
    };
    greedy.config.limits = windows(64 << 20);
    let mut greedy_ends = JoinSet::new();
    let mut promised = greedy.carried(&mut greedy_ends, &target).await;

    for (before, client) in still.iter_mut().enumerate() {
        assert_eq!(
            settled(|| metrics.flow_buffered.get()).await as usize,
            before * WINDOW
        );
        client.write_u8(SEND).await.unwrap();
        until(|| held(&metrics) > before * WINDOW).await;
    }
    let full = settled(|| metrics.flow_buffered.get()).await as usize;
    println!("{STILL} flows that stand still hold {full} bytes of {PROCESS}");
    assert!((PROCESS * 9 / 10..=PROCESS).contains(&full), "{full}");
    echoes(&mut other, b'o').await;
    let before = buffers(&metrics);
    assert!(before > 0, "it was not noticed");
    let error = refused(&consumer, &target).await;
    assert!(error.contains("of this process"), "{error}");
    assert_eq!(buffers(&metrics), before + 1);

    let watch = Watch::over(&metrics);
    promised.write_u8(SEND).await.unwrap();
    let cut = end(&mut greedy_ends).await.unwrap();
    let most = watch.most();
    assert_eq!(cut.reason, EndReason::Aborted(AbortCode::Limit));
    println!("{most} bytes at most until the newest was cut");
    assert!(most <= PROCESS + AT_ONCE, "{most}");
    assert!(buffers(&metrics) > before + 1, "it was not noticed");
    let mut rest = Vec::new();
    let reset = soon(promised.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    assert!(held(&metrics) <= PROCESS);

    // The older ones have lost nothing, and go on as they are read; then there is room again.
    assert!(ends.try_join_next().is_none(), "another flow was cut");
    echoes(&mut other, b'o').await;
    for client in &mut still {
        takes(client, 128).await;
        assert!(held(&metrics) <= PROCESS);
    }
    drop(still);
    for _ in 0..STILL {
        end(&mut ends).await.unwrap();
    }
    until(|| held(&metrics) == 0).await;
    consumer.carried(&mut ends, &target).await;
    assert_eq!(buffers(&world.metrics), 0, "it is the consumer's own");
}

#[tokio::test]
async fn flows_that_no_backend_reads_fill_a_provider_up_to_its_bound_and_not_further() {
    let mut world = World::new();
    world.memory.process = PROCESS as u64;
    world.limits = windows(WINDOW);
    let router = world.router("r").await;
    let backend = backend().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    // The world's own metrics are the provider's.
    let consumer = process(&world, 64 << 20);
    let metrics = Arc::clone(&world.metrics);
    let mut ends = JoinSet::new();
    let mut other = consumer.carried(&mut ends, &target).await;
    let mut writing = JoinSet::new();
    for before in 0..STILL {
        assert_eq!(
            settled(|| metrics.flow_buffered.get()).await as usize,
            before * WINDOW
        );
        let mut client = consumer.carried(&mut ends, &target).await;
        // An end behind bytes that nobody reads would not come to the backend, a reset does.
        let linger = Some(Duration::ZERO);
        SockRef::from(&client).set_linger(linger).unwrap();
        writing.spawn(async move {
            let block = vec![STAND; BLOCK];
            while client.write_all(&block).await.is_ok() {}
        });
        until(|| held(&metrics) > before * WINDOW).await;
    }
    let full = settled(|| metrics.flow_buffered.get()).await as usize;
    println!("{STILL} flows that stand still hold {full} bytes of {PROCESS}");
    assert!((PROCESS * 9 / 10..=PROCESS).contains(&full), "{full}");
    echoes(&mut other, b'o').await;
    let before = buffers(&metrics);
    let (_client, mut flow) = consumer.flow().await;
    match soon(flow.open(&consumer.links, &target)).await {
        Err(OpenError::Refused { code, .. }) => assert_eq!(code, RefuseCode::Limit),
        opened => panic!("{opened:?}"),
    }
    assert_eq!(buffers(&metrics), before + 1);
    assert!(ends.try_join_next().is_none(), "a flow was cut");
    echoes(&mut other, b'o').await;

    writing.shutdown().await;
    for _ in 0..STILL {
        end(&mut ends).await.unwrap();
    }
    until(|| held(&metrics) == 0).await;
    consumer.carried(&mut ends, &target).await;
    assert_eq!(
        buffers(&consumer.config.metrics),
        0,
        "it is the provider's own"
    );
}
