//! No more of objects than their metadata: what controllers keep of kinds that they only own.

use std::pin::pin;

use futures_util::{Stream, StreamExt};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::watcher;
use kube::runtime::watcher::{Config, Error, Event};
use serde_json::json;
use tokio::time::timeout;

use crate::server::Server;
use crate::{SOON, discovery};

#[tokio::test]
async fn is_all_that_is_sent_to_who_wants_no_more() {
    let server = Server::new().await;
    let client = server.admin().await;
    let resource = discovery::router(&client).await;
    let routers: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let router =
        DynamicObject::new("node-1", &resource).data(json!({"spec": {"frps": {"bindPort": 7001}}}));
    let router = routers.create(&PostParams::default(), &router).await;
    let router = router.unwrap();

    let read = routers.get_metadata("node-1").await.unwrap();
    assert_eq!(read.metadata, router.metadata);
    assert_partial(&read, "PartialObjectMetadata");
    let list = routers.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(list.types.kind, "PartialObjectMetadataList");
    assert_eq!(list.items.len(), 1);
    assert_eq!(list.items[0].metadata, router.metadata);

    let metadata: Api<PartialObjectMeta> = Api::all_with(client, &resource);
    for config in [Config::default(), Config::default().streaming_lists()] {
        let mut news = pin!(watcher(metadata.clone(), config));
        assert!(matches!(next(&mut news).await, Event::Init));
        let Event::InitApply(found) = next(&mut news).await else {
            panic!("the object is there");
        };
        assert_eq!(found.metadata.name.as_deref(), Some("node-1"));
        assert!(matches!(next(&mut news).await, Event::InitDone));
        let label = json!({"metadata": {"labels": {"seen": found.metadata.resource_version}}});
        let (params, label) = (PatchParams::default(), Patch::Merge(&label));
        let patched = routers.patch("node-1", &params, &label).await.unwrap();
        let Event::Apply(changed) = next(&mut news).await else {
            panic!("it has changed");
        };
        assert_eq!(changed.metadata, patched.metadata);
        assert_partial(&changed, "PartialObjectMetadata");
    }
}

fn assert_partial<K>(object: &PartialObjectMeta<K>, kind: &str) {
    let types = object.types.as_ref().unwrap();
    assert_eq!(types.api_version, "meta.k8s.io/v1");
    assert_eq!(types.kind, kind);
}

async fn next<T>(news: &mut (impl Stream<Item = Result<Event<T>, Error>> + Unpin)) -> Event<T> {
    timeout(SOON, news.next()).await.unwrap().unwrap().unwrap()
}
