//! Namespaces and events, by the types that k8s-openapi has of them.

use k8s_openapi::api::core::v1::{Event, Namespace, ObjectReference};
use k8s_openapi::api::events::v1::Event as NewerEvent;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::core::DynamicObject;
use kube::runtime::events::{Event as News, EventType, Recorder};
use kube::{Resource, ResourceExt};

use crate::discovery;
use crate::server::Server;

#[tokio::test]
async fn tells_events() {
    let server = Server::new().await;
    let client = server.admin().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let shop = Namespace {
        metadata: ObjectMeta {
            name: Some("shop".into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let shop = namespaces.create(&PostParams::default(), &shop).await;
    let phase = shop.unwrap().status.unwrap().phase;
    assert_eq!(phase.as_deref(), Some("Active"));

    let resource = discovery::router(&client).await;
    let routers: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let router = DynamicObject::new("node-1", &resource);
    let router = routers.create(&PostParams::default(), &router).await;
    let about: ObjectReference = router.unwrap().object_ref(&resource);
    assert!(about.uid.is_some());
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let event = Event {
        metadata: ObjectMeta {
            generate_name: Some("node-1.".into()),
            ..ObjectMeta::default()
        },
        involved_object: about.clone(),
        reason: Some("Tested".into()),
        message: Some("All went well".into()),
        type_: Some("Normal".into()),
        count: Some(3),
        ..Event::default()
    };
    let written = events.create(&PostParams::default(), &event).await.unwrap();
    assert!(written.name_any().starts_with("node-1."));
    let selected = ListParams::default().fields("involvedObject.name=node-1,type=Normal");
    let found = events.list(&selected).await.unwrap();
    assert_eq!(found.items, [written]);
    assert_eq!(found.items[0].involved_object, about);

    // Its events are of another group, and are the same ones.
    let recorder = Recorder::new(client.clone(), "controller".into());
    let news = News {
        type_: EventType::Warning,
        reason: "Recorded".into(),
        note: Some("Twice".into()),
        action: "Testing".into(),
        secondary: None,
    };
    recorder.publish(&news, &about).await.unwrap();
    recorder.publish(&news, &about).await.unwrap();
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let selected = ListParams::default().fields("involvedObject.name=node-1,reason=Recorded");
    let found = events.list(&selected).await.unwrap().items;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].involved_object, about);
    assert_eq!(found[0].message.as_deref(), Some("Twice"));
    assert_eq!(found[0].series.as_ref().unwrap().count, Some(2));
    let newer: Api<NewerEvent> = Api::namespaced(client, "default");
    let selected = ListParams::default().fields("regarding.name=node-1,reason=Recorded");
    let newer = newer.list(&selected).await.unwrap().items;
    assert_eq!(newer.len(), 1);
    let version = |meta: &ObjectMeta| {
        let owners = meta.managed_fields.as_ref().unwrap();
        owners[0].api_version.clone().unwrap()
    };
    assert_eq!(version(&newer[0].metadata), "events.k8s.io/v1");
    assert_eq!(version(&found[0].metadata), "v1");
    assert_eq!(newer[0].uid(), found[0].uid());
    assert_eq!(newer[0].resource_version(), found[0].resource_version());
    assert_eq!(newer[0].regarding.as_ref(), Some(&about));
    assert_eq!(newer[0].reporting_controller.as_deref(), Some("controller"));
}
