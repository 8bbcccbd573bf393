//! Opens whose answer is lost with the router: repeated, and delivered once.

use std::io::ErrorKind;
use std::sync::Arc;

use keel_fabric::EndReason;
use keel_fabric::consumer::{OpenError, Target};
use keel_fabric::metrics::{CodeLabels, FabricMetrics};
use keel_fabric::wire::AbortCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::backend::{Backend, Deaf};
use crate::relay::Relay;
use crate::world::{RunningProvider, RunningRouter, World, end, publication, soon, target};

/// Two routers with a provider at both, and a consumer that reaches the first one through a relay.
struct Twice {
    world: World,
    routers: [RunningRouter; 2],
    relay: Relay,
    /// Over the relay; flows go on over the other router.
    target: Target,
    /// The first byte of each connection that came.
    came: mpsc::Receiver<u8>,
    backend: Backend,
}

impl Twice {
    async fn new() -> (Self, RunningProvider) {
        let (seen, came) = mpsc::channel(64);
        let backend = Backend::new(move |mut socket| {
            let seen = seen.clone();
            async move {
                let Ok(first) = socket.read_u8().await else {
                    return;
                };
                seen.send(first).await.ok();
                socket.write_u8(first).await.ok();
                let mut rest = Vec::new();
                socket.read_to_end(&mut rest).await.ok();
            }
        })
        .await;
        let mut world = World::new();
        let routers = [world.router("r").await, world.router("q").await];
        let relay = Relay::to(&routers[0]).await;
        world.ways = vec![routers[1].peer.clone()];
        let subject = world.fabric.pod("b", "default", "p").identity().subject;
        let mut target = target("echo.default", 80, subject, &routers[0]);
        target.router = relay.peer.clone();
        let mut twice = Self {
            world,
            routers,
            relay,
            target,
            came,
            backend,
        };
        let provider = twice.provider().await;
        (twice, provider)
    }

    /// Another process of the provider's identity.
    async fn provider(&mut self) -> RunningProvider {
        let live = self.world.fabric.pod("b", "default", "p");
        let list = vec![publication("echo.default", 80, self.backend.addr)];
        let routers = [&self.routers[0], &self.routers[1]];
        let mut provider = self.world.provider(&live, &routers, list);
        provider.published().await;
        provider
    }
}

#[tokio::test]
async fn a_repeated_open_starts_nothing_in_a_process_that_is_younger_than_the_flow() {
    let (mut twice, mut provider) = Twice::new().await;
    let consumer = twice.world.consumer();
    soon(consumer.links.link(&twice.relay.peer)).await.unwrap();
    twice.relay.pass(true, false);
    let mut tasks = JoinSet::new();
    let mut client = consumer.connect(&mut tasks, &twice.target).await;
    client.write_all(b"e").await.unwrap();
    assert_eq!(soon(twice.came.recv()).await, Some(b'e'));
    provider.stop.cancel();
    soon(provider.done.wait_for(|done| *done)).await.unwrap();
    let _younger = twice.provider().await;
    let error = soon(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = end(&mut tasks).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Cut(AbortCode::PeerGone)),
        "{error}"
    );
    assert!(twice.came.try_recv().is_err(), "the early byte came twice");
}

#[tokio::test]
async fn an_open_that_never_arrived_is_asked_again_and_served_once() {
    let (mut twice, _provider) = Twice::new().await;
    let consumer = twice.world.consumer();
    soon(consumer.links.link(&twice.relay.peer)).await.unwrap();
    twice.relay.pass(false, true);
    let mut tasks = JoinSet::new();
    let mut client = consumer.connect(&mut tasks, &twice.target).await;
    client.write_all(b"e").await.unwrap();
    assert_eq!(soon(client.read_u8()).await.unwrap(), b'e');
    client.shutdown().await.unwrap();
    assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
    assert_eq!(twice.came.recv().await, Some(b'e'));
    assert!(twice.came.try_recv().is_err(), "the early byte came twice");
    let code = "NEVER_ARRIVED";
    let refusals = &twice.world.metrics.provider_refusals;
    assert_eq!(refusals.get_or_create(&CodeLabels { code }).get(), 1);
}

/// Waits until the router has not known a provider.
async fn refused(metrics: &FabricMetrics) {
    let labels = CodeLabels {
        code: "UNKNOWN_SERVICE",
    };
    let counted = async {
        while metrics.router_refusals.get_or_create(&labels).get() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    soon(counted).await;
}

/// Restarts the router while a backend is dialled, keeps the provider away from it until the open was repeated, and says
/// what came at the backend and at the client, which tries `others` as well wherever that is allowed.
async fn restarted(
    others: impl AsyncFnOnce(&mut World) -> (Vec<Target>, Option<Backend>),
) -> (Vec<u8>, Vec<u8>) {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let deaf = Deaf::new().await;
    let (provider, first) = world.echo(&router, deaf.addr).await;
    let mut targets = vec![first];
    let (others, _running) = others(&mut world).await;
    targets.extend(others);
    let consumer = world.consumer();
    let (mut client, mut flow) = consumer.flow().await;
    client.write_all(b"early").await.unwrap();
    let links = consumer.links.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for target in targets {
            if flow.open(&links, &target).await.is_ok() {
                break;
            }
        }
        flow.carry().await
    });
    router.shows(|view| view.totals.connections == 1).await;
    let peers = provider.routers.send_replace(Arc::default());
    router.shows(|view| view.services.is_empty()).await;
    router.stopped().await;
    let again = world.router_at("r", router.addr.into());
    refused(&world.metrics).await;
    provider.routers.send_replace(peers);

    let listener: TcpListener = deaf.hear();
    let (mut served, _) = soon(listener.accept()).await.unwrap();
    let mut came = [0; 5];
    soon(served.read_exact(&mut came)).await.unwrap();
    served.write_all(&came).await.unwrap();
    let mut echoed = [0; 5];
    soon(client.read_exact(&mut echoed)).await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(served.read_to_end(&mut rest)).await.unwrap();
    drop(served);
    let mut last = Vec::new();
    soon(client.read_to_end(&mut last)).await.unwrap();
    drop(again);
    ([&came[..], &rest].concat(), [&echoed[..], &last].concat())
}

#[tokio::test]
async fn a_router_that_restarts_before_the_answer_loses_and_doubles_nothing() {
    let (came, echoed) = restarted(async |_| (Vec::new(), None)).await;
    assert_eq!((&came[..], &echoed[..]), (&b"early"[..], &b"early"[..]));
}

#[tokio::test]
async fn an_open_without_an_answer_goes_to_no_other_provider() {
    let (seen, mut other) = mpsc::channel(64);
    let (came, echoed) = restarted(async |world: &mut World| {
        let backend = Backend::new(move |mut socket| {
            let seen = seen.clone();
            async move {
                let mut byte = [0];
                while socket.read_exact(&mut byte).await.is_ok() {
                    seen.try_send(byte[0]).ok();
                    socket.write_all(&byte).await.ok();
                }
            }
        })
        .await;
        let router = world.router("q").await;
        let live = world.fabric.pod("c", "default", "p");
        let list = vec![publication("echo.default", 80, backend.addr)];
        let mut provider = world.provider(&live, &[&router], list);
        provider.published().await;
        let target = target("echo.default", 80, live.identity().subject, &router);
        (vec![target], Some(backend))
    })
    .await;
    assert_eq!((&came[..], &echoed[..]), (&b"early"[..], &b"early"[..]));
    assert!(other.try_recv().is_err(), "bytes at a second provider");
}
