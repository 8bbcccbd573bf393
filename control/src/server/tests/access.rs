//! Who may do what, as seen from outside: every cell of the table by a request.

use serde_json::json;

use super::*;

#[tokio::test]
async fn every_cell_answers_as_the_table_says() {
    // Columns: list, get, watch; create own, create another's, create own with a spec; replace, patch, delete; status of the own
    // (or this node's) router, status of another's; in both cases with a higher source.revision.
    let rows = [
        (
            POD,
            "here",
            [200, 200, 200, 403, 403, 403, 403, 403, 403, 403, 403],
        ),
        (
            HERE,
            "here",
            [200, 200, 200, 201, 403, 403, 403, 403, 403, 200, 201],
        ),
        (
            THERE,
            "there",
            [200, 200, 200, 201, 403, 403, 403, 403, 403, 200, 403],
        ),
        (
            ADMIN,
            "here",
            [200, 200, 200, 201, 201, 201, 200, 200, 200, 200, 200],
        ),
        (
            "/admin/cloud",
            "here",
            [200, 200, 200, 201, 201, 201, 200, 200, 200, 200, 200],
        ),
        (
            "/node/there/admin/root",
            "there",
            [403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403],
        ),
        (
            "",
            "here",
            [401, 401, 401, 401, 401, 401, 401, 401, 401, 401, 401],
        ),
    ];
    for (who, own, expected) in rows {
        let server = Server::new().await;
        server
            .post(ADMIN, &router("seen", json!({})))
            .await
            .expect(201);
        let with_spec = json!({"frps": {"bindPort": 7001}});
        let status = |name: &str| with_status(name, json!({"source": {"revision": 5}}));
        let mut found = Vec::new();
        found.push(server.get(who, ROUTERS).await);
        found.push(server.get(who, &format!("{ROUTERS}/seen")).await);
        found.push(server.get(who, &format!("{ROUTERS}?watch=1&timeoutSeconds=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan")).await);
        found.push(server.post(who, &router(own, json!({}))).await);
        found.push(server.post(who, &router("third", json!({}))).await);
        server.delete(ADMIN, own, "").await;
        found.push(server.post(who, &router(own, with_spec.clone())).await);
        server.post(ADMIN, &router(own, json!({}))).await;
        let mut replacement = server.router(own).await;
        replacement["spec"] = with_spec.clone();
        found.push(server.put(who, own, &replacement).await);
        found.push(server.patch(who, own, MERGE, &json!({"spec": null})).await);
        found.push(server.delete(who, own, "").await);
        server.post(ADMIN, &router(own, json!({}))).await;
        found.push(
            server
                .put(who, &format!("{own}/status"), &status(own))
                .await,
        );
        found.push(server.put(who, "third/status", &status("third")).await);
        let found: Vec<u16> = found.iter().map(|answer| answer.code.as_u16()).collect();
        assert_eq!(found, expected, "{who}");
    }
}

#[tokio::test]
async fn without_a_certificate_only_enrolment_answers() {
    let server = Server::new().await;
    for path in [
        "/version",
        "/api",
        "/apis",
        "/openapi/v3",
        "/healthz",
        ROUTERS,
        "/v1/enroll",
        "/v1/renew",
        "/nothing",
    ] {
        assert_eq!(server.get("", path).await.code, 401, "{path}");
    }
    assert_eq!(server.call("", "POST", "/v1/renew", "", "").await.code, 401);
    assert_eq!(
        server.call("", "POST", "/v1/enroll", "", "").await.body,
        "enroll"
    );
    assert_eq!(
        server.call(THERE, "POST", "/v1/renew", "", "").await.body,
        "enroll"
    );
}

#[tokio::test]
async fn a_refusal_reads_like_one_of_kubernetes() {
    let server = Server::new().await;
    let answer = server.delete(POD, "here", "").await;
    assert_eq!(
        answer.message(),
        "routers.edge.example.com \"here\" is forbidden: User \"spiffe://test/node/here/ns/default/pod/p\" cannot delete resource \
         \"routers\" in API group \"edge.example.com\" at the cluster scope"
    );
    assert_eq!(
        (
            answer.text("/reason").as_str(),
            answer.text("/kind").as_str()
        ),
        ("Forbidden", "Status")
    );
}

#[tokio::test]
async fn only_admins_are_shown_the_password_of_a_dashboard() {
    let server = Server::new().await;
    let start = server.store.current();
    let spec = json!({"frps": {"webServer": {"port": 7500, "user": "u", "password": "s3cret"}}});
    let made = server.post(ADMIN, &router("here", spec)).await.expect(201);
    assert_eq!(made["spec"]["frps"]["webServer"]["password"], "s3cret");
    let table = async |who: &str| {
        let request = Request::builder()
            .uri(format!("{ROUTERS}?includeObject=Object"))
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(full(""))
            .unwrap();
        let body = server.send(who, request).await.into_body();
        body.collect().await.unwrap().to_bytes()
    };
    for (who, shown) in [
        (ADMIN, true),
        ("/admin/cloud", true),
        (POD, false),
        (HERE, false),
        (THERE, false),
    ] {
        let mut answers = vec![table(who).await];
        for path in [
            "/here".to_owned(),
            String::new(),
            "?watch=1&timeoutSeconds=1".to_owned(),
            format!("?watch=1&timeoutSeconds=1&resourceVersion={start}"),
        ] {
            let answer = server.get(who, &format!("{ROUTERS}{path}")).await;
            assert_eq!(answer.code, 200);
            answers.push(answer.body);
        }
        for answer in answers {
            let text = std::str::from_utf8(&answer).unwrap();
            assert!(text.contains("7500"), "{who}: {text}");
            assert_eq!(text.contains("s3cret"), shown, "{who}: {text}");
        }
    }
    let status = with_status("here", json!({"cluster": "c"}));
    let written = server.put(HERE, "here/status", &status).await.expect(200);
    assert_eq!(written["spec"]["frps"]["webServer"]["user"], "u");
    assert!(!written.to_string().contains("s3cret"));
    let kept = &server.router("here").await["spec"]["frps"]["webServer"];
    assert_eq!(kept["password"], "s3cret", "only the answer is without it");
}

/// A patch is applied to the object, and a node may send one to a status: it must not see there what it is not shown.
#[tokio::test]
async fn no_patch_brings_a_password_to_light() {
    const JSON: &str = "application/json-patch+json";
    let server = Server::new().await;
    let web = json!({"port": 7500, "user": "u", "password": "s3cret"});
    let kept = "kubectl.kubernetes.io/last-applied-configuration";
    let annotations = json!({kept: "{\"password\":\"s3cret\"}"});
    for name in ["here", "there"] {
        let mut sent = router(name, json!({"frps": {"webServer": web}}));
        sent["metadata"]["annotations"] = annotations.clone();
        server.post(ADMIN, &sent).await.expect(201);
    }
    let frpserver = json!({
        "apiVersion": "tunnel.kubeinfra.io/v1alpha1", "kind": "FRPServer",
        "metadata": {"name": "s", "annotations": annotations}, "spec": {"webServer": web},
    });
    let frpservers = "/apis/tunnel.kubeinfra.io/v1alpha1/frpservers";
    server
        .call(
            ADMIN,
            "POST",
            frpservers,
            "application/json",
            frpserver.to_string(),
        )
        .await
        .expect(201);
    let annotation = format!("/metadata/annotations/{}", kept.replace('/', "~1"));
    for (who, object, spec, revision) in [
        (THERE, format!("{ROUTERS}/there"), "/spec/frps", 7),
        (HERE, format!("{ROUTERS}/there"), "/spec/frps", 8),
        (HERE, format!("{ROUTERS}/here"), "/spec/frps", 9),
        (HERE, format!("{frpservers}/s"), "/spec", 9),
    ] {
        let before = server.get(ADMIN, &object).await.expect(200);
        let password = format!("{spec}/webServer/password");
        let status = json!({"source": {"revision": revision}});
        let status = json!({"op": "add", "path": "/status", "value": status});
        for step in [
            json!({"op": "copy", "from": password, "path": "/status/leak"}),
            json!({"op": "move", "from": password, "path": "/status/leak"}),
            json!({"op": "test", "path": password, "value": "s3cret"}),
            json!({"op": "copy", "from": annotation, "path": "/status/leak"}),
        ] {
            let path = format!("{object}/status");
            let steps = json!([status, step]).to_string();
            let answer = server.call(who, "PATCH", &path, JSON, steps).await;
            assert_eq!(answer.code, 422, "{who} {step}: {:?}", answer.body);
        }
        assert_eq!(server.get(ADMIN, &object).await.expect(200), before);
        // All that is shown can be copied, and what is not shown is still there.
        let whole = json!([status, {"op": "copy", "from": spec, "path": "/status/spec"}]);
        let path = format!("{object}/status");
        let written = server
            .call(who, "PATCH", &path, JSON, whole.to_string())
            .await
            .expect(200);
        let user = written.pointer("/status/spec/webServer/user");
        assert_eq!(user, Some(&json!("u")), "{who} {object}");
        let held = server.get(ADMIN, &object).await.expect(200);
        assert!(!held["status"].to_string().contains("s3cret"), "{held}");
        assert_eq!(held.pointer(&password), Some(&json!("s3cret")));
        assert_eq!(held.pointer(&annotation), before.pointer(&annotation));
    }
    let steps = json!([
        {"op": "test", "path": "/spec/frps/webServer/password", "value": "s3cret"},
        {"op": "move", "from": "/spec/frps/webServer/password", "path": "/spec/frps/webServer/user"},
    ]);
    let moved = server.patch(ADMIN, "here", JSON, &steps).await.expect(200);
    assert_eq!(
        moved["spec"]["frps"]["webServer"],
        json!({"port": 7500, "user": "s3cret"})
    );
}

#[tokio::test]
async fn a_node_cannot_make_its_router_undeletable() {
    let server = Server::new().await;
    for (field, value) in [
        ("finalizers", json!(["example.com/keep"])),
        (
            "ownerReferences",
            json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]),
        ),
    ] {
        let mut sent = router("here", json!({}));
        sent["metadata"][field] = value;
        let refused = server.post(HERE, &sent).await;
        assert_eq!(refused.code, 403, "{field}: {:?}", refused.body);
        server.post(ADMIN, &sent).await.expect(201);
        let none = json!({"metadata": {field: null}});
        server.patch(ADMIN, "here", MERGE, &none).await.expect(200);
        server.delete(ADMIN, "here", "").await.expect(200);
    }
    let mut sent = router("here", json!({}));
    sent["metadata"]["finalizers"] = json!([]);
    server.post(HERE, &sent).await.expect(201);
}

#[tokio::test]
async fn a_server_without_its_store_is_not_healthy() {
    let server = Server::new().await;
    assert_eq!(server.get(POD, "/readyz").await.code, 200);
    server.store.close().await;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(server.get(POD, path).await.code, 503, "{path}");
    }
}

#[tokio::test]
async fn nobody_is_answered_as_if_somebody_else_had_asked() {
    let server = Server::new().await;
    for (header, value, words) in [
        (
            "impersonate-user",
            "jane",
            "cannot impersonate resource \"users\"",
        ),
        ("impersonate-group", "system:masters", "cannot impersonate"),
    ] {
        let request = Request::builder()
            .uri(ROUTERS)
            .header(header, value)
            .body(crate::http::empty())
            .unwrap();
        let refused = server.send(ADMIN, request).await;
        assert_eq!(refused.status(), 403);
        let body = refused.into_body().collect().await.unwrap().to_bytes();
        assert!(
            String::from_utf8_lossy(&body).contains(&words.replace('"', "\\\"")),
            "{body:?}"
        );
    }
}

#[tokio::test]
async fn a_step_of_a_json_patch_that_does_not_apply_is_named_where_kubectl_shows_it() {
    let server = Server::new().await;
    server
        .post(ADMIN, &router("r", json!({})))
        .await
        .expect(201);
    let patch = json!([
        {"op": "add", "path": "/metadata/labels", "value": {}},
        {"op": "remove", "path": "/spec/nothing"},
    ]);
    let refused = server
        .patch(ADMIN, "r", "application/json-patch+json", &patch)
        .await;
    assert!(
        refused
            .message()
            .contains("step 1 of the patch, \"/spec/nothing\"")
    );
    // Of an object with a name, kubectl shows only the name.
    let status = refused.expect(422);
    assert!(status.get("details").is_none(), "{status}");
}
