//! Deleting what is selected of a collection in one request.

use super::*;

async fn with_sites(sites: &[(&str, &str)]) -> Server {
    let server = Server::new().await;
    for (name, site) in sites {
        let mut sent = router(name, json!({}));
        sent["metadata"]["labels"] = json!({"site": site});
        server.post(ADMIN, &sent).await.expect(201);
    }
    server
}

async fn delete(server: &Server, who: &str, query: &str, body: &str) -> Answer {
    let path = format!("{ROUTERS}?{query}");
    server
        .call(who, "DELETE", &path, "application/json", body.to_owned())
        .await
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    let name = |item| Value::pointer(item, "/metadata/name").and_then(Value::as_str);
    items.iter().map(|item| name(item).unwrap()).collect()
}

async fn left(server: &Server) -> String {
    names(&server.get(POD, ROUTERS).await.expect(200)).join(",")
}

#[tokio::test]
async fn what_is_selected_is_deleted_and_shown() {
    let server = with_sites(&[("a", "x"), ("b", "y"), ("c", "x"), ("d", "x")]).await;
    let before = server.store.current();
    let dry = delete(&server, ADMIN, "labelSelector=site%3Dx&dryRun=All", "").await;
    assert_eq!(names(&dry.expect(200)), ["a", "c", "d"]);
    let dry = delete(&server, ADMIN, "", r#"{"dryRun":["All"]}"#).await;
    assert_eq!(names(&dry.expect(200)).len(), 4);
    assert_eq!(server.store.current(), before);

    let gone = delete(&server, ADMIN, "labelSelector=site%3Dx&limit=2", "").await;
    let gone = gone.expect(200);
    assert_eq!(names(&gone), ["a", "c"]);
    assert_eq!(gone["kind"], "RouterList");
    assert_eq!(left(&server).await, "b,d");
    // The page behind is of the same state; what somebody else has deleted meanwhile is passed by.
    server.delete(ADMIN, "d", "").await.expect(200);
    let token = gone["metadata"]["continue"].as_str().unwrap();
    let query = format!("labelSelector=site%3Dx&continue={token}");
    let rest = delete(&server, ADMIN, &query, "");
    assert_eq!(names(&rest.await.expect(200)), [""; 0]);
    let last = delete(&server, ADMIN, "fieldSelector=metadata.name%3Db", "");
    assert_eq!(names(&last.await.expect(200)), ["b"]);
    assert_eq!(left(&server).await, "");
}

#[tokio::test]
async fn many_are_deleted_each_once() {
    let server = Server::new().await;
    for number in 0..200 {
        let name = format!("r{number:03}");
        server
            .post(ADMIN, &router(&name, json!({})))
            .await
            .expect(201);
    }
    let before = server.store.current();
    let gone = delete(&server, ADMIN, "", "").await.expect(200);
    assert_eq!(names(&gone).len(), 200);
    assert!(names(&gone).is_sorted());
    assert_eq!(server.store.current().0, before.0 + 200);
}

#[tokio::test]
async fn finalizers_and_preconditions_hold_for_each() {
    let server = with_sites(&[("a", "x"), ("b", "x")]).await;
    let kept = json!({"metadata": {"finalizers": ["example.com/wait"]}});
    server.patch(ADMIN, "a", MERGE, &kept).await.expect(200);
    let uid = server.router("b").await["metadata"]["uid"].clone();
    let only = json!({"preconditions": {"uid": uid}}).to_string();
    let refused = delete(&server, ADMIN, "", &only).await;
    assert_eq!(refused.code, 409, "a has another uid");
    let gone = delete(&server, ADMIN, "", "").await.expect(200);
    assert!(names(&gone).starts_with(&["a"]));
    let stamp = gone["items"][0].pointer("/metadata/deletionTimestamp");
    assert!(stamp.is_some_and(Value::is_string));
    assert_eq!(left(&server).await, "a");
}

#[tokio::test]
async fn a_namespace_at_a_time_and_admins_only() {
    let server = Server::new().await;
    for namespace in ["a", "b"] {
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "one"},
            "involvedObject": {"kind": "Router", "namespace": namespace, "name": "r"},
        });
        let made = server.call(ADMIN, "POST", &path, "application/json", event.to_string());
        made.await.expect(201);
    }
    let all = server.call(ADMIN, "DELETE", "/api/v1/events", "", "").await;
    assert_eq!(all.code, 405);
    for (who, code) in [(POD, 403), (HERE, 403), (ADMIN, 200)] {
        let path = "/api/v1/namespaces/a/events";
        assert_eq!(
            server.call(who, "DELETE", path, "", "").await.code,
            code,
            "{who}"
        );
    }
    let events = server.get(POD, "/api/v1/events").await.expect(200);
    assert_eq!(events["items"][0]["metadata"]["namespace"], "b");
    assert_eq!(events["items"].as_array().map(Vec::len), Some(1));
    let bad = delete(&server, ADMIN, "fieldSelector=spec.x%3Db", "").await;
    assert_eq!(bad.code, 400);
    let bad = delete(&server, ADMIN, "", "[]").await;
    assert_eq!(bad.code, 400);
}

#[tokio::test]
async fn a_selector_that_says_nothing_deletes_nothing() {
    let server = Server::new().await;
    server
        .post(ADMIN, &router("a", json!({})))
        .await
        .expect(201);
    for selector in [",", "app=nope,", "x+notin+()", "a//b=c"] {
        let path = format!("{ROUTERS}?labelSelector={selector}");
        assert_eq!(
            server.call(ADMIN, "DELETE", &path, "", "").await.code,
            400,
            "{selector}"
        );
    }
    assert_eq!(left(&server).await, "a");
}
