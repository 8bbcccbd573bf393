//! The life of an object: create, replace, patch, delete, list.

use serde_json::json;

use super::*;

#[tokio::test]
async fn created_replaced_and_deleted() {
    let server = Server::new().await;
    let mut sent = router("a", json!({"frps": {"bindPort": 7001}}));
    sent["status"] = json!({"cluster": "ignored"});
    let created = server.post(ADMIN, &sent).await.expect(201);
    let meta = &created["metadata"];
    assert_eq!(
        (&meta["generation"], meta["uid"].as_str().unwrap().len()),
        (&json!(1), 36)
    );
    assert!(meta["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(
        created.get("status"),
        None,
        "the main resource does not write the status"
    );
    let again = server.post(ADMIN, &sent).await;
    assert_eq!(
        (again.code.as_u16(), again.text("/reason").as_str()),
        (409, "AlreadyExists")
    );

    let blind = server.put(ADMIN, "a", &sent).await;
    assert_eq!(blind.code, 422);
    assert!(
        blind.message().ends_with(
            "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
        ),
        "{}",
        blind.message()
    );
    sent["metadata"]["resourceVersion"] = meta["resourceVersion"].clone();
    let same = server.put(ADMIN, "a", &sent).await.expect(200);
    assert_eq!(
        revision(&same),
        revision(&created),
        "nothing changed, so nothing is written"
    );
    sent["metadata"]["labels"] = json!({"site": "x"});
    let labelled = server.put(ADMIN, "a", &sent).await.expect(200);
    assert!(revision(&labelled) > revision(&created));
    assert_eq!(labelled["metadata"]["generation"], 1, "labels are not spec");
    sent["spec"] = json!({"addresses": ["203.0.113.10:7000"]});
    let stale = server.put(ADMIN, "a", &sent).await;
    assert_eq!(
        (stale.code.as_u16(), stale.text("/reason").as_str()),
        (409, "Conflict")
    );
    sent["metadata"]["resourceVersion"] = labelled["metadata"]["resourceVersion"].clone();
    let replaced = server.put(ADMIN, "a", &sent).await.expect(200);
    assert_eq!(
        (
            &replaced["metadata"]["generation"],
            &replaced["metadata"]["uid"]
        ),
        (&json!(2), &meta["uid"])
    );
    assert_eq!(
        replaced["metadata"]["creationTimestamp"],
        meta["creationTimestamp"]
    );

    let options =
        json!({"propagationPolicy": "Background", "preconditions": {"uid": "other"}}).to_string();
    assert_eq!(server.delete(ADMIN, "a", &options).await.code, 409);
    let options =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"})
            .to_string();
    let deleted = server.delete(ADMIN, "a", &options).await.expect(200);
    assert_eq!(
        (&deleted["status"], &deleted["details"]["uid"]),
        (&json!("Success"), &meta["uid"])
    );
    assert_eq!(server.get(ADMIN, &format!("{ROUTERS}/a")).await.code, 404);
    assert_eq!(
        server.delete(ADMIN, "a", "").await.message(),
        "routers.edge.example.com \"a\" not found"
    );
    assert_eq!(
        server.put(ADMIN, "a", &router("a", json!({}))).await.code,
        404
    );
}

#[tokio::test]
async fn patches() {
    let server = Server::new().await;
    server
        .post(
            ADMIN,
            &router(
                "a",
                json!({"frps": {"bindPort": 7001, "dashboardPort": 7500}}),
            ),
        )
        .await
        .expect(201);
    let patch = json!({"metadata": {"annotations": {"k": "v"}}, "spec": {"frps": {"dashboardPort": null, "version": "v1"}}});
    let patched = server.patch(ADMIN, "a", MERGE, &patch).await.expect(200);
    assert_eq!(
        patched["spec"],
        json!({"frps": {"bindPort": 7001, "version": "v1"}})
    );
    assert_eq!(
        (
            &patched["metadata"]["generation"],
            &patched["metadata"]["annotations"]["k"]
        ),
        (&json!(2), &json!("v"))
    );
    let unchanged = server.patch(ADMIN, "a", MERGE, &patch).await.expect(200);
    assert_eq!(revision(&unchanged), revision(&patched));
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {}});
    assert_eq!(server.patch(ADMIN, "a", MERGE, &stale).await.code, 409);

    let media = "application/json-patch+json";
    let steps = json!([{"op": "test", "path": "/spec/frps/bindPort", "value": 7001}, {"op": "replace", "path": "/spec/frps/bindPort", "value": 7002}]);
    let patched = server.patch(ADMIN, "a", media, &steps).await.expect(200);
    assert_eq!(patched["spec"]["frps"]["bindPort"], 7002);
    assert_eq!(
        server.patch(ADMIN, "a", media, &steps).await.code,
        422,
        "the test does not hold any more"
    );
    assert_eq!(server.patch(ADMIN, "a", media, &json!({})).await.code, 400);
    let doubling = |count: usize| {
        Value::Array(vec![
            json!({"op": "copy", "from": "/metadata/annotations", "path": "/metadata/annotations/x"});
            count
        ])
    };
    assert!(matches!(
        server
            .patch(ADMIN, "a", media, &doubling(60))
            .await
            .code
            .as_u16(),
        400 | 413 | 422
    ));
    assert_eq!(
        server.patch(ADMIN, "a", media, &doubling(101)).await.code,
        413
    );

    // Every step alone is shallow enough; together they would bury the object.
    let path = |levels: usize| format!("/status{}", "/a".repeat(levels));
    let steps: Vec<Value> = (0..100)
        .map(|level| json!({"op": "add", "path": path(level), "value": {}}))
        .collect();
    let buried = server
        .patch(ADMIN, "a/status", media, &Value::Array(steps))
        .await;
    assert_eq!(buried.code, 413);
    let nest = |levels: usize| (0..levels).fold(json!({}), |inner, _| json!({ "a": inner }));
    let moves = json!([
        {"op": "add", "path": "/status", "value": nest(50)},
        {"op": "add", "path": "/other", "value": nest(50)},
        {"op": "move", "from": "/other", "path": path(50)},
    ]);
    assert_eq!(
        server.patch(ADMIN, "a/status", media, &moves).await.code,
        413
    );
    assert_eq!(server.router("a").await.get("status"), None);

    let strategic = "application/strategic-merge-patch+json";
    let answer = server.patch(ADMIN, "a", strategic, &json!({})).await;
    assert_eq!(answer.code, 415);
    assert!(
        answer.message().ends_with(
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
        ),
        "{}",
        answer.message()
    );
    assert_eq!(
        server.patch(ADMIN, "none", MERGE, &json!({})).await.code,
        404
    );
}

#[tokio::test]
async fn a_dry_run_answers_and_changes_nothing() {
    let server = Server::new().await;
    let before = server.store.current();
    let sent = router("a", json!({}));
    let path = format!("{ROUTERS}?dryRun=All");
    let made = server
        .call(ADMIN, "POST", &path, "application/json", sent.to_string())
        .await
        .expect(201);
    assert_eq!(
        made["metadata"].get("resourceVersion"),
        None,
        "there is none yet"
    );
    assert_eq!(server.get(ADMIN, &format!("{ROUTERS}/a")).await.code, 404);
    let made = server.post(ADMIN, &sent).await.expect(201);
    let patched = server
        .patch(
            ADMIN,
            "a?dryRun=All",
            MERGE,
            &json!({"spec": {"addresses": ["a:1"]}}),
        )
        .await
        .expect(200);
    assert_eq!(patched["spec"]["addresses"][0], "a:1");
    assert_eq!(revision(&patched), revision(&made));
    let status = with_status("a", json!({"cluster": "c"}));
    let put = server.put(ADMIN, "a/status?dryRun=All", &status).await;
    assert_eq!(revision(&put.expect(200)), revision(&made));
    server.delete(ADMIN, "a?dryRun=All", "").await.expect(200);
    assert_eq!(server.router("a").await["spec"], json!({}));
    assert_eq!(server.store.current().0, before.0 + 1);
    assert_eq!(server.delete(ADMIN, "a?dryRun=Some", "").await.code, 422);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let server = Server::new().await;
    let mut sent = router("a", json!({}));
    sent["metadata"]["finalizers"] = json!(["example.com/wait"]);
    server.post(ADMIN, &sent).await.expect(201);
    let held = server.delete(ADMIN, "a", "").await.expect(200);
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let again = server.delete(ADMIN, "a", "").await.expect(200);
    assert_eq!(revision(&again), revision(&held));
    let more = json!(["example.com/wait", "example.com/z", "example.com/b"]);
    let more = json!({"metadata": {"finalizers": more}});
    let late = server.patch(ADMIN, "a", MERGE, &more).await;
    assert_eq!(late.code, 422);
    assert_eq!(
        late.message(),
        "Router.edge.example.com \"a\" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the object is being \
         deleted, found new finalizers []string{\"example.com/b\", \"example.com/z\"}"
    );
    let cause = &late.json()["details"]["causes"][0];
    assert_eq!(
        (&cause["reason"], &cause["field"]),
        (&json!("FieldValueForbidden"), &json!("metadata.finalizers"))
    );
    server
        .patch(
            ADMIN,
            "a",
            MERGE,
            &json!({"metadata": {"finalizers": null}}),
        )
        .await
        .expect(200);
    assert_eq!(server.get(ADMIN, &format!("{ROUTERS}/a")).await.code, 404);
}

#[tokio::test]
async fn lists_select_and_name_their_revision() {
    let server = Server::new().await;
    for (name, labels) in [
        ("a", json!({"site": "x", "tier": "1"})),
        ("b", json!({"site": "y"})),
        ("c", json!({})),
    ] {
        let mut sent = router(name, json!({}));
        sent["metadata"]["labels"] = labels;
        server.post(ADMIN, &sent).await.expect(201);
    }
    let names = async |query: &str| -> String {
        let list = server
            .get(POD, &format!("{ROUTERS}?{query}"))
            .await
            .expect(200);
        assert_eq!(
            (list["kind"].as_str(), revision(&list)),
            (Some("RouterList"), server.store.current().0)
        );
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap())
            .collect()
    };
    for (query, expected) in [
        ("", "abc"),
        ("limit=5", "abc"),
        ("labelSelector=site%3Dx", "a"),
        ("labelSelector=site==x,tier", "a"),
        ("labelSelector=site!=x", "bc"),
        ("labelSelector=site+in+(x,y),!tier", "b"),
        ("labelSelector=site%20notin%20(x)", "bc"),
        ("labelSelector=!site", "c"),
        ("fieldSelector=metadata.name%3Db", "b"),
        ("fieldSelector=metadata.name!=b", "ac"),
        ("resourceVersion=0", "abc"),
    ] {
        assert_eq!(names(query).await, expected, "{query}");
    }
    for query in [
        "labelSelector=a+in+x",
        "labelSelector=%25",
        "fieldSelector=spec.x=1",
        "watch=maybe",
        "continue=x",
        "limit=x",
        "a=%zz",
    ] {
        assert_eq!(
            server.get(POD, &format!("{ROUTERS}?{query}")).await.code,
            400,
            "{query}"
        );
    }
    let ahead = server.store.current().0 + 1000;
    let answer = server
        .get(POD, &format!("{ROUTERS}?resourceVersion={ahead}"))
        .await;
    assert_eq!(
        (
            answer.code.as_u16(),
            answer.text("/details/causes/0/reason").as_str()
        ),
        (504, "ResourceVersionTooLarge")
    );
    assert_eq!(answer.headers["retry-after"], "1");
    let exact = server
        .get(
            POD,
            &format!("{ROUTERS}?resourceVersion=5&resourceVersionMatch=Exact"),
        )
        .await;
    assert_eq!(
        (exact.code.as_u16(), exact.text("/reason").as_str()),
        (410, "Expired")
    );
}

#[tokio::test]
async fn discovery_tables_and_openapi() {
    let server = Server::new().await;
    server
        .post(ADMIN, &router("a", json!({})))
        .await
        .expect(201);
    let get = async |path: &str, accept: &str| {
        let request = Request::builder()
            .uri(path)
            .header("accept", accept)
            .body(full(""))
            .unwrap();
        let (parts, body) = server.send(POD, request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            code: parts.status,
            headers: parts.headers,
            body,
        }
    };
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let v2beta1 = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
    assert_eq!(
        get("/apis", &format!("{v2},{v2beta1}")).await.text("/kind"),
        "APIGroupDiscoveryList"
    );
    assert_eq!(
        get("/apis", v2beta1).await.text("/apiVersion"),
        "apidiscovery.k8s.io/v2beta1",
        "who knows no v2 is not sent one"
    );
    let plain = get("/apis", "application/json").await;
    assert_eq!(plain.text("/kind"), "APIGroupList");
    let tag = plain.headers["etag"].to_str().unwrap();
    let known = Request::builder()
        .uri("/apis")
        .header("if-none-match", format!("W/\"x\", {tag}"))
        .body(full(""))
        .unwrap();
    assert_eq!(server.send(POD, known).await.status(), 304);
    assert_eq!(
        get("/apis/edge.example.com/v1", "")
            .await
            .text("/resources/0/name"),
        "routers"
    );
    let tables = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
    let table = get(ROUTERS, tables).await.expect(200);
    assert_eq!(
        (&table["kind"], &table["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("a"))
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(
        get(
            ROUTERS,
            "application/vnd.kubernetes.protobuf,application/json"
        )
        .await
        .text("/kind"),
        "RouterList"
    );

    let index = get("/openapi/v3", "").await.expect(200);
    let address = index["paths"]["apis/edge.example.com/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap()
        .to_owned();
    let answer = get(&address, "").await;
    let tag = answer.headers["etag"].to_str().unwrap().to_owned();
    let document = answer.expect(200);
    let patch =
        &document["paths"]["/apis/edge.example.com/v1/routers/{name}"]["patch"]["parameters"];
    assert!(
        patch
            .as_array()
            .unwrap()
            .iter()
            .any(|parameter| parameter["name"] == "fieldValidation")
    );
    let schema = &document["components"]["schemas"]["com.example.edge.v1.Router"];
    assert_eq!(
        schema.pointer("/properties/spec/properties/frps/properties/bindPort/type"),
        Some(&json!("integer"))
    );
    assert_eq!(
        schema.pointer("/properties/status/x-kubernetes-preserve-unknown-fields"),
        Some(&json!(true))
    );
    let request = Request::builder()
        .uri(&address)
        .header("if-none-match", tag)
        .body(full(""))
        .unwrap();
    assert_eq!(server.send(POD, request).await.status(), 304);
}
