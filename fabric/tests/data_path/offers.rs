//! How publications say that they want to be chosen, and when an open may go to another provider.

use std::time::Duration;

use keel_fabric::consumer::OpenError;
use keel_fabric::options::{Check, Probe};
use keel_fabric::provider::Publication;
use keel_fabric::router::RouterView;
use keel_fabric::wire::{Health, Offer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::backend::{Backend, Deaf};
use crate::world::{World, publication, soon};

fn checked(mut publication: Publication) -> Publication {
    publication.options.weight = 7;
    publication.options.priority = 2;
    publication.options.check = Some(Check {
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        failures: 2,
        recoveries: 2,
        ..Check::new(Probe::Tcp)
    });
    publication
}

/// The only offer of a router, with its age.
fn offer(view: &RouterView) -> Option<Offer> {
    Some(view.services.first()?.providers.first()?.offer)
}

fn is(health: Health) -> impl FnMut(&std::sync::Arc<RouterView>) -> bool {
    let wanted = Offer {
        weight: 7,
        priority: 2,
        health,
    };
    move |view| offer(view) == Some(wanted)
}

#[tokio::test]
async fn routers_hear_of_the_health_of_a_published_backend() {
    let mut world = World::new();
    // A change replaces the publication: there is no room for a second one.
    world.router_limits.publications = 1;
    let mut router = world.router("r").await;
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = backend.local_addr().unwrap();
    let live = world.fabric.pod("b", "default", "p");
    let list = vec![checked(publication("web.default", 80, addr))];
    let mut provider = world.provider(&live, &[&router], list);
    provider.published().await;
    let first = router.shows(is(Health::Healthy)).await;
    drop(backend);
    let sick = router.shows(is(Health::Unhealthy)).await;
    let since = |view: &RouterView| view.services[0].providers[0].since;
    assert_eq!(since(&first), since(&sick));
    let _backend = TcpListener::bind(addr).await.unwrap();
    router.shows(is(Health::Healthy)).await;
    provider
        .publications
        .send_replace(std::sync::Arc::default());
    router.shows(|view| view.services.is_empty()).await;
}

#[tokio::test]
async fn a_router_checks_the_backends_that_it_dials_itself() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = backend.local_addr().unwrap();
    let list = vec![checked(publication("web.default", 80, addr))];
    router.backends.send_replace(list.into());
    router.shows(is(Health::Healthy)).await;
    drop(backend);
    router.shows(is(Health::Unhealthy)).await;
    let plain = vec![publication("web.default", 80, addr)];
    router.backends.send_replace(plain.into());
    router
        .shows(|view| offer(view) == Some(Offer::default()))
        .await;
}

#[tokio::test]
async fn an_open_without_an_answer_is_given_up_for_another_provider_if_nothing_was_said() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let deaf = Deaf::new().await;
    let (_provider, mut silent) = world.echo(&router, deaf.addr).await;
    silent.options.patience = Some(Duration::from_millis(200));
    let backend = Backend::new(|mut socket| async move {
        socket.write_all(b"banner").await.ok();
        tokio::io::copy(&mut socket, &mut tokio::io::sink())
            .await
            .ok();
    })
    .await;
    let live = world.fabric.pod("c", "default", "p");
    let list = vec![publication("echo.default", 80, backend.addr)];
    let mut other = world.provider(&live, &[&router], list);
    other.published().await;
    let mut target = silent.clone();
    target.provider = live.identity().subject;

    let consumer = world.consumer();
    let (mut client, mut flow) = consumer.flow().await;
    let error = soon(flow.open(&consumer.links, &silent)).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Unanswered) && error.elsewhere(),
        "{error}"
    );
    soon(flow.open(&consumer.links, &target)).await.unwrap();
    let mut carried = tokio::task::JoinSet::new();
    carried.spawn(flow.carry());
    let mut banner = [0; 6];
    soon(client.read_exact(&mut banner)).await.unwrap();
    assert_eq!(&banner, b"banner");
    // The one that was given up is told: its end does not wait for the flow to come back.
    router.shows(|view| view.totals.connections == 1).await;
    client.shutdown().await.unwrap();
    drop(client);
    soon(carried.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_open_without_an_answer_is_waited_for_if_something_was_said() {
    let mut world = World::new();
    let router = world.router("r").await;
    let deaf = Deaf::new().await;
    let (_provider, mut silent) = world.echo(&router, deaf.addr).await;
    silent.options.patience = Some(Duration::from_millis(100));
    let consumer = world.consumer();
    let (mut client, mut flow) = consumer.flow().await;
    client.write_all(b"early").await.unwrap();
    let mut opening = Box::pin(flow.open(&consumer.links, &silent));
    // Its patience is over long before.
    let early = tokio::time::timeout(Duration::from_millis(400), &mut opening).await;
    assert!(early.is_err(), "{early:?}");
    let listener = deaf.hear();
    let (opened, served) = tokio::join!(soon(opening), soon(listener.accept()));
    opened.unwrap();
    let (mut served, _) = served.unwrap();
    let mut carried = tokio::task::JoinSet::new();
    carried.spawn(flow.carry());
    let mut came = [0; 5];
    soon(served.read_exact(&mut came)).await.unwrap();
    assert_eq!(&came, b"early");
    drop((served, client));
    soon(carried.join_next()).await.unwrap().unwrap();
}
