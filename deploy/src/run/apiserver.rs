//! The control plane of a node: its identity, its store, its API on the network and on the local sockets.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use keel_certs::{
    DataDir, INTERMEDIATE_LIFE, LiveIdentity, NodeAuthority, NodeName, RootAuthority, TrustDomain,
    rotate,
};
use keel_control::client::Client;
use keel_control::enroll::{Enrolment, EnrolmentConfig, LocalIssuer, LocalSockets, NodeInfo};
use keel_control::routes::ReportContext;
use keel_control::server::{Api, ApiConfig, prepare};
use keel_control::store::{Store, StoreConfig};
use keel_control::syncer::PeerStates;
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::metrics::Pairs;
use keel_fabric::quic::{HostPort, QuicKeys};
use keel_sidecar::admin::Ready;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::about::About;
use super::identity::{self, Established};
use super::node::client;
use super::peers::PeersSource;
use super::renewal::Renewal;
use super::{peers, ports};
use crate::errors::chain;
use crate::settings::{NodeSettings, Part, PeerArg, StoreUrl};

/// How long the store may take to write its last words.
const CLOSE: Duration = Duration::from_secs(5);

/// A running control plane. Holds the lock of the data directory.
pub(super) struct ControlPlane {
    pub(super) live: LiveIdentity,
    pub(super) node: NodeName,
    pub(super) trust_domain: TrustDomain,
    pub(super) peers: Vec<PeerArg>,
    addr: SocketAddr,
    about: About,
    store: Store,
    stop: CancellationToken,
    tasks: JoinSet<&'static str>,
    _stop_on_drop: DropGuard,
    /// Last, so that the lock is given back when everything else is gone.
    data: DataDir,
}

impl ControlPlane {
    /// Opens the store, finds out who the node is, and serves the API; `None` if `stop` comes before the node knows.
    /// `flows` is what the node's router counts, if it is in this process.
    pub(super) async fn start(
        settings: &NodeSettings,
        data: DataDir,
        part: Part,
        metrics: Arc<TransportMetrics>,
        flows: Option<Arc<Pairs>>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let mut settings = Cow::Borrowed(settings);
        let mut founds = false;
        let known = identity::held(&data)?;
        if known.is_none() {
            founds = settings.join.is_none() && identity::held_root(&data)?.is_none();
            if founds {
                identity::lost(&data)?;
            }
            ports::check(&settings, part)?;
            if let Some(source) = settings.join.clone()
                && identity::held_root(&data)?.is_none()
            {
                // It may be typed, or come from a pipe that says nothing: a signal must get through meanwhile.
                let read = tokio::task::spawn_blocking(move || source.held());
                let Some(held) = stop.run_until_cancelled(read).await else {
                    return Ok(None);
                };
                let join = identity::wanted_token(held?)?;
                settings.to_mut().join = Some(join);
            }
        }
        let settings = &*settings;
        // Before the node is made: one that fails to start must not leave a trust domain behind, nor have used up a token.
        let store = open(settings, &data, known.as_ref(), &metrics).await?;
        let establish = async {
            if founds && let Some(domain) = store.trust_domain() {
                return Err(anyhow!(
                    "the store {} belongs to trust domain {domain}, and this node would found another one: give --join with a token of \
                     {domain}, or name another database",
                    store.place()
                ));
            }
            let established = identity::establish(&data, settings).await?;
            store.claim(&established.authority.trust_domain()).await?;
            // On a full disk it waits for the next start, and all else is there.
            if let Err(error) = prepare(&store).await {
                let error = chain(&error);
                warn!(error, "the namespace \"default\" cannot be made now");
            }
            Ok(established)
        };
        let started = match stop.run_until_cancelled(Box::pin(establish)).await {
            Some(Ok(established)) => {
                Self::serve(settings, data, established, store.clone(), metrics, flows).map(Some)
            }
            Some(Err(error)) => Err(error),
            None => Ok(None),
        };
        if !matches!(started, Ok(Some(_))) {
            close(&store).await;
        }
        started
    }

    fn serve(
        settings: &NodeSettings,
        data: DataDir,
        established: Established,
        store: Store,
        metrics: Arc<TransportMetrics>,
        flows: Option<Arc<Pairs>>,
    ) -> anyhow::Result<Self> {
        let Established {
            authority,
            root,
            live,
            hosts,
            peers,
        } = established;
        let node = authority.node();
        // The root is where this node joined, whatever other peers it was given.
        let kept = peers::load(&data.peers())?;
        let first = NodeInfo {
            node: node.clone(),
            cluster: settings.cluster.clone(),
            trust_domain: authority.trust_domain(),
            apiserver: String::new(),
            routers: Vec::new(),
            token_endpoint: None,
            unreachable: None,
            peers: None,
        };
        let (info, info_now) = watch::channel(Arc::new(first));
        let config = EnrolmentConfig {
            info: info_now,
            hosts: hosts.clone(),
            leaf_life: settings.leaf_life,
            intermediate_life: INTERMEDIATE_LIFE,
            local_namespaces: settings.local_namespaces.iter().cloned().collect(),
            owner: nix::unistd::geteuid().as_raw(),
            root_node: if root.is_some() {
                None
            } else {
                kept.into_iter().next().map(|peer| peer.node)
            },
            flows,
        };
        let enrolment = Enrolment::new(config, authority.clone(), root, store.clone());
        let api = Api::counted(
            ApiConfig { node: node.clone() },
            store.clone(),
            Arc::new(enrolment.clone()),
            metrics.api(),
        );
        let expiry = api.clone();
        let keys = QuicKeys::load_or_create(&data.quic())
            .context("cannot have the APIServer's QUIC keys")?;
        let limits = Limits {
            connections: settings.apiserver_connections,
            ..Limits::default()
        };
        let server = ApiServer::bind(
            &settings.apiserver_listen,
            &live,
            &keys,
            Arc::new(api),
            limits,
            metrics,
        )
        .context(ports::API)?;
        let addr = reached_locally(&server.local_addrs())
            .ok_or_else(|| anyhow!("the APIServer listens nowhere"))?;
        let about = About {
            info,
            listen: settings.apiserver_listen,
            hosts: settings.advertise.clone(),
            addr,
        };
        about.tell(None);
        let sockets = LocalSockets::bind(&data)?;
        info!(listen = %settings.apiserver_listen, %addr, %node, trust_domain = %authority.trust_domain(), "APIServer listens");

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let named = |name: &'static str, work: futures_util::future::BoxFuture<'static, ()>| async move {
            work.await;
            name
        };
        tasks.spawn(named("the APIServer", Box::pin(server.run(stop.clone()))));
        tasks.spawn(named(
            "the local sockets",
            Box::pin(sockets.run(enrolment, stop.clone())),
        ));
        tasks.spawn(named(
            "the expiry of events",
            Box::pin(expiry.expire_events(settings.event_ttl, stop.clone())),
        ));
        let issuer = LocalIssuer {
            authority: authority.clone(),
            hosts: hosts.clone(),
            life: settings.leaf_life,
        };
        tasks.spawn(named(
            "the rotation",
            Box::pin(rotate(
                live.clone(),
                Arc::new(issuer),
                stop.clone().cancelled_owned(),
            )),
        ));
        let trust_domain = authority.trust_domain();
        let renewal = Renewal {
            path: data.path().to_owned(),
            authority,
            root: RootAuthority::load(&data)?,
            hosts,
            live: live.clone(),
            leaf_life: settings.leaf_life,
            peers: PeersSource::new(settings, data.peers()),
        };
        tasks.spawn(named(
            "the renewal of the intermediate",
            Box::pin(renewal.run(stop.clone())),
        ));

        let stop_on_drop = stop.clone().drop_guard();
        let this = Self {
            live,
            node,
            trust_domain,
            peers,
            addr,
            about,
            store,
            stop,
            tasks,
            _stop_on_drop: stop_on_drop,
            data,
        };
        Ok(this)
    }

    /// Where the APIServer is reached from this machine.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the peers come from, now and later.
    pub(super) fn peers_source(&self, settings: &NodeSettings) -> PeersSource {
        PeersSource::new(settings, self.data.peers())
    }

    pub(super) fn quic_dir(&self) -> PathBuf {
        self.data.quic()
    }

    /// A client of the own APIServer, as the node itself.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        client(HostPort::from(self.addr), &self.node, &self.live)
    }

    /// Tells workloads and joiners where the Router is, and admins how it goes with each peer, now and whenever it changes.
    pub(super) fn tell_of(
        &mut self,
        router: watch::Receiver<Arc<ReportContext>>,
        peers: watch::Receiver<PeerStates>,
    ) {
        self.about.tell(Some(&router.borrow()));
        let router = self.about.clone().follow_router(router, self.stop.clone());
        let peers = self.about.clone().follow_peers(peers, self.stop.clone());
        self.tasks.spawn(async move {
            tokio::join!(router, peers);
            "the node's information"
        });
    }

    /// Makes readiness wait for the store whenever its database is away.
    pub(super) fn tell_readiness(&mut self, ready: Ready) {
        let (mut reachable, stop) = (self.store.reachable(), self.stop.clone());
        self.tasks.spawn(async move {
            let mut away = None;
            loop {
                away = match *reachable.borrow_and_update() {
                    true => None,
                    false => away.or_else(|| Some(ready.wait_for("store"))),
                };
                let changed = stop.run_until_cancelled(reachable.changed()).await;
                if !matches!(changed, Some(Ok(()))) {
                    break;
                }
            }
            // Nobody says more of a file.
            stop.cancelled().await;
            "the store's readiness"
        });
    }

    /// Ends only if a part ends by itself.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(name)) => anyhow!("{name} ended by itself"),
            Some(Err(error)) => {
                anyhow::Error::new(error).context("a part of the control plane failed")
            }
            None => anyhow!("the control plane ended by itself"),
        }
    }

    /// Stops serving, then closes the store, then gives the directory back.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        close(&self.store).await;
        drop(self.data);
    }
}

async fn open(
    settings: &NodeSettings,
    data: &DataDir,
    known: Option<&NodeAuthority>,
    metrics: &TransportMetrics,
) -> anyhow::Result<Store> {
    let config = StoreConfig {
        damaged: metrics.damaged(),
        ..StoreConfig::default()
    };
    let path = match &settings.store {
        Some(StoreUrl::Postgres(url)) => {
            let store = Store::connect(url, config).await;
            return store.context("cannot open the store in PostgreSQL");
        }
        Some(StoreUrl::Sqlite(path)) => path.clone(),
        None => data.store(),
    };
    if let Some(known) = known
        && std::fs::metadata(&path).map_or(0, |file| file.len()) == 0
    {
        warn!(
            node = %known.node(), store = %path.display(),
            "this node has been here before, but its store is not: an empty one is made. If it is kept elsewhere, stop, and name it with \
             --store or KEEL_STORE"
        );
    }
    let store = Store::open(&path, config).await;
    store.with_context(|| format!("cannot open the store {}", path.display()))
}

async fn close(store: &Store) {
    if timeout(CLOSE, store.close()).await.is_err() {
        warn!("the store did not close in time; it is repaired at the next start");
    }
}

/// How a listener is reached from this machine; loopback stands for "every address".
fn reached_locally(bound: &[SocketAddr]) -> Option<SocketAddr> {
    let first = bound.first()?;
    let ip = match first.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some(SocketAddr::new(ip, first.port()))
}
