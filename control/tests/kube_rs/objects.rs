//! Objects through kube-rs: made, read, changed in every way that it knows, and deleted.

use std::collections::BTreeSet;

use keel_control::api::{RouterSpec, RouterStatus};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{DynamicObject, Object};
use kube::discovery::ApiResource;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::server::Server;
use crate::{SOON, discovery, refused};

/// A kind with a place for a listener's settings.
struct Kind {
    api: Api<DynamicObject>,
    resource: ApiResource,
    /// Where the settings are: a JSON pointer.
    settings: &'static str,
}

impl Kind {
    fn new(client: &Client, resource: ApiResource, settings: &'static str) -> Self {
        Self {
            api: Api::all_with(client.clone(), &resource),
            resource,
            settings,
        }
    }

    fn object(&self, name: &str, port: u16) -> DynamicObject {
        DynamicObject::new(name, &self.resource).data(self.with(&json!({"bindPort": port})))
    }

    /// An object's data with these settings.
    fn with(&self, settings: &Value) -> Value {
        match self.settings {
            "/spec" => json!({"spec": settings}),
            _ => json!({"spec": {"frps": settings}}),
        }
    }

    fn port(&self, object: &DynamicObject) -> Value {
        let port = object.data.pointer(&format!("{}/bindPort", self.settings));
        port.cloned().unwrap_or_default()
    }

    async fn make(&self, object: &DynamicObject) -> DynamicObject {
        let made = self.api.create(&PostParams::default(), object).await;
        made.unwrap()
    }

    async fn names(&self, params: &ListParams) -> Vec<String> {
        let list = self.api.list(params).await.unwrap();
        list.iter().map(ResourceExt::name_any).collect()
    }
}

#[tokio::test]
async fn routers_and_frpservers_live() {
    let server = Server::new().await;
    let client = server.admin().await;
    let router = Kind::new(&client, discovery::router(&client).await, "/spec/frps");
    let frpserver = Kind::new(&client, discovery::frpserver(&client).await, "/spec");
    for kind in [&router, &frpserver] {
        create_and_replace(kind).await;
        lists(kind).await;
        patch(kind).await;
        apply(kind).await;
        status(kind).await;
        delete(kind).await;
    }
    assert_eq!(
        router
            .names(&ListParams::default().fields("status.cluster=berlin"))
            .await,
        ["a"]
    );
    typed(&client, &router.resource).await;
}

async fn create_and_replace(kind: &Kind) {
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let object = kind.object("a", 7001);
    kind.api.create(&dry, &object).await.unwrap();
    assert!(kind.api.get_opt("a").await.unwrap().is_none());
    let made = kind.make(&object).await;
    assert!(made.uid().is_some() && made.creation_timestamp().is_some());
    assert_eq!(made.types, object.types);
    let again = kind.api.create(&PostParams::default(), &object).await;
    assert!(refused(again).is_already_exists());
    assert!(refused(kind.api.get("b").await).is_not_found());
    assert_eq!(kind.api.get("a").await.unwrap(), made);
    let metadata = kind.api.get_metadata("a").await.unwrap();
    assert_eq!(metadata.metadata, made.metadata);

    let mut changed = made.clone();
    changed.data = kind.with(&json!({"bindPort": 7002}));
    let post = PostParams::default();
    let replaced = kind.api.replace("a", &post, &changed).await.unwrap();
    assert_eq!(kind.port(&replaced), 7002);
    assert_eq!(replaced.metadata.generation, Some(2));
    assert_eq!(replaced.uid(), made.uid());
    let status = refused(kind.api.replace("a", &post, &changed).await);
    assert!(status.is_conflict() && status.code == 409, "{status:?}");
    let wrong = kind
        .object("b", 0)
        .data(json!({"spec": {"bindPort": "high", "frps": "none"}}));
    assert!(
        kind.api
            .create(&PostParams::default(), &wrong)
            .await
            .is_err()
    );
}

async fn lists(kind: &Kind) {
    for (number, site) in ["x", "y", "x", "y", "z"].iter().enumerate() {
        let mut object = kind.object(&format!("n-{number}"), 7000);
        object.labels_mut().insert("site".into(), (*site).into());
        kind.make(&object).await;
    }
    let all = ["a", "n-0", "n-1", "n-2", "n-3", "n-4"];
    assert_eq!(kind.names(&ListParams::default()).await, all);
    let mut params = ListParams::default().limit(2);
    let (mut paged, mut revisions) = (Vec::new(), BTreeSet::new());
    loop {
        let page = kind.api.list(&params).await.unwrap();
        assert!(page.items.len() <= 2);
        assert!(
            page.iter()
                .all(|object| object.types == kind.object("", 0).types)
        );
        paged.extend(page.iter().map(ResourceExt::name_any));
        revisions.insert(page.metadata.resource_version.unwrap());
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
        // All pages are of one state.
        if paged.len() == 2 {
            kind.make(&kind.object("later", 7000)).await;
        }
    }
    assert_eq!(paged, all);
    assert_eq!(revisions.len(), 1);
    let later = kind.api.delete("later", &DeleteParams::default()).await;
    assert!(later.unwrap().is_right());

    let labelled = async |selector: &str| kind.names(&ListParams::default().labels(selector)).await;
    assert_eq!(labelled("site=x").await, ["n-0", "n-2"]);
    assert_eq!(labelled("site notin (x, y),site").await, ["n-4"]);
    assert_eq!(labelled("!site").await, ["a"]);
    let named = ListParams::default().fields("metadata.name=n-3");
    assert_eq!(kind.names(&named).await, ["n-3"]);
    let unknown = ListParams::default().fields("spec.none=1");
    assert_eq!(refused(kind.api.list(&unknown).await).code, 400);
    let metadata = kind.api.list_metadata(&ListParams::default()).await;
    assert_eq!(metadata.unwrap().items.len(), all.len());

    let (how, which) = (DeleteParams::default(), ListParams::default());
    let gone = kind
        .api
        .delete_collection(&how, &which.labels("site"))
        .await;
    let gone = gone.unwrap().left().unwrap();
    assert_eq!(gone.items.len(), 5);
    assert_eq!(kind.names(&ListParams::default()).await, ["a"]);
}

async fn patch(kind: &Kind) {
    let params = PatchParams::default();
    let merge = Patch::Merge(json!({"metadata": {"labels": {"site": "x"}}}));
    let patched = kind.api.patch("a", &params, &merge).await.unwrap();
    assert_eq!(patched.labels()["site"], "x");
    assert_eq!(kind.port(&patched), 7002, "left as it was");
    let patch = |operations: Value| {
        Patch::Json::<()>(serde_json::from_value::<json_patch::Patch>(operations).unwrap())
    };
    let path = format!("{}/bindPort", kind.settings);
    let json = patch(json!([
        {"op": "test", "path": path, "value": 7002},
        {"op": "replace", "path": path, "value": 7003},
        {"op": "remove", "path": "/metadata/labels/site"},
    ]));
    let patched = kind.api.patch("a", &params, &json).await.unwrap();
    assert_eq!(kind.port(&patched), 7003);
    assert!(patched.labels().is_empty());
    let failed = refused(kind.api.patch("a", &params, &json).await);
    assert_eq!(failed.code, 422, "{failed:?}");
    let stale = Patch::Merge(json!({"metadata": {"resourceVersion": "1"}}));
    let stale = refused(kind.api.patch("a", &params, &stale).await);
    assert!(stale.is_conflict(), "{stale:?}");
    let strategic = Patch::Strategic(json!({}));
    let strategic = refused(kind.api.patch("a", &params, &strategic).await);
    assert_eq!(strategic.code, 415, "{strategic:?}");
    let missing = Patch::Merge(json!({}));
    assert!(refused(kind.api.patch("b", &params, &missing).await).is_not_found());
    let unknown = Patch::Merge(json!({"spec": {"x": 1}}));
    let strict = PatchParams::default().validation_strict();
    let strict = refused(kind.api.patch("a", &strict, &unknown).await);
    assert!(
        strict.message.contains("unknown field \"spec.x\""),
        "{strict:?}"
    );
}

async fn apply(kind: &Kind) {
    let apply = async |manager: &str, port: u16, force: bool| {
        let params = PatchParams {
            force,
            ..PatchParams::apply(manager)
        };
        let object = kind.object("ssa", port);
        kind.api.patch("ssa", &params, &Patch::Apply(&object)).await
    };
    let made = apply("one", 7001, false).await.unwrap();
    let again = apply("one", 7001, false).await.unwrap();
    assert_eq!(made, again, "nothing is written");
    let status = refused(apply("two", 7002, false).await);
    assert!(status.is_conflict(), "{status:?}");
    let causes = &status.details.as_ref().unwrap().causes;
    assert_eq!(causes[0].reason, "FieldManagerConflict", "{status:?}");
    let field = format!("{}.bindPort", kind.settings.replace('/', "."));
    assert_eq!(causes[0].field, field, "{status:?}");
    let forced = apply("two", 7002, true).await.unwrap();
    assert_eq!(kind.port(&forced), 7002);
    let managers = |object: &DynamicObject| -> Vec<String> {
        let fields = object.managed_fields().iter();
        fields.filter_map(|entry| entry.manager.clone()).collect()
    };
    assert_eq!(managers(&forced), ["two"]);
    // What its owner says no more goes.
    let nothing = DynamicObject::new("ssa", &kind.resource).data(json!({}));
    let params = PatchParams::apply("two");
    let left = kind
        .api
        .patch("ssa", &params, &Patch::Apply(&nothing))
        .await;
    assert_eq!(kind.port(&left.unwrap()), Value::Null);
    let gone = kind.api.delete("ssa", &DeleteParams::default()).await;
    assert!(gone.unwrap().is_right());
}

async fn status(kind: &Kind) {
    let before = kind.api.get("a").await.unwrap();
    let params = PatchParams::default();
    let report = Patch::Merge(json!({"spec": {"x": 1}, "status": {"cluster": "berlin"}}));
    let reported = kind.api.patch_status("a", &params, &report).await.unwrap();
    assert_eq!(reported.data["status"]["cluster"], "berlin");
    assert_eq!(reported.data["spec"], before.data["spec"]);
    assert_eq!(reported.metadata.generation, before.metadata.generation);
    let mut replaced = kind.api.get_status("a").await.unwrap();
    replaced.data["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    let post = PostParams::default();
    let replaced = kind.api.replace_status("a", &post, &replaced).await;
    let mut replaced = replaced.unwrap();
    assert_eq!(replaced.data["status"]["conditions"][0]["type"], "Ready");
    assert_eq!(replaced.data["status"]["cluster"], "berlin");
    // The other way round: the main resource leaves the status alone.
    replaced.data["status"] = json!({"cluster": "paris"});
    let unchanged = kind.api.replace("a", &post, &replaced).await.unwrap();
    assert_eq!(unchanged.data["status"]["cluster"], "berlin");
    let stale = kind.api.replace_status("a", &post, &reported).await;
    assert!(refused(stale).is_conflict());
}

async fn delete(kind: &Kind) {
    let mut object = kind.object("f", 7001);
    object.finalizers_mut().push("example.com/hold".into());
    let made = kind.make(&object).await;
    let uid = made.uid().unwrap();
    let dry = DeleteParams::default().dry_run();
    kind.api.delete("f", &dry).await.unwrap();
    for wrong in [
        Preconditions {
            uid: Some("another".into()),
            resource_version: None,
        },
        Preconditions {
            uid: Some(uid.clone()),
            resource_version: Some("1".into()),
        },
    ] {
        let params = DeleteParams::background().preconditions(wrong);
        assert!(refused(kind.api.delete("f", &params).await).is_conflict());
    }
    let right = Preconditions {
        uid: Some(uid.clone()),
        resource_version: made.resource_version(),
    };
    let params = DeleteParams::foreground().preconditions(right);
    let going = kind.api.delete("f", &params).await.unwrap().left().unwrap();
    assert!(going.metadata.deletion_timestamp.is_some());
    let gone = await_condition(kind.api.clone(), "f", conditions::is_deleted(&uid));
    let release = async {
        let finalizers = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        let params = PatchParams::default();
        kind.api.patch("f", &params, &finalizers).await.unwrap();
    };
    let (gone, ()) = timeout(SOON, futures_util::future::join(gone, release))
        .await
        .unwrap();
    gone.unwrap();
    assert!(kind.api.get_opt("f").await.unwrap().is_none());
}

/// The same by Rust types: the server's own.
async fn typed(client: &Client, resource: &ApiResource) {
    let api: Api<Object<RouterSpec, RouterStatus>> = Api::all_with(client.clone(), resource);
    let mut router = api.get("a").await.unwrap();
    let cluster = router.status.as_ref().unwrap().cluster.as_deref();
    assert_eq!(cluster, Some("berlin"));
    let addresses = vec!["203.0.113.10:7000".to_owned()];
    router.spec.addresses.clone_from(&addresses);
    let post = PostParams::default();
    let replaced = api.replace("a", &post, &router).await.unwrap();
    assert_eq!(replaced.spec.addresses, addresses);
}
