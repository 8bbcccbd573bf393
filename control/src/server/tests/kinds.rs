//! Kinds beside Router: those without a spec, those of the core group.

use serde_json::json;

use super::*;
use crate::server::prepare;

pub(super) const NAMESPACES: &str = "/api/v1/namespaces";

pub(super) async fn create(server: &Server, path: &str, object: &Value) -> Answer {
    server
        .call(ADMIN, "POST", path, "application/json", object.to_string())
        .await
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
    // A policy that selects it by its name must not be led astray.
    let named = "kubernetes.io/metadata.name";
    assert_eq!(read["metadata"]["labels"][named], "prod");
    let other = json!({"metadata": {"labels": {named: "other"}}}).to_string();
    let patched = server.call(ADMIN, "PATCH", &path, MERGE, other).await;
    assert_eq!(patched.expect(200), read);
    let selected = format!("{NAMESPACES}?labelSelector={named}%3Dprod");
    let selected = server.get(POD, &selected).await.expect(200);
    assert_eq!(selected["items"], json!([read]));
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
    assert_eq!(patched["metadata"]["labels"]["tier"], "1");
    let refused = patch(json!({"metadata": {"$shuffle/finalizers": []}})).await;
    assert_eq!(refused.code, 400);
    assert_eq!(
        refused.message(),
        "this is no strategic merge patch: there is no order $shuffle/finalizers"
    );
    assert_eq!(patch(json!([])).await.code, 400);
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
