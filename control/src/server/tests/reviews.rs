//! What callers are told about themselves.

use serde_json::json;

use super::*;

const AUTHORIZATION: &str = "/apis/authorization.k8s.io/v1";
const AUTHENTICATION: &str = "/apis/authentication.k8s.io/v1";

async fn ask(server: &Server, who: &str, path: &str, review: &Value) -> Answer {
    server
        .call(who, "POST", path, "application/json", review.to_string())
        .await
}

async fn may(server: &Server, who: &str, verb: &str, resource: &str, name: &str) -> bool {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name}},
    });
    let path = format!("{AUTHORIZATION}/selfsubjectaccessreviews");
    let answer = ask(server, who, &path, &review).await.expect(201);
    answer["status"]["allowed"].as_bool().unwrap()
}

/// The answer is what happens: asked for and tried, for everybody, each verb on each kind.
#[tokio::test]
async fn what_is_said_is_what_happens() {
    const NAMESPACES: &str = "/api/v1/namespaces";
    let router = |name: &str| router(name, json!({}));
    let namespace =
        |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    for who in [ADMIN, "/admin/cloud", HERE, THERE, POD] {
        for (resource, path, make) in [
            (
                "routers.edge.example.com",
                ROUTERS,
                &router as &dyn Fn(&str) -> Value,
            ),
            (
                "namespaces",
                NAMESPACES,
                &namespace as &dyn Fn(&str) -> Value,
            ),
        ] {
            let server = Server::new().await;
            for name in ["here", "there"] {
                let body = make(name).to_string();
                let request = format!("{path}/{name}");
                for (verb, method, request, media) in [
                    ("list", "GET", path, ""),
                    ("create", "POST", path, "application/json"),
                    ("get", "GET", request.as_str(), ""),
                    ("update", "PUT", request.as_str(), "application/json"),
                    ("patch", "PATCH", request.as_str(), MERGE),
                    ("delete", "DELETE", request.as_str(), ""),
                    ("deletecollection", "DELETE", path, ""),
                ] {
                    let sent = if media.is_empty() {
                        String::new()
                    } else {
                        body.clone()
                    };
                    let said = may(&server, who, verb, resource, name).await;
                    let done = server.call(who, method, request, media, sent).await;
                    assert_eq!(said, done.code != 403, "{who} {verb} {resource} {name}");
                }
            }
        }
    }
}

#[tokio::test]
async fn answers_about_names_wildcards_and_paths() {
    let server = Server::new().await;
    let routers = "routers.edge.example.com";
    assert!(may(&server, ADMIN, "*", "*", "").await);
    assert!(!may(&server, POD, "*", routers, "").await);
    assert!(!may(&server, POD, "get", "*", "").await);
    assert!(!may(&server, POD, "get", "pods", "").await);
    assert!(may(&server, HERE, "create", routers, "").await);
    assert!(
        may(
            &server,
            HERE,
            "update",
            &format!("{routers}/status"),
            "third"
        )
        .await
    );
    assert!(
        may(
            &server,
            THERE,
            "patch",
            &format!("{routers}/status"),
            "there"
        )
        .await
    );
    assert!(
        !may(
            &server,
            THERE,
            "patch",
            &format!("{routers}/status"),
            "here"
        )
        .await
    );
    let path = format!("{AUTHORIZATION}/selfsubjectaccessreviews");
    for (verb, asked, allowed) in [
        ("get", "/version", true),
        ("get", "/openapi/v3", true),
        ("get", "/v1/tokens", false),
        ("post", "/version", false),
    ] {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"nonResourceAttributes": {"verb": verb, "path": asked}},
        });
        let answer = ask(&server, POD, &path, &review).await.expect(201);
        assert_eq!(answer["status"]["allowed"], allowed, "{asked}");
    }
    let foreign = "/node/there/admin/root";
    assert_eq!(ask(&server, foreign, &path, &json!({})).await.code, 403);
    assert_eq!(server.get(POD, &path).await.code, 405);
    assert_eq!(server.get(POD, &format!("{path}/a")).await.code, 404);
}

#[tokio::test]
async fn a_caller_is_told_who_it_is_and_what_it_may() {
    let server = Server::new().await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = format!("{AUTHENTICATION}/selfsubjectreviews");
    let answer = ask(&server, POD, &path, &review).await.expect(201);
    let user = &answer["status"]["userInfo"];
    assert_eq!(user["username"], "spiffe://test/node/here/ns/default/pod/p");
    assert_eq!(user["groups"][0], "keel:pods");

    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "x"}});
    let path = format!("{AUTHORIZATION}/selfsubjectrulesreviews");
    let rules = ask(&server, THERE, &path, &review).await.expect(201);
    let rules = rules["status"]["resourceRules"].as_array().unwrap();
    assert!(rules.contains(&json!({
        "verbs": ["create"], "apiGroups": ["edge.example.com"], "resources": ["routers"], "resourceNames": ["there"],
    })));
    let admin = ask(&server, ADMIN, &path, &review).await.expect(201);
    assert_eq!(
        admin["status"]["resourceRules"][0],
        json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
    );
    assert!(
        server
            .store
            .list("selfsubjectreviews.authentication.k8s.io")
            .await
            .unwrap()
            .0
            .is_empty()
    );
}

#[tokio::test]
async fn a_binary_body_is_read_where_clients_insist_on_it() {
    let server = Server::new().await;
    // As `kubectl create namespace prod` sends it.
    let body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12\x0e\x0a\x08\x0a\x04prod\x42\x00\x12\x00\x1a\x00\x1a\x00\x22\x00";
    let media = "application/vnd.kubernetes.protobuf";
    let created = server
        .call(ADMIN, "POST", "/api/v1/namespaces", media, body.as_slice())
        .await
        .expect(201);
    assert_eq!(created["metadata"]["name"], "prod");
    let broken = server
        .call(ADMIN, "POST", "/api/v1/namespaces", media, &body[..20])
        .await;
    assert!(
        broken.message().contains("protobuf parse error"),
        "{}",
        broken.message()
    );
    let router = server
        .call(ADMIN, "POST", ROUTERS, media, body.as_slice())
        .await;
    assert_eq!(router.code, 415);
}
