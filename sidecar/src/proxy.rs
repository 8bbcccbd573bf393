//! One connection from accept to its end: the consumer's path, top to bottom.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keel_fabric::consumer::{ConsumerConfig, ConsumerFlow, OpenError, Target};
use keel_fabric::link::Links;
use keel_fabric::wire::Protocol;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::directory::{Candidate, Directory};
use crate::metrics::SidecarMetrics;
use crate::pick::{Here, pick};
use crate::spec::ServiceRef;

/// The pause before providers that could not be reached are tried once more; those that refused are not.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Who provides what.
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    /// Connections to routers; `None` until there is an identity.
    pub(crate) links: watch::Receiver<Option<Links>>,
    /// Settings of the consumer's end of flows.
    pub(crate) consumer: ConsumerConfig,
    /// How long a connection waits for a provider.
    pub(crate) connect_timeout: Duration,
    /// Counters.
    pub(crate) metrics: Arc<SidecarMetrics>,
}

/// Why no provider took a connection.
#[derive(Debug, thiserror::Error)]
enum Unserved {
    #[error("the sidecar has no identity yet")]
    NoIdentity,
    #[error("nobody provides it")]
    NoProvider,
    #[error("{0}")]
    Open(OpenError),
    #[error("no answer in time")]
    NoAnswer,
}

/// Carries one accepted connection: picks a provider, opens a flow, tries the next one if that one refuses or is gone, and
/// copies until both directions have ended. If nobody takes it the client gets an RST: at once when somebody refused, at
/// the connect timeout when nobody was there. Dropping the future resets the client.
pub(crate) async fn serve(
    proxy: &Proxy,
    stream: TcpStream,
    from: SocketAddr,
    target: &ServiceRef,
    port: u16,
) {
    proxy.metrics.connections_accepted.inc();
    let mut flow = ConsumerFlow::new(stream, proxy.consumer.clone());
    // The end is logged and counted by the flow itself, with bytes, duration and reason.
    let _ = match open(proxy, &mut flow, target, port).await {
        Ok(()) => flow.carry().await,
        Err(Unserved::Open(OpenError::ClientGone)) => flow.reset(),
        Err(why) => {
            proxy.metrics.connections_unserved.inc();
            tracing::info!(target: "keel::flow", service = %target, port, client = %from, "connection reset: {why}");
            flow.reset()
        }
    };
    proxy.metrics.connections_closed.inc();
}

async fn open(
    proxy: &Proxy,
    flow: &mut ConsumerFlow,
    target: &ServiceRef,
    port: u16,
) -> Result<(), Unserved> {
    let deadline = Instant::now() + proxy.connect_timeout;
    let mut directory = proxy.directory.clone();
    let links = identified(proxy, deadline).await?;
    let mut tried: Vec<Candidate> = Vec::new();
    let mut refused = None;
    let mut unreachable = None;
    loop {
        let now = directory.borrow_and_update().clone();
        let Some(candidate) = next(&now, &links, target, port, &tried) else {
            // Somebody answered: the client hears of it at once. Nobody did: one may still come.
            if let Some(error) = refused {
                return Err(Unserved::Open(error));
            }
            let again = async {
                tokio::select! {
                    changed = directory.changed() => if changed.is_err() { std::future::pending::<()>().await },
                    () = sleep(RETRY_PAUSE), if !tried.is_empty() => {}
                }
            };
            if timeout_at(deadline, again).await.is_err() {
                return Err(unreachable.map_or(Unserved::NoProvider, Unserved::Open));
            }
            tried.clear();
            continue;
        };
        let one = Target {
            service: target.service.clone(),
            port,
            provider: candidate.provider.clone(),
            router: (*candidate.router).clone(),
        };
        match timeout_at(deadline, flow.open(&links, &one)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if error.elsewhere() => {
                tracing::debug!(service = %target, port, provider = %one.provider, router = %one.router.node, %error, "trying the next provider");
                match error {
                    OpenError::Refused { .. } => refused = Some(error),
                    _ => unreachable = Some(error),
                }
                tried.push(candidate);
            }
            Ok(Err(error)) => return Err(Unserved::Open(error)),
            Err(_) => return Err(unreachable.map_or(Unserved::NoAnswer, Unserved::Open)),
        }
    }
}

/// The connections to routers, once there is an identity to make them with.
async fn identified(proxy: &Proxy, deadline: Instant) -> Result<Links, Unserved> {
    let mut links = proxy.links.clone();
    match timeout_at(deadline, links.wait_for(Option::is_some)).await {
        Ok(Ok(links)) => links.clone().ok_or(Unserved::NoIdentity),
        _ => Err(Unserved::NoIdentity),
    }
}

fn next(
    directory: &Directory,
    links: &Links,
    target: &ServiceRef,
    port: u16,
    tried: &[Candidate],
) -> Option<Candidate> {
    let here = Here {
        node: directory.own_node(),
        cluster: directory.own_cluster(),
    };
    let latency = |candidate: &Candidate| links.rtt(&candidate.router.node);
    pick(
        directory.candidates(target, port, Protocol::Tcp),
        tried,
        here,
        latency,
        &mut rand::rng(),
    )
    .cloned()
}
