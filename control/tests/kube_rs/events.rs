//! Namespaces and events, by the types that k8s-openapi has of them.

use k8s_openapi::api::core::v1::{Event, Namespace, ObjectReference};
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::core::DynamicObject;
use kube::runtime::events::{Event as News, EventType, Recorder};
use kube::{Resource, ResourceExt};

use crate::server::Server;
use crate::{discovery, refused};

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
    let events: Api<Event> = Api::namespaced(client.clone(), "shop");
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

    // Its events are of a group that is not served: a controller is told so, and has to do without.
    let recorder = Recorder::new(client, "controller".into());
    let news = News {
        type_: EventType::Normal,
        reason: "Tested".into(),
        note: None,
        action: "Testing".into(),
        secondary: None,
    };
    let status = refused(recorder.publish(&news, &about).await);
    assert_eq!(status.code, 404, "{status:?}");
}
