//! What was taken over and is lost here.

use super::*;
use crate::store::{Change, Key, Object};

#[tokio::test]
async fn what_is_deleted_here_is_brought_back_though_its_node_says_nothing_new() {
    let fabric = Fabric::new();
    let (mut a, b) = (
        Node::start(&fabric, "a").await,
        Node::start(&fabric, "b").await,
    );
    b.report("first").await;
    a.peers.send_replace(Arc::new(vec![b.peer()]));
    let _states = a.sync();
    a.holds("b", "first").await;
    for _ in 0..3 {
        let key = Key {
            resource: "routers.edge.example.com".into(),
            name: "b".into(),
        };
        // As the API does it: an event has the number of its change.
        let delete = |held: Option<&Object>, revision: Revision| {
            let mut object: serde_json::Value =
                serde_json::from_slice(&held.expect("it is there").data).unwrap();
            object["metadata"]["resourceVersion"] = revision.to_string().into();
            (Change::Delete(object.to_string().into()), ())
        };
        a.store.write(key, delete).await.unwrap();
        a.holds("b", "first").await;
    }
}

#[tokio::test]
async fn a_server_that_was_started_again_elsewhere_is_found() {
    let fabric = Fabric::new();
    let a = Node::start(&fabric, "a").await;
    a.report("here").await;
    let config = crate::client::ClientConfig {
        server: "127.0.0.1:1".parse().unwrap(),
        expect: name("a"),
        live: fabric.node("a"),
    };
    let now = a.served.server();
    let found = now.clone();
    let client = Client::new(config).unwrap().found_by(Box::new(move || {
        let found = found.clone();
        Box::pin(async move { Some(found) })
    }));
    soon(client.get_router(&name("a"))).await.unwrap();
    assert_eq!(client.server(), now);
}
