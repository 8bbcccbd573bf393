//! The client and its watch against a server that follows a script.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use keel_certs::NodeName;
use keel_certs::fixture::Fabric;
use serde_json::{Value, json};

use super::{Class, Client, ClientError, WatchEvent, WatchFrom, WatchStream};
use crate::api::{Revision, Router, Status};
use crate::http::{Body, BoxError, Caller, Handler, full};
use crate::transport::Limits;
use crate::transport::tests::{Served, soon};

const ROUTERS: &str = "/apis/edge.example.com/v1/routers";

/// How a scripted answer goes on behind its lines.
enum Then {
    /// Ends in order.
    End,
    /// The stream is reset.
    Cut,
    /// Stays open without a word.
    Hang,
}

/// One request that is expected, and what it is answered with.
struct Step {
    query: String,
    status: u16,
    lines: Vec<Value>,
    then: Then,
}

fn step(query: impl Into<String>, lines: Vec<Value>, then: Then) -> Step {
    Step {
        query: query.into(),
        status: 200,
        lines,
        then,
    }
}

fn list(revision: u64, items: Vec<Value>) -> Step {
    let list = json!({"kind": "RouterList", "metadata": {"resourceVersion": revision.to_string()}, "items": items});
    step("?resourceVersion=", vec![list], Then::End)
}

fn watch(after: u64, lines: Vec<Value>, then: Then) -> Step {
    step(
        format!("?watch=1&allowWatchBookmarks=true&resourceVersion={after}"),
        lines,
        then,
    )
}

fn router(name: &str, revision: u64) -> Value {
    json!({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": name, "resourceVersion": revision.to_string()}})
}

fn event(kind: &str, name: &str, revision: u64) -> Value {
    json!({"type": kind, "object": router(name, revision)})
}

fn error(status: Status) -> Value {
    json!({"type": "ERROR", "object": status})
}

struct Script(Mutex<VecDeque<Step>>);

impl Handler for Script {
    fn handle(
        &self,
        request: http::Request<Body>,
        _: Caller,
    ) -> BoxFuture<'static, http::Response<Body>> {
        let step = self.0.lock().unwrap().pop_front();
        Box::pin(async move {
            let Some(step) = step else {
                // Behind the end of the script nothing happens any more.
                return std::future::pending().await;
            };
            assert_eq!(
                request.uri().to_string().split_once(ROUTERS).unwrap().1,
                step.query
            );
            let lines: String = step.lines.iter().map(|line| format!("{line}\n")).collect();
            let first =
                futures_util::stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from(lines)))]);
            let body = match step.then {
                Then::End => full(
                    step.lines
                        .iter()
                        .map(|line| format!("{line}\n"))
                        .collect::<String>(),
                ),
                Then::Hang => {
                    StreamBody::new(first.chain(futures_util::stream::pending())).boxed_unsync()
                }
                Then::Cut => {
                    // The reset would overtake what was sent just before.
                    let cut = futures_util::stream::once(async {
                        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                        Err("cut".into())
                    });
                    StreamBody::new(first.chain(cut)).boxed_unsync()
                }
            };
            http::Response::builder()
                .status(step.status)
                .body(body)
                .unwrap()
        })
    }
}

fn serve(script: Vec<Step>) -> (Served, Client) {
    let fabric = Fabric::new();
    let served = Served::start(
        &fabric.node("a"),
        Arc::new(Script(Mutex::new(script.into()))),
        Limits::default(),
    );
    let client = served.client(&fabric.node("b"), "a");
    (served, client)
}

/// The next event in short: `snapshot 5 a,b`, `applied a 6`, `deleted a`, `synced 9`, `interrupted Gone`.
async fn next(stream: &mut WatchStream) -> String {
    let name = |router: &Router| router.name().to_owned();
    match soon(stream.next()).await.unwrap() {
        WatchEvent::Snapshot { routers, revision } => {
            format!(
                "snapshot {revision} {}",
                routers.iter().map(name).collect::<Vec<_>>().join(",")
            )
        }
        WatchEvent::Applied(router) => format!(
            "applied {} {}",
            router.name(),
            router.metadata.resource_version.unwrap()
        ),
        WatchEvent::Deleted(name) => format!("deleted {name}"),
        WatchEvent::Synced(revision) => format!("synced {revision}"),
        WatchEvent::Interrupted(error) => format!("interrupted {:?}", error.class()),
    }
}

async fn assert_events(stream: &mut WatchStream, expected: &[&str]) {
    for expected in expected {
        assert_eq!(next(stream).await, *expected);
    }
}

#[tokio::test]
async fn a_watch_resumes_behind_the_last_event_it_saw() {
    let (served, client) = serve(vec![
        list(5, vec![router("a", 3), router("b", 5)]),
        watch(
            5,
            vec![event("MODIFIED", "a", 6), event("DELETED", "b", 8)],
            Then::Cut,
        ),
        // What was seen comes again, as from a server that goes back: it is not passed on twice.
        watch(
            8,
            vec![event("DELETED", "b", 8), event("ADDED", "c", 9)],
            Then::End,
        ),
        watch(9, vec![event("BOOKMARK", "", 20)], Then::Cut),
        watch(20, vec![event("MODIFIED", "c", 21)], Then::Hang),
    ]);
    let mut stream = client.watch_routers(WatchFrom::Snapshot);
    assert_events(
        &mut stream,
        &[
            "snapshot 5 a,b",
            "applied a 6",
            "deleted b",
            "interrupted Retry",
        ],
    )
    .await;
    assert_events(
        &mut stream,
        &[
            "applied c 9",
            "synced 20",
            "interrupted Retry",
            "applied c 21",
        ],
    )
    .await;
    drop(stream);
    served.stop().await;
}

#[tokio::test]
async fn what_is_gone_or_ahead_is_listed_anew() {
    let (served, client) = serve(vec![
        watch(7, vec![error(Status::expired("too old"))], Then::End),
        list(50, vec![router("a", 40)]),
        watch(50, vec![event("MODIFIED", "a", 51)], Then::End),
        Step {
            status: 410,
            ..watch(51, vec![json!(Status::expired("too old"))], Then::End)
        },
        list(60, vec![]),
        // The server was restored: its numbers are behind ours.
        Step {
            status: 504,
            ..watch(
                60,
                vec![json!(Status::too_large(Revision(60), Revision(10)))],
                Then::End,
            )
        },
        list(11, vec![router("z", 11)]),
        watch(11, vec![event("ADDED", "y", 12)], Then::Hang),
    ]);
    let mut stream = client.watch_routers(WatchFrom::Revision(Revision(7)));
    assert_events(
        &mut stream,
        &["interrupted Gone", "snapshot 50 a", "applied a 51"],
    )
    .await;
    assert_events(
        &mut stream,
        &["interrupted Gone", "snapshot 60 ", "interrupted Ahead"],
    )
    .await;
    assert_events(&mut stream, &["snapshot 11 z", "applied y 12"]).await;
    drop(stream);
    served.stop().await;
}

#[tokio::test]
async fn one_bad_object_stops_nothing() {
    let bad_spec = json!({"metadata": {"name": "b", "resourceVersion": "6"}, "spec": {"addresses": 7}, "status": {"cluster": "x"}});
    let (served, client) = serve(vec![
        list(5, vec![json!(["no object"]), router("a", 3)]),
        watch(
            5,
            vec![
                json!({"type": "ADDED", "object": bad_spec}),
                json!({"type": "ADDED", "object": {"metadata": {"name": "c", "resourceVersion": "7"}, "status": "no object"}}),
                json!({"type": "INVENTED", "object": router("d", 8)}),
                event("ADDED", "e", 9),
            ],
            Then::Hang,
        ),
    ]);
    let mut stream = client.watch_routers(WatchFrom::Snapshot);
    assert_events(&mut stream, &["snapshot 5 a"]).await;
    match soon(stream.next()).await.unwrap() {
        WatchEvent::Applied(router) => assert_eq!(
            router.status.unwrap().cluster.as_deref(),
            Some("x"),
            "readers live on the status"
        ),
        other => panic!("{other:?}"),
    }
    let mut rest = next(&mut stream).await;
    if rest.starts_with("applied c") {
        rest = next(&mut stream).await;
    }
    assert_eq!(rest, "applied e 9");
    drop(stream);
    served.stop().await;
}

#[tokio::test]
async fn a_watch_of_one_router_asks_for_one_and_takes_no_more_than_one_needs() {
    let huge = json!({"type": "ADDED", "object": {"metadata": {"name": "a", "resourceVersion": "6", "labels": {"x": "y".repeat(2 << 20)}}}});
    let field = "&fieldSelector=metadata.name%3Da";
    let mut first = list(5, vec![]);
    first.query.push_str(field);
    let mut second = watch(5, vec![huge], Then::Hang);
    second.query.push_str(field);
    // Watched again from 5, it would come again: the next thing is a list.
    let mut third = list(6, vec![router("a", 6)]);
    third.query.push_str(field);
    let (served, client) = serve(vec![first, second, third]);
    let mut stream = client.watch_router(NodeName::new("a").unwrap(), WatchFrom::Snapshot);
    assert_events(
        &mut stream,
        &["snapshot 5 ", "interrupted Retry", "snapshot 6 a"],
    )
    .await;
    drop(stream);
    served.stop().await;
}

#[tokio::test]
async fn one_huge_object_does_not_hold_up_the_others() {
    let huge = json!({"metadata": {"name": "a", "resourceVersion": "6", "labels": {"x": "y".repeat(2 << 20)}}});
    let largest = json!({"metadata": {"name": "b", "resourceVersion": "8", "labels": {"x": "y".repeat((1 << 20) - 100)}}});
    let (served, client) = serve(vec![
        list(5, vec![]),
        watch(
            5,
            vec![json!({"type": "ADDED", "object": huge.clone()})],
            Then::Hang,
        ),
        list(7, vec![huge, router("b", 7)]),
        watch(
            7,
            vec![json!({"type": "MODIFIED", "object": largest})],
            Then::Hang,
        ),
    ]);
    let mut stream = client.watch_routers(WatchFrom::Snapshot);
    assert_events(
        &mut stream,
        &[
            "snapshot 5 ",
            "interrupted Retry",
            "snapshot 7 a,b",
            "applied b 8",
        ],
    )
    .await;
    drop(stream);
    served.stop().await;
}

#[tokio::test]
async fn errors_say_what_can_be_done() {
    let answers = [
        (401, Class::Denied),
        (403, Class::Denied),
        (404, Class::NotFound),
        (409, Class::Conflict),
        (500, Class::Retry),
    ];
    let script = answers.iter().map(|(status, _)| Step {
        query: "/x".into(),
        status: *status,
        lines: vec![json!(Status::failure(crate::api::Reason::Unknown, "no"))],
        then: Then::End,
    });
    let (served, client) = serve(script.collect());
    let name = NodeName::new("x").unwrap();
    for (_, class) in answers {
        let error = soon(client.get_router(&name)).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(matches!(error, ClientError::Status(_)));
    }
    served.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_does_not_wait_for_one_that_nobody_polls() {
    // Takes what comes and says nothing, as a peer that is away.
    let away = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let fabric = Fabric::new();
    let client = Client::new(super::ClientConfig {
        server: away.local_addr().unwrap().into(),
        expect: "there".parse().unwrap(),
        live: fabric.node("here"),
    })
    .unwrap();
    let mut events = client.watch_routers(WatchFrom::Snapshot);
    assert!(futures_util::poll!(events.next()).is_pending());
    // The watch is connecting now, and is left alone.
    let answer = soon(client.get_router(&"there".parse().unwrap())).await;
    assert!(
        matches!(answer, Err(ClientError::Unreachable { .. })),
        "{answer:?}"
    );
    drop(events);
}
