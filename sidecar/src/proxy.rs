//! One connection from accept to its end: the consumer's path, top to bottom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keel_certs::NodeName;
use keel_fabric::EndReason;
use keel_fabric::consumer::{ConsumerConfig, ConsumerFlow, OpenError, Target};
use keel_fabric::link::{LinkError, Links};
use keel_fabric::wire::{Protocol, RefuseCode};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::directory::{Candidate, Directory};
use crate::metrics::SidecarMetrics;
use crate::options::AllOptions;
use crate::pick::{Here, pick};
use crate::spec::ServiceRef;

/// The pause before providers that could not be reached are tried once more; those that refused are not.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How long a router may take to be reached while another way is left. A handshake takes two round trips and half a second
/// over the worst of links; a router that does not answer costs its deadline only where there is nothing better.
const REACH_TIME: Duration = Duration::from_millis(1500);

/// For how long a router that was not reached is tried last.
const AWAY_TIME: Duration = Duration::from_secs(5);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Who provides what.
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    /// Connections to routers; `None` until there is an identity.
    pub(crate) links: watch::Receiver<Option<Links>>,
    /// What is said about single services.
    pub(crate) options: Arc<AllOptions>,
    /// Settings of the consumer's end of flows.
    pub(crate) consumer: ConsumerConfig,
    /// How long a connection waits for a provider.
    pub(crate) connect_timeout: Duration,
    /// Counters.
    pub(crate) metrics: Arc<SidecarMetrics>,
    /// Routers that could not be reached lately.
    pub(crate) away: Away,
}

/// When each router was last found to be away; no more entries than there are routers. A short map touch, never held
/// across an await.
#[derive(Debug, Default)]
pub(crate) struct Away(Mutex<BTreeMap<NodeName, Instant>>);

impl Away {
    fn note(&self, node: &NodeName) {
        self.lock().insert(node.clone(), Instant::now());
    }

    fn is_away(&self, node: &NodeName) -> bool {
        let mut all = self.lock();
        let away = all.get(node).map(|at| at.elapsed() < AWAY_TIME);
        if away == Some(false) {
            all.remove(node);
        }
        away == Some(true)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    let service = (target.service.clone(), port);
    let mut flow = ConsumerFlow::new(stream, service, proxy.consumer.clone());
    // The end is logged and counted by the flow itself, with bytes, duration and reason.
    let _ = match open(proxy, &mut flow, target, port).await {
        Ok(()) => flow.carry().await,
        Err(Unserved::Open(OpenError::ClientGone)) => flow.reset(),
        Err(why) => {
            proxy.metrics.connections_unserved.inc();
            tracing::debug!(service = %target, port, client = %from, "connection reset: {why}");
            flow.unserved(match why {
                Unserved::NoIdentity => EndReason::NoIdentity,
                Unserved::NoProvider => EndReason::NoProvider,
                Unserved::Open(_) | Unserved::NoAnswer => EndReason::NoAnswer,
            })
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
    let links = tokio::select! {
        links = identified(proxy, deadline) => links?,
        gone = flow.gone() => return Err(Unserved::Open(gone)),
    };
    let mut tried: Vec<Candidate> = Vec::new();
    let mut refused = None;
    let mut unreachable = None;
    loop {
        let now = directory.borrow_and_update().clone();
        let ways: Vec<&Candidate> = now.candidates(target, port, Protocol::Tcp).collect();
        let Some(candidate) = next(proxy, &now, &ways, &links, &tried) else {
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
            let waited = tokio::select! {
                waited = timeout_at(deadline, again) => waited,
                gone = flow.gone() => return Err(Unserved::Open(gone)),
            };
            if waited.is_err() {
                return Err(unreachable.map_or(Unserved::NoProvider, Unserved::Open));
            }
            tried.clear();
            continue;
        };
        let router = &candidate.router.node;
        let another = |now: &Directory| {
            now.candidates(target, port, Protocol::Tcp)
                .any(|way| way.router.node != *router && !tried.contains(way))
        };
        let patience = deadline.min(Instant::now() + REACH_TIME);
        let reached = tokio::select! {
            reached = links.link(&candidate.router) => reached,
            gone = flow.gone() => return Err(Unserved::Open(gone)),
            () = better(&mut directory, another, patience, deadline) => {
                Err(LinkError::TimedOut { node: router.clone() })
            }
        };
        if let Err(error) = reached {
            tracing::debug!(service = %target, port, %router, %error, "router not reached, trying another way");
            proxy.away.note(router);
            // Whoever is behind that router is not reached through it either.
            tried.extend(
                ways.iter()
                    .filter(|way| way.router.node == *router)
                    .map(|way| (*way).clone()),
            );
            unreachable = Some(OpenError::NoRouter(error));
            continue;
        }
        let one = Target {
            service: target.service.clone(),
            port,
            provider: candidate.provider.clone(),
            router: (*candidate.router).clone(),
            options: proxy.options.of(&target.service, port).flow(),
        };
        match timeout_at(deadline, flow.open(&links, &one)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if error.elsewhere() => {
                tracing::debug!(service = %target, port, provider = %one.provider, %router, %error, "trying the next provider");
                if is_answer(&error) {
                    refused = Some(error);
                } else {
                    unreachable = Some(error);
                }
                tried.push(candidate.clone());
            }
            Ok(Err(error)) => return Err(Unserved::Open(error)),
            Err(_) => return Err(unreachable.map_or(Unserved::NoAnswer, Unserved::Open)),
        }
    }
}

/// Whether somebody said no. A backend that says nothing may still do so until the connection's own deadline.
fn is_answer(error: &OpenError) -> bool {
    matches!(error, OpenError::Refused { code, .. } if *code != RefuseCode::BackendTimeout)
}

/// Returns when it is no use to wait any longer for a router: from `patience` on as soon as there is `another` one to try,
/// at the `deadline` in any case.
async fn better(
    directory: &mut watch::Receiver<Arc<Directory>>,
    another: impl Fn(&Directory) -> bool,
    patience: Instant,
    deadline: Instant,
) {
    sleep_until(patience).await;
    let found = async { directory.wait_for(|now| another(now)).await.is_ok() };
    if timeout_at(deadline, found).await != Ok(true) {
        sleep_until(deadline).await;
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

fn next<'a>(
    proxy: &Proxy,
    directory: &Directory,
    ways: &[&'a Candidate],
    links: &Links,
    tried: &[Candidate],
) -> Option<&'a Candidate> {
    let here = Here {
        node: directory.own_node(),
        cluster: directory.own_cluster(),
    };
    let away = |way: &Candidate| proxy.away.is_away(&way.router.node);
    let latency = |way: &Candidate| links.rtt(&way.router.node);
    pick(
        ways.iter().copied(),
        tried,
        here,
        away,
        latency,
        &mut rand::rng(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_says_nothing_is_waited_for_until_the_deadline() {
        let refused = |code| OpenError::Refused {
            code,
            text: String::new(),
        };
        assert!(is_answer(&refused(RefuseCode::BackendRefused)));
        assert!(!is_answer(&refused(RefuseCode::BackendTimeout)));
    }
}
