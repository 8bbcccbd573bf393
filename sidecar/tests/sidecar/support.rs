//! A node in process: a real APIServer and a real router, and the sidecars of its pods.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use keel_certs::LiveIdentity;
use keel_certs::fixture::Fabric;
use keel_control::api::RouterStatus;
use keel_control::client::{Client, ClientConfig};
use keel_control::http::{Body, Caller, Handler, empty};
use keel_control::server::{Api, ApiConfig};
use keel_control::store::{Store, StoreConfig};
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::flow::FlowLimits;
use keel_fabric::limits::{MemoryLimits, ProviderLimits, RouterLimits};
use keel_fabric::memory::Memory;
use keel_fabric::metrics::FabricMetrics;
use keel_fabric::pace::Paces;
use keel_fabric::provider::Publication;
use keel_fabric::quic::{HostPort, ListenAddr, QuicKeys, Windows};
use keel_fabric::router::{DRAIN_TIMEOUT, ProviderView, Router, RouterConfig, RouterView};
use keel_fabric::wire::{Health, Offer};
use keel_sidecar::config::{ListenOn, Upstreams};
use keel_sidecar::listener::{MappingState, PortState};
use keel_sidecar::spec::{parse_mapped, parse_published};
use keel_sidecar::{RunError, Sidecar, SidecarConfig};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A node with its APIServer and router; everything ends with the test's runtime.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) apiserver: HostPort,
    pub(crate) api_stop: CancellationToken,
    /// What its router serves.
    pub(crate) view: watch::Receiver<Arc<RouterView>>,
    tasks: JoinSet<()>,
}

struct NoEnrolment;

impl Handler for NoEnrolment {
    fn handle(
        &self,
        _: http::Request<Body>,
        _: Caller,
    ) -> BoxFuture<'static, http::Response<Body>> {
        Box::pin(async { http::Response::new(empty()) })
    }
}

impl Node {
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::start_as(name, "healthy").await
    }

    /// The same with providers that are said to be in this `health`.
    pub(crate) async fn start_as(name: &'static str, health: &'static str) -> Self {
        let fabric = Arc::new(Fabric::new());
        let dir = tempfile::tempdir().unwrap();
        let live = fabric.node(name);
        let mut tasks = JoinSet::new();
        let mut registry = Registry::default();

        let store = Store::open(&dir.path().join("store.db"), StoreConfig::default())
            .await
            .unwrap();
        let api = Api::new(
            ApiConfig {
                node: name.parse().unwrap(),
            },
            store,
            Arc::new(NoEnrolment),
        );
        let listen: ListenAddr = "127.0.0.1:0".parse().unwrap();
        let keys = QuicKeys::load_or_create(&dir.path().join("quic-api")).unwrap();
        let metrics = TransportMetrics::register(&mut registry);
        let server = ApiServer::bind(
            &listen,
            &live,
            &keys,
            Arc::new(api),
            Limits::default(),
            metrics,
        )
        .unwrap();
        let apiserver = HostPort::from(server.local_addrs()[0]);
        let api_stop = CancellationToken::new();
        let stop = api_stop.clone();
        tasks.spawn(async move { server.run(stop).await });

        let (address, view) = router(name, live.clone(), dir.path(), Vec::new(), &mut tasks);
        let reporter = client(name, &apiserver, live);
        let reached = ("nodeAddresses", address);
        tasks.spawn(report(reporter, name, health, reached, view.clone()));
        Self {
            name,
            fabric,
            dir,
            apiserver,
            api_stop,
            view,
            tasks,
        }
    }

    /// A router of another node with backends of its `own`, which everybody reaches and which this APIServer knows: what it
    /// serves.
    pub(crate) fn another_router(
        &mut self,
        name: &'static str,
        own: Vec<Publication>,
    ) -> watch::Receiver<Arc<RouterView>> {
        let dir = self.dir.path().join(name);
        let (address, view) = router(name, self.fabric.node(name), &dir, own, &mut self.tasks);
        let client = Client::new(ClientConfig {
            server: self.apiserver.clone(),
            expect: self.name.parse().unwrap(),
            live: self.fabric.node(name),
        });
        let reached = ("addresses", address);
        let report = report(client.unwrap(), name, "healthy", reached, view.clone());
        self.tasks.spawn(report);
        view
    }

    /// The settings of a pod's sidecar on this node, with free ports everywhere and state of its own.
    pub(crate) fn pod(&self, pod: &str) -> SidecarConfig {
        let identity = self.dir.path().join(format!("{pod}-identity"));
        self.fabric
            .pod(self.name, "default", pod)
            .save(&identity)
            .unwrap();
        let mut config =
            SidecarConfig::new("default".parse().unwrap(), self.dir.path().join("sidecar"));
        config.pod = Some(pod.parse().unwrap());
        config.identity_dir = Some(identity);
        config.apiserver = Some(self.apiserver.clone());
        config.dns = ListenOn::given("127.0.0.1:0".parse().unwrap());
        config.metrics = ListenOn::given("127.0.0.1:0".parse().unwrap());
        config.dns_upstreams = Upstreams::None;
        config.connect_timeout = Duration::from_secs(5);
        config.stop_grace = Duration::from_millis(200).into();
        config
    }

    /// Says, as the node `name` would, that its public router at `address` has a provider.
    pub(crate) async fn claim(
        &self,
        name: &str,
        address: SocketAddr,
        service: &str,
        port: u16,
        provider: &str,
    ) {
        let status = json!({"cluster": "home", "addresses": [address.to_string()], "source": {"revision": 1},
            "activeServices": [{"name": service, "port": port, "providers": [{"identity": provider}]}]});
        let status: RouterStatus = serde_json::from_value(status).unwrap();
        let server = Client::new(ClientConfig {
            server: self.apiserver.clone(),
            expect: self.name.parse().unwrap(),
            live: self.fabric.node(name),
        });
        server
            .unwrap()
            .apply_status(&name.parse().unwrap(), &status)
            .await
            .unwrap();
    }

    /// Ends the APIServer as a crash would: nothing answers there any more.
    pub(crate) async fn lose_apiserver(&mut self) {
        self.api_stop.cancel();
        // The reporter, the router and the server: the server ends.
        timeout(LONG, self.tasks.join_next()).await.unwrap();
    }
}

/// A router that runs as one of `tasks`: where, and what it serves.
fn router(
    name: &str,
    live: LiveIdentity,
    dir: &Path,
    own: Vec<Publication>,
    tasks: &mut JoinSet<()>,
) -> (SocketAddr, watch::Receiver<Arc<RouterView>>) {
    let metrics = FabricMetrics::register(&mut Registry::default());
    let config = RouterConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        node: name.parse().unwrap(),
        quic_dir: dir.join("quic"),
        limits: RouterLimits::default(),
        provider: ProviderLimits::default(),
        flow: FlowLimits::default(),
        drain: DRAIN_TIMEOUT.into(),
        paces: Paces::new(None, Arc::clone(&metrics)),
        memory: Memory::new(MemoryLimits::default(), Arc::clone(&metrics)),
        windows: Windows::default(),
        identity_limit: watch::Sender::default().subscribe(),
    };
    let router = Router::bind(config, live, metrics).unwrap();
    let (address, view) = (router.local_addrs()[0], router.view());
    let (backends, _) = watch::channel(Arc::new(own));
    let receiver = backends.subscribe();
    tasks.spawn(async move {
        router.run(receiver, CancellationToken::new()).await;
        drop(backends);
    });
    (address, view)
}

fn client(name: &str, server: &HostPort, live: LiveIdentity) -> Client {
    Client::new(ClientConfig {
        server: server.clone(),
        expect: name.parse().unwrap(),
        live,
    })
    .unwrap()
}

/// Writes what the router serves into its Router, as a node does.
async fn report(
    client: Client,
    name: &'static str,
    health: &'static str,
    (reached, address): (&str, SocketAddr),
    mut view: watch::Receiver<Arc<RouterView>>,
) {
    for revision in 1_u64.. {
        let services: Vec<_> = view
            .borrow_and_update()
            .services
            .iter()
            .map(|service| {
                let providers: Vec<_> = service.providers.iter().map(|p| provider(p, health)).collect();
                json!({"name": service.service.name, "namespace": service.service.namespace, "protocol": service.protocol.to_string(),
                    "port": service.port, "providers": providers})
            })
            .collect();
        let mut status = json!({"cluster": "home", "activeServices": services, "source": {"revision": revision}});
        status[reached] = json!([address.to_string()]);
        let status: RouterStatus = serde_json::from_value(status).unwrap();
        // Without its APIServer a node has nobody to report to.
        let _ = client.apply_status(&name.parse().unwrap(), &status).await;
        if view.changed().await.is_err() {
            return;
        }
    }
}

fn provider(provider: &ProviderView, unchecked: &str) -> serde_json::Value {
    let Offer {
        weight,
        priority,
        health,
    } = provider.offer;
    let health = match health {
        Health::Unknown => unchecked,
        checked => checked.name(),
    };
    json!({"identity": provider.identity.path(), "health": health, "weight": weight, "priority": priority})
}

/// A sidecar that runs until it is stopped.
pub(crate) struct Pod {
    pub(crate) dns: Option<SocketAddr>,
    pub(crate) metrics: SocketAddr,
    pub(crate) ready: keel_sidecar::admin::Ready,
    mappings: watch::Receiver<Arc<Vec<MappingState>>>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), RunError>>,
}

impl Pod {
    pub(crate) async fn start(mut config: SidecarConfig, mapped: &str, published: &str) -> Self {
        config.mapped = parse_mapped(mapped, &config.namespace).unwrap();
        config.published = parse_published(published, &config.namespace).unwrap();
        let stop = CancellationToken::new();
        let sidecar = Sidecar::start(config, Registry::default(), stop.clone(), Handle::current())
            .await
            .unwrap();
        let (dns, mappings, ready) = (sidecar.dns_addr(), sidecar.mappings(), sidecar.ready());
        let metrics = sidecar.metrics_addr();
        let mut tasks = JoinSet::new();
        tasks.spawn(sidecar.run());
        Self {
            dns,
            metrics,
            ready,
            mappings,
            stop,
            tasks,
        }
    }

    /// Waits until it is ready; the caller gives up.
    pub(crate) async fn settled(&self) {
        while !self.ready.missing().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The address of the first mapped service that accepts connections, once one does.
    pub(crate) async fn address(&mut self) -> SocketAddr {
        let listening = |states: &[MappingState]| {
            states.iter().find_map(|state| {
                let port = state
                    .ports
                    .iter()
                    .find(|(_, what)| **what == PortState::Listening)?;
                Some(SocketAddr::new(state.address, port.0.number))
            })
        };
        let states = timeout(
            LONG,
            self.mappings.wait_for(|states| listening(states).is_some()),
        )
        .await
        .unwrap()
        .unwrap();
        listening(&states).unwrap()
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let series = self.series(name).await;
        series[0][name.len()..].trim().parse().unwrap()
    }

    /// The lines of `/metrics` that begin so.
    pub(crate) async fn series(&self, name: &str) -> Vec<String> {
        let mut stream = TcpStream::connect(self.metrics).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        timeout(LONG, read).await.unwrap().unwrap();
        let lines = answer.lines().filter(|line| line.starts_with(name));
        lines.map(str::to_owned).collect()
    }

    pub(crate) fn states(&self) -> Arc<Vec<MappingState>> {
        self.mappings.borrow().clone()
    }

    pub(crate) async fn ended(&mut self) -> Result<(), RunError> {
        timeout(LONG, self.tasks.join_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        self.ended().await.unwrap();
    }
}

/// A range of its own for each test, as all share the machine's loopback.
pub(crate) fn range(third: u8) -> keel_sidecar::vip::IpRange {
    format!("127.66.{third}.0/24").parse().unwrap()
}

/// A backend that answers every connection with what it was sent, after the end of it.
pub(crate) async fn echo(tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut all = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            all.spawn(async move {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            });
        }
    });
    address
}

/// Sends `bytes`, half-closes, and reads all that comes.
pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    };
    timeout(LONG, talk).await.unwrap()
}

/// Connects and reads until the other side ends it: the time that took, and how it ended.
pub(crate) async fn ending(address: SocketAddr) -> (Duration, std::io::Result<usize>) {
    let start = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let ended = timeout(LONG, stream.read(&mut [0; 16])).await.unwrap();
    (start.elapsed(), ended)
}

/// The state directory of a pod without `--state-dir`.
pub(crate) fn state_dir(root: &Path, pod: &str) -> PathBuf {
    root.join("sidecar").join(format!("default.{pod}"))
}

/// A provider on a thread of its own, which can be stopped in the middle of whatever it does.
pub(crate) struct Frozen {
    freeze: Option<tokio::sync::oneshot::Sender<()>>,
    end: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Frozen {
    pub(crate) fn start(config: SidecarConfig, published: String) -> Self {
        let (freeze, frozen) = tokio::sync::oneshot::channel();
        let (end, ended) = std::sync::mpsc::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let _pod = Pod::start(config, "", &published).await;
                let _ = frozen.await;
                // Nothing of the runtime runs meanwhile, and the sockets stay open.
                let _ = ended.recv();
            });
        };
        Self {
            freeze: Some(freeze),
            end: Some(end),
            thread: Some(std::thread::spawn(run)),
        }
    }

    pub(crate) fn freeze(&mut self) {
        let _ = self.freeze.take().unwrap().send(());
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Whichever it waits for: the loss of the other end wakes it.
        (self.freeze, self.end) = (None, None);
        let _ = self.thread.take().unwrap().join();
    }
}

/// A way to a backend that counts who takes it.
pub(crate) struct Counted {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Counted {
    pub(crate) async fn before(backend: SocketAddr, tasks: &mut JoinSet<()>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::default());
        let count: Arc<AtomicUsize> = Arc::clone(&connections);
        tasks.spawn(async move {
            let mut all = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                all.spawn(async move {
                    let mut far = TcpStream::connect(backend).await.unwrap();
                    // A client that resets is no failure of the way.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self {
            address,
            connections,
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
