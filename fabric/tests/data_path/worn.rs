//! Connections that were made for a crowd, when it has gone.

use keel_fabric::EndReason;
use keel_fabric::consumer::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::counters::until;
use crate::world::{Consumer, World, echoes, end, soon};

/// Asks until a flow is taken, as a sidecar does: the router may miss the provider for the time that a message takes.
async fn served(consumer: &Consumer, target: &Target) {
    loop {
        let mut ends = JoinSet::new();
        let mut client = consumer.connect(&mut ends, target).await;
        // A refused one is reset.
        let _ = client.write_all(b"a").await;
        if client.read_u8().await.is_ok() {
            client.shutdown().await.unwrap();
            assert_eq!(end(&mut ends).await.unwrap().reason, EndReason::Done);
            return;
        }
        assert!(end(&mut ends).await.is_err(), "it was not taken");
    }
}

#[tokio::test]
async fn a_connection_is_made_anew_when_its_crowd_has_gone() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let mut ends = JoinSet::new();
    let mut crowd = Vec::new();
    for _ in 0..130 {
        crowd.push(consumer.carried(&mut ends, &target).await);
    }
    for client in &mut crowd {
        client.shutdown().await.unwrap();
    }
    for _ in 0..crowd.len() {
        assert_eq!(end(&mut ends).await.unwrap().reason, EndReason::Done);
    }
    // The provider's and the consumer's, each once more: whoever comes right then is served.
    for made in 3..=4 {
        until(|| world.metrics.links_connected.get() >= made).await;
        soon(served(&consumer, &target)).await;
    }
    until(|| world.metrics.router_connections.get() == 2).await;
    let mut client = consumer.carried(&mut ends, &target).await;
    echoes(&mut client, b'b').await;
    assert_eq!(world.metrics.links_connected.get(), 4, "and only once");
}
