//! The same load one storey up: statuses that are put over HTTP/3, to an APIServer in a process of its own.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use keel_certs::LiveIdentity;
use keel_certs::fixture::Fabric;
use keel_control::client::{Client, ClientConfig};
use keel_control::http::{Body, read};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::measure::{Delays, Figures, Load, open};
use crate::server::{NODE, Server};
use crate::{API_BORNE, API_P99, RATE};

const ROUTERS: &str = "/apis/edge.example.com/v1/routers";
/// Connections that statuses come over.
const CONNECTIONS: usize = 8;
/// Statuses at once when the Routers are made.
const FILLERS: usize = 64;
/// Until connections are made and watches begin.
const SETTLE: Duration = Duration::from_secs(1);

pub(crate) async fn measure(folder: &TempDir, load: &Load, figures: &mut Figures) {
    let since = Instant::now();
    let fabric = Fabric::new();
    fabric.node(NODE).save(folder.path()).unwrap();
    let server = Server::start(folder.path());
    // As its Syncer, which hands on what it pulls from the others: each status is taken if it is newer than what is held.
    let node = fabric.node(NODE);
    let clients: Vec<Client> = (0..CONNECTIONS)
        .map(|_| client(&server, node.clone()))
        .collect();
    let mut fillers = JoinSet::new();
    for filler in 0..FILLERS {
        let client = clients[filler % CONNECTIONS].clone();
        let (objects, bytes) = (load.objects, load.bytes);
        fillers.spawn(async move {
            for number in (filler..objects).step_by(FILLERS) {
                put(&client, number, bytes, 1).await;
            }
        });
    }
    fillers.join_all().await;

    let (answers, heard) = (Delays::default(), Delays::default());
    let mut watchers = JoinSet::new();
    for number in 0..load.watchers {
        let pod = fabric.pod(NODE, "default", &format!("pod-{number}"));
        let client = client(&server, pod);
        let path =
            format!("{ROUTERS}?watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan");
        let request = http::Request::get(path).body(Bytes::new()).unwrap();
        let answer = client.request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        watchers.spawn(follow(client, answer.into_body(), since, heard.clone()));
    }
    tokio::time::sleep(SETTLE).await;
    let (cpu, began) = (server.cpu(), Instant::now());
    let bytes = load.bytes;
    let borne = open(load, RATE, &answers, |number, due| {
        let client = clients[number % CONNECTIONS].clone();
        let source = u64::try_from(due.duration_since(since).as_nanos()).unwrap();
        async move { put(&client, number, bytes, source).await }
    })
    .await;
    let cores = (server.cpu() - cpu) / began.elapsed().as_secs_f64();
    watchers.shutdown().await;
    figures.add(API_BORNE, "keel", borne);
    figures.add(API_P99, "keel", answers.share(0.99));
    figures.add("API 3. watch p99 ms at 2,000/s", "keel", heard.share(0.99));
    eprintln!(
        "  API: {} of {} events heard; median {:.1} ms; the server took {cores:.2} cores and {:.0} MiB",
        heard.count(),
        answers.count() * load.watchers,
        answers.share(0.5),
        server.memory() / 1024.0
    );
}

fn client(server: &Server, live: LiveIdentity) -> Client {
    let config = ClientConfig {
        server: server.address.into(),
        expect: NODE.parse().unwrap(),
        live,
    };
    Client::new(config).unwrap()
}

/// Puts the status of a Router; `source` says how new it is, and when it was due.
async fn put(client: &Client, number: usize, bytes: usize, source: u64) {
    let name = format!("node-{number:04}");
    let request = http::Request::builder()
        .method(Method::PUT)
        .uri(format!("{ROUTERS}/{name}/status"))
        .header("content-type", "application/json")
        .body(Bytes::from(router(&name, bytes, source).to_string()))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    read(answer.into_body(), 1 << 20).await.unwrap();
}

/// A Router as a node reports it, of about so many bytes.
fn router(name: &str, bytes: usize, source: u64) -> Value {
    const SERVICE: usize = 160;
    let services: Vec<Value> = (0..bytes / SERVICE)
        .map(|service| {
            json!({
                "name": format!("service-{service}"), "namespace": "default", "port": 3306, "protocol": "TCP",
                "clients": [{"id": format!("pod-{service}"), "type": "stcp", "localAddr": "127.0.66.1:3306"}],
            })
        })
        .collect();
    json!({
        "apiVersion": "edge.example.com/v1",
        "kind": "Router",
        "metadata": {"name": name},
        "status": {
            "cluster": "berlin", "addresses": ["203.0.113.10:7000"], "activeServices": services,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "message": ""}],
            "source": {"revision": source},
        },
    })
}

/// Reads a watch; notes how late each status comes.
async fn follow(client: Client, mut body: Body, since: Instant, delays: Delays) {
    const SOURCE: &str = "\"source\":{\"revision\":";
    let mut buffer = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        buffer.extend_from_slice(&frame.into_data().unwrap());
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            // Found, not parsed: what clients do with an object is not what is measured.
            let line = std::str::from_utf8(&line).unwrap();
            let Some((_, rest)) = line.split_once(SOURCE) else {
                continue;
            };
            let due = rest.split_once('}').unwrap().0.parse().unwrap();
            delays.add(since.elapsed().saturating_sub(Duration::from_nanos(due)));
        }
    }
    drop(client);
}
