//! What kube-rs finds out about the server, and who may do what.

use std::collections::BTreeSet;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, ListParams, PostParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::{ApiResource, Discovery, Scope, pinned_kind, verbs};
use kube::{Client, Error};

use crate::refused;
use crate::server::Server;

pub(crate) async fn router(client: &Client) -> ApiResource {
    kind(client, "edge.example.com", "v1", "Router").await
}

pub(crate) async fn frpserver(client: &Client) -> ApiResource {
    kind(client, "tunnel.kubeinfra.io", "v1alpha1", "FRPServer").await
}

async fn kind(client: &Client, group: &str, version: &str, kind: &str) -> ApiResource {
    let gvk = GroupVersionKind::gvk(group, version, kind);
    let (resource, capabilities) = pinned_kind(client, &gvk).await.unwrap();
    // Guessed from the kind, it is the same.
    assert_eq!(resource, ApiResource::from_gvk(&gvk));
    assert_eq!(capabilities.scope, Scope::Cluster);
    for verb in [verbs::CREATE, verbs::DELETE, verbs::PATCH, verbs::WATCH] {
        assert!(capabilities.supports_operation(verb), "{kind}: {verb}");
    }
    let (status, behind) = &capabilities.subresources[0];
    assert_eq!(status.plural, "status");
    assert!(behind.supports_operation(verbs::UPDATE));
    resource
}

#[tokio::test]
async fn finds_kinds() {
    let server = Server::new().await;
    let client = server.admin().await;
    let version = client.apiserver_version().await.unwrap();
    assert!(version.git_version.contains("+servicekeel-"), "{version:?}");
    let plain = Discovery::new(client.clone()).run().await.unwrap();
    let whole = Discovery::new(client.clone()).run_aggregated().await;
    let (plain, whole) = (kinds(&plain), kinds(&whole.unwrap()));
    assert_eq!(plain, whole);
    for kind in [
        "v1 Event",
        "v1 Namespace",
        "edge.example.com/v1 Router",
        "tunnel.kubeinfra.io/v1alpha1 FRPServer",
        "authorization.k8s.io/v1 SelfSubjectAccessReview",
    ] {
        assert!(plain.contains(kind), "{kind} is not in {plain:?}");
    }
    router(&client).await;
    frpserver(&client).await;
}

fn kinds(discovery: &Discovery) -> BTreeSet<String> {
    discovery
        .groups()
        .flat_map(|group| group.recommended_resources())
        .map(|(resource, _)| format!("{} {}", resource.api_version, resource.kind))
        .collect()
}

#[tokio::test]
async fn knows_what_it_may() {
    let server = Server::new().await;
    let (admin, pod) = (server.admin().await, server.pod().await);
    for (client, verb, expected) in [
        (&admin, "delete", true),
        (&pod, "delete", false),
        (&pod, "watch", true),
    ] {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some("edge.example.com".into()),
                    resource: Some("routers".into()),
                    verb: Some(verb.into()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
        let review = api.create(&PostParams::default(), &review).await.unwrap();
        assert_eq!(review.status.unwrap().allowed, expected, "{verb}");
    }
    let resource = router(&pod).await;
    let api: Api<DynamicObject> = Api::all_with(pod, &resource);
    let list = api.list(&ListParams::default()).await.unwrap();
    assert!(list.items.is_empty());
    let object = DynamicObject::new("node-1", &resource);
    let status = refused(api.create(&PostParams::default(), &object).await);
    assert!(status.is_forbidden(), "{status:?}");

    let nobody = server.client_without_certificate().await;
    let api: Api<DynamicObject> = Api::all_with(nobody, &resource);
    match api.list(&ListParams::default()).await {
        Err(Error::Api(status)) => assert_eq!(status.code, 401, "{status:?}"),
        // With TLS 1.3 a client can be told of the missing certificate instead of an answer.
        other => panic!("{other:?}"),
    }
}
