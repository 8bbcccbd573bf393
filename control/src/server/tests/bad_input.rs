//! Bad input: an answer in Kubernetes' shape that names what is wrong, and nothing written.

use serde_json::json;

use super::*;

#[tokio::test]
async fn unknown_and_doubled_fields() {
    let server = Server::new().await;
    let body = r#"{"apiVersion":"edge.example.com/v1","kind":"Router","metadata":{"name":"a","odd":1},
        "spec":{"x":1,"frps":{"bindPort":1,"bindPort":2},"addresses":null},"status":{"anything":{"goes":null}}}"#;
    let post = async |validation: &str| {
        server
            .call(
                ADMIN,
                "POST",
                &format!("{ROUTERS}?dryRun=All&fieldValidation={validation}"),
                "application/json",
                body,
            )
            .await
    };
    let strict = post("Strict").await;
    assert_eq!(
        (strict.code.as_u16(), strict.text("/reason").as_str()),
        (400, "BadRequest")
    );
    assert_eq!(
        strict.message(),
        "Router in version \"v1\" cannot be handled as a Router: strict decoding error: unknown field \"metadata.odd\", \
         unknown field \"spec.x\", duplicate field \"spec.frps.bindPort\""
    );
    for default in ["Warn", ""] {
        let warned = post(default).await;
        assert_eq!(
            warned.warnings()[1],
            "299 - \"unknown field \\\"spec.x\\\"\""
        );
        assert_eq!(warned.warnings().len(), 3);
        assert_eq!(
            warned.expect(201)["spec"],
            json!({"frps": {"bindPort": 2}}),
            "dropped, the last one counts, null is absent"
        );
    }
    let ignored = post("Ignore").await;
    assert!(ignored.warnings().is_empty());
    ignored.expect(201);
    assert_eq!(post("Perhaps").await.code, 422);
    server
        .post(ADMIN, &router("a", json!({})))
        .await
        .expect(201);
    let patch = server
        .patch(
            ADMIN,
            "a?fieldValidation=Strict",
            MERGE,
            &json!({"spec": {"x": 1}}),
        )
        .await;
    assert!(
        patch
            .message()
            .contains("strict decoding error: unknown field \"spec.x\""),
        "{}",
        patch.message()
    );
    for (media, twice, path) in [
        (
            MERGE,
            r#"{"spec":{"frps":{"bindPort":1,"bindPort":2}}}"#,
            "spec.frps.bindPort",
        ),
        (
            "application/json-patch+json",
            r#"[{"op":"add","path":"/spec/frps","value":{"bindPort":1,"bindPort":2}}]"#,
            "[0].value.bindPort",
        ),
    ] {
        let patch = async |validation: &str| {
            let path = format!("{ROUTERS}/a?dryRun=All&fieldValidation={validation}");
            server.call(ADMIN, "PATCH", &path, media, twice).await
        };
        let strict = patch("Strict").await;
        assert_eq!(strict.code, 400);
        let words = format!("strict decoding error: duplicate field {path:?}");
        assert!(strict.message().ends_with(&words), "{}", strict.message());
        let warned = patch("Warn").await;
        let words = format!("299 - \"duplicate field \\\"{path}\\\"\"");
        assert_eq!(warned.warnings(), [words]);
        assert_eq!(warned.expect(200)["spec"]["frps"]["bindPort"], 2);
        assert!(patch("Ignore").await.warnings().is_empty());
    }
}

#[tokio::test]
async fn wrong_values() {
    let server = Server::new().await;
    let service = |fields: Value| json!({"advertisedServices": [fields]});
    for (spec, expected) in [
        (
            json!({"frps": {"bindPort": "x"}}),
            "spec.frps.bindPort: Invalid value: \"string\": spec.frps.bindPort in body must be of type integer: \"string\"",
        ),
        (
            json!({"frps": {"bindPort": 70000}}),
            "spec.frps.bindPort in body should be less than or equal to 65535",
        ),
        (
            json!({"frps": {"bindPort": -1}}),
            "spec.frps.bindPort in body should be greater than or equal to 0",
        ),
        (
            json!({"frps": {"bindPort": 1.5}}),
            "must be of type integer: \"number\"",
        ),
        (
            json!({"frps": {"bindAddr": "example"}}),
            "spec.frps.bindAddr in body must be an IP address",
        ),
        (
            json!({"frps": []}),
            "spec.frps in body must be of type object: \"array\"",
        ),
        (
            json!({"frps": {"allowPorts": [{"start": 5, "end": 4}]}}),
            "spec.frps.allowPorts[0]: Invalid value: \"5-4\"",
        ),
        (
            json!({"frps": {"allowPorts": [{"start": 5}]}}),
            "spec.frps.allowPorts[0]: Required value",
        ),
        (
            json!({"addresses": ["nowhere"]}),
            "spec.addresses[0] in body must be host:port",
        ),
        (
            json!({"addresses": "a:1"}),
            "spec.addresses in body must be of type array: \"string\"",
        ),
        (
            service(json!({"name": "a"})),
            "spec.advertisedServices[0].port: Required value",
        ),
        (
            service(json!({"name": "A b", "port": 1})),
            "spec.advertisedServices[0].name in body must be a DNS label",
        ),
        (
            service(json!({"name": "a", "port": 0})),
            "should be greater than or equal to 1",
        ),
        (
            service(json!({"name": "a", "port": 1, "protocol": "SCTP"})),
            "Unsupported value: \"SCTP\": supported values: \"TCP\", \"UDP\"",
        ),
        (
            service(json!({"name": "a", "port": 1, "target": "10.0.0.5"})),
            "target in body must be host:port",
        ),
        (
            service(json!({"name": "a", "port": 1, "limit": "10"})),
            "limit in body must have a unit: `10` is no rate",
        ),
        (
            service(json!({"name": "a", "port": 1, "resumeWindow": "601s"})),
            "spec.advertisedServices[0].resumeWindow: Invalid value: \"10m1s\": must be 0s to 10m",
        ),
        (
            service(json!({"name": "a", "port": 1, "check": {"interval": "5"}})),
            "check.interval in body must have a unit",
        ),
        (
            service(json!({"name": "a", "port": 1, "check": {"http": "healthz"}})),
            "check.http: Invalid value",
        ),
        (
            service(json!({"name": "a", "port": 1, "weight": 1001})),
            "weight in body should be less than or equal to 1000",
        ),
        (
            json!({"advertisedServices": [{"name": "a", "port": 1}, {"name": "a", "namespace": "default", "port": 1}]}),
            "spec.advertisedServices[1]: Duplicate value: \"a.default:1\"",
        ),
    ] {
        let answer = server.post(ADMIN, &router("a", spec.clone())).await;
        assert_eq!(
            (answer.code.as_u16(), answer.text("/reason").as_str()),
            (422, "Invalid"),
            "{spec}: {}",
            answer.message()
        );
        assert!(
            answer.message().contains(expected),
            "{spec}: {}",
            answer.message()
        );
        assert!(
            answer
                .message()
                .starts_with("Router.edge.example.com \"a\" is invalid: ")
        );
    }
    let twice = server
        .post(
            ADMIN,
            &router(
                "a",
                json!({"frps": {"bindPort": "x", "dashboardPort": "y"}}),
            ),
        )
        .await;
    assert_eq!(
        twice.json()["details"]["causes"].as_array().unwrap().len(),
        2,
        "all that is wrong is told at once"
    );
    let labels = json!({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "a", "labels": {"k": 1}}});
    assert_eq!(server.post(ADMIN, &labels).await.code, 422);
    assert_eq!(
        server
            .put(ADMIN, "a/status", &with_status("a", json!("text")))
            .await
            .code,
        422
    );
    assert!(
        server
            .store
            .list("routers.edge.example.com")
            .await
            .unwrap()
            .0
            .is_empty(),
        "nothing was written"
    );
}

#[tokio::test]
async fn wrong_bodies() {
    let server = Server::new().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_object = format!(
        "{{\"apiVersion\":\"edge.example.com/v1\",\"kind\":\"Router\",\"status\":{}1{}}}",
        "[".repeat(70),
        "]".repeat(70)
    );
    let post = async |media: &str, body: &str| {
        server
            .call(ADMIN, "POST", ROUTERS, media, body.to_owned())
            .await
    };
    let json_type = "application/json; charset=utf-8";
    for (media, body, code) in [
        (json_type, "", 400),
        (json_type, "{", 400),
        (json_type, "[]", 400),
        (json_type, "null", 400),
        (json_type, "\u{0}\u{ff}", 400),
        (
            json_type,
            r#"{"kind":"Router","apiVersion":"edge.example.com/v1","metadata":{}} x"#,
            400,
        ),
        (json_type, deep.as_str(), 400),
        (json_type, deep_object.as_str(), 400),
        (json_type, r#"{"kind":"Router"}"#, 400),
        (json_type, r#"{"apiVersion":"v1","kind":"Pod"}"#, 400),
        (
            json_type,
            r#"{"apiVersion":"edge.example.com/v1","kind":"Route"}"#,
            400,
        ),
        (
            json_type,
            r#"{"apiVersion":"edge.example.com/v1","kind":"Router"}"#,
            422,
        ),
        (
            json_type,
            r#"{"apiVersion":"edge.example.com/v1","kind":"Router","metadata":{"name":"A/b"}}"#,
            422,
        ),
        (
            json_type,
            r#"{"apiVersion":"edge.example.com/v1","kind":"Router","metadata":[]}"#,
            422,
        ),
        (
            json_type,
            r#"{"apiVersion":"edge.example.com/v1","kind":"Router","metadata":{"name":"a","resourceVersion":"1"}}"#,
            400,
        ),
        ("application/yaml", "a: [", 400),
        ("application/yaml", "a: &a [*a, *a]", 400),
        ("application/vnd.kubernetes.protobuf", "k8s", 415),
        ("text/plain", "{}", 415),
    ] {
        let answer = post(media, body).await;
        let shown: String = body.chars().take(60).collect();
        assert_eq!(
            answer.code.as_u16(),
            code,
            "{media} {shown}: {:?}",
            answer.body
        );
        assert_eq!(
            (
                answer.text("/kind").as_str(),
                answer.text("/status").as_str()
            ),
            ("Status", "Failure"),
            "{shown}"
        );
        assert!(!answer.message().is_empty());
    }
    let large = format!("{{\"x\":\"{}\"}}", "y".repeat(3 << 20));
    let answer = post(json_type, &large).await;
    assert_eq!(
        (answer.code.as_u16(), answer.text("/reason").as_str()),
        (413, "RequestEntityTooLarge")
    );
    server
        .post(ADMIN, &router("a", json!({})))
        .await
        .expect(201);
    let half = json!({"status": {"one": "y".repeat(700 << 10)}});
    let path = "a/status";
    server.patch(ADMIN, path, MERGE, &half).await.expect(200);
    let more = json!({"status": {"two": "y".repeat(700 << 10)}});
    assert_eq!(
        server.patch(ADMIN, path, MERGE, &more).await.code,
        413,
        "patches cannot grow an object without end"
    );
    // What an older version kept can go.
    let large = router("large", json!({"x": "y".repeat(2 << 20)})).to_string();
    server
        .store
        .write(key("large"), |_, _| {
            (crate::store::Change::Put(large.into()), ())
        })
        .await
        .unwrap();
    server.delete(ADMIN, "large", "").await.expect(200);
    assert_eq!(
        server.put(ADMIN, "a", &router("b", json!({}))).await.code,
        400
    );
    assert_eq!(
        server
            .patch(ADMIN, "a", MERGE, &json!({"kind": "Other"}))
            .await
            .code,
        400
    );
    assert_eq!(server.delete(ADMIN, "a", "{").await.code, 400);
    assert_eq!(
        server
            .delete(ADMIN, "a", r#"{"propagationPolicy":"Maybe"}"#)
            .await
            .code,
        422
    );
    assert_eq!(
        server
            .get(ADMIN, "/apis/edge.example.com/v1/nothing")
            .await
            .code,
        404
    );
    assert_eq!(
        server
            .get(ADMIN, "/apis/edge.example.com/v1/routers/%ff")
            .await
            .code,
        404
    );
    assert_eq!(
        server.call(ADMIN, "POST", "/version", "", "").await.code,
        405
    );
    assert_eq!(server.call(ADMIN, "PUT", ROUTERS, "", "").await.code, 405);
}

#[tokio::test]
async fn wrong_labels_annotations_and_finalizers() {
    let server = Server::new().await;
    server
        .post(ADMIN, &router("a", json!({})))
        .await
        .expect(201);
    for (metadata, field, words) in [
        (
            json!({"labels": {"a b": "c"}}),
            "metadata.labels",
            "name part must consist of alphanumeric characters",
        ),
        (
            json!({"labels": {"a": "has space"}}),
            "metadata.labels",
            "Invalid value: \"has space\": a valid label must be an empty string or consist of",
        ),
        (
            json!({"annotations": {"a b": "c"}}),
            "metadata.annotations",
            "name part must consist of alphanumeric characters",
        ),
        (
            json!({"annotations": {"a": "x".repeat(256 << 10)}}),
            "metadata.annotations",
            "Too long: may not be more than 262144 bytes",
        ),
        (
            json!({"finalizers": ["a b"]}),
            "metadata.finalizers",
            "name part must consist of alphanumeric characters",
        ),
    ] {
        let mut made = router("b", json!({}));
        for (name, value) in metadata.as_object().unwrap() {
            made["metadata"][name] = value.clone();
        }
        let patch = json!({ "metadata": metadata });
        for answer in [
            server.post(ADMIN, &made).await,
            server.patch(ADMIN, "a", MERGE, &patch).await,
        ] {
            let cause = answer.text("/details/causes/0/field");
            assert_eq!((answer.code.as_u16(), cause.as_str()), (422, field));
            assert!(answer.message().contains(words), "{}", answer.message());
        }
        // A status takes nothing of them.
        let mut status = with_status("a", json!({"cluster": "c"}));
        status["metadata"] = made["metadata"].clone();
        status["metadata"]["name"] = "a".into();
        server.put(ADMIN, "a/status", &status).await.expect(200);
    }
    // What a version before kept is read, gets its status, is changed beside it, and can go.
    let mut old = router("there", json!({}));
    old["metadata"]["labels"] = json!({"a b": "has space"});
    old["metadata"]["finalizers"] = json!(["c d", "example.com/e"]);
    let stored = old.to_string();
    let put = |_: Option<&_>, _| (crate::store::Change::Put(stored.into()), ());
    server.store.write(key("there"), put).await.unwrap();
    let status = with_status("there", json!({"source": {"revision": 7}}));
    for who in [THERE, HERE] {
        let written = server.put(who, "there/status", &status).await.expect(200);
        assert_eq!(written["metadata"]["labels"], old["metadata"]["labels"]);
    }
    let spec = json!({"spec": {"addresses": ["a:1"]}});
    server.patch(ADMIN, "there", MERGE, &spec).await.expect(200);
    server.delete(ADMIN, "there", "").await.expect(200);
    for left in [json!(["example.com/e"]), json!([])] {
        let patch = json!({"metadata": {"finalizers": left}});
        server
            .patch(ADMIN, "there", MERGE, &patch)
            .await
            .expect(200);
    }
    let gone = server.get(ADMIN, &format!("{ROUTERS}/there")).await;
    assert_eq!(gone.code, 404);
}
