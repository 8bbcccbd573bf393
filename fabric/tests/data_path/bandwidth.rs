//! Bandwidth limits end to end: measured at the application's sockets, in real time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keel_fabric::FlowEnd;
use keel_fabric::consumer::Target;
use keel_fabric::metrics::PaceLabels;
use keel_fabric::provider::PublicationOptions;
use keel_fabric::units::Rate;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::world::{Consumer, World, publication, soon, target};

const RATE: u64 = 2_000_000;
const TIME: Duration = Duration::from_secs(3);
/// A busy machine may be slower than the limit now and then, and never faster.
const LEAST: f64 = 0.85;
const MOST: f64 = 1.1;

fn rate() -> Option<Rate> {
    Some(format!("{RATE}B/s").parse().unwrap())
}

/// Bytes that came at one end.
type Count = Arc<AtomicU64>;

/// Who sends and takes as much as goes, with everybody who connects.
struct Peer {
    addr: SocketAddr,
    /// What came on each connection.
    came: Arc<Mutex<Vec<Count>>>,
    _serving: JoinSet<()>,
}

impl Peer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let came = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&came);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let count = Count::default();
                all.lock().unwrap().push(Arc::clone(&count));
                served.spawn(both(stream, count));
            }
        });
        Self {
            addr,
            came,
            _serving: serving,
        }
    }
}

/// Sends and takes as much as goes.
async fn both(stream: TcpStream, came: Count) {
    let (mut read, mut write) = stream.into_split();
    let zeros = vec![0; 64 << 10];
    let send = async { while write.write_all(&zeros).await.is_ok() {} };
    let mut buffer = vec![0; 64 << 10];
    let take = async {
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            came.fetch_add(count as u64, Ordering::Relaxed);
        }
    };
    tokio::join!(send, take);
}

/// Flows that carry as much as goes, both ways.
struct Flows {
    backend: Peer,
    /// What came at each client.
    came: Vec<Count>,
    clients: JoinSet<()>,
    flows: JoinSet<FlowEnd>,
}

impl Flows {
    fn new(backend: Peer) -> Self {
        Self {
            backend,
            came: Vec::new(),
            clients: JoinSet::new(),
            flows: JoinSet::new(),
        }
    }

    async fn add(&mut self, consumer: &Consumer, target: &Target) {
        let (client, mut flow) = consumer.flow().await;
        soon(flow.open(&consumer.links, target)).await.unwrap();
        self.flows.spawn(flow.carry());
        let count = Count::default();
        self.came.push(Arc::clone(&count));
        self.clients.spawn(both(client, count));
    }

    /// What each of them carries up and down at the same time, as a share of the rate, after a moment in which the first
    /// bytes have come.
    async fn carry(&mut self) -> [Vec<f64>; 2] {
        let read = |counts: &[Count]| -> Vec<u64> {
            let all = counts.iter();
            all.map(|count| count.load(Ordering::Relaxed)).collect()
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        let counts = [self.backend.came.lock().unwrap().clone(), self.came.clone()];
        let (before, began) = (counts.each_ref().map(|counts| read(counts)), Instant::now());
        tokio::time::sleep(TIME).await;
        let (after, time) = (
            counts.each_ref().map(|counts| read(counts)),
            began.elapsed(),
        );
        assert!(self.flows.try_join_next().is_none(), "a flow ended");
        let share = |(before, after): (&u64, &u64)| {
            (after - before) as f64 / time.as_secs_f64() / RATE as f64
        };
        [0, 1].map(|way| before[way].iter().zip(&after[way]).map(share).collect())
    }

    /// The same of all of them together.
    async fn carry_together(&mut self) -> [f64; 2] {
        self.carry().await.map(|shares| shares.iter().sum())
    }
}

/// Where the limit is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Consumer,
    Provider,
    Router,
}

/// Two flows both ways at once: each direction has the whole rate for itself, and the flows have equal parts of it.
async fn check(at: At) {
    let mut world = World::new();
    if at == At::Router {
        world.identity_limit.send_replace(rate());
    }
    let router = world.router("r").await;
    let backend = Peer::start().await;
    let (provider, mut target) = world.echo(&router, backend.addr).await;
    if at == At::Provider {
        let mut limited = publication("echo.default", 80, backend.addr);
        limited.options.limit = rate();
        provider.publications.send_replace(Arc::new(vec![limited]));
    }
    if at == At::Consumer {
        target.options.limit = rate();
    }
    let consumer = world.consumer();
    let mut flows = Flows::new(backend);
    for _ in 0..2 {
        flows.add(&consumer, &target).await;
    }
    let carried = flows.carry().await;
    println!("{at:?}, up and down: {carried:?}");
    let limit = match at {
        At::Consumer | At::Provider => "echo.default:80",
        At::Router => "identity",
    };
    for (shares, direction) in carried.iter().zip(["up", "down"]) {
        let all: f64 = shares.iter().sum();
        assert!((LEAST..=MOST).contains(&all), "{direction}: {shares:?}");
        let even = shares[0] / shares[1];
        assert!((0.75..=1.33).contains(&even), "{direction}: {shares:?}");
        let labels = PaceLabels {
            limit: limit.to_owned(),
            direction,
        };
        let delayed = world.metrics.limited.get_or_create(&labels).get();
        assert!(
            delayed as f64 > RATE as f64,
            "{delayed} bytes {direction} were delayed"
        );
    }
}

/// Both ways: what was carried without a limit, with one, and without one again.
fn comes_and_goes(free: [f64; 2], held: [f64; 2], freed: [f64; 2]) {
    println!("up and down: without {free:?}, with {held:?}, without again {freed:?}");
    for way in [0, 1] {
        assert!((LEAST..=MOST).contains(&held[way]), "{held:?}");
        assert!(free[way] > 2.0 && freed[way] > 2.0, "{free:?} {freed:?}");
    }
}

#[tokio::test]
async fn the_consumers_end_keeps_the_rate_of_a_service() {
    check(At::Consumer).await;
}

#[tokio::test]
async fn the_providers_end_keeps_the_rate_of_a_service() {
    check(At::Provider).await;
}

#[tokio::test]
async fn a_router_keeps_the_rate_of_an_identity() {
    check(At::Router).await;
}

#[tokio::test]
async fn the_rate_of_an_identity_comes_and_goes_while_a_flow_runs() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Peer::start().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut flows = Flows::new(backend);
    flows.add(&world.consumer(), &target).await;
    let free = flows.carry_together().await;
    world.identity_limit.send_replace(rate());
    // What was on its way comes first.
    flows.carry_together().await;
    let held = flows.carry_together().await;
    world.identity_limit.send_replace(None);
    comes_and_goes(free, held, flows.carry_together().await);
}

#[tokio::test]
async fn a_limit_comes_and_goes_while_a_flow_runs() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Peer::start().await;
    let plain = publication("echo.default", 80, backend.addr);
    let mut limited = plain.clone();
    limited.options = PublicationOptions {
        limit: rate(),
        ..PublicationOptions::default()
    };
    router.backends.send_replace(Arc::new(vec![plain.clone()]));
    router.shows(|view| !view.services.is_empty()).await;
    let target = target("echo.default", 80, "/node/r".parse().unwrap(), &router);
    let mut flows = Flows::new(backend);
    flows.add(&world.consumer(), &target).await;
    let free = flows.carry_together().await;
    router.backends.send_replace(Arc::new(vec![limited]));
    // What was on its way comes first.
    flows.carry_together().await;
    let held = flows.carry_together().await;
    router.backends.send_replace(Arc::new(vec![plain]));
    comes_and_goes(free, held, flows.carry_together().await);
}
