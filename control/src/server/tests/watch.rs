//! Watches: exact, ordered, told when they cannot go on.

use std::time::Duration;

use serde_json::json;

use super::super::watches::MAX_WATCHES;
use super::*;

/// The lines of a watch, one after another.
struct Lines {
    body: Body,
    rest: Vec<Value>,
}

impl Lines {
    /// The next event; `None` at the end of the watch. Fails after 20 s (of test time).
    async fn next(&mut self) -> Option<Value> {
        self.next_within(20).await
    }

    async fn next_within(&mut self, seconds: u64) -> Option<Value> {
        while self.rest.is_empty() {
            let frame = tokio::time::timeout(Duration::from_secs(seconds), self.body.frame())
                .await
                .expect("no event came")?;
            let chunk = frame.unwrap().into_data().unwrap();
            assert!(chunk.ends_with(b"\n"), "whole lines only");
            self.rest = chunk
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .map(|line| serde_json::from_slice(line).unwrap())
                .collect();
        }
        Some(self.rest.remove(0))
    }

    /// The next event as `TYPE name`, with its revision.
    async fn brief(&mut self) -> (String, u64) {
        let event = self.next().await.unwrap();
        let name = event["object"]["metadata"]["name"]
            .as_str()
            .unwrap_or_default();
        (
            format!("{} {name}", event["type"].as_str().unwrap()),
            revision(&event["object"]),
        )
    }
}

impl Server {
    async fn watch(&self, query: &str) -> Lines {
        let request = Request::builder()
            .uri(format!("{ROUTERS}?watch=1&{query}"))
            .body(full(""))
            .unwrap();
        let response = self.send(POD, request).await;
        assert_eq!(response.status(), 200);
        Lines {
            body: response.into_body(),
            rest: Vec::new(),
        }
    }

    async fn make(&self, name: &str) -> u64 {
        revision(&self.post(ADMIN, &router(name, json!({}))).await.expect(201))
    }

    async fn label(&self, name: &str, value: Value) -> u64 {
        revision(
            &self
                .patch(
                    ADMIN,
                    name,
                    MERGE,
                    &json!({"metadata": {"labels": {"l": value}}}),
                )
                .await
                .expect(200),
        )
    }
}

#[tokio::test]
async fn resumes_exactly_wherever_it_was_cut() {
    // A ring of two: most of the history comes from the database.
    let server = Server::with(StoreConfig {
        ring: 2,
        linger: Duration::ZERO,
        ..StoreConfig::default()
    })
    .await;
    let start = server.store.current().0;
    let mut history = Vec::new();
    for name in ["a", "b"] {
        history.push((format!("ADDED {name}"), server.make(name).await));
    }
    for value in ["1", "2", "3"] {
        history.push((
            "MODIFIED a".to_owned(),
            server.label("a", json!(value)).await,
        ));
    }
    server.delete(ADMIN, "a", "").await.expect(200);
    history.push(("DELETED a".to_owned(), server.store.current().0));
    for cut in 0..=history.len() {
        let after = if cut == 0 { start } else { history[cut - 1].1 };
        let mut lines = server
            .watch(&format!("resourceVersion={after}&timeoutSeconds=1"))
            .await;
        for expected in &history[cut..] {
            assert_eq!(lines.brief().await, *expected, "after {after}");
        }
    }
    // Live, behind the history.
    let mut lines = server
        .watch(&format!("resourceVersion={}", history[5].1))
        .await;
    let c = server.make("c").await;
    assert_eq!(lines.brief().await, ("ADDED c".into(), c));
}

#[tokio::test]
async fn begins_with_what_is_there() {
    let server = Server::new().await;
    let (a, b) = (server.make("a").await, server.make("b").await);
    let mut live = Vec::new();
    for query in ["", "resourceVersion=0", "resourceVersion="] {
        let mut lines = server.watch(query).await;
        assert_eq!(
            (lines.brief().await, lines.brief().await),
            (("ADDED a".into(), a), ("ADDED b".into(), b)),
            "{query}"
        );
        live.push(lines);
    }
    let changed = server.label("b", json!("x")).await;
    server.delete(ADMIN, "b", "").await.expect(200);
    for lines in &mut live {
        assert_eq!(lines.brief().await, ("MODIFIED b".into(), changed));
        assert_eq!(lines.brief().await.0, "DELETED b");
    }
    let mut lines = server
        .watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
        .await;
    assert_eq!(lines.brief().await.0, "ADDED a");
    let end = lines.next().await.unwrap();
    assert_eq!(
        end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(revision(&end["object"]), server.store.current().0);
    let mut lines = server
        .watch("sendInitialEvents=false&resourceVersionMatch=NotOlderThan")
        .await;
    let c = server.make("c").await;
    assert_eq!(lines.brief().await, ("ADDED c".into(), c));
    for query in [
        "sendInitialEvents=true",
        "resourceVersionMatch=NotOlderThan",
        "resourceVersion=x",
    ] {
        assert_eq!(
            server
                .get(POD, &format!("{ROUTERS}?watch=1&{query}"))
                .await
                .code,
            422,
            "{query}"
        );
    }
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let server = Server::new().await;
    let start = server.store.current().0;
    let mut lines = server
        .watch(&format!("resourceVersion={start}&labelSelector=l%3Dyes"))
        .await;
    let mut named = server
        .watch(&format!(
            "resourceVersion={start}&fieldSelector=metadata.name%3Db"
        ))
        .await;
    server.make("a").await;
    let entered = server.label("a", json!("yes")).await;
    let left = server.label("a", json!("no")).await;
    let b = server.make("b").await;
    assert_eq!(lines.brief().await, ("ADDED a".into(), entered));
    // As it was when it was selected: who takes it out of an index finds it there.
    let gone = lines.next().await.unwrap();
    assert_eq!(
        (&gone["type"], revision(&gone["object"])),
        (&json!("DELETED"), left)
    );
    assert_eq!(gone["object"]["metadata"]["labels"], json!({"l": "yes"}));
    assert_eq!(named.brief().await, ("ADDED b".into(), b));
    let one = Request::builder()
        .uri(format!("{ROUTERS}/b?watch=true"))
        .body(full(""))
        .unwrap();
    let mut one = Lines {
        body: server.send(POD, one).await.into_body(),
        rest: Vec::new(),
    };
    assert_eq!(one.brief().await, ("ADDED b".into(), b));
}

#[tokio::test]
async fn compacted_and_future_revisions_are_told() {
    let server = Server::with(StoreConfig {
        ring: 1,
        linger: Duration::ZERO,
        ..StoreConfig::default()
    })
    .await;
    let a = server.make("a").await;
    server.make("b").await;
    let slow = server.watch(&format!("resourceVersion={a}")).await;
    server.make("c").await;
    server.store.compact(server.store.current()).await.unwrap();
    // A watcher that was too slow is told in its watch; one that comes too late too, as Kubernetes does, and so is one with the
    // number of another store, from before this one. Clients begin anew for that event, and not all of them for a status.
    let late = server.watch(&format!("resourceVersion={a}")).await;
    let foreign = server.watch("resourceVersion=7").await;
    for mut lines in [slow, late, foreign] {
        let event = lines.next().await.unwrap();
        assert_eq!(
            (
                &event["type"],
                &event["object"]["code"],
                &event["object"]["reason"],
                &event["object"]["kind"]
            ),
            (
                &json!("ERROR"),
                &json!(410),
                &json!("Expired"),
                &json!("Status")
            )
        );
        assert_eq!(lines.next().await, None);
    }
    let ahead = server
        .get(
            POD,
            &format!(
                "{ROUTERS}?watch=1&resourceVersion={}",
                server.store.current().0 + 99
            ),
        )
        .await;
    assert_eq!(
        (ahead.code.as_u16(), ahead.text("/reason").as_str()),
        (504, "Timeout")
    );
    assert_eq!(
        ahead.text("/details/causes/0/reason"),
        "ResourceVersionTooLarge"
    );
}

#[tokio::test]
async fn what_was_read_for_a_watch_is_sent_and_is_little() {
    let server = Server::with(StoreConfig {
        ring: 1,
        linger: Duration::ZERO,
        ..StoreConfig::default()
    })
    .await;
    let start = server.store.current();
    for number in 0..60 {
        let mut large = router(&format!("r{number}"), json!({}));
        large["metadata"]["annotations"] = json!({"example.com/large": "x".repeat(4096)});
        server.post(ADMIN, &large).await.expect(201);
    }
    let mut lines = server.watch(&format!("resourceVersion={start}")).await;
    assert_eq!(lines.brief().await.0, "ADDED r0");
    // What the first chunk had no room for is not read again: it could not be.
    server.store.compact(server.store.current()).await.unwrap();
    let mut sent = 1;
    while lines.next().await.unwrap()["type"] == "ADDED" {
        sent += 1;
    }
    // A chunk is 64 KiB, and what is read is twice as much.
    assert!((24..=32).contains(&sent), "{sent} were sent");
}

#[tokio::test]
async fn an_idle_watch_gets_bookmarks_ends_in_time_and_survives_compaction() {
    let server = Server::new().await;
    let a = server.make("a").await;
    // From here on the clock runs as fast as everybody waits. The store's threads do not, so nothing is written meanwhile.
    let mut lines = server
        .watch(&format!(
            "resourceVersion={a}&allowWatchBookmarks=true&timeoutSeconds=25"
        ))
        .await;
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    // Two in twenty seconds, and one before the end.
    for _ in 0..3 {
        let event = lines.next().await.unwrap();
        assert_eq!(
            (
                &event["type"],
                revision(&event["object"]),
                &event["object"]["kind"]
            ),
            (&json!("BOOKMARK"), a, &json!("Router"))
        );
    }
    assert_eq!(lines.next().await, None);
    assert_eq!(started.elapsed().as_secs(), 25);
    let mut lines = server
        .watch(&format!("resourceVersion={a}&timeoutSeconds=25"))
        .await;
    assert_eq!(lines.next_within(30).await, None, "for whom wants them");
}

#[tokio::test]
async fn tables_are_watched_with_their_columns_once() {
    let server = Server::new().await;
    server.make("a").await;
    let request = Request::builder()
        .uri(format!("{ROUTERS}?watch=1"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(full(""))
        .unwrap();
    let mut lines = Lines {
        body: server.send(POD, request).await.into_body(),
        rest: Vec::new(),
    };
    let first = lines.next().await.unwrap();
    assert_eq!(
        (
            &first["object"]["kind"],
            &first["object"]["rows"][0]["cells"][0]
        ),
        (&json!("Table"), &json!("a"))
    );
    assert!(first["object"]["columnDefinitions"].is_array());
    server.make("b").await;
    let second = lines.next().await.unwrap();
    assert_eq!(
        (
            &second["object"]["columnDefinitions"],
            &second["object"]["rows"][0]["cells"][0]
        ),
        (&Value::Null, &json!("b"))
    );
}

#[tokio::test]
async fn many_watchers_see_the_same_history() {
    let server = Server::new().await;
    let start = server.store.current().0;
    let mut watchers = Vec::new();
    for _ in 0..50 {
        watchers.push(server.watch(&format!("resourceVersion={start}")).await);
    }
    server.make("a").await;
    let expected: Vec<u64> = {
        let mut revisions = vec![server.store.current().0];
        for value in 0..20 {
            revisions.push(server.label("a", json!(value.to_string())).await);
        }
        revisions
    };
    for lines in &mut watchers {
        for revision in &expected {
            assert_eq!(lines.brief().await.1, *revision);
        }
    }
}

#[tokio::test]
async fn one_identity_cannot_open_watches_without_end() {
    let server = Server::new().await;
    let a = server.make("a").await;
    let mut open = Vec::new();
    for _ in 0..MAX_WATCHES {
        open.push(server.watch("resourceVersion=0").await);
    }
    let path = format!("{ROUTERS}?watch=1");
    let refused = server.get(POD, &path).await;
    assert_eq!(
        (refused.code.as_u16(), refused.text("/reason").as_str()),
        (429, "TooManyRequests")
    );
    assert!(refused.message().contains(POD), "{}", refused.message());
    server.get(POD, ROUTERS).await.expect(200);
    let others = server.get(THERE, &format!("{path}&timeoutSeconds=1")).await;
    assert_eq!(others.code, 200, "nobody else is refused");
    // Each begins with the same state, whoever came first, and with the one of its time.
    let b = server.make("b").await;
    for lines in &mut open {
        assert_eq!(lines.brief().await, ("ADDED a".into(), a));
        assert_eq!(lines.brief().await, ("ADDED b".into(), b));
    }
    open.pop();
    let mut again = server.watch("resourceVersion=0").await;
    assert_eq!(again.brief().await, ("ADDED a".into(), a));
    assert_eq!(again.brief().await, ("ADDED b".into(), b));
}

#[tokio::test]
async fn a_watch_is_not_for_head() {
    let server = Server::new().await;
    let head = async |query: &str| {
        let path = format!("{ROUTERS}{query}");
        server.call(POD, "HEAD", &path, "", "").await.code.as_u16()
    };
    assert_eq!((head("").await, head("?watch=1").await), (200, 405));
    server.make("a").await;
    assert_eq!(head("/a?watch=1").await, 405);
}
