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
        let delete = |held: Option<&Object>, _| {
            let data = held.expect("it is there").data.clone();
            (Change::Delete(data), ())
        };
        a.store.write(key, delete).await.unwrap();
        a.holds("b", "first").await;
    }
}
