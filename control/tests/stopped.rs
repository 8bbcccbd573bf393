//! A watcher whose process is stopped: it harms nobody, it is cut off, and when it goes on it misses nothing. A program of its own,
//! whose memory is measured.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

#[path = "again/mod.rs"]
mod again;

use std::ffi::OsStr;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use keel_certs::LiveIdentity;
use keel_certs::fixture::Fabric;
use keel_control::api::Revision;
use keel_control::client::{Client, ClientConfig};
use keel_control::http::{Body, Caller, Handler, empty, read};
use keel_control::server::{Api, ApiConfig};
use keel_control::store::{Store, StoreConfig};
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::quic::QuicKeys;
use nix::sys::signal::Signal;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use again::{Again, ready};

const NODE: &str = "edge-a";
const ROUTERS: &str = "/apis/edge.example.com/v1/routers";
/// The test that is the watcher in the other process, and what is set there: a folder with its identity, for what it has seen; where the
/// server is, and behind which revision it begins.
const WATCHER: &str = "watches_until_it_is_killed";
const FOLDER: &str = "KEEL_TEST_STOPPED_FOLDER";
const SERVER: &str = "KEEL_TEST_STOPPED_SERVER";
const AFTER: &str = "KEEL_TEST_STOPPED_AFTER";

const OBJECTS: u64 = 10;
/// Bytes of each of them.
const SIZE: usize = 4096;
const RATE: u32 = 500;
/// When a client that does not say that it is there is given up, and time for a busy machine.
const CUT: Duration = Duration::from_secs(25);
/// How long a write may take, and an event to the others, of all but one of a hundred.
const PROMPT: Duration = Duration::from_secs(1);
/// What the memory of the server and the others may grow by.
const GROWTH_KIB: u64 = 16 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_is_stopped_harms_nobody_and_misses_nothing() {
    let time = match std::env::var_os("KEEL_LONG") {
        Some(_) => Duration::from_secs(60),
        None => CUT,
    };
    let (fabric, folder) = (Fabric::new(), TempDir::new().unwrap());
    let config = StoreConfig {
        // Full before it is looked at, so that it does not grow meanwhile.
        ring_bytes: 1 << 20,
        ..StoreConfig::default()
    };
    let store = Store::open(&folder.path().join("store.db"), config).await;
    let store = store.unwrap();
    let metrics = TransportMetrics::register(&mut Registry::default());
    let node = NODE.parse().unwrap();
    let api = Api::counted(
        ApiConfig { node },
        store.clone(),
        Arc::new(Nobody),
        metrics.api(),
    );
    let watches = metrics.api().watches;
    let server = ApiServer::bind(
        &"127.0.0.1:0".parse().unwrap(),
        &fabric.node(NODE),
        &QuicKeys::ephemeral(),
        Arc::new(api),
        Limits::default(),
        metrics,
    )
    .unwrap();
    let address = server.local_addrs()[0];
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(CancellationToken::new()));

    let admin = client(address, fabric.fabric_admin("root"));
    for number in 0..OBJECTS {
        let router = json!({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": format!("node-{number}")}});
        ask(&admin, Method::POST, ROUTERS, &router).await;
    }
    let start = store.current();
    let place = folder.path().join("watcher");
    fabric.pod(NODE, "default", "stopped").save(&place).unwrap();
    let variables = [
        (FOLDER, place.as_os_str()),
        (SERVER, OsStr::new(&address.to_string())),
        (AFTER, OsStr::new(&start.to_string())),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let variables = variables
        .each_ref()
        .map(|(name, value)| (*name, value.as_os_str()));
    let (watcher, _) = Again::start(WATCHER, &variables).await;
    let others = Arc::new(Mutex::new(Vec::new()));
    let pod = client(address, fabric.pod(NODE, "default", "other"));
    tasks.spawn(other(pod, start, others.clone()));
    // All that is needed is there, all that is kept is full.
    write(&admin, Duration::from_secs(2)).await;
    assert_eq!(watches.get(), 2);
    let before = resident();

    watcher.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    others.lock().unwrap().clear();
    let (mut writes, cut) = tokio::join!(write(&admin, time), async {
        while watches.get() > 1 && stopped.elapsed() < CUT {
            sleep(Duration::from_millis(10)).await;
        }
        stopped.elapsed()
    });
    let growth = resident().saturating_sub(before);
    let mut told: Vec<Duration> = others.lock().unwrap().clone();
    let (writes, told) = (p99(&mut writes), p99(&mut told));
    println!(
        "stopped for {time:?} at {RATE} writes/s: cut off after {cut:?}, write p99 {writes:?}, watch p99 of the other {told:?}, \
         memory grew by {growth} KiB"
    );
    assert!(cut < CUT, "cut off after {cut:?} only");
    assert!(writes < PROMPT && told < PROMPT, "{writes:?}, {told:?}");
    assert!(growth < GROWTH_KIB, "memory grew by {growth} KiB");

    watcher.signal(Signal::SIGCONT);
    let (mut truth, mut cursor) = (Vec::new(), start);
    loop {
        let events = store.events_since(cursor, 500).await.unwrap();
        let Some(last) = events.last() else { break };
        cursor = last.revision;
        truth.extend(events.iter().map(|event| event.revision.to_string()));
    }
    let seen = || -> Vec<String> {
        let seen = std::fs::read_to_string(place.join("seen")).unwrap();
        seen.lines().map(str::to_owned).collect()
    };
    let caught_up = timeout(CUT, async {
        while seen().last() != truth.last() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(
        caught_up.await.is_ok(),
        "{} of {} seen",
        seen().len(),
        truth.len()
    );
    // Each once, in order.
    assert!(seen() == truth, "{} of {} seen", seen().len(), truth.len());
}

/// The other process: watches until it is killed, and goes on where it was. Passes at once in this one.
#[tokio::test]
async fn watches_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let said = |name| std::env::var(name).unwrap();
    let live = LiveIdentity::load(&folder).unwrap();
    let client = client(said(SERVER).parse().unwrap(), live);
    let mut after: Revision = said(AFTER).parse().unwrap();
    let mut seen = std::fs::File::create(folder.join("seen")).unwrap();
    let mut is_told = false;
    loop {
        let Some(mut lines) = Lines::watch(&client, after).await else {
            continue;
        };
        if !std::mem::replace(&mut is_told, true) {
            ready("watching");
        }
        while let Some(line) = lines.next().await {
            assert_ne!(line["type"], "ERROR", "{line}");
            after = revision(&line["object"]);
            writeln!(seen, "{after}").unwrap();
        }
    }
}

struct Nobody;

impl Handler for Nobody {
    fn handle(&self, _: Request<Body>, _: Caller) -> BoxFuture<'static, Response<Body>> {
        async { Response::new(empty()) }.boxed()
    }
}

fn client(server: SocketAddr, live: LiveIdentity) -> Client {
    let config = ClientConfig {
        server: server.into(),
        expect: NODE.parse().unwrap(),
        live,
    };
    Client::new(config).unwrap()
}

async fn ask(client: &Client, method: Method, path: &str, body: &Value) {
    let media = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media)
        .body(Bytes::from(body.to_string()))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    read(answer.into_body(), 1 << 20).await.unwrap();
}

/// Writes for so long; how long each write took. Each says when it was made.
async fn write(client: &Client, time: Duration) -> Vec<Duration> {
    let mut tick = interval(Duration::from_secs(1) / RATE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut writes = JoinSet::new();
    let end = Instant::now() + time;
    for count in 0.. {
        tick.tick().await;
        if Instant::now() > end {
            break;
        }
        let client = client.clone();
        writes.spawn(async move {
            let began = Instant::now();
            let annotations = json!({"at": nanos().to_string(), "filler": "x".repeat(SIZE)});
            let patch = json!({"metadata": {"annotations": annotations}});
            let path = format!("{ROUTERS}/node-{}", count % OBJECTS);
            ask(&client, Method::PATCH, &path, &patch).await;
            began.elapsed()
        });
    }
    writes.join_all().await
}

fn nanos() -> u128 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.unwrap().as_nanos()
}

/// Another watcher: notes how late it is told of each write.
async fn other(client: Client, after: Revision, told: Arc<Mutex<Vec<Duration>>>) {
    let mut lines = Lines::watch(&client, after).await.unwrap();
    while let Some(line) = lines.next().await {
        let at = line["object"]["metadata"]["annotations"]["at"].as_str();
        let at: u128 = at.unwrap().parse().unwrap();
        let late = u64::try_from(nanos().saturating_sub(at)).unwrap();
        told.lock().unwrap().push(Duration::from_nanos(late));
    }
}

fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

fn revision(object: &Value) -> Revision {
    let revision = object["metadata"]["resourceVersion"].as_str();
    revision.unwrap().parse().unwrap()
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

/// The lines of a watch.
struct Lines {
    body: Body,
    buffer: BytesMut,
}

impl Lines {
    /// `None` if there is no answer.
    async fn watch(client: &Client, after: Revision) -> Option<Self> {
        let path = format!("{ROUTERS}?watch=1&resourceVersion={after}");
        let request = Request::get(path).body(Bytes::new()).unwrap();
        let answer = client.request(request).await.ok()?;
        assert_eq!(answer.status(), 200);
        Some(Self {
            body: answer.into_body(),
            buffer: BytesMut::new(),
        })
    }

    /// The next one; `None` at the end, be it the server's or the connection's.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.ok()?;
            self.buffer.extend_from_slice(frame.data_ref()?);
        }
    }
}
