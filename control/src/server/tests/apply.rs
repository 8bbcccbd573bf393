//! Server-side apply, as its clients see it.

use serde_json::json;

use super::*;

const APPLY: &str = "application/apply-patch+yaml";

impl Server {
    async fn apply(&self, name: &str, manager: &str, spec: Value) -> Answer {
        let path = format!("{name}?fieldManager={manager}&fieldValidation=Strict");
        self.patch(ADMIN, &path, APPLY, &router(name, spec)).await
    }
}

fn ports(bind: u16) -> Value {
    json!({"frps": {"bindPort": bind}})
}

/// Managers with their operation and subresource, in the object's order.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    entries
        .iter()
        .map(|entry| {
            format!(
                "{} {} {}",
                text(entry, "manager"),
                text(entry, "operation"),
                text(entry, "subresource")
            )
        })
        .collect()
}

#[tokio::test]
async fn applied_made_changed_and_taken_back() {
    let server = Server::new().await;
    let made = server.apply("a", "me", ports(7001)).await.expect(201);
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(owners(&made), ["me Apply "]);
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(entry["fieldsType"], "FieldsV1");
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:spec": {"f:frps": {"f:bindPort": {}}}})
    );
    let same = server.apply("a", "me", ports(7001)).await.expect(200);
    assert_eq!(same, made, "nothing is news");
    let more = json!({"frps": {"bindPort": 7001}, "addresses": ["203.0.113.10:7000"]});
    let changed = server.apply("a", "me", more).await.expect(200);
    assert_eq!(changed["metadata"]["generation"], 2);
    let back = server.apply("a", "me", ports(7001)).await.expect(200);
    assert_eq!(back["spec"], ports(7001));
    let nothing = server.apply("a", "me", json!({})).await.expect(200);
    assert_eq!(nothing["spec"], json!({}));
}

#[tokio::test]
async fn who_applies_no_spec_owns_none() {
    let server = Server::new().await;
    let mut config = with_status("a", Value::Null);
    config["metadata"]["labels"] = json!({"site": "x"});
    let path = "a?fieldManager=labels";
    let made = server.patch(ADMIN, path, APPLY, &config).await.expect(201);
    assert_eq!(made["spec"], json!({}));
    let owned = json!({"f:metadata": {"f:labels": {"f:site": {}}}});
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"], owned);
    let same = server.patch(ADMIN, path, APPLY, &config).await.expect(200);
    assert_eq!(same, made);
    server.apply("a", "me", ports(7001)).await.expect(200);
    let path = "a/status?fieldManager=status";
    let status = with_status("a", json!({"cluster": "c"}));
    let set = server.patch(ADMIN, path, APPLY, &status).await.expect(200);
    let fields: Vec<&Value> = set["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["fieldsV1"])
        .collect();
    let spec = json!({"f:spec": {"f:frps": {"f:bindPort": {}}}});
    let status = json!({"f:status": {"f:cluster": {}}});
    assert_eq!(fields, [&owned, &spec, &status]);
    // Who said a spec and says none any more gives up what was in it.
    let less = with_status("a", Value::Null);
    let less = server
        .patch(ADMIN, "a?fieldManager=me", APPLY, &less)
        .await
        .expect(200);
    assert_eq!(less["spec"], json!({}));
    assert_eq!(owners(&less), ["labels Apply ", "status Apply status"]);
}

#[tokio::test]
async fn a_conflict_changes_nothing_until_it_is_forced() {
    let server = Server::new().await;
    server
        .call(
            ADMIN,
            "POST",
            &format!("{ROUTERS}?fieldManager=hand"),
            "application/json",
            router("a", ports(7001)).to_string(),
        )
        .await
        .expect(201);
    let before = server.router("a").await;
    assert_eq!(owners(&before), ["hand Update "]);
    let refused = server.apply("a", "me", ports(7002)).await;
    assert_eq!(
        (refused.code.as_u16(), refused.text("/reason").as_str()),
        (409, "Conflict")
    );
    assert_eq!(
        refused.message(),
        "Apply failed with 1 conflict: conflict with \"hand\" using edge.example.com/v1: .spec.frps.bindPort"
    );
    assert_eq!(
        refused.json()["details"]["causes"][0],
        json!({
            "reason": "FieldManagerConflict", "message": "conflict with \"hand\" using edge.example.com/v1",
            "field": ".spec.frps.bindPort",
        })
    );
    assert_eq!(server.router("a").await, before);
    let shared = server.apply("a", "me", ports(7001)).await.expect(200);
    assert_eq!(
        owners(&shared),
        ["me Apply ", "hand Update "],
        "the same value is no conflict"
    );
    let path = "a?fieldManager=me&force=true";
    let forced = server
        .patch(ADMIN, path, APPLY, &router("a", ports(7002)))
        .await
        .expect(200);
    assert_eq!(owners(&forced), ["me Apply "]);
}

#[tokio::test]
async fn who_changes_a_field_owns_it() {
    let server = Server::new().await;
    server.apply("a", "me", ports(7001)).await.expect(201);
    let label = json!({"metadata": {"labels": {"site": "x"}}});
    let path = "a?fieldManager=kubectl-label";
    let labelled = server.patch(ADMIN, path, MERGE, &label).await.expect(200);
    assert_eq!(owners(&labelled), ["me Apply ", "kubectl-label Update "]);
    let kept = server.apply("a", "me", ports(7001)).await.expect(200);
    assert_eq!(kept["metadata"]["labels"]["site"], "x");
    let port = json!({"spec": ports(7005)});
    let taken = server
        .patch(ADMIN, "a?fieldManager=other", MERGE, &port)
        .await
        .expect(200);
    assert_eq!(owners(&taken), ["kubectl-label Update ", "other Update "]);
    let refused = server.apply("a", "me", ports(7001)).await;
    assert!(
        refused.message().contains("\"other\""),
        "{}",
        refused.message()
    );
    // Without a name of its own, a program is known by what it calls itself.
    let request = Request::builder()
        .method("PATCH")
        .uri(format!("{ROUTERS}/a"))
        .header("content-type", MERGE)
        .header("user-agent", "tool/v1.2 (linux)")
        .body(full(r#"{"metadata":{"annotations":{"a":"b"}}}"#))
        .unwrap();
    assert_eq!(server.send(ADMIN, request).await.status(), 200);
    let owned = owners(&server.router("a").await);
    assert!(owned.contains(&"tool Update ".to_owned()), "{owned:?}");
}

#[tokio::test]
async fn the_status_has_owners_of_its_own() {
    let server = Server::new().await;
    server.apply("a", "me", ports(7001)).await.expect(201);
    let ready = |status: &str| {
        with_status(
            "a",
            json!({"conditions": [{"type": "Ready", "status": status}]}),
        )
    };
    let path = "a/status?fieldManager=me";
    let set = server
        .patch(ADMIN, path, APPLY, &ready("True"))
        .await
        .expect(200);
    assert_eq!(owners(&set), ["me Apply ", "me Apply status"]);
    assert_eq!(set["spec"], ports(7001));
    assert!(
        set["metadata"]["managedFields"][1]["fieldsV1"]
            .to_string()
            .contains(r#"k:{\"type\":\"Ready\"}"#),
        "{set}"
    );
    let other = with_status(
        "a",
        json!({"conditions": [{"type": "Synced", "status": "True"}]}),
    );
    let both = server
        .patch(ADMIN, "a/status?fieldManager=syncer", APPLY, &other)
        .await
        .expect(200);
    assert_eq!(both["status"]["conditions"].as_array().unwrap().len(), 2);
    let refused = server
        .patch(
            ADMIN,
            "a/status?fieldManager=syncer",
            APPLY,
            &ready("False"),
        )
        .await;
    assert_eq!(
        refused.message(),
        "Apply failed with 1 conflict: conflict with \"me\" with subresource \"status\": .status.conditions[type=\"Ready\"].status"
    );
    // The main resource ignores a status, also in a configuration.
    let mut config = router("a", ports(7001));
    config["status"] = json!({"cluster": "c"});
    let ignored = server
        .patch(ADMIN, "a?fieldManager=me", APPLY, &config)
        .await
        .expect(200);
    assert_eq!(ignored["status"].get("cluster"), None);
    let path = "none/status?fieldManager=me";
    let missing = with_status("none", json!({"cluster": "c"}));
    assert_eq!(server.patch(ADMIN, path, APPLY, &missing).await.code, 404);
    // A node reports all day: its report is its own, and the same report is no news.
    server
        .post(HERE, &router("here", json!({})))
        .await
        .expect(201);
    let report = with_status("here", json!({"cluster": "c"}));
    let first = server.put(HERE, "here/status", &report).await.expect(200);
    assert_eq!(
        owners(&first),
        ["/node/here Update ", "/node/here Update status"]
    );
    let again = server.put(HERE, "here/status", &report).await.expect(200);
    assert_eq!(revision(&again), revision(&first));
}

#[tokio::test]
async fn kubectl_moves_its_ownership_to_this_side() {
    let server = Server::new().await;
    let mut sent = router("a", ports(7001));
    let last = "kubectl.kubernetes.io/last-applied-configuration";
    sent["metadata"]["annotations"] = json!({last: "{}"});
    let path = format!("{ROUTERS}?fieldManager=kubectl-client-side-apply");
    let made = server
        .call(ADMIN, "POST", &path, "application/json", sent.to_string())
        .await
        .expect(201);
    // What client-go's csaupgrade sends: the entry under another name and operation, and the revision that it was made for.
    let mut entries = made["metadata"]["managedFields"].clone();
    entries[0]["manager"] = "kubectl".into();
    entries[0]["operation"] = "Apply".into();
    let steps = json!([
        {"op": "replace", "path": "/metadata/managedFields", "value": entries},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": made["metadata"]["resourceVersion"]},
    ]);
    let media = "application/json-patch+json";
    let moved = server.patch(ADMIN, "a", media, &steps).await.expect(200);
    assert_eq!(owners(&moved), ["kubectl Apply "]);
    assert_eq!(server.patch(ADMIN, "a", media, &steps).await.code, 409);
    let changed = server.apply("a", "kubectl", ports(7002)).await.expect(200);
    assert_eq!(changed["spec"], ports(7002));
    let annotations = json!({"metadata": {"name": "a", "annotations": {last: "{}"}}, "apiVersion": "edge.example.com/v1", "kind": "Router"});
    let second = server
        .patch(
            ADMIN,
            "a?fieldManager=kubectl-last-applied",
            APPLY,
            &annotations,
        )
        .await
        .expect(200);
    assert_eq!(
        owners(&second),
        ["kubectl Apply ", "kubectl-last-applied Apply "]
    );
}

#[tokio::test]
async fn wrong_configurations() {
    let server = Server::new().await;
    server.apply("a", "me", ports(7001)).await.expect(201);
    let before = server.router("a").await;
    let good = router("a", ports(7002));
    let with = |pointer: &str, value: Value| {
        let mut config = good.clone();
        config["metadata"][pointer] = value;
        config
    };
    for (query, config, code, words) in [
        (
            "",
            good.clone(),
            422,
            "fieldManager: Required value: is required for apply patch",
        ),
        (
            "fieldManager=me",
            with("name", json!("b")),
            400,
            "does not match",
        ),
        (
            "fieldManager=me",
            with("resourceVersion", json!("1")),
            409,
            "modified",
        ),
        ("fieldManager=me", with("uid", json!("other")), 409, "UID"),
        (
            "fieldManager=me",
            with("managedFields", json!([{"manager": "x"}])),
            400,
            "must be nil",
        ),
        (
            "fieldManager=me",
            json!({"kind": "Router"}),
            400,
            "apiVersion",
        ),
        (
            "fieldManager=me",
            router("a", json!({"frps": {"bindPort": "x"}})),
            422,
            "must be of type integer",
        ),
        (
            "fieldManager=me&fieldValidation=Strict",
            router("a", json!({"x": 1})),
            400,
            "unknown field \"spec.x\"",
        ),
        (
            "fieldManager=me",
            router("a", json!({"advertisedServices": [{"name": "x"}]})),
            400,
            "need their keys",
        ),
        (
            "fieldManager=me",
            router(
                "a",
                json!({"frps": {"allowPorts": [{"start": 5, "end": 4}]}}),
            ),
            422,
            "start must not be above end",
        ),
    ] {
        let answer = server
            .patch(ADMIN, &format!("a?{query}"), APPLY, &config)
            .await;
        assert_eq!(answer.code, code, "{config}: {}", answer.message());
        assert!(answer.message().contains(words), "{}", answer.message());
    }
    let forced = server
        .patch(ADMIN, "a?force=true", MERGE, &json!({"spec": {}}))
        .await;
    assert!(
        forced
            .message()
            .contains("may not be specified for non-apply patch"),
        "{}",
        forced.message()
    );
    assert_eq!(server.router("a").await, before);
    let yaml = "apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {name: z1}\nspec: {addresses: ['a:1']}\n";
    let path = format!("{ROUTERS}/z1?fieldManager=me&dryRun=All");
    server
        .call(ADMIN, "PATCH", &path, APPLY, yaml)
        .await
        .expect(201);
    assert_eq!(server.get(ADMIN, &format!("{ROUTERS}/z1")).await.code, 404);
    let node = server
        .call(
            HERE,
            "PATCH",
            &format!("{ROUTERS}/here?fieldManager=me"),
            APPLY,
            yaml,
        )
        .await;
    assert_eq!(node.code, 403);
}

#[tokio::test]
async fn a_list_is_in_the_order_of_who_applies_it() {
    let server = Server::new().await;
    let services = |names: &str| {
        let service = |name: char| json!({"name": name.to_string(), "port": 1});
        json!({"advertisedServices": names.chars().map(service).collect::<Vec<_>>()})
    };
    let names = |object: &Value| -> String {
        let all = object["spec"]["advertisedServices"].as_array().unwrap();
        all.iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect()
    };
    server.apply("a", "me", services("abc")).await.expect(201);
    let other = server.apply("a", "other", services("xb")).await;
    assert_eq!(names(&other.expect(200)), "axbc");
    let turned = server.apply("a", "me", services("cab")).await.expect(200);
    assert_eq!(names(&turned), "xcab");
    let more = server.apply("a", "me", services("cdab")).await.expect(200);
    assert_eq!(names(&more), "xcdab");
    let same = server.apply("a", "me", services("cdab")).await.expect(200);
    assert_eq!(same, more, "nothing is news");
}

#[tokio::test]
async fn what_stands_twice_in_yaml_is_told_as_in_json() {
    let server = Server::new().await;
    let twice = "apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {name: a}\nspec:\n  addresses: [a.example:1]\n  addresses: [b.example:1]\n";
    for (validation, code) in [("Strict", 400), ("Warn", 201), ("Ignore", 200)] {
        let path = format!("{ROUTERS}/a?fieldManager=me&fieldValidation={validation}");
        let answer = server.call(ADMIN, "PATCH", &path, APPLY, twice).await;
        if code == 400 {
            let message = answer.message();
            assert!(
                message.contains("duplicate field \"spec.addresses\""),
                "{message}"
            );
        } else {
            let warned = answer.headers.get("warning").is_some();
            assert_eq!(warned, validation == "Warn");
            assert_eq!(answer.json()["spec"]["addresses"], json!(["b.example:1"]));
        }
        assert_eq!(answer.code, code, "{validation}");
    }
}
