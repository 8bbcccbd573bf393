//! Events: kept once, told in two words, in namespaces.

use std::time::{Duration, SystemTime};

use serde_json::json;

use super::super::expiry::expire;
use super::kinds::{NAMESPACES, create};
use super::*;
use crate::api::Time;
use crate::api::kind::find;

fn event(namespace: &str, name: &str, about: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "creationTimestamp": null},
        "involvedObject": {"kind": "Router", "apiVersion": "edge.example.com/v1", "namespace": namespace, "name": about},
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
        let mut sent = event("default", "a", "r");
        sent[field] = value;
        let refused = create(&server, &path, &sent).await;
        assert!(refused.message().contains("RFC 3339"), "{refused:?}");
        refused.expect(422);
    }
    let mut sent = event("default", "a", "r");
    sent["eventTime"] = json!("2026-01-01T00:00:00.000001+02:00");
    for (field, word) in [
        ("reportingComponent", "keel"),
        ("reportingInstance", "keel-1"),
        ("action", "Start"),
    ] {
        let refused = create(&server, &path, &sent).await;
        let why = format!("{field}: Required value");
        assert!(refused.message().contains(&why), "{refused:?}");
        refused.expect(422);
        sent[field] = word.into();
    }
    create(&server, &path, &sent).await.expect(201);
}

#[tokio::test]
async fn events_are_told_in_both_words() {
    const NEWER: &str = "/apis/events.k8s.io/v1/namespaces/a/events";
    let server = Server::new().await;
    let path = format!("{NAMESPACES}/a/events");
    let start = server.store.current();
    create(&server, &path, &event("a", "one", "edge-a"))
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
        "regarding": {"kind": "Router", "namespace": "a", "name": "edge-b"}, "reason": "Stopped", "note": "It rests.", "type": "Warning",
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
async fn an_event_is_where_its_object_is_and_says_when_it_was() {
    let server = Server::new().await;
    let newer = |namespace: &str, field: &str, value: Value| {
        let mut event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "new"}, "reason": "Stopped", "type": "Warning",
            "regarding": {"kind": "Router", "namespace": namespace, "name": "edge-b"}, "action": "Stop",
            "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "keel", "reportingInstance": "keel-1",
        });
        event[field] = value;
        event
    };
    let astray = "involvedObject.namespace: Invalid value: ";
    let (v1, v1_newer) = (NAMESPACES, "/apis/events.k8s.io/v1/namespaces");
    for (root, namespace, sent, why) in [
        (v1, "a", event("b", "x", "r"), astray),
        (v1, "a", event("", "x", "r"), astray),
        (v1_newer, "a", newer("", "note", json!("")), astray),
        (
            v1_newer,
            "a",
            newer("a", "eventTime", Value::Null),
            "eventTime: Required value",
        ),
        (
            v1_newer,
            "a",
            newer("a", "type", json!("Bad")),
            "type: Invalid value",
        ),
        (
            v1_newer,
            "a",
            newer("a", "deprecatedCount", json!(2)),
            "needs to be unset",
        ),
        (
            v1_newer,
            "a",
            newer("a", "action", json!("x".repeat(129))),
            "can have at most 128 characters",
        ),
        (
            v1_newer,
            "a",
            newer("a", "reportingController", json!("a b")),
            "name part must consist of",
        ),
    ] {
        let refused = create(&server, &format!("{root}/{namespace}/events"), &sent).await;
        assert!(refused.message().contains(why), "{refused:?}");
        refused.expect(422);
    }
    for (root, namespace, sent) in [
        (v1, "default", event("", "x", "r")),
        (
            v1_newer,
            "kube-system",
            newer("", "note", json!("It rests.")),
        ),
        (
            v1_newer,
            "a",
            newer("elsewhere", "note", json!("It rests.")),
        ),
    ] {
        let path = format!("{root}/{namespace}/events");
        create(&server, &path, &sent).await.expect(201);
    }
}

#[tokio::test]
async fn events_that_are_over_are_deleted_and_watchers_see_it() {
    let server = Server::new().await;
    let path = format!("{NAMESPACES}/a/events");
    for name in ["one", "two"] {
        create(&server, &path, &event("a", name, "edge-a"))
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
        let created = create(&server, &place(namespace), &event(namespace, name, about))
            .await
            .expect(201);
        assert_eq!(created["metadata"]["namespace"], namespace);
        assert_eq!(created.get("spec"), None, "an event has none");
        assert_eq!(created["count"], 2);
    }
    let again = create(&server, &place("a"), &event("a", "one", "edge-a")).await;
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
    let mut elsewhere = event("b", "three", "edge-a");
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

/// One field of a message in Kubernetes' binary encoding.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
    bytes.extend_from_slice(content);
    bytes
}

#[tokio::test]
async fn typed_clients_tell_events_and_delete_them_in_binary() {
    let server = Server::new().await;
    let media = "application/vnd.kubernetes.protobuf";
    let envelope = |version: &[u8], kind: &[u8], raw: &[u8]| {
        let meta = [field(1, version), field(2, kind)].concat();
        [b"k8s\0".to_vec(), field(1, &meta), field(2, raw)].concat()
    };
    let about = [field(1, b"Router"), field(2, b"a"), field(3, b"edge-a")].concat();
    let event = [
        field(1, &field(1, b"one")),
        field(2, &about),
        field(3, b"Started"),
        field(5, &field(1, b"keel")),
        // 1,767,225,600 s.
        field(7, &[1 << 3, 0x80, 0xf2, 0xd6, 0xca, 0x06]),
        vec![8 << 3, 2],
        field(9, b"Normal"),
    ]
    .concat();
    let path = format!("{NAMESPACES}/a/events");
    let body = envelope(b"v1", b"Event", &event);
    let made = server.call(ADMIN, "POST", &path, media, body).await;
    let made = made.expect(201);
    assert_eq!(made["involvedObject"]["name"], "edge-a");
    assert_eq!(made["lastTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(
        (&made["count"], &made["type"]),
        (&json!(2), &json!("Normal"))
    );

    let delete = async |uid: &str| {
        let options = field(2, &field(1, uid.as_bytes()));
        let body = envelope(b"v1", b"DeleteOptions", &options);
        server
            .call(ADMIN, "DELETE", &format!("{path}/one"), media, body)
            .await
    };
    assert_eq!(delete("another").await.code, 409);
    let uid = made["metadata"]["uid"].as_str().unwrap();
    delete(uid).await.expect(200);
}

#[tokio::test]
async fn a_namespace_that_nobody_can_name_has_nothing() {
    let server = Server::new().await;
    for namespace in ["Bad_NS", "a%2Fb", "..", "%20", "a.b", &"x".repeat(64)] {
        let path = format!("{NAMESPACES}/{namespace}/events");
        let refused = create(&server, &path, &event("default", "one", "r")).await;
        assert!(
            [404, 422].contains(&refused.code.as_u16()),
            "{namespace}: {refused:?}"
        );
    }
    let all = server.get(ADMIN, "/api/v1/events").await.expect(200);
    assert_eq!(all["items"], json!([]));
}
