//! A peer that says more than anybody can keep: a node's memory stays what it is. A program of its own, whose memory is measured.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use keel_certs::LiveIdentity;
use keel_certs::fixture::Fabric;
use keel_control::api::Revision;
use keel_control::client::{Client, ClientConfig};
use keel_control::http::{Body, BoxError, Caller, Handler, full};
use keel_control::server::{Api, ApiConfig};
use keel_control::store::{Store, StoreConfig};
use keel_control::syncer::{Peer, STALE_AFTER, SyncMetrics, Syncer, SyncerConfig};
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::quic::{HostPort, QuicKeys};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the peer floods.
const FLOOD: Duration = Duration::from_secs(20);
/// What the memory may grow by meanwhile, with the clients and the connections that are made.
const GROWTH_KIB: u64 = 32 << 10;
/// Bytes of each status.
const SIZE: usize = 60_000;

/// The APIServer of node `b`, whose status changes as fast as somebody reads.
struct Flood {
    said: Arc<AtomicU64>,
    start: u64,
    filling: String,
}

/// A status that is newer than those before.
fn router(at: u64, source: u64, filling: &str) -> Value {
    json!({
        "apiVersion": "edge.example.com/v1", "kind": "Router",
        "metadata": {"name": "b", "resourceVersion": at.to_string()},
        "status": {"cluster": filling, "source": {"revision": source}},
    })
}

impl Handler for Flood {
    fn handle(
        &self,
        request: http::Request<Body>,
        _: Caller,
    ) -> BoxFuture<'static, http::Response<Body>> {
        let query = request.uri().query().unwrap_or_default();
        // What it holds of us never comes.
        let of_us = query.contains("%3Da");
        let body = if request.method() != http::Method::GET {
            full(json!({"metadata": {"name": "a"}}).to_string())
        } else if !query.contains("watch=1") {
            let items = if of_us {
                vec![]
            } else {
                vec![router(9, self.start, "before")]
            };
            let list = json!({"kind": "RouterList", "metadata": {"resourceVersion": "10"}, "items": items});
            full(list.to_string())
        } else if of_us {
            StreamBody::new(futures_util::stream::pending::<
                Result<Frame<Bytes>, BoxError>,
            >())
            .boxed_unsync()
        } else {
            let (said, start, filling) = (Arc::clone(&self.said), self.start, self.filling.clone());
            let lines = std::iter::repeat_with(move || {
                let number = said.fetch_add(1, Ordering::Relaxed) + 1;
                let object = router(10 + number, start + number, &filling);
                let line = json!({"type": "MODIFIED", "object": object}).to_string() + "\n";
                Ok::<_, BoxError>(Frame::data(Bytes::from(line)))
            });
            StreamBody::new(futures_util::stream::iter(lines)).boxed_unsync()
        };
        Box::pin(async move { http::Response::new(body) })
    }
}

struct NoEnrolment;

impl Handler for NoEnrolment {
    fn handle(
        &self,
        _: http::Request<Body>,
        _: Caller,
    ) -> BoxFuture<'static, http::Response<Body>> {
        Box::pin(async { http::Response::new(full("")) })
    }
}

/// Serves `handler` as the APIServer of `live`'s node.
fn serve(
    live: &LiveIdentity,
    handler: Arc<dyn Handler>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> HostPort {
    let metrics = TransportMetrics::register(&mut Registry::default());
    let listen = "127.0.0.1:0".parse().unwrap();
    let keys = QuicKeys::ephemeral();
    let server =
        ApiServer::bind(&listen, live, &keys, handler, Limits::default(), metrics).unwrap();
    let address = HostPort::from(server.local_addrs()[0]);
    tasks.spawn(server.run(stop.clone()));
    address
}

/// Memory of this process that is no file's.
fn anonymous_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_floods_costs_no_memory() {
    let (fabric, dir) = (Fabric::new(), tempfile::tempdir().unwrap());
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let now = Revision::at(SystemTime::now()).0;
    let said = Arc::new(AtomicU64::new(0));
    let flood = Flood {
        said: Arc::clone(&said),
        start: now,
        filling: "x".repeat(SIZE),
    };
    let far = serve(&fabric.node("b"), Arc::new(flood), &mut tasks, &stop);

    let store = Store::open(&dir.path().join("store.db"), StoreConfig::default())
        .await
        .unwrap();
    let config = ApiConfig {
        node: "a".parse().unwrap(),
    };
    let live = fabric.node("a");
    let api = Api::new(config, store.clone(), Arc::new(NoEnrolment));
    let near = serve(&live, Arc::new(api), &mut tasks, &stop);
    let local = Client::new(ClientConfig {
        server: near,
        expect: "a".parse().unwrap(),
        live: live.clone(),
    })
    .unwrap();
    let peer = Peer {
        node: "b".parse().unwrap(),
        server: far,
    };
    let (_peers, peers) = watch::channel(Arc::new(vec![peer]));
    let syncer = Syncer::new(SyncerConfig {
        node: "a".parse().unwrap(),
        peers,
        local,
        live,
        metrics: SyncMetrics::register(&mut Registry::default()),
        stale_after: STALE_AFTER,
    });
    let before = anonymous_kib();
    tasks.spawn(syncer.run(stop.clone()));
    let long = std::env::var_os("KEEL_LONG").is_some_and(|value| !value.is_empty() && value != "0");
    let span = if long { 3 * FLOOD } else { FLOOD };
    let (began, mut most) = (Instant::now(), 0);
    while began.elapsed() < span {
        tokio::time::sleep(Duration::from_millis(20)).await;
        most = most.max(anonymous_kib());
    }
    let said = said.load(Ordering::Relaxed);
    println!("{said} statuses of {SIZE} bytes; memory {before} to {most} KiB");
    assert!(said > 20, "it was read");
    assert!(most <= before + GROWTH_KIB, "{before} to {most} KiB");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    store.close().await;
}
