//! Providers whose router does not hear them any more, long before their connection is given up.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use keel_fabric::consumer::{OpenError, Target};
use keel_fabric::metrics::{EndLabels, Side};
use keel_fabric::router::RouterView;
use keel_fabric::wire::{Health, RefuseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::{Backend, Deaf};
use crate::relay::Relay;
use crate::world::{RunningProvider, RunningRouter, World, echoes, end, publication, soon, target};

/// Within this time a provider that says nothing is given up; QUIC alone needs 15 s, and the flow's own watch over 6 s.
const NOTICED: Duration = Duration::from_secs(4);

/// A provider that reaches its router through a relay.
struct Behind {
    world: World,
    router: RunningRouter,
    relay: Relay,
    provider: RunningProvider,
    target: Target,
    backend: Backend,
}

impl Behind {
    async fn new(backend: Backend) -> Self {
        let mut world = World::new();
        let router = world.router("r").await;
        let relay = Relay::to(&router).await;
        let live = world.fabric.pod("b", "default", "p");
        let list = vec![publication("echo.default", 80, backend.addr)];
        let links = world.links(&live);
        let peers = vec![relay.peer.clone()];
        let mut provider = world.provider_over(links, &live, peers, list);
        provider.published().await;
        let target = target("echo.default", 80, live.identity().subject, &router);
        Self {
            world,
            router,
            relay,
            provider,
            target,
            backend,
        }
    }

    /// Another router, at which the provider is without the relay.
    async fn another(&mut self) -> RunningRouter {
        let another = self.world.router("q").await;
        let peers = vec![self.relay.peer.clone(), another.peer.clone()];
        self.provider.routers.send_replace(peers.into());
        let state = &mut self.provider.state;
        soon(state.wait_for(|list| list.len() == 2)).await.unwrap();
        self.provider.published().await;
        self.world.ways = vec![another.peer.clone()];
        another
    }
}

/// Whether the provider is listed in this health.
fn lists(health: Health) -> impl FnMut(&Arc<RouterView>) -> bool {
    move |view| {
        let mut providers = view.services.iter().flat_map(|service| &service.providers);
        providers.any(|one| one.offer.health == health)
    }
}

#[tokio::test]
async fn a_silent_provider_is_given_up_soon_and_gets_nothing_new_before_it_answers() {
    let mut behind = Behind::new(Backend::echo().await).await;
    behind.target.options.silence = Some(Duration::from_secs(1));
    let consumer = behind.world.consumer();
    let mut tasks = JoinSet::new();
    drop(consumer.carried(&mut tasks, &behind.target).await);
    end(&mut tasks).await.unwrap();
    behind.relay.pass(false, false);

    let start = Instant::now();
    let mut speaks = consumer.connect(&mut tasks, &behind.target).await;
    speaks.write_all(b"may be delivered").await.unwrap();
    let error = end(&mut tasks).await.unwrap_err();
    assert!(matches!(error, OpenError::Silent), "{error}");
    assert!(start.elapsed() < NOTICED, "{:?}", start.elapsed());
    let error = soon(speaks.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let ends = EndLabels {
        role: Side::consumer,
        how: "unserved",
        code: "PROVIDER_SILENT",
    };
    let metrics = &behind.world.metrics;
    assert_eq!(metrics.flows_ended.get_or_create(&ends).get(), 1);
    assert_eq!(metrics.router_suspicions.get(), 1);
    behind.router.shows(lists(Health::Unhealthy)).await;

    let start = Instant::now();
    let mut next = consumer.connect(&mut tasks, &behind.target).await;
    next.write_all(b"is not").await.unwrap();
    let error = end(&mut tasks).await.unwrap_err();
    let refused = |error: &OpenError| match error {
        OpenError::Refused { code, .. } => *code == RefuseCode::NoProvider,
        _ => false,
    };
    let between = |error: &OpenError| match error {
        OpenError::Refused { code, .. } => *code == RefuseCode::UnknownService,
        _ => false,
    };
    assert!(refused(&error), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));

    behind.relay.pass(true, true);
    let back = async {
        loop {
            let mut client = consumer.connect(&mut tasks, &behind.target).await;
            client.write_all(b"x").await.unwrap();
            if client.read_u8().await.is_ok() {
                return drop(client);
            }
            let error = end(&mut tasks).await.unwrap_err();
            // Its new connection may have replaced the old one, and not have published yet.
            assert!(refused(&error) || between(&error), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(back).await;
    behind.router.shows(lists(Health::Unknown)).await;
}

#[tokio::test]
async fn whoever_said_nothing_to_a_silent_provider_may_go_to_another_one_soon() {
    let behind = Behind::new(Backend::echo().await).await;
    let consumer = behind.world.consumer();
    let mut tasks = JoinSet::new();
    drop(consumer.carried(&mut tasks, &behind.target).await);
    end(&mut tasks).await.unwrap();
    behind.relay.pass(false, false);
    let start = Instant::now();
    let _client = consumer.connect(&mut tasks, &behind.target).await;
    let error = end(&mut tasks).await.unwrap_err();
    assert!(matches!(error, OpenError::Unanswered), "{error}");
    assert!(start.elapsed() < NOTICED, "{:?}", start.elapsed());
}

/// What was said comes once to a provider that lives, whichever way of its connection is cut, and soon.
async fn comes_once(up: bool, down: bool) {
    let (seen, mut came) = mpsc::channel(64);
    let backend = Backend::new(move |mut socket| {
        let seen = seen.clone();
        async move {
            while let Ok(byte) = socket.read_u8().await {
                seen.send(byte).await.ok();
                socket.write_u8(byte).await.ok();
            }
        }
    })
    .await;
    let mut behind = Behind::new(backend).await;
    behind.target.options.silence = Some(Duration::from_secs(2));
    let _another = behind.another().await;
    let consumer = behind.world.consumer();
    let mut tasks = JoinSet::new();
    drop(consumer.carried(&mut tasks, &behind.target).await);
    end(&mut tasks).await.unwrap();
    assert_eq!(came.recv().await, Some(b'a'));
    behind.relay.pass(up, down);
    let start = Instant::now();
    let mut client = consumer.connect(&mut tasks, &behind.target).await;
    echoes(&mut client, b'e').await;
    assert!(start.elapsed() < NOTICED, "{:?}", start.elapsed());
    drop(client);
    end(&mut tasks).await.unwrap();
    assert_eq!(came.recv().await, Some(b'e'));
    assert!(came.try_recv().is_err(), "the early byte came twice");
    drop(behind.backend);
}

#[tokio::test]
async fn what_was_said_comes_once_if_the_provider_is_only_not_heard() {
    comes_once(false, true).await;
}

#[tokio::test]
async fn what_was_said_comes_once_if_the_provider_does_not_hear() {
    comes_once(true, false).await;
}

#[tokio::test]
async fn a_provider_that_dials_for_long_is_not_silent() {
    let mut world = World::new();
    world.provider_limits.dial_time = Duration::from_secs(2);
    let router = world.router("r").await;
    let deaf = Deaf::new().await;
    let (_provider, target) = world.echo(&router, deaf.addr).await;
    let consumer = world.consumer();
    let mut tasks = JoinSet::new();
    let _client = consumer.connect(&mut tasks, &target).await;
    let error = end(&mut tasks).await.unwrap_err();
    let late =
        matches!(&error, OpenError::Refused { code, .. } if *code == RefuseCode::BackendTimeout);
    assert!(late, "{error}");
    assert_eq!(world.metrics.router_suspicions.get(), 0);
}
