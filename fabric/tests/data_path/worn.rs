//! Connections that were made for a crowd, when it has gone.

use std::time::{Duration, Instant};

use keel_fabric::EndReason;
use keel_fabric::consumer::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::counters::until;
use crate::relay::Relay;
use crate::world::{Consumer, World, echoes, end, publication, soon, target};

/// So many flows at once, and then none.
async fn crowd(consumer: &Consumer, target: &Target) {
    let (mut ends, mut clients) = (JoinSet::new(), Vec::new());
    for _ in 0..130 {
        clients.push(consumer.carried(&mut ends, target).await);
    }
    for client in &mut clients {
        client.shutdown().await.unwrap();
    }
    for _ in 0..clients.len() {
        assert_eq!(end(&mut ends).await.unwrap().reason, EndReason::Done);
    }
}

#[tokio::test]
async fn a_connection_is_made_anew_when_its_crowd_has_gone() {
    let mut world = World::new();
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    crowd(&consumer, &target).await;
    let mut ends = JoinSet::new();
    // The provider's and the consumer's, each once more: whoever comes right then is served.
    for made in 3..=4 {
        until(|| world.metrics.links_connected.get() >= made).await;
        let mut client = consumer.carried(&mut ends, &target).await;
        client.shutdown().await.unwrap();
        assert_eq!(end(&mut ends).await.unwrap().reason, EndReason::Done);
    }
    until(|| world.metrics.router_connections.get() == 2).await;
    let mut client = consumer.carried(&mut ends, &target).await;
    echoes(&mut client, b'b').await;
    assert_eq!(world.metrics.links_connected.get(), 4, "and only once");
}

#[tokio::test]
async fn nobody_waits_for_a_connection_that_is_made_anew() {
    let mut world = World::new();
    let router = world.router("r").await;
    let relay = Relay::to(&router).await;
    let backend = Backend::echo().await;
    let (_provider, mut target) = world.echo(&router, backend.addr).await;
    target.router = relay.peer.clone();
    let consumer = world.consumer();
    crowd(&consumer, &target).await;
    relay.lose_handshakes();
    until(|| relay.handshakes_lost() > 0).await;
    let mut ends = JoinSet::new();
    let begun = Instant::now();
    let mut client = consumer.carried(&mut ends, &target).await;
    // An attempt takes five seconds.
    assert!(begun.elapsed() < Duration::from_secs(2), "{begun:?}");
    client.shutdown().await.unwrap();
    assert_eq!(end(&mut ends).await.unwrap().reason, EndReason::Done);
}

#[tokio::test]
async fn what_is_opened_while_a_connection_is_made_anew_stays_whole() {
    let mut world = World::new();
    // What loses its leg is reset.
    world.limits.resume_window = Duration::ZERO;
    let router = world.router("r").await;
    let relay = Relay::to(&router).await;
    let backend = Backend::echo().await;
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![publication("echo.default", 80, backend.addr)];
    let peers = vec![relay.peer.clone()];
    let mut provider = world.provider_over(world.links(&live), &live, peers, list);
    provider.published().await;
    let target = target("echo.default", 80, live.identity().subject, &router);
    let consumer = world.consumer();
    crowd(&consumer, &target).await;
    relay.cut_by_handshake();
    until(|| !relay.passes_down()).await;
    // The provider dials; on its way to it over the old connection is a flow of which it does not know.
    let mut ends = JoinSet::new();
    let mut client = consumer.connect(&mut ends, &target).await;
    client.write_all(b"a").await.unwrap();
    let is_passing = || {
        let counts = world.metrics.pairs.counts();
        counts
            .iter()
            .any(|pair| pair.role == "router" && pair.active == 1)
    };
    until(is_passing).await;
    relay.pass(true, true);
    assert_eq!(soon(client.read_u8()).await.unwrap(), b'a');
    // It goes on for longer than a connection is kept that carries nothing, and its connection goes after it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    echoes(&mut client, b'b').await;
    client.shutdown().await.unwrap();
    assert_eq!(end(&mut ends).await.unwrap().reason, EndReason::Done);
    until(|| world.metrics.router_connections.get() == 2).await;
}
