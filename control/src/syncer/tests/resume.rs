//! A node that was cut off: what it missed comes, and nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::api::Condition;

/// Heartbeats of ten minutes.
const MISSED: usize = 20;
/// What other nodes' Routers change meanwhile.
const OTHERS: usize = 300;

/// An API that counts how often it is asked for lists.
struct Counting {
    api: Api,
    lists: AtomicUsize,
}

impl Handler for Counting {
    fn handle(
        &self,
        request: http::Request<Body>,
        caller: Caller,
    ) -> BoxFuture<'static, http::Response<Body>> {
        let query = request.uri().query().unwrap_or_default();
        if query.contains("fieldSelector") && !query.contains("watch=1") {
            self.lists.fetch_add(1, Ordering::Relaxed);
        }
        self.api.handle(request, caller)
    }
}

#[tokio::test]
async fn after_a_cut_of_ten_minutes_only_what_was_missed_comes() {
    let fabric = Fabric::new();
    let (mut a, mut b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    b.report("before").await;
    let watching = b.served.client(&a.live, "b");
    let mut events = watching.watch_router(name("b"), WatchFrom::Snapshot);
    assert!(matches!(
        soon(events.next()).await,
        Some(WatchEvent::Snapshot { routers, .. }) if routers.len() == 1
    ));
    a.peers.send_replace(Arc::new(vec![b.peer()]));
    let mut states = a.sync();
    a.holds("b", "before").await;

    let address = b.served.address.to_string();
    b.served.stop().await;
    let broken = |state: &PeerState| !state.connected && state.error.is_some();
    state(&mut states, broken).await;
    // The store behind another server, at which the world goes on.
    let other = Arc::new(Api::new(
        ApiConfig {
            node: b.name.clone(),
        },
        b.store.clone(),
        Arc::new(NoEnrolment),
    ));
    let elsewhere = Served::start(&b.live, other.clone(), Limits::default());
    let writing = elsewhere.client(&b.live, "b");
    for at in 0..OTHERS {
        let third = name(&format!("other-{}", at % 30));
        let status = status("other", Some(1 + u64::try_from(at).unwrap()));
        soon(writing.apply_status(&third, &status)).await.unwrap();
        if at % (OTHERS / MISSED) == 0 {
            let own = self::status(&format!("missed {at}"), None);
            soon(writing.apply_status(&b.name, &own)).await.unwrap();
        }
    }
    let last = format!("missed {}", OTHERS - OTHERS / MISSED);
    elsewhere.stop().await;
    let counting = Arc::new(Counting {
        api: Api::clone(&other),
        lists: AtomicUsize::new(0),
    });
    b.served = Served::start_at(&address, &b.live, counting.clone(), Limits::default());

    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        match soon(events.next()).await.unwrap() {
            WatchEvent::Applied(router) => seen.push(router.status.unwrap().cluster.unwrap()),
            WatchEvent::Interrupted(_) | WatchEvent::Synced(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.len(), MISSED, "{seen:?}");
    a.holds("b", &last).await;
    state(&mut states, |state| {
        state.connected && state.error.is_none()
    })
    .await;
    assert_eq!(
        counting.lists.load(Ordering::Relaxed),
        0,
        "nothing is listed anew"
    );
    a.stop().await;
    b.stop().await;
}

fn mark(status: &RouterStatus) -> Option<Condition> {
    let mut conditions = status.conditions.iter();
    conditions
        .find(|one| one.kind == crate::api::SYNCED)
        .cloned()
}

#[tokio::test]
async fn a_node_that_only_pushes_is_marked_while_it_does_not() {
    let fabric = Fabric::new();
    let (mut a, mut b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    b.peers.send_replace(Arc::new(vec![a.peer()]));
    a.sync_for(Duration::from_secs(1));
    b.sync();
    a.report("here").await;
    b.report("said").await;
    let held = a.holds("b", "said").await.status.unwrap();
    let old = a.holds_as("b", |status| mark(status).is_some()).await;
    let old = old.status.unwrap();
    let condition = mark(&old).unwrap();
    assert_eq!(condition.status, "False");
    assert_eq!((&old.cluster, &old.source), (&held.cluster, &held.source));
    b.report("again").await;
    let new = a.holds("b", "again").await.status.unwrap();
    assert!(mark(&new).is_none(), "{new:?}");
    let own = soon(a.local.get_router(&a.name)).await.unwrap();
    assert!(mark(&own.status.unwrap()).is_none());
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_peer_that_is_not_heard_has_its_router_marked_until_it_is() {
    let fabric = Fabric::new();
    let (mut a, mut b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    a.peers.send_replace(Arc::new(vec![b.peer()]));
    let mut states = a.sync_for(Duration::from_secs(3));
    b.report("said").await;
    let before = a.holds("b", "said").await.status.unwrap();
    let address = b.served.address.to_string();
    b.served.stop().await;
    let broken = |state: &PeerState| !state.connected && state.error.is_some();
    state(&mut states, broken).await;
    let old = a.holds_as("b", |status| mark(status).is_some()).await;
    let old = old.status.unwrap();
    let condition = mark(&old).unwrap();
    assert_eq!(condition.status, "False");
    assert!(
        condition.message.contains("b was not heard"),
        "{condition:?}"
    );
    assert_eq!(
        (&old.cluster, &old.source),
        (&before.cluster, &before.source)
    );

    let api = Api::new(
        ApiConfig {
            node: b.name.clone(),
        },
        b.store.clone(),
        Arc::new(NoEnrolment),
    );
    b.served = Served::start_at(&address, &b.live, Arc::new(api), Limits::default());
    let new = a.holds_as("b", |status| mark(status).is_none()).await;
    assert_eq!(new.status.unwrap(), before, "there was no news");
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hurry_ends_the_wait_of_a_watch() {
    let fabric = Fabric::new();
    // Nothing listens there.
    let config = crate::client::ClientConfig {
        server: "192.0.2.1:1".parse().unwrap(),
        expect: name("b"),
        live: fabric.node("a"),
    };
    let hurry = watch::Sender::default();
    let client = Client::new(config).unwrap().hurried_by(hurry.subscribe());
    let mut events = client.watch_router(name("b"), WatchFrom::Snapshot);
    // Until the waits are at their cap, and one of them is longer than an attempt takes.
    for _ in 0..12 {
        assert!(matches!(
            events.next().await,
            Some(WatchEvent::Interrupted(_))
        ));
    }
    let now = tokio::time::Instant::now();
    hurry.send_replace(Some(crate::client::Hurry {
        spread: Duration::from_millis(10),
        until: now + Duration::from_secs(600),
    }));
    for _ in 0..5 {
        assert!(matches!(
            events.next().await,
            Some(WatchEvent::Interrupted(_))
        ));
    }
    // Five attempts of five seconds, and hardly any wait between them.
    assert!(
        now.elapsed() < Duration::from_secs(27),
        "{:?}",
        now.elapsed()
    );
}
