//! Peers that lie, flood or fall silent: what a node holds stays true, and others are not kept waiting.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;

use super::*;
use crate::api::MAX_OBJECT;
use crate::http::{BoxError, full};

/// What the liar answers to a list and to a watch of its Router, time after time; the last one stays.
#[derive(Clone)]
struct Lie {
    list: Value,
    /// Lines of the watch, which then stays open.
    watch: Vec<String>,
}

/// An APIServer of node `b` that says what it is told to say, and takes every status.
struct Liar {
    lie: Mutex<Lie>,
    /// The number of the status of ours that it claims to hold; 0: none.
    holds: AtomicU64,
    asked: AtomicUsize,
}

impl Handler for Liar {
    fn handle(
        &self,
        request: http::Request<Body>,
        _: Caller,
    ) -> BoxFuture<'static, http::Response<Body>> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        self.asked.fetch_add(1, Ordering::Relaxed);
        let lie = self.lie.lock().unwrap().clone();
        let holds = self.holds.load(Ordering::Relaxed);
        let answer = move || {
            if request.method() != http::Method::GET {
                return full(json!({"metadata": {"name": "a"}}).to_string());
            }
            // What it holds of us is another matter.
            let of_us = query.contains("%3Da");
            if !query.contains("watch=1") {
                let ours = (holds > 0).then(|| object("a", 9, said("lie", holds)));
                let list = match of_us {
                    true => listed(10, ours.as_slice()),
                    false => lie.list,
                };
                return full(list.to_string());
            }
            if of_us {
                return StreamBody::new(futures_util::stream::pending::<
                    Result<Frame<Bytes>, BoxError>,
                >())
                .boxed_unsync();
            }
            // Many lines in a piece, as a server sends them that has many.
            let pieces: Vec<_> = lie
                .watch
                .chunks(200)
                .map(|lines| lines.join("\n") + "\n")
                .collect();
            let pieces = pieces
                .into_iter()
                .map(|piece| Ok::<_, BoxError>(Frame::data(Bytes::from(piece))));
            let pieces = futures_util::stream::iter(pieces);
            StreamBody::new(pieces.chain(futures_util::stream::pending())).boxed_unsync()
        };
        Box::pin(async move { http::Response::new(answer()) })
    }
}

fn object(name: &str, at: u64, status: Value) -> Value {
    json!({
        "apiVersion": "edge.example.com/v1", "kind": "Router", "status": status,
        "metadata": {"name": name, "resourceVersion": at.to_string()},
    })
}

fn said(cluster: &str, source: u64) -> Value {
    json!({"cluster": cluster, "source": {"revision": source}})
}

fn listed(at: u64, items: &[Value]) -> Value {
    json!({"kind": "RouterList", "metadata": {"resourceVersion": at.to_string()}, "items": items})
}

fn event(kind: &str, object: &Value) -> String {
    json!({"type": kind, "object": object}).to_string()
}

/// Node `a`, which holds something true of `b`, `c` and itself, and has a liar in the place of `b`.
struct Stage {
    fabric: Fabric,
    a: Node,
    states: watch::Receiver<PeerStates>,
    liar: Arc<Liar>,
    served: Served,
    true_b: Revision,
}

const OTHERS: [&str; 4] = ["a", "c", "kube-dns", "d"];

impl Stage {
    async fn new(lie: Lie) -> Self {
        let fabric = Fabric::new();
        let mut a = Node::start(&fabric, "a").await;
        let admin = a.served.client(&fabric.fabric_admin("cloud"), "a");
        for name in &OTHERS[..3] {
            let mut router = Router::named(*name);
            router.spec = serde_json::from_value(json!({"addresses": ["192.0.2.1:7000"]})).unwrap();
            soon(admin.create_router(&router)).await.unwrap();
        }
        a.report("a").await;
        let true_b = Revision::at(std::time::SystemTime::now());
        let b = name("b");
        soon(a.local.apply_status(&b, &status("true", Some(true_b.0))))
            .await
            .unwrap();
        let liar = Arc::new(Liar {
            lie: Mutex::new(lie),
            holds: AtomicU64::new(0),
            asked: AtomicUsize::new(0),
        });
        let served = Served::start(&fabric.node("b"), liar.clone(), Limits::default());
        a.peers.send_replace(Arc::new(vec![Peer {
            node: b,
            server: served.server(),
        }]));
        let states = a.sync();
        Self {
            fabric,
            a,
            states,
            liar,
            served,
            true_b,
        }
    }

    /// All that is held here of others than the liar.
    async fn others(&self) -> Vec<Router> {
        let all = soon(self.a.local.list_routers()).await.unwrap().routers;
        all.into_iter()
            .filter(|router| router.name() != "b")
            .collect()
    }

    async fn of_b(&self) -> RouterStatus {
        soon(self.a.local.get_router(&name("b")))
            .await
            .unwrap()
            .status
            .unwrap()
    }

    async fn stop(self) {
        self.a.stop().await;
        self.served.stop().await;
    }
}

/// Each lie alone, behind it something true: the lie changes nothing, and the truth still comes through.
#[tokio::test]
async fn no_lie_is_held_and_the_truth_behind_it_is() {
    let start = Revision::at(std::time::SystemTime::now()).0 + 60_000;
    let day = 24 * 3600 * 1000;
    let of_b = |at: u64, source: u64| object("b", at, said("lie", source));
    let nothing = listed(10, &[]);
    let watched = |lines: Vec<String>| Lie {
        list: nothing.clone(),
        watch: lines,
    };
    // One event about a Router, with a status that is newer than all that is held.
    let told =
        |kind: &str, name: &str| watched(vec![event(kind, &object(name, 11, said("lie", start)))]);
    let changed = |source: u64| watched(vec![event("MODIFIED", &of_b(11, source))]);
    let huge = "x".repeat(MAX_OBJECT + (70 << 10));
    let ports: Vec<Value> = (0..100_000).map(|at| json!({"port": at})).collect();
    let answered = |list: Value| Lie {
        list,
        watch: vec![],
    };
    let lies: Vec<(&str, Lie)> = vec![
        (
            "another node's Router in a list",
            answered(listed(10, &[object("c", 9, said("lie", start))])),
        ),
        (
            "our own Router in a list",
            answered(listed(10, &[object("a", 9, said("lie", start))])),
        ),
        ("another node's Router in an event", told("MODIFIED", "c")),
        ("our own Router in an event", told("ADDED", "a")),
        (
            "a name that looks like one of ours",
            told("ADDED", "kube-dns"),
        ),
        ("a new node", told("ADDED", "d")),
        ("a name that is none", told("ADDED", "../a")),
        ("a name in punycode of another", told("ADDED", "xn--b-1ga")),
        ("a name of a mebibyte", told("ADDED", &"n".repeat(1 << 20))),
        ("another node's Router deleted", told("DELETED", "c")),
        ("its own Router deleted", told("DELETED", "b")),
        ("an older status", changed(5)),
        (
            "a status without a number",
            watched(vec![event(
                "MODIFIED",
                &object("b", 11, json!({"cluster": "lie"})),
            )]),
        ),
        (
            "a number that is none",
            watched(vec![event(
                "MODIFIED",
                &object(
                    "b",
                    11,
                    json!({"cluster": "lie", "source": {"revision": -1}}),
                ),
            )]),
        ),
        ("a number more than a day ahead", changed(start + 2 * day)),
        ("the largest number there is", changed(u64::MAX)),
        (
            "an event twice, and out of order",
            watched(vec![
                event("MODIFIED", &of_b(9, 6)),
                event("MODIFIED", &of_b(9, start)),
            ]),
        ),
        (
            "a bookmark behind the last one",
            watched(vec![
                event("BOOKMARK", &object("", 3, Value::Null)),
                event("BOOKMARK", &object("", 2, Value::Null)),
            ]),
        ),
        (
            "an event without a revision",
            watched(vec![
                r#"{"type": "MODIFIED", "object": {"metadata": {"name": "b"}}}"#.into(),
            ]),
        ),
        ("an event that is no JSON", watched(vec!["{".into()])),
        (
            "a type that is none",
            watched(vec![event("EATEN", &of_b(11, start))]),
        ),
        (
            "an endless event",
            watched(vec![format!(
                r#"{{"type": "MODIFIED", "object": "{huge}"}}"#
            )]),
        ),
        (
            "an endless list",
            answered(listed(10, &[object("b", 9, json!({"cluster": huge}))])),
        ),
        (
            "a list of endless pages",
            answered(
                json!({"metadata": {"resourceVersion": "10", "continue": "more"}, "items": []}),
            ),
        ),
        ("a list without a revision", answered(json!({"items": []}))),
        ("a list of nonsense", answered(json!([[[[["b"]]]]]))),
        (
            "deep nesting",
            watched(vec![format!(
                r#"{{"type": "MODIFIED", "object": {}{}}}"#,
                "[".repeat(100_000),
                "]".repeat(100_000)
            )]),
        ),
        (
            "a mebibyte of ports",
            watched(vec![event(
                "MODIFIED",
                &object("b", 11, json!({"cluster": "lie", "activeServices": ports})),
            )]),
        ),
        (
            "an error in the place of an event",
            watched(vec![
                json!({"type": "ERROR", "object": {"kind": "Status", "code": 403}}).to_string(),
            ]),
        ),
        (
            "compacted for ever",
            watched(vec![
                json!({"type": "ERROR", "object": {"kind": "Status", "code": 410}}).to_string(),
            ]),
        ),
    ];
    assert!(lies.len() >= 30);
    let mut stage = Stage::new(lies[0].1.clone()).await;
    let before = stage.others().await;
    for (round, (what, lie)) in (0..).zip(lies) {
        println!("{what}");
        *stage.liar.lie.lock().unwrap() = lie;
        // Anew, so that the lie is the first that is heard.
        let peers = stage.a.peers.send_replace(Arc::default());
        soon(stage.states.wait_for(|states| states.is_empty()))
            .await
            .unwrap();
        let asked = stage.liar.asked.load(Ordering::Relaxed);
        stage.a.peers.send_replace(peers.clone());
        soon(async {
            // Both watches have asked for a list, and the one that is lied to for what comes behind it.
            while stage.liar.asked.load(Ordering::Relaxed) < asked + 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        // The truth behind the lie, to a Syncer that starts anew.
        let source = start + round;
        *stage.liar.lie.lock().unwrap() = Lie {
            list: listed(20, &[object("b", 19, said(what, source))]),
            watch: vec![],
        };
        stage.a.peers.send_replace(Arc::default());
        soon(stage.states.wait_for(|states| states.is_empty()))
            .await
            .unwrap();
        assert_ne!(stage.of_b().await.cluster.as_deref(), Some("lie"), "{what}");
        stage.a.peers.send_replace(peers);
        stage.a.holds("b", what).await;
        assert_eq!(stage.others().await, before, "{what}");
    }
    assert!(super::super::plan::source(&stage.of_b().await) > Some(stage.true_b));
    stage.stop().await;
}

/// Writes of `b`'s status here, from its resource versions: every write is an event.
async fn events_of_b(stage: &Stage, after: Revision) -> usize {
    let mut events = stage
        .a
        .local
        .watch_router(name("b"), WatchFrom::Revision(after));
    let mut seen = 0;
    while let Ok(Some(WatchEvent::Applied(_))) =
        tokio::time::timeout(Duration::from_millis(500), events.next()).await
    {
        seen += 1;
    }
    seen
}

#[tokio::test]
async fn a_flood_is_written_at_a_pace_and_its_last_word_counts() {
    let start = Revision::at(std::time::SystemTime::now()).0 + 60_000;
    let flood: Vec<String> = (0..10_000)
        .map(|at| {
            event(
                "MODIFIED",
                &object("b", 11 + at, said(&at.to_string(), start + at)),
            )
        })
        .collect();
    let stage = Stage::new(Lie {
        list: listed(10, &[]),
        watch: flood,
    })
    .await;
    let good = Node::start(&stage.fabric, "c").await;
    let (began, before) = (std::time::Instant::now(), stage.a.store.current());
    let peers = [stage.a.peers.borrow()[0].clone(), good.peer()];
    stage.a.peers.send_replace(Arc::new(peers.to_vec()));
    // A peer beside it is heard at once.
    good.report("good").await;
    stage.a.holds("c", "good").await;
    println!("c after {:?}", began.elapsed());
    stage.a.holds("b", "9999").await;
    println!("b after {:?}", began.elapsed());
    let took = began.elapsed().as_secs_f64();
    let writes = events_of_b(&stage, before).await;
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small number"
    )]
    let most = 25 + (took * 10.0) as usize;
    assert!(writes <= most, "{writes} writes in {took:.1} s");
    good.stop().await;
    stage.stop().await;
}

/// What it is believed raises our numbers, once and so far: everybody who follows us goes on, and nodes whose clocks are far behind
/// still believe what we say.
#[tokio::test]
async fn a_peer_that_claims_to_hold_later_statuses_of_ours_harms_nobody() {
    let hours = |hours: u64| {
        let ahead = Duration::from_secs(hours * 3600);
        Revision::at(std::time::SystemTime::now() + ahead)
    };
    let nothing = Lie {
        list: listed(10, &[]),
        watch: vec![],
    };
    let mut stage = Stage::new(nothing).await;
    let mut honest = Node::start(&stage.fabric, "c").await;
    honest.peers.send_replace(Arc::new(vec![stage.a.peer()]));
    honest.sync();
    honest.holds("a", "a").await;
    let before = stage.a.report("before").await;
    let mut follower = stage
        .a
        .local
        .watch_router(name("a"), WatchFrom::Revision(before));

    let claimed = hours(11);
    let anew = async |stage: &mut Stage, claimed: Revision| {
        stage.liar.holds.store(claimed.0, Ordering::Relaxed);
        let peers = stage.a.peers.send_replace(Arc::default());
        soon(stage.states.wait_for(|states| states.is_empty()))
            .await
            .unwrap();
        stage.a.peers.send_replace(peers);
    };
    anew(&mut stage, claimed).await;
    let mut revision = stage.a.store.revision();
    soon(revision.wait_for(|revision| *revision > claimed))
        .await
        .unwrap();
    // It says still more; that much is not believed, and told.
    anew(&mut stage, hours(13)).await;
    state(&mut stage.states, |state| state.ahead.is_some()).await;
    let after = stage.a.report("after").await;
    assert!(claimed < after && after < hours(12), "{claimed} {after}");
    // Who pulls from us has it, who watches us has lost nothing, and a node whose clock is half a day behind believes it.
    honest.holds("a", "after").await;
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("after") {
        match soon(follower.next()).await.unwrap() {
            WatchEvent::Applied(router) => seen.push(router.status.unwrap().cluster.unwrap()),
            WatchEvent::Synced(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let behind = std::time::SystemTime::now() - Duration::from_secs(12 * 3600);
    assert!(after < Revision::at(behind + Revision::MAX_AHEAD));
    honest.stop().await;
    stage.stop().await;
}

#[tokio::test]
async fn two_statuses_under_one_number_are_noticed() {
    let start = Revision::at(std::time::SystemTime::now()).0 + 60_000;
    let mut stage = Stage::new(Lie {
        list: listed(10, &[object("b", 9, said("first", start))]),
        watch: vec![event("MODIFIED", &object("b", 11, said("second", start)))],
    })
    .await;
    state(&mut stage.states, |state| {
        state
            .error
            .as_ref()
            .is_some_and(|error| error.contains("under one number"))
    })
    .await;
    assert_eq!(stage.of_b().await.cluster.as_deref(), Some("first"));
    stage.stop().await;
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_behind_and_keeps_nobody_waiting() {
    let lie = Lie {
        list: listed(10, &[]),
        watch: vec![],
    };
    let mut stage = Stage::new(lie).await;
    let seen = state(&mut stage.states, |state| state.connected).await;
    let heard = seen.heard;
    assert_eq!(seen.lag(heard + Duration::from_secs(10)), Duration::ZERO);
    // It says nothing more: no bookmark, nothing.
    assert_eq!(
        seen.lag(heard + Duration::from_secs(20)),
        Duration::from_secs(20)
    );
    let good = Node::start(&stage.fabric, "c").await;
    let peers = [stage.a.peers.borrow()[0].clone(), good.peer()];
    stage.a.peers.send_replace(Arc::new(peers.to_vec()));
    good.report("good").await;
    stage.a.holds("c", "good").await;
    good.stop().await;
    stage.stop().await;
}
