//! Providers of one service that come and go, over two routers: while one of them works, every connection is served, but for
//! those whose first bytes went to a provider before its death was noticed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keel_fabric::router::RouterView;
use keel_fabric::wire::Health;
use keel_sidecar::SidecarConfig;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{LONG, Node, Pod, range};

/// Who speaks first on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// The backend says its number, and gives back what it is sent.
    Backend,
    /// The client asks, as in HTTP; the backend answers with its number and closes.
    Client,
}

struct Backend {
    close: CancellationToken,
    _task: JoinSet<()>,
}

impl Backend {
    async fn start(first: First, number: u8, address: SocketAddr) -> Self {
        // The one before may just be closing its door.
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        };
        let (close, mut task) = (CancellationToken::new(), JoinSet::new());
        let closed = close.clone();
        task.spawn(async move {
            let mut all = JoinSet::new();
            loop {
                tokio::select! {
                    // Whoever was let in is served: only the door is closed.
                    biased;
                    Ok((socket, _)) = listener.accept() => { all.spawn(serve(first, number, socket)); }
                    () = closed.cancelled() => break,
                }
            }
            drop(listener);
            while all.join_next().await.is_some() {}
        });
        Self { close, _task: task }
    }
}

async fn serve(first: First, number: u8, mut socket: TcpStream) {
    // Clients come and go as they like.
    if first == First::Client {
        if matches!(socket.read_u8().await, Ok(ASKED)) {
            let _ = socket.write_all(&[number]).await;
        }
        return;
    }
    let _ = socket.write_all(&[number]).await;
    let (mut read, mut write) = socket.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// What a client says that speaks first.
const ASKED: u8 = b'?';

/// A provider on a runtime of its own, which is stopped as by a signal, or ends as by a power cut.
struct Mortal {
    end: Option<oneshot::Sender<bool>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mortal {
    fn start(config: SidecarConfig, published: String) -> Self {
        let (end, ended) = oneshot::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let pod = Pod::start(config, "", &published).await;
                if ended.await == Ok(true) {
                    pod.stop().await;
                } else {
                    // Nothing is said to anybody: what runs is dropped where it stands.
                    std::mem::forget(pod);
                }
            });
            runtime.shutdown_background();
        };
        Self {
            end: Some(end),
            thread: Some(std::thread::spawn(run)),
        }
    }

    fn end(&mut self, in_peace: bool) {
        let _ = self.end.take().unwrap().send(in_peace);
    }

    fn is_over(&self) -> bool {
        self.thread
            .as_ref()
            .is_none_or(|thread| thread.is_finished())
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.end = None;
        let _ = self.thread.take().unwrap().join();
    }
}

/// One of the providers with its backend.
struct Served {
    first: First,
    number: u8,
    address: SocketAddr,
    sidecar: Option<Mortal>,
    backend: Option<Backend>,
    /// Those that are closed and serve on.
    closed: Vec<Backend>,
    /// Since when all of it works, if it does.
    whole: Option<Instant>,
}

const PROVIDERS: u8 = 3;
const CLIENTS: usize = 4;

/// How long after a death connections may still be given to the dead: a second of silence, and what a busy machine adds.
const NOTICED: Duration = Duration::from_secs(2);
/// What was opened so long before a death, or while it happened, may have been taken: it waits for what it asked for.
const UNDER_WAY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(200));
/// How long a client waits at most that spoke to a provider which died: until that is noticed, and two seconds more.
const RESET: Duration = Duration::from_secs(6);

fn name(first: First, number: u8) -> String {
    match first {
        First::Backend => format!("web-{number}"),
        First::Client => format!("http-{number}"),
    }
}

impl Served {
    fn config(&self, node: &Node) -> (SidecarConfig, String) {
        let mut config = node.pod(&name(self.first, self.number));
        let option = "web=check:tcp,check-interval:100ms,check-timeout:2s,check-failures:2,check-recoveries:1";
        let namespace = config.namespace.clone();
        config
            .options
            .add(option.parse().unwrap(), &namespace)
            .unwrap();
        (config, format!("web:80={}", self.address))
    }

    async fn repair(&mut self, node: &Node) {
        if self.backend.is_none() {
            self.backend = Some(Backend::start(self.first, self.number, self.address).await);
        }
        if self.sidecar.is_none() {
            let (config, published) = self.config(node);
            self.sidecar = Some(Mortal::start(config, published));
        }
    }

    /// Whether both routers say that it works.
    fn is_listed(&self, views: &[watch::Receiver<Arc<RouterView>>]) -> bool {
        let path = format!("/node/a/ns/default/pod/{}", name(self.first, self.number));
        views.iter().all(|view| {
            let view = view.borrow();
            let mut providers = view.services.iter().flat_map(|service| &service.providers);
            providers.any(|one| one.identity.path() == path && one.offer.health == Health::Healthy)
        })
    }
}

/// A connection that was not served.
struct Failure {
    start: Instant,
    took: Duration,
    why: String,
}

impl Failure {
    /// How long it began after the last of these ends, in order, that it may have been under way to.
    fn since(&self, ends: &[Instant]) -> Option<Duration> {
        let before = |end: &&Instant| **end < self.start + UNDER_WAY.0;
        let last = ends.iter().rev().find(before)?;
        Some(self.start.saturating_duration_since(*last))
    }
}

/// Opens one connection after the other: each is served, by whomever.
async fn client(
    (address, first): (SocketAddr, First),
    served: Arc<[AtomicU64; PROVIDERS as usize]>,
    stop: CancellationToken,
) -> Vec<Failure> {
    let mut failures = Vec::new();
    while !stop.is_cancelled() {
        let start = Instant::now();
        let connection = async {
            let mut socket = TcpStream::connect(address).await?;
            if first == First::Client {
                socket.write_all(&[ASKED]).await?;
            }
            let number = socket.read_u8().await?;
            if first == First::Client {
                let mut rest = Vec::new();
                socket.read_to_end(&mut rest).await?;
                assert!(rest.is_empty(), "answered twice");
            } else {
                // What comes later is the flow's affair: its provider may end under it.
                let _ = socket.write_all(b"x").await;
            }
            std::io::Result::Ok(number)
        };
        match timeout(LONG, connection).await {
            Ok(Ok(number)) => _ = served[usize::from(number)].fetch_add(1, Ordering::Relaxed),
            failed => failures.push(Failure {
                start,
                took: start.elapsed(),
                why: format!("{failed:?}"),
            }),
        }
        sleep(Duration::from_millis(5)).await;
    }
    failures
}

/// What happened.
struct Churned {
    seed: u64,
    killed: Vec<Instant>,
    closed: Vec<Instant>,
    failures: Vec<Failure>,
    unserved: u64,
    ends: Vec<String>,
}

/// Lets providers come and go for a while, under clients; their loopback addresses are 127.66.`third`.0.
async fn churn(first: First, third: u8, pods: u8) -> Churned {
    let seed = std::env::var("KEEL_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    let long = std::env::var_os("KEEL_LONG").is_some_and(|value| !value.is_empty() && value != "0");
    println!("KEEL_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut node = Node::start("a").await;
    let views = [node.view.clone(), node.another_router("b", Vec::new())];
    let mut all = Vec::new();
    for number in 0..PROVIDERS {
        // While its backend is away, no other test may be given the address.
        let address = SocketAddr::from(([127, 66, third, number + 1], 8080));
        let mut served = Served {
            first,
            number,
            address,
            sidecar: None,
            backend: None,
            closed: Vec::new(),
            whole: None,
        };
        served.repair(&node).await;
        all.push(served);
    }
    let mut config = node.pod("app-0");
    config.ip_range = range(pods);
    config.connect_timeout = Duration::from_secs(15);
    let namespace = config.namespace.clone();
    let short = "web=resume-window:2s".parse().unwrap();
    config.options.add(short, &namespace).unwrap();
    let mut consumer = Pod::start(config, "web:80", "").await;
    let address = consumer.address().await;
    let listed = async {
        while !all.iter().all(|one| one.is_listed(&views)) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, listed).await.unwrap();

    let stop = CancellationToken::new();
    let counts: Arc<[AtomicU64; PROVIDERS as usize]> = Arc::default();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client((address, first), Arc::clone(&counts), stop.clone()));
    }
    let (mut withdrawn, mut killed, mut closed) = (0, Vec::new(), Vec::new());
    let end = Instant::now() + Duration::from_secs(if long { 120 } else { 10 });
    while Instant::now() < end {
        sleep(Duration::from_millis(rng.random_range(100..300))).await;
        for one in &mut all {
            if one
                .sidecar
                .as_ref()
                .is_some_and(|sidecar| sidecar.end.is_none() && sidecar.is_over())
            {
                one.sidecar = None;
            }
            let works = one.backend.is_some()
                && one
                    .sidecar
                    .as_ref()
                    .is_some_and(|sidecar| sidecar.end.is_some());
            one.whole = match one.whole {
                since @ Some(_) if works => since,
                None if works && one.is_listed(&views) => Some(Instant::now()),
                _ => None,
            };
        }
        let chosen = rng.random_range(0..all.len());
        // Consumers hear of it some moments after the routers.
        let settled = |one: &Served| {
            one.whole
                .is_some_and(|since| since.elapsed() > Duration::from_secs(1))
        };
        let another = all
            .iter()
            .any(|one| usize::from(one.number) != chosen && settled(one));
        let one = &mut all[chosen];
        if one.whole.is_none() {
            if one
                .sidecar
                .as_ref()
                .is_none_or(|sidecar| sidecar.end.is_some())
            {
                one.repair(&node).await;
            }
        } else if another {
            one.whole = None;
            // A backend that closes under a client which has spoken resets it, as without us.
            let ways = if first == First::Client { 2 } else { 3 };
            match rng.random_range(0..ways) {
                0 => {
                    withdrawn += 1;
                    one.sidecar.as_mut().unwrap().end(true);
                }
                1 => {
                    killed.push(Instant::now());
                    one.sidecar.as_mut().unwrap().end(false);
                }
                _ => {
                    closed.push(Instant::now());
                    let backend = one.backend.take().unwrap();
                    backend.close.cancel();
                    one.closed.push(backend);
                }
            }
        }
    }
    stop.cancel();
    let mut failures = Vec::new();
    while let Some(ended) = clients.join_next().await {
        failures.extend(ended.unwrap());
    }
    let unserved = consumer
        .metric("keel_sidecar_connections_unserved_total")
        .await;
    let ends = consumer.series("keel_fabric_flows_ended_total").await;
    let (kills, closures, failed) = (killed.len(), closed.len(), failures.len());
    println!(
        "withdrawn {withdrawn}, killed {kills}, backend closed {closures}; served {counts:?}; failed {failed}, {unserved} unserved"
    );
    assert!(withdrawn + kills + closures > 3, "hardly anything happened");
    consumer.stop().await;
    Churned {
        seed,
        killed,
        closed,
        failures,
        unserved,
        ends,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_fails_while_one_provider_works() {
    let churned = churn(First::Backend, 130, 31).await;
    // What was opened at a provider that was killed before the banner came through had one, and is reset after the window;
    // and whom the kernel had let in at a door that closes is reset by it, as without us. Whoever comes later is served.
    let Churned { seed, ends, .. } = &churned;
    let mut ended = [&churned.killed[..], &churned.closed[..]].concat();
    ended.sort_unstable();
    for failure in &churned.failures {
        let (since, why) = (failure.since(&ended), &failure.why);
        println!("failed {since:?} after an end: {why}");
        assert!(
            since.is_some_and(|since| since < UNDER_WAY.1),
            "seed {seed}: {why} at {since:?}, {ends:?}"
        );
    }
    assert_eq!(churned.unserved, 0, "seed {seed}: {ends:?}");
    // Each client is under way to one of them at most.
    assert!(
        churned.failures.len() <= ended.len() * CLIENTS,
        "seed {seed}: {ends:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_that_speaks_first_fails_after_a_death_was_noticed() {
    let churned = churn(First::Client, 131, 32).await;
    let Churned { seed, ends, .. } = &churned;
    for failure in &churned.failures {
        let (since, Failure { took, why, .. }) = (failure.since(&churned.killed), failure);
        println!("failed {since:?} after a death, within {took:?}: {why}");
        assert!(
            since.is_some_and(|since| since < NOTICED),
            "seed {seed}: {why} at {since:?}, {ends:?}"
        );
        let under_way = since.is_some_and(|since| since < UNDER_WAY.1);
        assert!(
            under_way || *took < RESET,
            "seed {seed}: {why} after {took:?}, {ends:?}"
        );
    }
    // Each client is held up by a death once at most: it waits, and those that come meanwhile go to others.
    let most = churned.killed.len() * CLIENTS;
    assert!(churned.failures.len() <= most, "seed {seed}: {ends:?}");
}
