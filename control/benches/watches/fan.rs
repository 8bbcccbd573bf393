//! The clients: watches that note when each change arrives, and one writer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use keel_certs::fixture::Fabric;
use keel_certs::{LiveIdentity, NodeName};
use keel_control::client::{Client, ClientConfig};
use keel_control::http::{Body, read};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::Load;
use crate::server::{NODE, Server};

pub(crate) const ROUTERS: &str = "/apis/edge.example.com/v1/routers";
/// Bytes of each Router: what one with its status has.
const BYTES: usize = 2048;
/// Watches of one identity: it may have so many.
const SHARE: usize = 100;
/// Writers that make the Routers.
const WRITERS: usize = 64;
/// How long a change may be under way at most.
const LATE: Duration = Duration::from_secs(10);
/// How long memory is given to settle.
const SETTLE: Duration = Duration::from_secs(3);

/// Which change reached a watch, and when.
type Arrival = (u64, Instant);
type Arrivals = Arc<Mutex<Vec<Arrival>>>;

/// Whether all figures are below what they must be below.
pub(crate) async fn measure(load: Load) -> bool {
    let fabric = Fabric::new();
    let folder = TempDir::new().unwrap();
    fabric.node(NODE).save(folder.path()).unwrap();
    let server = Server::start(folder.path());
    let admin = client(server.address, fabric.fabric_admin("root"));
    let revision = fill(&admin, load.objects).await;
    drop(server);
    // Anew, so that its memory has nothing of the filling; and without a list, which would leave room for all that comes.
    let server = Server::start(folder.path());
    let bare = server.memory();
    let admin = client(server.address, fabric.fabric_admin("root"));
    let path = format!("{ROUTERS}/{}", name(0));

    let each = load.watches.div_ceil(load.connections);
    let mut clients = Vec::new();
    for number in 0..load.connections {
        let pod = fabric.pod(NODE, "default", &format!("pod-{}", number * each / SHARE));
        let client = client(server.address, pod);
        ask(&client, Method::GET, &path, None).await;
        clients.push(client);
    }
    sleep(SETTLE).await;
    let connected = server.memory();
    let arrivals = Arrivals::default();
    let mut watches = JoinSet::new();
    for number in 0..load.watches {
        let path = format!("{ROUTERS}?watch=1&allowWatchBookmarks=true&resourceVersion={revision}");
        let request = http::Request::get(path).body(Bytes::new()).unwrap();
        let answer = clients[number / each].request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        watches.spawn(follow(answer.into_body(), arrivals.clone()));
    }
    sleep(SETTLE).await;
    let watched = server.memory();

    let cpu = server.cpu();
    let began = Instant::now();
    let sent = write(&admin, load).await;
    let arrivals = collect(&arrivals, sent.len() * load.watches).await;
    let share = (server.cpu() - cpu) / began.elapsed().as_secs_f64();
    let busy = server.memory();
    watches.shutdown().await;

    let mut held = report(load, &sent, &arrivals);
    let per_watch = (watched - connected) / load.watches as f64;
    held &= row("memory of an idle watch, KiB", per_watch, Some(64.0));
    println!(
        "\nmemory of the server: {bare:.0} KiB at the start, {connected:.0} with {} connections, {watched:.0} with {} watches, \
         {busy:.0} at the end; its processor time: {share:.2} cores",
        load.connections, load.watches
    );
    held
}

pub(crate) fn client(server: SocketAddr, live: LiveIdentity) -> Client {
    let expect: NodeName = NODE.parse().unwrap();
    let server = server.into();
    Client::new(ClientConfig {
        server,
        expect,
        live,
    })
    .unwrap()
}

async fn ask(client: &Client, method: Method, path: &str, body: Option<Value>) -> Value {
    let media = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media)
        .body(body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string())))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    let bytes = read(answer.into_body(), 64 << 20).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap()
}

pub(crate) fn name(number: usize) -> String {
    format!("node-{number:05}")
}

/// Changes a Router.
pub(crate) async fn change(client: &Client, number: usize, count: u64) -> u64 {
    let patch = json!({"metadata": {"labels": {"count": count.to_string()}}});
    let path = format!("{ROUTERS}/{}", name(number));
    let router = ask(client, Method::PATCH, &path, Some(patch)).await;
    text(&router, "/metadata/resourceVersion").parse().unwrap()
}

/// The time within which such a share of them was.
pub(crate) fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() as f64 * share) as usize).min(times.len() - 1)]
}

/// Makes the Routers; gives back the revision of the last.
pub(crate) async fn fill(client: &Client, objects: usize) -> u64 {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let client = client.clone();
        writers.spawn(async move {
            let mut revision = 0;
            for number in (writer..objects).step_by(WRITERS) {
                let router = json!({
                    "apiVersion": "edge.example.com/v1",
                    "kind": "Router",
                    "metadata": {"name": name(number), "annotations": {"filler": "x".repeat(BYTES)}},
                });
                let router = ask(&client, Method::POST, ROUTERS, Some(router)).await;
                revision = text(&router, "/metadata/resourceVersion").parse().unwrap();
            }
            revision
        });
    }
    writers.join_all().await.into_iter().max().unwrap_or(0)
}

/// Reads a watch and tells what arrives.
async fn follow(mut body: Body, arrivals: Arrivals) {
    const KEY: &str = "\"resourceVersion\":\"";
    let mut buffer = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        buffer.extend_from_slice(&frame.into_data().unwrap());
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            // Found, not parsed: what clients do with an object is not what is measured.
            let line = std::str::from_utf8(&line).unwrap();
            if line.contains("\"type\":\"BOOKMARK\"") {
                continue;
            }
            let (_, rest) = line.split_once(KEY).unwrap();
            let revision = rest.split_once('"').unwrap().0.parse().unwrap();
            arrivals.lock().unwrap().push((revision, Instant::now()));
        }
    }
}

/// Changes a Router so many times per second; says when each change was asked for.
async fn write(client: &Client, load: Load) -> BTreeMap<u64, Instant> {
    let total = load.time.as_secs() * u64::from(load.rate);
    let mut tick = interval(Duration::from_secs(1) / load.rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut writes = JoinSet::new();
    for count in 0..total {
        let due = tick.tick().await.into_std();
        let client = client.clone();
        let objects = u64::try_from(load.objects).unwrap();
        let number = usize::try_from(count * 7919 % objects).unwrap();
        writes.spawn(async move { (change(&client, number, count).await, due) });
    }
    writes.join_all().await.into_iter().collect()
}

/// Waits until so many changes have arrived.
async fn collect(arrivals: &Arrivals, expected: usize) -> Vec<Arrival> {
    let all = async {
        while arrivals.lock().unwrap().len() < expected {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let came = timeout(LATE, all).await;
    let arrivals = arrivals.lock().unwrap().clone();
    assert!(
        came.is_ok() && arrivals.len() == expected,
        "{} of {expected} changes arrived",
        arrivals.len()
    );
    arrivals
}

fn report(load: Load, sent: &BTreeMap<u64, Instant>, arrivals: &[Arrival]) -> bool {
    let mut each: Vec<Duration> = Vec::new();
    let mut last: BTreeMap<u64, Duration> = BTreeMap::new();
    for (revision, arrived) in arrivals {
        let late = arrived.duration_since(sent[revision]);
        each.push(late);
        let last = last.entry(*revision).or_default();
        *last = late.max(*last);
    }
    let all = last.into_values().collect();
    println!(
        "{} objects, {} watches over {} HTTP/3 connections, {} changes at {} per second, {} arrivals\n",
        load.objects,
        load.watches,
        load.connections,
        sent.len(),
        load.rate,
        arrivals.len()
    );
    println!("| measured | value | must be below |");
    println!("|---|---|---|");
    let mut held = true;
    for (what, delays, targets) in [
        ("a change reaches all, ms", all, [Some(250.0), Some(1000.0)]),
        ("a change reaches one, ms", each, [None, None]),
    ] {
        let mut delays: Vec<Duration> = delays;
        for ((name, share), target) in [("median", 0.5), ("p99", 0.99)].iter().zip(targets) {
            let value = quantile(&mut delays, *share).as_secs_f64() * 1e3;
            held &= row(&format!("{what}, {name}"), value, target);
        }
    }
    held
}

/// Prints one figure; whether it is below what it must be below.
pub(crate) fn row(what: &str, value: f64, target: Option<f64>) -> bool {
    let bound = target.map_or_else(String::new, |target| target.to_string());
    println!("| {what} | {value:.1} | {bound} |");
    target.is_none_or(|target| value < target)
}
