//! The parts of a node as processes of their own, on one data directory: the APIServer owns it, the others get the node's
//! identity from its `admin.sock`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use keel_certs::{DataDir, LiveIdentity, PartLock, rotate};
use keel_control::client::Client;
use keel_control::enroll::{LocalError, NodeInfo, NodeSocketIssuer, local};
use keel_control::routes::RouterFlags;
use keel_control::syncer::SyncMetrics;
use keel_control::transport::TransportMetrics;
use keel_fabric::metrics::FabricMetrics;
use keel_sidecar::admin::{NotReady, Ready};
use keel_sidecar::config::parse_apiserver;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::apiserver::ControlPlane;
use super::metrics::MetricsPort;
use super::node;
use super::peers::PeersSource;
use super::router::{RouterPart, RouterSettings};
use super::syncer::SyncerPart;
use crate::errors::chain;
use crate::settings::{NodeSettings, Part};
use crate::telemetry::{ProcessCollector, Runtimes};

fn registry() -> (Registry, Runtimes) {
    let mut registry = Registry::default();
    let runtimes = ProcessCollector::register(&mut registry, Handle::current());
    (registry, runtimes)
}

/// `keel-apiserver`: owns the data directory, its identities and its sockets.
///
/// # Errors
/// It cannot start, or a part of it failed.
pub async fn apiserver(settings: NodeSettings, stop: CancellationToken) -> anyhow::Result<()> {
    let data = DataDir::open(&settings.data_dir)?;
    let (mut registry, _) = registry();
    let transport = TransportMetrics::register(&mut registry);
    let ready = Ready::default();
    let starting = ready.wait_for("apiserver");
    let metrics = MetricsPort::start(settings.metrics_listen, registry, ready.clone()).await?;
    let control =
        ControlPlane::start(&settings, data, Part::ApiServer, transport, None, &stop).await?;
    let Some(mut control) = control else {
        metrics.stop().await;
        return Ok(());
    };
    control.tell_readiness(ready);
    drop(starting);
    info!(node = %control.node, apiserver = %control.local_addr(), metrics = %metrics.addr(), "ready");
    let outcome = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        error = control.ended() => Err(error),
    };
    control.stop().await;
    metrics.stop().await;
    outcome
}

/// `keel-router`: the Router alone.
///
/// # Errors
/// As [`apiserver`].
pub async fn router(settings: NodeSettings, stop: CancellationToken) -> anyhow::Result<()> {
    if let Some(addr) = settings.dashboard_listen {
        info!(%addr, "--dashboard-listen: nothing served yet");
    }
    let (mut registry, runtimes) = registry();
    let fabric = FabricMetrics::register(&mut registry);
    let Some(guest) = Guest::start("router", &settings, registry, &stop).await? else {
        return Ok(());
    };
    let access = &guest.access;
    let flags = RouterFlags {
        listen: settings.router_listen,
        advertise: settings.advertise.clone(),
        identity_limit: settings.identity_limit,
        follow: settings.follow.clone(),
    };
    let router = RouterSettings {
        node: access.info.node.clone(),
        cluster: access.info.cluster.clone(),
        flags,
        quic_dir: access.data.quic(),
        status_interval: settings.status_interval,
        drain: settings.drain.clone(),
        limits: settings.limits.clone(),
        runtimes,
    };
    let mut router =
        RouterPart::start(router, access.live.clone(), access.client()?, fabric).await?;
    let guest = guest.ready();
    let outcome = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        error = router.ended() => Err(error),
    };
    stop.cancel();
    let stopped = router.stop().await;
    guest.stop().await;
    outcome.and(stopped)
}

/// `keel-syncer`: the Syncer alone.
///
/// # Errors
/// As [`apiserver`].
pub async fn syncer(settings: NodeSettings, stop: CancellationToken) -> anyhow::Result<()> {
    let (mut registry, _) = registry();
    let sync = SyncMetrics::register(&mut registry);
    let Some(guest) = Guest::start("syncer", &settings, registry, &stop).await? else {
        return Ok(());
    };
    let access = &guest.access;
    let source = PeersSource::new(&settings, access.data.peers());
    let peers = source.read()?;
    if peers.is_empty() {
        warn!(
            "no peers yet: nothing is exchanged; name some with --peer NAME=HOST:PORT, or in the --config file"
        );
    }
    let mut syncer = SyncerPart::start(
        access.info.node.clone(),
        (&peers, source),
        access.live.clone(),
        access.client()?,
        sync,
    );
    let guest = guest.ready();
    let outcome = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        error = syncer.ended() => Err(error),
    };
    stop.cancel();
    syncer.stop(None).await;
    guest.stop().await;
    outcome
}

/// What every part apart from the APIServer runs besides itself.
struct Guest {
    access: Access,
    rotation: JoinSet<()>,
    metrics: MetricsPort,
    starting: Option<NotReady>,
    _lock: PartLock,
}

impl Guest {
    /// Serves metrics, then waits for the APIServer; `None` if `stop` comes first.
    async fn start(
        part: &'static str,
        settings: &NodeSettings,
        registry: Registry,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let ready = Ready::default();
        let starting = ready.wait_for("apiserver");
        let metrics = MetricsPort::start(settings.metrics_listen, registry, ready).await?;
        let Some(access) = Access::wait(settings, stop).await? else {
            metrics.stop().await;
            return Ok(None);
        };
        let lock = access.data.claim(part)?;
        Ok(Some(Self {
            _lock: lock,
            rotation: access.rotate(stop),
            access,
            metrics,
            starting: Some(starting),
        }))
    }

    /// The part works now.
    fn ready(mut self) -> Self {
        self.starting = None;
        info!(node = %self.access.info.node, metrics = %self.metrics.addr(), "ready");
        self
    }

    /// Waits for what `stop` ended.
    async fn stop(mut self) {
        while self.rotation.join_next().await.is_some() {}
        self.metrics.stop().await;
    }
}

/// What a part that runs apart from the APIServer gets from its `admin.sock`.
struct Access {
    /// Read only: the lock is the APIServer's.
    data: DataDir,
    info: NodeInfo,
    live: LiveIdentity,
}

/// Between two looks for the APIServer.
const LOOK: Duration = Duration::from_secs(1);
/// Between two lines that say that there is none.
const SAY: Duration = Duration::from_secs(30);

impl Access {
    /// Waits for the APIServer of the data directory; `None` if `stop` comes first.
    async fn wait(
        settings: &NodeSettings,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let data = DataDir::peek(&settings.data_dir);
        let mut said: Option<Instant> = None;
        loop {
            match Self::get(&data).await {
                Ok((info, live)) => {
                    info!(node = %info.node, apiserver = %info.apiserver, "identity found");
                    return Ok(Some(Self { data, info, live }));
                }
                Err(error) if error.is_retryable() => {
                    if said.is_none_or(|at| at.elapsed() >= SAY) {
                        warn!("waiting for the APIServer: {}", chain(&error));
                        said = Some(Instant::now());
                    }
                }
                Err(error) => return Err(error).context("the APIServer gives no identity"),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                () = sleep(LOOK) => {}
            }
        }
    }

    async fn get(data: &DataDir) -> Result<(NodeInfo, LiveIdentity), LocalError> {
        let socket = data.admin_sock();
        Ok((
            local::info(&socket).await?,
            local::node_identity(&socket).await?,
        ))
    }

    fn client(&self) -> anyhow::Result<Client> {
        let server =
            parse_apiserver(&self.info.apiserver).context("the APIServer names no address")?;
        let socket = self.data.admin_sock();
        let finder = move || -> BoxFuture<'static, _> {
            let socket = socket.clone();
            Box::pin(async move {
                let info = local::info(&socket).await.ok()?;
                parse_apiserver(&info.apiserver).ok()
            })
        };
        let client = node::client(server, &self.info.node, &self.live)?;
        Ok(client.found_by(Box::new(finder)))
    }

    fn rotate(&self, stop: &CancellationToken) -> JoinSet<()> {
        let issuer = Arc::new(NodeSocketIssuer {
            socket: self.data.admin_sock(),
        });
        let mut task = JoinSet::new();
        task.spawn(rotate(
            self.live.clone(),
            issuer,
            stop.clone().cancelled_owned(),
        ));
        task
    }
}
