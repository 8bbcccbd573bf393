//! Kinds beside Router: those in a namespace, those without a spec, those of the core group.

use std::time::{Duration, SystemTime};

use serde_json::json;

use super::super::expiry::expire;
use super::*;
use crate::api::Time;
use crate::api::kind::find;
use crate::server::prepare;

const NAMESPACES: &str = "/api/v1/namespaces";

async fn create(server: &Server, path: &str, object: &Value) -> Answer {
    server
        .call(ADMIN, "POST", path, "application/json", object.to_string())
        .await
}

fn event(name: &str, about: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "creationTimestamp": null},
        "involvedObject": {"kind": "Router", "apiVersion": "edge.example.com/v1", "name": about},
        "reason": "Started", "message": "It runs.", "type": "Normal", "eventTime": null,
        "lastTimestamp": "2026-01-01T00:00:00Z", "count": 2, "source": {"component": "keel"},
    })
}

/// Typed clients cannot read a list in which one time is none.
#[tokio::test]
async fn a_time_of_an_event_is_a_time() {
    let server = Server::new().await;
    let path = format!("{NAMESPACES}/default/events");
    for (field, value) in [
        ("lastTimestamp", json!("yesterday")),
        ("lastTimestamp", json!("2026-01-01 00:00:00")),
        ("eventTime", json!("2026-01-01T00:00:00Z")),
        ("series", json!({"count": 2, "lastObservedTime": "soon"})),
    ] {
        let mut sent = event("a", "r");
        sent[field] = value;
        let refused = create(&server, &path, &sent).await;
        assert!(refused.message().contains("RFC 3339"), "{refused:?}");
        refused.expect(422);
    }
    let mut sent = event("a", "r");
    sent["eventTime"] = json!("2026-01-01T00:00:00.000001+02:00");
    create(&server, &path, &sent).await.expect(201);
}

#[tokio::test]
async fn a_namespace_that_waits_for_its_finalizers_is_terminating() {
    let server = Server::new().await;
    let sent = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "prod", "finalizers": ["example.com/keep"]}});
    create(&server, NAMESPACES, &sent).await.expect(201);
    let path = format!("{NAMESPACES}/prod");
    let marked = server.call(ADMIN, "DELETE", &path, "", "").await;
    assert_eq!(marked.expect(200)["status"]["phase"], "Terminating");
    let selected = format!("{NAMESPACES}?fieldSelector=status.phase=Terminating");
    let found = server.get(POD, &selected).await.expect(200);
    assert_eq!(found["items"][0]["metadata"]["name"], "prod");
}

#[tokio::test]
async fn a_namespace_is_active_and_keeps_its_labels() {
    let server = Server::new().await;
    let sent = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "prod", "labels": {"tier": "1"}}});
    let created = create(&server, NAMESPACES, &sent).await.expect(201);
    assert_eq!(created["status"]["phase"], "Active");
    let path = format!("{NAMESPACES}/prod");
    let read = server.get(POD, &path).await.expect(200);
    assert_eq!(read["metadata"]["labels"]["tier"], "1");
    let selected = server
        .get(
            POD,
            &format!("{NAMESPACES}?fieldSelector=status.phase=Active"),
        )
        .await
        .expect(200);
    assert_eq!(selected["kind"], "NamespaceList");
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);
    let wrong = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a.b"}});
    let refused = create(&server, NAMESPACES, &wrong).await;
    assert!(
        refused
            .message()
            .starts_with("Namespace \"a.b\" is invalid: metadata.name"),
        "{}",
        refused.message()
    );
    let deleted = server
        .call(ADMIN, "DELETE", &path, "", "")
        .await
        .expect(200);
    assert_eq!(deleted["details"]["kind"], "namespaces");
    assert_eq!(
        server.get(POD, &path).await.message(),
        "namespaces \"prod\" not found"
    );
}

#[tokio::test]
async fn the_default_namespace_is_there_and_stays() {
    let server = Server::new().await;
    prepare(&server.store).await.unwrap();
    let path = format!("{NAMESPACES}/default");
    let made = server.get(POD, &path).await.expect(200);
    assert_eq!(made["status"]["phase"], "Active");
    let labels = json!({"metadata": {"labels": {"x": "y"}}}).to_string();
    let labelled = server.call(ADMIN, "PATCH", &path, MERGE, labels).await;
    let labelled = labelled.expect(200);
    // At the next start it is left as it is.
    prepare(&server.store).await.unwrap();
    assert_eq!(server.get(POD, &path).await.expect(200), labelled);
    for path in [path.as_str(), NAMESPACES] {
        let kept = server.call(ADMIN, "DELETE", path, "", "").await;
        assert_eq!(
            (kept.code.as_u16(), kept.message().as_str()),
            (
                403,
                "namespaces \"default\" is forbidden: this namespace may not be deleted"
            )
        );
    }
    assert_eq!(server.call(POD, "DELETE", &path, "", "").await.code, 403);
    let all = server.get(POD, NAMESPACES).await.expect(200);
    assert_eq!(all["items"], json!([labelled]));
}

#[tokio::test]
async fn a_namespace_takes_the_patches_that_kubectl_sends_for_its_type() {
    let server = Server::new().await;
    let sent = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "prod", "finalizers": ["x.y/a", "x.y/b"]}});
    create(&server, NAMESPACES, &sent).await.expect(201);
    let patch = async |patch: Value| {
        let (path, media) = (
            format!("{NAMESPACES}/prod"),
            "application/strategic-merge-patch+json",
        );
        server
            .call(ADMIN, "PATCH", &path, media, patch.to_string())
            .await
    };
    let patched = patch(json!({"metadata": {
        "labels": {"tier": "1"},
        "finalizers": ["x.y/c"],
        "$deleteFromPrimitiveList/finalizers": ["x.y/a"],
        "$setElementOrder/finalizers": ["x.y/b", "x.y/c"],
    }}));
    let patched = patched.await.expect(200);
    assert_eq!(patched["metadata"]["finalizers"], json!(["x.y/b", "x.y/c"]));
    assert_eq!(patched["metadata"]["labels"], json!({"tier": "1"}));
    let refused = patch(json!({"metadata": {"$shuffle/finalizers": []}})).await;
    assert_eq!(refused.code, 400);
    assert_eq!(
        refused.message(),
        "this is no strategic merge patch: there is no order $shuffle/finalizers"
    );
    assert_eq!(patch(json!([])).await.code, 400);
}

#[tokio::test]
async fn events_are_told_in_both_words() {
    const NEWER: &str = "/apis/events.k8s.io/v1/namespaces/a/events";
    let server = Server::new().await;
    let path = format!("{NAMESPACES}/a/events");
    let start = server.store.current();
    create(&server, &path, &event("one", "edge-a"))
        .await
        .expect(201);
    let newer = server.get(ADMIN, &format!("{NEWER}/one")).await.expect(200);
    assert_eq!(newer["apiVersion"], "events.k8s.io/v1");
    assert_eq!(newer["regarding"]["name"], "edge-a");
    assert_eq!(newer["note"], "It runs.");
    assert_eq!(newer["deprecatedCount"], 2);
    assert!(newer.get("involvedObject").is_none() && newer.get("message").is_none());

    let told = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "two"},
        "regarding": {"kind": "Router", "name": "edge-b"}, "reason": "Stopped", "note": "It rests.", "type": "Warning",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "keel", "reportingInstance": "keel-1", "action": "Stop",
    });
    let made = create(&server, NEWER, &told).await.expect(201);
    assert_eq!(made["note"], "It rests.");
    let older = server.get(POD, &format!("{path}/two")).await.expect(200);
    assert_eq!(older["kind"], "Event");
    assert_eq!(older["apiVersion"], "v1");
    assert_eq!(older["message"], "It rests.");
    assert_eq!(older["reportingComponent"], "keel");
    // Who owns what is told in the same words.
    let owned = |object: &Value| object["metadata"]["managedFields"][0].clone();
    assert_eq!(owned(&made)["apiVersion"], "events.k8s.io/v1");
    assert_eq!(owned(&made)["fieldsV1"]["f:note"], json!({}));
    assert_eq!(owned(&older)["apiVersion"], "v1");
    assert_eq!(owned(&older)["fieldsV1"]["f:message"], json!({}));
    let from_keel = format!("{path}?fieldSelector=source=keel,source!=other");
    let from_keel = server.get(POD, &from_keel).await.expect(200);
    assert_eq!(from_keel["items"].as_array().unwrap().len(), 2);
    // An unknown word is unknown: this kind has others.
    let mut wrong = told.clone();
    wrong["metadata"]["name"] = "three".into();
    wrong["message"] = "It rests.".into();
    let strict = format!("{NEWER}?fieldValidation=Strict");
    assert!(
        create(&server, &strict, &wrong)
            .await
            .message()
            .contains("unknown field \"message\"")
    );

    let object = format!("{NEWER}/two");
    let media = "application/strategic-merge-patch+json";
    for (media, patch, note) in [
        (MERGE, json!({"note": "One."}), "One."),
        (media, json!({"note": "Two."}), "Two."),
        (
            "application/json-patch+json",
            json!([{"op": "replace", "path": "/note", "value": "Three."}]),
            "Three.",
        ),
    ] {
        let patched = server.call(ADMIN, "PATCH", &object, media, patch.to_string());
        assert_eq!(patched.await.expect(200)["note"], note, "{media}");
    }
    let apply = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "two"}, "note": "Four."});
    let forced = format!("{object}?fieldManager=test&force=true");
    let apply = server.call(
        ADMIN,
        "PATCH",
        &forced,
        "application/apply-patch+yaml",
        apply.to_string(),
    );
    let applied = apply.await.expect(200);
    assert_eq!(
        (&applied["note"], &applied["type"]),
        (&json!("Four."), &json!("Warning"))
    );
    let owners = applied["metadata"]["managedFields"].clone();
    let mut replaced = applied;
    replaced["note"] = "Five.".into();
    let put = server.call(
        ADMIN,
        "PUT",
        &object,
        "application/json",
        replaced.to_string(),
    );
    let put = put.await.expect(200);
    assert_eq!(put["note"], "Five.");
    // What came back was understood: the applier owns what it applied, but for the note, which is the last writer's.
    let applier = |owners: &Value| {
        let all = owners.as_array().unwrap().iter();
        all.filter(|owner| owner["operation"] == "Apply").count()
    };
    assert_eq!(applier(&owners), 1);
    assert_eq!(applier(&put["metadata"]["managedFields"]), 0);

    let selected = format!("{NEWER}?fieldSelector=regarding.name=edge-b,reportingController=keel");
    let list = server.get(POD, &selected).await.expect(200);
    assert_eq!(list["apiVersion"], "events.k8s.io/v1");
    assert_eq!(list["items"][0]["note"], "Five.");
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let watch = format!("{NEWER}?watch=1&timeoutSeconds=1&resourceVersion={start}");
    let seen = String::from_utf8(server.get(POD, &watch).await.body.to_vec()).unwrap();
    let notes: Vec<Value> = seen
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["object"]["note"].clone())
        .collect();
    let expected = [
        "It runs.",
        "It rests.",
        "One.",
        "Two.",
        "Three.",
        "Four.",
        "Five.",
    ];
    assert_eq!(json!(notes), json!(expected));
    for name in ["one", "two"] {
        let object = format!("{NEWER}/{name}");
        server
            .call(ADMIN, "DELETE", &object, "", "")
            .await
            .expect(200);
    }
    let list = server.get(POD, &path).await.expect(200);
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn events_that_are_over_are_deleted_and_watchers_see_it() {
    let server = Server::new().await;
    let path = format!("{NAMESPACES}/a/events");
    for name in ["one", "two"] {
        create(&server, &path, &event(name, "edge-a"))
            .await
            .expect(201);
    }
    let before = server.store.current();
    let kind = find("", "v1", "events").unwrap();
    let ttl = Duration::from_secs(3600);
    let now = SystemTime::now();
    assert_eq!(expire(&server.store, kind, ttl, now).await.unwrap(), 0);
    // Told again, half an hour later.
    let later = now + ttl / 2;
    let patch = json!({"lastTimestamp": Time::from(later)});
    server
        .call(
            ADMIN,
            "PATCH",
            &format!("{path}/two"),
            MERGE,
            patch.to_string(),
        )
        .await
        .expect(200);
    assert_eq!(
        expire(&server.store, kind, ttl, now + ttl).await.unwrap(),
        1
    );
    let left = server.get(ADMIN, &path).await.expect(200);
    assert_eq!(left["items"][0]["metadata"]["name"], "two");
    assert_eq!(
        expire(&server.store, kind, ttl, later + ttl).await.unwrap(),
        1
    );
    let watch = format!("{path}?watch=1&timeoutSeconds=1&resourceVersion={before}");
    let seen = String::from_utf8(server.get(ADMIN, &watch).await.body.to_vec()).unwrap();
    let kinds: Vec<Value> = seen
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .map(|line: Value| json!([line["type"], line["object"]["metadata"]["name"]]))
        .collect();
    let expected = [["MODIFIED", "two"], ["DELETED", "one"], ["DELETED", "two"]];
    assert_eq!(json!(kinds), json!(expected));
}

#[tokio::test]
async fn objects_in_a_namespace_are_found_there() {
    let server = Server::new().await;
    let place = |namespace: &str| format!("{NAMESPACES}/{namespace}/events");
    for (namespace, name, about) in [
        ("a", "one", "edge-a"),
        ("b", "one", "edge-a"),
        ("b", "two", "edge-b"),
    ] {
        let created = create(&server, &place(namespace), &event(name, about))
            .await
            .expect(201);
        assert_eq!(created["metadata"]["namespace"], namespace);
        assert_eq!(created.get("spec"), None, "an event has none");
        assert_eq!(created["count"], 2);
    }
    let again = create(&server, &place("a"), &event("one", "edge-a")).await;
    assert_eq!(again.code, 409);
    let names = async |path: &str| -> String {
        let list = server.get(POD, path).await.expect(200);
        let items = list["items"].as_array().unwrap();
        let name = |item: &Value| {
            let meta = &item["metadata"];
            format!(
                "{}/{}",
                meta["namespace"].as_str().unwrap(),
                meta["name"].as_str().unwrap()
            )
        };
        items.iter().map(name).collect::<Vec<_>>().join(",")
    };
    assert_eq!(names("/api/v1/events").await, "a/one,b/one,b/two");
    assert_eq!(names(&place("b")).await, "b/one,b/two");
    assert_eq!(names(&place("c")).await, "");
    let about_b =
        "/api/v1/events?fieldSelector=involvedObject.name%3Dedge-b,involvedObject.kind%3DRouter";
    assert_eq!(names(about_b).await, "b/two");
    let watched = format!("{}?watch=1&timeoutSeconds=1", place("a"));
    let seen = server.get(POD, &watched).await.body;
    assert_eq!(seen.split(|byte| *byte == b'\n').count(), 2);

    let path = format!("{}/one", place("a"));
    let patched = server
        .call(
            ADMIN,
            "PATCH",
            &path,
            MERGE,
            r#"{"message":"Still.","count":3}"#,
        )
        .await
        .expect(200);
    assert_eq!(
        (&patched["message"], &patched["count"]),
        (&json!("Still."), &json!(3))
    );
    let mut elsewhere = event("three", "edge-a");
    elsewhere["metadata"]["namespace"] = "b".into();
    assert_eq!(create(&server, &place("a"), &elsewhere).await.code, 400);
    assert_eq!(
        create(&server, "/api/v1/events", &elsewhere).await.code,
        405
    );
    server
        .call(ADMIN, "DELETE", &path, "", "")
        .await
        .expect(200);
    assert_eq!(names("/api/v1/events").await, "b/one,b/two");
    for path in [
        "/api/v1/events/one".to_owned(),
        "/api/v1/namespaces/a/namespaces".to_owned(),
        "/apis/edge.example.com/v1/namespaces/a/routers".to_owned(),
        format!("{}/two/status", place("b")),
        "/api/v2/namespaces".to_owned(),
        "/apis/example.com/v1".to_owned(),
    ] {
        assert_eq!(server.get(ADMIN, &path).await.code, 404, "{path}");
    }
}

#[tokio::test]
async fn discovery_and_openapi_know_every_kind() {
    let server = Server::new().await;
    let core = server.get(POD, "/api/v1").await.expect(200);
    let names: Vec<&str> = core["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["events", "namespaces", "namespaces/status"]);
    assert_eq!(core["groupVersion"], "v1");
    let groups = server.get(POD, "/apis").await.expect(200);
    for group in ["edge.example.com", "tunnel.kubeinfra.io"] {
        assert!(groups.to_string().contains(group), "{groups}");
        let one = server.get(POD, &format!("/apis/{group}")).await.expect(200);
        assert_eq!(one["name"], group);
    }
    let index = server.get(POD, "/openapi/v3").await.expect(200);
    for path in index["paths"].as_object().unwrap().values() {
        let address = path["serverRelativeURL"].as_str().unwrap();
        let document = server.get(POD, address).await.expect(200);
        for (path, item) in document["paths"].as_object().unwrap() {
            // What kubectl looks for before it leaves validation to the server.
            let parameters = item["patch"]["parameters"].to_string();
            assert_eq!(
                parameters.contains("fieldValidation"),
                path.contains("{name}"),
                "{path}"
            );
        }
    }
}
