//! Nodes in one process: real stores, real APIs, real HTTP/3, one syncer each.

mod liar;
mod lost;
mod resume;
mod simulation;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use keel_certs::fixture::Fabric;
use keel_certs::{LiveIdentity, NodeName};
use keel_fabric::quic::HostPort;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Peer, PeerState, PeerStates, STALE_AFTER, SyncMetrics, Syncer, SyncerConfig};
use crate::api::{Revision, Router, RouterStatus, Source};
use crate::client::{Client, WatchEvent, WatchFrom};
use crate::http::{Body, Caller, Handler, empty};
use crate::server::{Api, ApiConfig};
use crate::store::{Store, StoreConfig};
use crate::transport::Limits;
use crate::transport::tests::{Served, soon};

struct NoEnrolment;

impl Handler for NoEnrolment {
    fn handle(
        &self,
        _: http::Request<Body>,
        _: Caller,
    ) -> BoxFuture<'static, http::Response<Body>> {
        Box::pin(std::future::ready(
            http::Response::builder().status(404).body(empty()).unwrap(),
        ))
    }
}

fn name(node: &str) -> NodeName {
    NodeName::new(node).unwrap()
}

/// A node: its APIServer and, once started, its syncer.
struct Node {
    name: NodeName,
    live: LiveIdentity,
    store: Store,
    served: Served,
    local: Client,
    peers: watch::Sender<Arc<Vec<Peer>>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start(fabric: &Fabric, node: &str) -> Self {
        let live = fabric.node(node);
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db"), StoreConfig::default())
            .await
            .unwrap();
        let api = Api::new(
            ApiConfig { node: name(node) },
            store.clone(),
            Arc::new(NoEnrolment),
        );
        let served = Served::start(&live, Arc::new(api), Limits::default());
        let local = served.client(&live, node);
        Self {
            name: name(node),
            live,
            store,
            served,
            local,
            peers: watch::Sender::default(),
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
            _dir: dir,
        }
    }

    fn peer(&self) -> Peer {
        Peer {
            node: self.name.clone(),
            server: self.served.server(),
        }
    }

    fn sync(&mut self) -> watch::Receiver<PeerStates> {
        self.sync_for(STALE_AFTER)
    }

    fn sync_for(&mut self, stale_after: Duration) -> watch::Receiver<PeerStates> {
        let syncer = Syncer::new(SyncerConfig {
            node: self.name.clone(),
            peers: self.peers.subscribe(),
            local: self.local.clone(),
            live: self.live.clone(),
            metrics: SyncMetrics::register(&mut Registry::default()),
            stale_after,
        });
        let states = syncer.peers_state();
        self.tasks.spawn(syncer.run(self.stop.clone()));
        states
    }

    /// Writes this node's own status, as its router does; gives the revision that it got.
    async fn report(&self, cluster: &str) -> Revision {
        let stored = soon(self.local.apply_status(&self.name, &status(cluster, None)))
            .await
            .unwrap();
        super::plan::source(&stored.status.unwrap()).expect("the API stamps the own status")
    }

    /// Waits until the Router of `node` is held here with this cluster in its status.
    async fn holds(&self, node: &str, cluster: &str) -> Router {
        self.holds_as(node, |status| status.cluster.as_deref() == Some(cluster))
            .await
    }

    async fn holds_as(&self, node: &str, is: impl Fn(&RouterStatus) -> bool) -> Router {
        let mut events = self.local.watch_router(name(node), WatchFrom::Snapshot);
        let wanted = |router: &Router| router.status.as_ref().is_some_and(&is);
        soon(async {
            loop {
                match events.next().await.unwrap() {
                    WatchEvent::Snapshot { routers, .. } => {
                        if let Some(router) = routers.into_iter().find(&wanted) {
                            return router;
                        }
                    }
                    WatchEvent::Applied(router) if wanted(&router) => return router,
                    _ => {}
                }
            }
        })
        .await
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = soon(self.tasks.join_next()).await {
            ended.unwrap();
        }
        self.served.stop().await;
        self.store.close().await;
    }
}

fn status(cluster: &str, revision: Option<u64>) -> RouterStatus {
    let source = revision.map(|revision| Source {
        revision: Revision(revision),
    });
    RouterStatus {
        cluster: Some(cluster.to_owned()),
        source,
        ..RouterStatus::default()
    }
}

async fn state(
    states: &mut watch::Receiver<PeerStates>,
    is: impl Fn(&PeerState) -> bool,
) -> PeerState {
    let states = soon(states.wait_for(|states| states.iter().any(&is)))
        .await
        .unwrap();
    states.iter().find(|state| is(state)).unwrap().clone()
}

#[tokio::test]
async fn two_nodes_that_reach_each_other_pull_and_never_push() {
    let fabric = Fabric::new();
    let (mut a, mut b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    a.peers.send_replace(Arc::new(vec![b.peer()]));
    b.peers.send_replace(Arc::new(vec![a.peer()]));
    // What the cloud controller wrote for b is at a before b is ever heard of.
    let admin = a.served.client(&fabric.fabric_admin("cloud"), "a");
    let spec = json!({"addresses": ["203.0.113.10:7000"]});
    let mut router = Router::named("b");
    router.spec = serde_json::from_value(spec.clone()).unwrap();
    soon(admin.create_router(&router)).await.unwrap();

    let (mut of_b, mut of_a) = (a.sync(), b.sync());
    let first = b.report("one").await;
    a.report("one").await;
    let held = a.holds("b", "one").await;
    assert_eq!(
        super::plan::source(held.status.as_ref().unwrap()),
        Some(first)
    );
    assert_eq!(
        serde_json::to_value(&held.spec).unwrap(),
        spec,
        "a spec is never overwritten"
    );
    assert_eq!(
        b.holds("a", "one").await.spec,
        Router::named("a").spec,
        "a Router that was missing has an empty spec"
    );
    for round in ["two", "three", "four"] {
        let revision = b.report(round).await;
        a.report(round).await;
        a.holds("b", round).await;
        b.holds("a", round).await;
        state(&mut of_b, |state| state.pulled == Some(revision)).await;
    }
    let seen = state(&mut of_b, |state| state.connected).await;
    assert_eq!(
        (seen.pushed, seen.error, seen.behind_since),
        (None, None, None)
    );
    assert!(seen.last_contact.is_some());
    assert_eq!(state(&mut of_a, |state| state.connected).await.pushed, None);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_node_that_nobody_can_call_pushes() {
    let fabric = Fabric::new();
    let (mut public, mut hidden) = (
        Node::start(&fabric, "public").await,
        Node::start(&fabric, "hidden").await,
    );
    hidden.peers.send_replace(Arc::new(vec![public.peer()]));
    let mut states = hidden.sync();
    let _none = public.sync();
    public.report("public one").await;
    hidden.report("hidden one").await;
    hidden.holds("public", "public one").await;
    public.holds("hidden", "hidden one").await;
    for round in ["two", "three"] {
        let revision = hidden.report(round).await;
        public.holds("hidden", round).await;
        state(&mut states, |state| state.pushed == Some(revision)).await;
    }
    hidden.stop().await;
    public.stop().await;
}

#[tokio::test]
async fn an_older_status_never_replaces_a_newer_one() {
    let fabric = Fabric::new();
    let (mut a, b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    // a has heard of a later b than the one it can reach, as after a restore of b from a backup.
    soon(
        a.local
            .apply_status(&b.name, &status("later", Some(hours_ahead(1).0))),
    )
    .await
    .unwrap();
    a.report("a").await;
    b.report("earlier").await;
    a.peers.send_replace(Arc::new(vec![b.peer()]));
    let mut states = a.sync();
    // The push of a's status shows that the exchange works both ways.
    b.holds("a", "a").await;
    state(&mut states, |state| state.connected).await;
    b.report("earlier still").await;
    let revision = b.report("last").await;
    a.report("again").await;
    b.holds("a", "again").await;
    let held = a.holds("b", "later").await;
    assert!(super::plan::source(held.status.as_ref().unwrap()).unwrap() > revision);

    // By push neither, and only for the own Router.
    let pushing = a.served.client(&b.live, "a");
    let kept = soon(pushing.apply_status(&b.name, &status("pushed", Some(5))))
        .await
        .unwrap();
    assert_eq!(kept.status.unwrap().cluster.as_deref(), Some("later"));
    let error = soon(pushing.apply_status(&a.name, &status("not mine", Some(hours_ahead(1).0))))
        .await
        .unwrap_err();
    assert_eq!(error.class(), crate::client::Class::Denied);
    a.stop().await;
    b.stop().await;
}

fn hours_ahead(hours: u64) -> Revision {
    Revision::at(std::time::SystemTime::now() + Duration::from_secs(hours * 3600))
}

#[tokio::test]
async fn a_store_goes_on_behind_what_others_hold_of_it() {
    let fabric = Fabric::new();
    let (mut a, mut b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    // As after a restore of b while its clock was behind: a holds what b has lost.
    let lost = hours_ahead(11);
    soon(a.local.apply_status(&b.name, &status("lost", Some(lost.0))))
        .await
        .unwrap();
    let first = b.report("first").await;
    assert!(first < lost);
    a.peers.send_replace(Arc::new(vec![b.peer()]));
    b.peers.send_replace(Arc::new(vec![a.peer()]));
    let (_of_b, mut of_a) = (a.sync(), b.sync());
    let held = a.holds("b", "first").await;
    let raised = super::plan::source(held.status.as_ref().unwrap()).unwrap();
    assert!(raised > lost && b.store.current() >= raised);
    assert!(
        matches!(
            b.store.events_since(lost, 1).await,
            Err(crate::store::EventsError::Compacted { .. })
        ),
        "nobody has seen what b has not"
    );
    assert!(b.report("second").await > raised);
    a.holds("b", "second").await;
    let seen = state(&mut of_a, |state| state.connected).await;
    assert_eq!((seen.ahead, seen.error), (None, None));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn numbers_that_cannot_be_are_neither_taken_nor_overtaken() {
    let fabric = Fabric::new();
    let (a, mut b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    let pushing = a.served.client(&b.live, "a");
    for client in [&a.local, &pushing] {
        let error = soon(client.apply_status(&b.name, &status("no", Some(hours_ahead(25).0))))
            .await
            .unwrap_err();
        assert_eq!(error.class(), crate::client::Class::Invalid, "{error}");
        assert!(error.to_string().contains("clock"), "{error}");
    }
    // More than a store raises itself to.
    let held = hours_ahead(24).0 - 60_000;
    soon(a.local.apply_status(&b.name, &status("far", Some(held))))
        .await
        .unwrap();
    let before = b.report("b").await;
    b.peers.send_replace(Arc::new(vec![a.peer()]));
    let mut states = b.sync();
    let seen = state(&mut states, |state| {
        state.connected && state.error.is_some()
    })
    .await;
    assert_eq!(seen.ahead, Some(Revision(held)));
    assert!(seen.error.unwrap().contains(&held.to_string()));
    assert!(b.report("again").await.0 < before.0 + 100_000, "not raised");
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn bad_peers_take_nothing_from_good_ones_and_peers_change_at_run_time() {
    let fabric = Fabric::new();
    let (mut a, b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    b.report("here").await;
    let gone: HostPort = "127.0.0.1:1".parse().unwrap();
    let liar = Peer {
        node: name("liar"),
        server: b.served.server(),
    };
    let bad = [
        Peer {
            node: name("gone"),
            server: gone,
        },
        liar.clone(),
        a.peer(),
    ];
    a.peers.send_replace(Arc::new(bad.to_vec()));
    let mut states = a.sync();
    let error = state(&mut states, |state| {
        state.node == name("liar") && state.error.is_some()
    })
    .await;
    assert!(!error.connected);
    assert_eq!(states.borrow().len(), 2, "a node is no peer of itself");

    let mut all = bad.to_vec();
    all.push(b.peer());
    a.peers.send_replace(Arc::new(all));
    a.holds("b", "here").await;
    state(&mut states, |state| state.node == b.name && state.connected).await;
    a.peers.send_replace(Arc::new(vec![b.peer()]));
    soon(states.wait_for(|states| states.len() == 1))
        .await
        .unwrap();
    b.report("still").await;
    a.holds("b", "still").await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_peer_that_was_away_is_caught_up_with() {
    let fabric = Fabric::new();
    let (mut a, mut b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    a.peers.send_replace(Arc::new(vec![b.peer()]));
    let mut states = a.sync();
    b.report("before").await;
    a.holds("b", "before").await;
    // The same store behind a new server on the same port.
    let address = b.served.address.to_string();
    b.served.stop().await;
    let api = Api::new(
        ApiConfig {
            node: b.name.clone(),
        },
        b.store.clone(),
        Arc::new(NoEnrolment),
    );
    state(&mut states, |state| {
        !state.connected && state.error.is_some()
    })
    .await;
    b.served = Served::start_at(&address, &b.live, Arc::new(api), Limits::default());
    b.report("after").await;
    a.holds("b", "after").await;
    state(&mut states, |state| {
        state.connected && state.error.is_none()
    })
    .await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_watch_sees_every_write_once_over_restarts_of_its_server() {
    let fabric = Fabric::new();
    let mut node = Node::start(&fabric, "a").await;
    let watching = node.served.client(&fabric.pod("a", "default", "p"), "a");
    node.report("0").await;
    let mut events = watching.watch_router(name("a"), WatchFrom::Snapshot);
    assert!(
        matches!(soon(events.next()).await, Some(WatchEvent::Snapshot { routers, .. }) if routers.len() == 1)
    );
    let address = node.served.address.to_string();
    let mut written = 0;
    for round in 0..3 {
        for _ in 0..40 {
            written += 1;
            node.report(&written.to_string()).await;
        }
        if round < 2 {
            node.served.stop().await;
            let api = Api::new(
                ApiConfig { node: name("a") },
                node.store.clone(),
                Arc::new(NoEnrolment),
            );
            node.served = Served::start_at(&address, &node.live, Arc::new(api), Limits::default());
        }
    }
    let mut seen = Vec::new();
    while seen.len() < written {
        match soon(events.next()).await.unwrap() {
            WatchEvent::Applied(router) => seen.push(router.status.unwrap().cluster.unwrap()),
            WatchEvent::Interrupted(_) | WatchEvent::Synced(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let expected: Vec<String> = (1..=written).map(|at| at.to_string()).collect();
    assert_eq!(seen, expected);
    drop(events);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_starts_again() {
    let starts = std::cell::Cell::new(0);
    super::again(|| {
        starts.set(starts.get() + 1);
        let first = starts.get() == 1;
        async move { assert!(!first, "this panic belongs to the test") }
    })
    .await;
    assert_eq!(starts.get(), 2);
}
