//! Routers, providers and consumers on free ports of loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keel_certs::fixture::Fabric;
use keel_certs::{LiveIdentity, Subject};
use keel_fabric::FlowEnd;
use keel_fabric::consumer::{ConsumerConfig, ConsumerFlow, FlowOptions, OpenError, Target};
use keel_fabric::flow::FlowLimits;
use keel_fabric::limits::{LinkLimits, MemoryLimits, ProviderLimits, RouterLimits};
use keel_fabric::link::{Links, RouterPeer};
use keel_fabric::memory::Memory;
use keel_fabric::metrics::FabricMetrics;
use keel_fabric::pace::Paces;
use keel_fabric::provider::{
    Entrances, Provider, ProviderConfig, Publication, PublicationOptions, PublishOutcome,
    PublishedAt,
};
use keel_fabric::quic::{Endpoint, ListenAddr, Profile, Windows};
use keel_fabric::router::{DRAIN_TIMEOUT, Router, RouterConfig, RouterView};
use keel_fabric::units::Rate;
use keel_fabric::wire::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `what`, but not for ever.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it did not happen in time")
}

pub(crate) struct World {
    pub(crate) fabric: Fabric,
    dir: tempfile::TempDir,
    tasks: JoinSet<()>,
    pub(crate) metrics: Arc<FabricMetrics>,
    pub(crate) limits: FlowLimits,
    /// Where consumers may go on besides the router that they open a flow at.
    pub(crate) ways: Vec<RouterPeer>,
    pub(crate) provider_limits: ProviderLimits,
    /// What flows have when their provider stops.
    pub(crate) grace: Duration,
    pub(crate) router_limits: RouterLimits,
    /// Who routers are, if not what the trust domain gives their nodes.
    pub(crate) router_live: Option<LiveIdentity>,
    pub(crate) drain_timeout: Duration,
    pub(crate) memory: MemoryLimits,
    /// Bandwidth of one identity at a router.
    pub(crate) identity_limit: watch::Sender<Option<Rate>>,
    doomed: Option<(tokio::runtime::Runtime, SocketAddr)>,
    /// Links outlive the flows over them, as in a process.
    kept: std::sync::Mutex<Vec<Links>>,
}

type Backends = watch::Receiver<Arc<Vec<Publication>>>;

pub(crate) struct RunningRouter {
    pub(crate) peer: RouterPeer,
    pub(crate) addr: SocketAddr,
    pub(crate) view: watch::Receiver<Arc<RouterView>>,
    pub(crate) backends: watch::Sender<Arc<Vec<Publication>>>,
    pub(crate) stop: CancellationToken,
    pub(crate) hurry: CancellationToken,
    done: watch::Receiver<bool>,
}

pub(crate) struct RunningProvider {
    pub(crate) state: watch::Receiver<Arc<Vec<PublishedAt>>>,
    pub(crate) publications: watch::Sender<Arc<Vec<Publication>>>,
    pub(crate) stop: CancellationToken,
    pub(crate) routers: watch::Sender<Arc<Vec<RouterPeer>>>,
    pub(crate) done: watch::Receiver<bool>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            fabric: Fabric::new(),
            dir: tempfile::tempdir().unwrap(),
            tasks: JoinSet::new(),
            metrics: Arc::default(),
            limits: FlowLimits::default(),
            ways: Vec::new(),
            provider_limits: ProviderLimits::default(),
            grace: Duration::ZERO,
            router_limits: RouterLimits::default(),
            router_live: None,
            drain_timeout: DRAIN_TIMEOUT,
            memory: MemoryLimits::default(),
            identity_limit: watch::Sender::default(),
            doomed: None,
            kept: std::sync::Mutex::default(),
        }
    }

    pub(crate) async fn router(&mut self, node: &str) -> RunningRouter {
        self.router_at(node, "127.0.0.1:0".parse().unwrap())
    }

    /// A router whose QUIC keys are those of the node's router before.
    pub(crate) fn router_at(&mut self, node: &str, listen: ListenAddr) -> RunningRouter {
        let (router, running, own, ended) = self.bind(node, listen);
        let token = running.stop.clone();
        self.tasks.spawn(async move {
            router.run(own, token).await;
            ended.send_replace(true);
        });
        running
    }

    /// A router on a runtime of its own, which ends without a word in [`kill`](Self::kill).
    pub(crate) async fn router_to_kill(&mut self, node: &str) -> RunningRouter {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (router, running, own, ended) = {
            let _inside = runtime.enter();
            self.bind(node, "127.0.0.1:0".parse().unwrap())
        };
        let token = running.stop.clone();
        runtime.spawn(async move {
            router.run(own, token).await;
            ended.send_replace(true);
        });
        self.doomed = Some((runtime, running.addr));
        running
    }

    /// Ends the router's runtime and waits until its port is free.
    pub(crate) async fn kill(&mut self) {
        let (runtime, addr) = self.doomed.take().unwrap();
        runtime.shutdown_background();
        free(addr).await;
    }

    /// Where a node's router keeps its QUIC keys.
    pub(crate) fn quic_dir(&self, node: &str) -> std::path::PathBuf {
        self.dir.path().join(node)
    }

    fn bind(
        &self,
        node: &str,
        listen: ListenAddr,
    ) -> (Router, RunningRouter, Backends, watch::Sender<bool>) {
        let config = RouterConfig {
            listen,
            node: node.parse().unwrap(),
            quic_dir: self.quic_dir(node),
            limits: self.router_limits.clone(),
            provider: Default::default(),
            flow: self.limits,
            drain: self.drain_timeout.into(),
            paces: self.paces(),
            memory: self.memory(),
            windows: Windows::default(),
            identity_limit: self.identity_limit.subscribe(),
        };
        let live = self.router_live.clone();
        let live = live.unwrap_or_else(|| self.fabric.node(node));
        let router = Router::bind(config, live, Arc::clone(&self.metrics)).unwrap();
        let addr = router.local_addrs()[0];
        let (view, hurry) = (router.view(), router.hurry());
        let (backends, own) = watch::channel(Arc::default());
        let (ended, done) = watch::channel(false);
        let peer = RouterPeer {
            node: node.parse().unwrap(),
            addresses: vec![addr.into()],
        };
        let stop = CancellationToken::new();
        (
            router,
            RunningRouter {
                peer,
                addr,
                view,
                backends,
                stop,
                hurry,
                done,
            },
            own,
            ended,
        )
    }

    pub(crate) fn links(&self, live: &LiveIdentity) -> Links {
        let endpoint = Endpoint::client(Profile::Sidecar).unwrap();
        let links = Links::new(
            endpoint,
            live.clone(),
            LinkLimits::default(),
            Arc::clone(&self.metrics),
        );
        self.kept.lock().unwrap().push(links.clone());
        links
    }

    /// Closes the connections of all consumers and providers, as the end of their processes does.
    pub(crate) async fn close_links(&self) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap());
        for links in kept {
            soon(links.close("the end")).await;
        }
    }

    pub(crate) fn provider(
        &mut self,
        live: &LiveIdentity,
        routers: &[&RunningRouter],
        list: Vec<Publication>,
    ) -> RunningProvider {
        let peers = routers.iter().map(|router| router.peer.clone()).collect();
        self.provider_over(self.links(live), live, peers, list)
    }

    pub(crate) fn provider_over(
        &mut self,
        links: Links,
        live: &LiveIdentity,
        peers: Vec<RouterPeer>,
        list: Vec<Publication>,
    ) -> RunningProvider {
        let config = ProviderConfig {
            limits: self.provider_limits.clone(),
            flow: self.limits,
            grace: self.grace.into(),
            paces: self.paces(),
            memory: self.memory(),
            entrances: Entrances::default(),
        };
        let provider = Provider::new(links, live.clone(), config, Arc::clone(&self.metrics));
        let state = provider.state();
        let (publications, list) = watch::channel(Arc::new(list));
        let (keep, routers) = watch::channel(Arc::new(peers));
        let stop = CancellationToken::new();
        let token = stop.clone();
        let (ended, done) = watch::channel(false);
        self.tasks.spawn(async move {
            provider.serve(list, routers, token).await;
            ended.send_replace(true);
        });
        RunningProvider {
            state,
            publications,
            stop,
            routers: keep,
            done,
        }
    }

    /// The memory of a part of its own.
    fn memory(&self) -> Arc<Memory> {
        Memory::new(self.memory, Arc::clone(&self.metrics))
    }

    /// Bandwidth limits of a part of its own.
    fn paces(&self) -> Arc<Paces> {
        Paces::new(None, Arc::clone(&self.metrics))
    }

    /// A provider `/node/<node>/ns/default/pod/p` of `echo.default:80` at `router`, published.
    pub(crate) async fn echo(
        &mut self,
        router: &RunningRouter,
        backend: SocketAddr,
    ) -> (RunningProvider, Target) {
        let live = self.fabric.pod("b", "default", "p");
        let mut provider = self.provider(
            &live,
            &[router],
            vec![publication("echo.default", 80, backend)],
        );
        provider.published().await;
        let target = target("echo.default", 80, live.identity().subject, router);
        (provider, target)
    }

    pub(crate) fn consumer(&self) -> Consumer {
        let live = self.fabric.pod("a", "default", "c");
        self.consumer_as(&live)
    }

    pub(crate) fn consumer_as(&self, live: &LiveIdentity) -> Consumer {
        let config = ConsumerConfig {
            limits: self.limits,
            metrics: Arc::clone(&self.metrics),
            paces: self.paces(),
            memory: self.memory(),
            ways: Arc::new(self.ways.clone()),
        };
        Consumer {
            links: self.links(live),
            config,
        }
    }
}

impl RunningRouter {
    /// Whether it has ended.
    pub(crate) fn is_done(&self) -> bool {
        *self.done.borrow()
    }

    pub(crate) async fn stopped(&mut self) {
        self.stop.cancel();
        soon(self.done.wait_for(|done| *done)).await.unwrap();
        // The task that drives its socket hears last that there is nobody any more.
        free(self.addr).await;
    }

    pub(crate) async fn shows(
        &mut self,
        what: impl FnMut(&Arc<RouterView>) -> bool,
    ) -> Arc<RouterView> {
        soon(self.view.wait_for(what)).await.unwrap().clone()
    }
}

impl RunningProvider {
    pub(crate) async fn published(&mut self) {
        let all = |list: &Arc<Vec<PublishedAt>>| {
            !list.is_empty()
                && list
                    .iter()
                    .all(|at| at.outcome == PublishOutcome::Published)
        };
        soon(self.state.wait_for(all)).await.unwrap();
    }
}

/// The mapped side of an application's connection.
pub(crate) struct Consumer {
    pub(crate) links: Links,
    pub(crate) config: ConsumerConfig,
}

impl Consumer {
    /// Connects an application to `target`; on an error its connection is reset.
    pub(crate) async fn connect(
        &self,
        tasks: &mut JoinSet<Result<FlowEnd, OpenError>>,
        target: &Target,
    ) -> TcpStream {
        let (client, accepted) = socket_pair().await;
        let service = (target.service.clone(), target.port);
        let mut flow = Box::new(ConsumerFlow::new(accepted, service, self.config.clone()));
        let (links, target) = (self.links.clone(), target.clone());
        tasks.spawn(async move {
            match flow.open(&links, &target).await {
                Ok(()) => Ok(flow.carry().await),
                Err(error) => {
                    flow.reset();
                    Err(error)
                }
            }
        });
        client
    }

    /// Connects an application to an echoing `target`; its flow carries.
    pub(crate) async fn carried(
        &self,
        tasks: &mut JoinSet<Result<FlowEnd, OpenError>>,
        target: &Target,
    ) -> TcpStream {
        let mut client = self.connect(tasks, target).await;
        echoes(&mut client, b'a').await;
        client
    }

    pub(crate) async fn flow(&self) -> (TcpStream, Box<ConsumerFlow>) {
        let (client, accepted) = socket_pair().await;
        let service = ("mysql.default".parse().unwrap(), 3306);
        let flow = ConsumerFlow::new(accepted, service, self.config.clone());
        (client, Box::new(flow))
    }
}

/// One byte goes there and comes back.
pub(crate) async fn echoes(client: &mut TcpStream, byte: u8) {
    client.write_all(&[byte]).await.unwrap();
    assert_eq!(soon(client.read_u8()).await.unwrap(), byte);
}

pub(crate) async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (client.unwrap(), accepted.unwrap().0)
}

pub(crate) fn publication(service: &str, port: u16, backend: SocketAddr) -> Publication {
    Publication {
        service: service.parse().unwrap(),
        port,
        protocol: Protocol::Tcp,
        backend: backend.into(),
        options: PublicationOptions::default(),
    }
}

pub(crate) fn target(
    service: &str,
    port: u16,
    provider: Subject,
    router: &RunningRouter,
) -> Target {
    Target {
        service: service.parse().unwrap(),
        port,
        provider,
        router: router.peer.clone(),
        options: FlowOptions::default(),
    }
}

/// The only end of the tasks in the set.
pub(crate) async fn end(
    tasks: &mut JoinSet<Result<FlowEnd, OpenError>>,
) -> Result<FlowEnd, OpenError> {
    soon(tasks.join_next()).await.expect("a flow runs").unwrap()
}

pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Waits until nobody has the port.
async fn free(addr: SocketAddr) {
    let free = async {
        while std::net::UdpSocket::bind(addr).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(free).await;
}
