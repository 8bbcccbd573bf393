//! The control plane of a node: its identity, its store, its API on the network and on the local sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use keel_certs::{
    DataDir, INTERMEDIATE_LIFE, LiveIdentity, NodeName, RootAuthority, TrustDomain, rotate,
};
use keel_control::client::Client;
use keel_control::enroll::{Enrolment, EnrolmentConfig, LocalIssuer, LocalSockets, NodeInfo};
use keel_control::routes::ReportContext;
use keel_control::server::{Api, ApiConfig};
use keel_control::store::{Store, StoreConfig};
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::quic::{HostPort, ListenAddr, QuicKeys};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::identity::{self, Established};
use super::node::client;
use super::renewal::Renewal;
use crate::settings::{NodeSettings, PeerArg};

/// How long the store may take to write its last words.
const CLOSE: Duration = Duration::from_secs(5);

/// A running control plane. Holds the lock of the data directory.
pub(super) struct ControlPlane {
    pub(super) live: LiveIdentity,
    pub(super) node: NodeName,
    pub(super) trust_domain: TrustDomain,
    pub(super) peers: Vec<PeerArg>,
    addr: SocketAddr,
    advertised: Advertised,
    info: watch::Sender<Arc<NodeInfo>>,
    store: Store,
    stop: CancellationToken,
    tasks: JoinSet<&'static str>,
    _stop_on_drop: DropGuard,
    /// Last, so that the lock is given back when everything else is gone.
    data: DataDir,
}

impl ControlPlane {
    /// Opens the data directory, finds out who the node is, and serves the API.
    pub(super) async fn start(
        settings: &NodeSettings,
        metrics: Arc<TransportMetrics>,
    ) -> anyhow::Result<Self> {
        let data = DataDir::open(&settings.data_dir)?;
        let Established {
            authority,
            root,
            live,
            hosts,
            peers,
        } = identity::establish(&data, settings).await?;
        let node = authority.node();
        let path = settings.store.clone().unwrap_or_else(|| data.store());
        let store = Store::open(&path, StoreConfig::default())
            .await
            .with_context(|| format!("cannot open the store {}", path.display()))?;

        let advertised = Advertised {
            listen: settings.apiserver_listen,
            hosts: settings.advertise.clone(),
        };
        let first = NodeInfo {
            node: node.clone(),
            cluster: settings.cluster.clone(),
            trust_domain: authority.trust_domain(),
            apiserver: String::new(),
            routers: Vec::new(),
            token_endpoint: None,
            unreachable: None,
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
                peers.first().map(|peer| peer.node.clone())
            },
        };
        let enrolment = Enrolment::new(config, authority.clone(), root, store.clone());
        let api = Api::new(
            ApiConfig { node: node.clone() },
            store.clone(),
            Arc::new(enrolment.clone()),
        );
        let keys = QuicKeys::load_or_create(&data.quic())
            .context("cannot have the APIServer's QUIC keys")?;
        let server = ApiServer::bind(
            &settings.apiserver_listen,
            &live,
            &keys,
            Arc::new(api),
            Limits::default(),
            metrics,
        )
        .context("the APIServer cannot listen")?;
        let addr = reached_locally(&server.local_addrs())
            .ok_or_else(|| anyhow!("the APIServer listens nowhere"))?;
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
            peers: peers.clone(),
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
            advertised,
            info,
            store,
            stop,
            tasks,
            _stop_on_drop: stop_on_drop,
            data,
        };
        this.tell(Vec::new(), &[]);
        Ok(this)
    }

    /// Where the APIServer is reached from this machine.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn quic_dir(&self) -> PathBuf {
        self.data.quic()
    }

    /// A client of the own APIServer, as the node itself.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        client(HostPort::from(self.addr), &self.node, &self.live)
    }

    /// Tells workloads and joiners where the Router is, now and whenever it moves.
    pub(super) fn publish_router(&mut self, mut context: watch::Receiver<Arc<ReportContext>>) {
        let (info, advertised, addr, stop) = (
            self.info.clone(),
            self.advertised.clone(),
            self.addr,
            self.stop.clone(),
        );
        let now = context.borrow_and_update().clone();
        self.tell(texts(&now.node_addresses), &now.plan.addresses);
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    changed = context.changed() => if changed.is_err() {
                        // The router ended first: what it said stays.
                        stop.cancelled().await;
                        break;
                    }
                }
                let now = context.borrow_and_update().clone();
                info.send_modify(|info| {
                    *info = Arc::new(advertised.info(
                        info,
                        addr,
                        texts(&now.node_addresses),
                        &now.plan.addresses,
                    ));
                });
            }
            "the node's information"
        });
    }

    fn tell(&self, routers: Vec<String>, addresses: &[HostPort]) {
        self.info.send_modify(|info| {
            *info = Arc::new(self.advertised.info(info, self.addr, routers, addresses))
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
        if timeout(CLOSE, self.store.close()).await.is_err() {
            warn!("the store did not close in time; it is repaired at the next start");
        }
        drop(self.data);
    }
}

/// What joiners are told.
#[derive(Clone)]
struct Advertised {
    listen: ListenAddr,
    hosts: Vec<HostPort>,
}

impl Advertised {
    fn info(
        &self,
        old: &NodeInfo,
        addr: SocketAddr,
        routers: Vec<String>,
        addresses: &[HostPort],
    ) -> NodeInfo {
        let (token_endpoint, unreachable) = self.endpoint(addr, addresses);
        NodeInfo {
            apiserver: format!("https://{addr}"),
            routers,
            token_endpoint,
            unreachable,
            ..old.clone()
        }
    }

    /// The first advertised host with the APIServer's port, or why there is none.
    fn endpoint(
        &self,
        addr: SocketAddr,
        addresses: &[HostPort],
    ) -> (Option<String>, Option<String>) {
        if self.listen.ip().is_some_and(|ip| ip.is_loopback()) {
            let why = format!(
                "the APIServer listens on {} only, so nobody can join from another machine: start the node with --apiserver-listen 0.0.0.0:7443",
                self.listen
            );
            return (None, Some(why));
        }
        let advertised = self.hosts.first().or_else(|| addresses.first());
        if let Some(host) = advertised {
            let host = host.host();
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.to_owned()
            };
            return (Some(format!("{host}:{}", addr.port())), None);
        }
        match self.listen.ip().filter(|ip| !ip.is_unspecified()) {
            Some(ip) => (Some(SocketAddr::new(ip, addr.port()).to_string()), None),
            None => {
                let why = "this node does not know how others reach it: start it with --advertise HOST:7000".to_owned();
                (None, Some(why))
            }
        }
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

fn texts(addrs: &[SocketAddr]) -> Vec<String> {
    addrs.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(listen: &str, hosts: &[&str]) -> (Option<String>, Option<String>) {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let advertised = Advertised {
            listen: listen.parse().unwrap(),
            hosts,
        };
        advertised.endpoint("127.0.0.1:7443".parse().unwrap(), &[])
    }

    #[test]
    fn a_token_points_at_the_first_advertised_host_with_the_port_of_the_apiserver() {
        assert_eq!(
            endpoint("0.0.0.0:7443", &["a.example.net:7000", "b:1"])
                .0
                .unwrap(),
            "a.example.net:7443"
        );
        assert_eq!(
            endpoint(":7443", &["[2001:db8::1]:7000"]).0.unwrap(),
            "[2001:db8::1]:7443"
        );
        assert_eq!(endpoint("192.0.2.1:7443", &[]).0.unwrap(), "192.0.2.1:7443");
    }

    #[test]
    fn a_node_that_nobody_reaches_says_why_and_what_to_do() {
        let (none, why) = endpoint("127.0.0.1:7443", &["a.example.net:7000"]);
        assert!(none.is_none() && why.unwrap().contains("--apiserver-listen"));
        let (none, why) = endpoint("0.0.0.0:7443", &[]);
        assert!(none.is_none() && why.unwrap().contains("--advertise"));
    }
}
