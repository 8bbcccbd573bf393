//! The options in a query, and in a body of `DeleteOptions`: what is wrong with them is told in the words of Kubernetes.

use super::*;

#[tokio::test]
async fn wrong_options_are_told() {
    let server = Server::new().await;
    server
        .post(ADMIN, &router("a", json!({})))
        .await
        .expect(201);
    let long = format!("fieldManager={}", "m".repeat(129));
    for (method, path, query, code, words) in [
        (
            "DELETE",
            "/a",
            "gracePeriodSeconds=soon",
            400,
            "gracePeriodSeconds=\"soon\" cannot be used: strconv.ParseInt: parsing \"soon\": invalid syntax",
        ),
        (
            "DELETE",
            "/a",
            "gracePeriodSeconds=",
            400,
            "strconv.ParseInt: parsing \"\": invalid syntax",
        ),
        (
            "DELETE",
            "/a",
            "gracePeriodSeconds=9223372036854775808",
            400,
            "value out of range",
        ),
        (
            "DELETE",
            "/a",
            "gracePeriodSeconds=1&gracePeriodSeconds=2",
            400,
            "gracePeriodSeconds=\"2\" cannot be used: it stands there twice",
        ),
        (
            "DELETE",
            "",
            "limit=few",
            400,
            "strconv.ParseInt: parsing \"few\": invalid syntax",
        ),
        (
            "DELETE",
            "/a",
            "orphanDependents=perhaps",
            400,
            "it must be true or false",
        ),
        (
            "DELETE",
            "/a",
            "propagationPolicy=Maybe",
            422,
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Maybe\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"",
        ),
        (
            "DELETE",
            "/a",
            "propagationPolicy=Orphan&orphanDependents=true",
            422,
            "propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set",
        ),
        (
            "DELETE",
            "/a",
            "dryRun=Some",
            422,
            "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\"",
        ),
        (
            "GET",
            "",
            "timeoutSeconds=1s",
            400,
            "timeoutSeconds=\"1s\" cannot be used",
        ),
        (
            "GET",
            "",
            "limit=1&limit=2",
            400,
            "limit=\"2\" cannot be used: it stands there twice",
        ),
        (
            "GET",
            "",
            "sendInitialEvents=true",
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
        ),
        (
            "GET",
            "",
            "resourceVersionMatch=Exact",
            422,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "GET",
            "",
            "resourceVersionMatch=Newest&resourceVersion=1",
            422,
            "supported values: \"Exact\", \"NotOlderThan\", \"\"",
        ),
        (
            "POST",
            "",
            long.as_str(),
            422,
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Too long: may not be more than 128 bytes",
        ),
        (
            "PUT",
            "/a",
            "fieldManager=a%0ab",
            422,
            "fieldManager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)",
        ),
        (
            "PATCH",
            "/a",
            "fieldValidation=Loud",
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Loud\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
        ),
        (
            "PATCH",
            "/a",
            "force=true",
            422,
            "force: Forbidden: may not be specified for non-apply patch",
        ),
    ] {
        let path = format!("{ROUTERS}{path}?{query}");
        let media = if method == "PATCH" {
            MERGE
        } else {
            "application/json"
        };
        let body = if method == "DELETE" { "" } else { "{}" };
        let answer = server.call(ADMIN, method, &path, media, body).await;
        let told = answer.message();
        assert_eq!(answer.code, code, "{method} {query}: {told}");
        assert!(told.contains(words), "{method} {query}: {told}");
    }
    // Nothing of that had an effect.
    server.router("a").await;
}

#[tokio::test]
async fn wrong_options_of_a_deletion_are_told() {
    let server = Server::new().await;
    server
        .post(ADMIN, &router("a", json!({})))
        .await
        .expect(201);
    for (body, code, words) in [
        (json!({"gracePeriodSeconds": "1"}), 400, "expected i64"),
        (json!({"orphanDependents": 1}), 400, "expected a boolean"),
        (
            json!({"dryRun": ["All", "None"]}),
            422,
            "dryRun: Unsupported value: [\"All\",\"None\"]: supported values: \"All\"",
        ),
        (
            json!({"propagationPolicy": ""}),
            422,
            "propagationPolicy: Unsupported value: \"\"",
        ),
        (
            json!({"propagationPolicy": "Orphan", "orphanDependents": false}),
            422,
            "cannot be both set",
        ),
    ] {
        let answer = server.delete(ADMIN, "a", &body.to_string()).await;
        let told = answer.message();
        assert_eq!(answer.code, code, "{body}: {told}");
        assert!(told.contains(words), "{body}: {told}");
    }
    let tried = "a?gracePeriodSeconds=-5&orphanDependents=&dryRun=All&dryRun=All";
    server.delete(ADMIN, tried, "").await.expect(200);
    let body = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Foreground"});
    server
        .delete(ADMIN, "a", &body.to_string())
        .await
        .expect(200);
}

#[tokio::test]
async fn what_no_answer_is_like_is_not_acceptable() {
    let server = Server::new().await;
    let ask = async |method: &str, path: &str, accept: &str| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("accept", accept)
            .header("content-type", "application/json")
            .body(full(router("a", json!({})).to_string()));
        let answer = server.send(ADMIN, request.unwrap()).await;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (
            parts.status.as_u16(),
            String::from_utf8_lossy(&body).into_owned(),
        )
    };
    for (method, path) in [("GET", ROUTERS), ("POST", ROUTERS), ("GET", "/version")] {
        for accept in ["text/html", "application/json;q=0, */*;q=0"] {
            let (code, told) = ask(method, path, accept).await;
            assert_eq!(code, 406, "{method} {path}");
            let words = "\"reason\":\"NotAcceptable\"";
            assert!(told.contains(words), "{told}");
            let words = "only the following media types are accepted: application/json";
            assert!(told.contains(words), "{told}");
        }
    }
    assert_eq!(ask("GET", ROUTERS, "text/html, */*;q=0.1").await.0, 200);
    assert_eq!(ask("GET", "/healthz", "text/plain").await.0, 200);
    assert!(
        server
            .store
            .list("routers.edge.example.com")
            .await
            .unwrap()
            .0
            .is_empty()
    );
}
