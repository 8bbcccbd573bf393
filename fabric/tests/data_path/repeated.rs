//! Opens whose answer is lost with the router: repeated, and delivered once.

use std::sync::Arc;

use keel_fabric::consumer::Target;
use keel_fabric::metrics::{CodeLabels, FabricMetrics};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::backend::{Backend, Deaf};
use crate::world::{World, publication, soon, target};

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
