//! A whole node in one process: what `keel up` runs, and what tests start by the dozen.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use keel_certs::{ClusterName, DataDir, LiveIdentity, NodeName, PartLock, TrustDomain};
use keel_control::client::{Client, ClientConfig};
use keel_control::routes::RouterFlags;
use keel_control::syncer::{PeerStates, SyncMetrics};
use keel_control::transport::TransportMetrics;
use keel_fabric::metrics::FabricMetrics;
use keel_fabric::quic::HostPort;
use keel_sidecar::admin::Ready;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::apiserver::ControlPlane;
use super::metrics::MetricsPort;
use super::router::{RouterPart, RouterSettings};
use super::syncer::SyncerPart;
use crate::settings::{NodeSettings, Part};
use crate::telemetry::{ProcessCollector, Runtimes};

/// How long a stopping node may take to read its own last status.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// A node that is not running.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Starts a whole node and returns once everything listens. Port 0 in an address takes a free one; an advertised port 0
    /// stands for the one that the Router really got.
    ///
    /// # Errors
    /// A part cannot start; nothing is left running.
    pub async fn start(settings: NodeSettings) -> anyhow::Result<RunningNode> {
        let node = Self::start_unless(settings, &CancellationToken::new()).await?;
        // Invariant: nobody else has the token.
        node.context("the start was stopped")
    }

    /// As [`Node::start`]; `None` if `stop` comes first, with everything closed again.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_unless(
        settings: NodeSettings,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<RunningNode>> {
        if let Some(addr) = settings.dashboard_listen {
            info!(%addr, "--dashboard-listen: nothing served yet");
        }
        // First of all: whoever is there already has the ports, too, and that would be the lesser word.
        let data = DataDir::open(&settings.data_dir)?;
        let claims = [data.claim("router")?, data.claim("syncer")?];
        let mut registry = Registry::default();
        let runtimes = ProcessCollector::register(&mut registry, Handle::current());
        let transport = TransportMetrics::register(&mut registry);
        let sync = SyncMetrics::register(&mut registry);
        let fabric = FabricMetrics::register(&mut registry);
        let ready = Ready::default();
        let starting = ready.wait_for("router");
        let metrics = MetricsPort::start(settings.metrics_listen, registry, ready.clone()).await?;

        let flows = Some(Arc::clone(&fabric.pairs));
        let control =
            ControlPlane::start(&settings, data, Part::Node, transport, flows, stop).await?;
        let Some(mut control) = control else {
            metrics.stop().await;
            return Ok(None);
        };
        control.tell_readiness(ready.clone());
        let parts = stop
            .run_until_cancelled(parts(&settings, &control, sync, (fabric, runtimes)))
            .await;
        match parts.transpose() {
            Ok(Some((syncer, router))) => {
                let mut node = RunningNode {
                    data_dir: settings.data_dir,
                    cluster: settings.cluster,
                    router,
                    syncer,
                    control,
                    metrics,
                    ready,
                    _claims: claims,
                };
                node.control
                    .tell_of(node.router.context(), node.syncer.states());
                drop(starting);
                Ok(Some(node))
            }
            not_running => {
                // In order, so that the store is closed and the next start has nothing to repair.
                control.stop().await;
                metrics.stop().await;
                not_running.map(|_| None)
            }
        }
    }
}

/// What a node runs besides its control plane.
async fn parts(
    settings: &NodeSettings,
    control: &ControlPlane,
    sync: Arc<SyncMetrics>,
    (fabric, runtimes): (Arc<FabricMetrics>, Runtimes),
) -> anyhow::Result<(SyncerPart, RouterPart)> {
    let client = control.client()?;
    let router = RouterSettings {
        node: control.node.clone(),
        cluster: settings.cluster.clone(),
        flags: RouterFlags {
            listen: settings.router_listen,
            advertise: settings.advertise.clone(),
            identity_limit: settings.identity_limit,
            follow: settings.follow.clone(),
        },
        quic_dir: control.quic_dir(),
        status_interval: settings.status_interval,
        drain: settings.drain.clone(),
        limits: settings.limits.clone(),
        runtimes,
    };
    let router = RouterPart::start(router, control.live.clone(), client.clone(), fabric).await?;
    let syncer = SyncerPart::start(
        control.node.clone(),
        (&control.peers, control.peers_source(settings)),
        control.live.clone(),
        client,
        sync,
    );
    Ok((syncer, router))
}

/// A node that runs. [`RunningNode::stop`] ends it in order; dropping it ends it at once.
pub struct RunningNode {
    data_dir: PathBuf,
    cluster: ClusterName,
    router: RouterPart,
    syncer: SyncerPart,
    control: ControlPlane,
    metrics: MetricsPort,
    ready: Ready,
    _claims: [PartLock; 2],
}

impl std::fmt::Debug for RunningNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RunningNode({})", self.control.node)
    }
}

impl RunningNode {
    /// The node's name.
    pub fn node(&self) -> &NodeName {
        &self.control.node
    }

    /// The node's cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.control.trust_domain
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where the APIServer is reached from this machine.
    pub fn apiserver_addr(&self) -> SocketAddr {
        self.control.local_addr()
    }

    /// The same as a URL.
    pub fn apiserver_url(&self) -> String {
        format!("https://{}", self.apiserver_addr())
    }

    /// Where the Router is reached from this machine, with the port really bound.
    pub fn router_addrs(&self) -> Vec<SocketAddr> {
        self.router.context().borrow().node_addresses.clone()
    }

    /// Where other nodes reach the Router; empty behind NAT.
    pub fn router_addresses(&self) -> Vec<HostPort> {
        self.router.context().borrow().plan.addresses.clone()
    }

    /// Where metrics and health are served.
    pub fn metrics_addr(&self) -> SocketAddr {
        self.metrics.addr()
    }

    /// What readiness still waits for.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// How it goes with each peer.
    pub fn peers(&self) -> watch::Receiver<PeerStates> {
        self.syncer.states()
    }

    /// A client of the node's own APIServer, as the node itself.
    ///
    /// # Errors
    /// No socket is to be had.
    pub fn client(&self) -> anyhow::Result<Client> {
        self.control.client()
    }

    /// Ends only if a part of the node ends by itself: with what it said.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            error = self.router.ended() => error,
            error = self.syncer.ended() => error,
            error = self.control.ended() => error,
        }
    }

    /// Stops from right to left: no new flows, then no exchange, then no API; waits for everything.
    ///
    /// # Errors
    /// A part did not end well.
    pub async fn stop(self) -> anyhow::Result<()> {
        let not_ready = self.ready.wait_for("stopping");
        let client = self.control.client();
        let router = self.router.stop().await;
        let last = async {
            let status = client
                .ok()?
                .get_router(&self.control.node)
                .await
                .ok()?
                .status?;
            Some(status.source?.revision)
        };
        let last = timeout(LAST_LOOK, last).await.ok().flatten();
        self.syncer.stop(last).await;
        self.control.stop().await;
        self.metrics.stop().await;
        drop(not_ready);
        router.context("the router did not stop well")
    }
}

/// A client of the APIServer at `server`, which must belong to `node`.
pub(super) fn client(
    server: HostPort,
    node: &NodeName,
    live: &LiveIdentity,
) -> anyhow::Result<Client> {
    let config = ClientConfig {
        server,
        expect: node.clone(),
        live: live.clone(),
    };
    Client::new(config).context("no socket for a client of the APIServer")
}

#[cfg(test)]
mod tests;
