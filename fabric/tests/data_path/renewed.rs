//! Connections whose certificates end while flows run over them.

use std::time::{Duration, SystemTime};

use keel_certs::LiveIdentity;
use keel_fabric::EndReason;
use keel_fabric::metrics::{LossLabels, RoleLabels, Side};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::counters::until;
use crate::world::{Consumer, World, echoes, end, publication, target};

/// The shortest that is signed.
const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(3600);

/// Whose certificate ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Consumer,
    Provider,
    Router,
}

/// A flow that runs before the certificate ends, and one without a window that begins a moment before, go on after it.
async fn flows_outlive_the_certificate_of(whose: Whose) {
    let life = |one| if one == whose { SHORT } else { LONG };
    let mut world = World::new();
    let of = |world: &World, whose, life| match whose {
        Whose::Consumer => world.fabric.pod_for("a", "default", "c", life),
        Whose::Provider => world.fabric.pod_for("b", "default", "p", life),
        Whose::Router => world.fabric.node_for("r", life),
    };
    let all = [Whose::Consumer, Whose::Provider, Whose::Router];
    let [near, far, node]: [LiveIdentity; 3] = all.map(|one| of(&world, one, life(one)));
    let lives = [&near, &far, &node].map(LiveIdentity::not_after);
    let over = lives.into_iter().min().unwrap() + Duration::from_secs(1);
    world.router_live = Some(node.clone());
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let list = vec![publication("echo.default", 80, backend.addr)];
    let mut provider = world.provider(&far, &[&router], list);
    provider.published().await;
    let target = target("echo.default", 80, far.identity().subject, &router);
    let consumer = world.consumer_as(&near);
    let mut ends = JoinSet::new();
    let mut long = consumer.carried(&mut ends, &target).await;
    for (one, live) in all.into_iter().zip([&near, &far, &node]) {
        let renewed = of(&world, one, LONG);
        live.replace(renewed.key(), renewed.chain()).unwrap();
    }

    let role = Side::consumer;
    // Both ends make their connection to a router anew whose certificate ends, each at its own time; if that is the same time
    // the flow moves once for both.
    let connections = if whose == Whose::Router { 4 } else { 3 };
    let moved = || {
        let resumes = &world.metrics.flow_resumes;
        world.metrics.links_connected.get() >= connections
            && resumes.get_or_create(&RoleLabels { role }).get() >= 1
    };
    while !moved() {
        assert!(SystemTime::now() < over, "it stays to the end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut config = consumer.config.clone();
    config.limits.resume_window = Duration::ZERO;
    let links = consumer.links.clone();
    let without = Consumer { links, config };
    let mut short = without.carried(&mut ends, &target).await;
    assert!(SystemTime::now() < over, "this machine is too slow");
    while SystemTime::now() < over {
        echoes(&mut long, b'l').await;
        echoes(&mut short, b's').await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let cause = "connection";
    let lost = world.metrics.legs_lost.get(&LossLabels { role, cause });
    assert_eq!(lost.map_or(0, |lost| lost.get()), 0, "it waited for a leg");
    for client in [&mut long, &mut short] {
        client.shutdown().await.unwrap();
        assert_eq!(end(&mut ends).await.unwrap().reason, EndReason::Done);
    }
    until(|| world.metrics.router_connections.get() == 2).await;
}

#[tokio::test]
async fn flows_outlive_the_certificate_of_their_consumer() {
    flows_outlive_the_certificate_of(Whose::Consumer).await;
}

#[tokio::test]
async fn flows_outlive_the_certificate_of_their_provider() {
    flows_outlive_the_certificate_of(Whose::Provider).await;
}

#[tokio::test]
async fn flows_outlive_the_certificate_of_their_router() {
    flows_outlive_the_certificate_of(Whose::Router).await;
}
