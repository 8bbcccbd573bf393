//! Flows of a provider that publishes nothing any more: they go on, over other legs too.

use std::sync::Arc;
use std::time::Duration;

use keel_fabric::quic::Connection;
use keel_fabric::wire::{Frame, Open, RefuseCode};

use crate::admission::connect;
use crate::backend::Backend;
use crate::headers;
use crate::limits::answer;
use crate::publications::Alone;
use crate::world::{RunningProvider, RunningRouter, World, soon};

/// A flow over its first leg, with all that it needs.
struct Running {
    world: World,
    router: RunningRouter,
    provider: RunningProvider,
    connection: Connection,
    open: Open,
    _kept: Box<dyn std::any::Any>,
}

impl Running {
    async fn new() -> Self {
        let mut world = World::new();
        world.grace = Duration::from_secs(60);
        let router = world.router("r").await;
        let backend = Backend::echo().await;
        let (provider, target) = world.echo(&router, backend.addr).await;
        let connection = connect(&router, &world.fabric.pod("a", "default", "c")).await;
        let control = connection.open_bi().await.unwrap();
        let open = headers::open(&target);
        let (accepted, leg) = answer(&connection, Frame::Open(Box::new(open.clone()))).await;
        assert!(matches!(accepted, Frame::Accept { .. }), "{accepted:?}");
        Self {
            world,
            router,
            provider,
            connection,
            open,
            _kept: Box::new((control, leg, backend)),
        }
    }

    /// Waits until nothing is published any more.
    async fn withdrawn(&mut self) {
        self.router.shows(|view| view.services.is_empty()).await;
        let state = &mut self.provider.state;
        soon(state.wait_for(|list| list.is_empty())).await.unwrap();
    }

    /// Opens the flow's second leg.
    async fn resumes(&self) {
        let resume = Frame::Resume(Box::new(headers::resume(&self.open)));
        let (resumed, _leg) = answer(&self.connection, resume).await;
        assert!(matches!(resumed, Frame::Resumed { .. }), "{resumed:?}");
    }
}

#[tokio::test]
async fn a_provider_that_stops_takes_legs_of_its_flows_as_long_as_they_may_go_on() {
    let mut running = Running::new().await;
    running.provider.stop.cancel();
    running.withdrawn().await;
    running.resumes().await;
}

#[tokio::test]
async fn a_provider_that_stops_starts_no_flow() {
    let mut world = World::new();
    world.grace = Duration::from_secs(60);
    let alone = Alone::new(&mut world).await;
    let open = || Open {
        from: Some("/node/a".parse().unwrap()),
        ..headers::open(&alone.target)
    };
    // It waits for this one.
    let (accepted, _leg) = answer(&alone.connection, Frame::Open(Box::new(open()))).await;
    assert!(matches!(accepted, Frame::Accept { .. }), "{accepted:?}");
    alone.provider.stop.cancel();
    let (refused, _leg) = answer(&alone.connection, Frame::Open(Box::new(open()))).await;
    let Frame::Refuse { code, .. } = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(code, RefuseCode::Draining);
}

#[tokio::test]
async fn a_provider_takes_legs_at_a_router_that_it_has_left_and_all_when_it_is_back() {
    let mut running = Running::new().await;
    let peers = running.provider.routers.send_replace(Arc::default());
    running.withdrawn().await;
    running.resumes().await;
    running.provider.routers.send_replace(peers);
    running.provider.published().await;
    for _ in 0..10 {
        let open = Open {
            flow: keel_fabric::wire::FlowId::random(),
            ..running.open.clone()
        };
        let (accepted, _leg) = answer(&running.connection, Frame::Open(Box::new(open))).await;
        assert!(matches!(accepted, Frame::Accept { .. }), "{accepted:?}");
    }
    // The connection is the same.
    assert_eq!(running.world.metrics.links_connected.get(), 1);
}
