//! The node that kubectl talks to.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keel_certs::fixture::Fabric;
use keel_certs::{LiveIdentity, NodeName};
use keel_control::client::{Client, ClientConfig};
use keel_control::http::{Body, Caller, Handler, empty};
use keel_control::server::{Api, ApiConfig, ApiMetrics};
use keel_control::store::{Store, StoreConfig};
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::quic::QuicKeys;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::program::{Kubectl, SOON};

struct Nobody;

impl Handler for Nobody {
    fn handle(
        &self,
        _: http::Request<Body>,
        _: Caller,
    ) -> futures_util::future::BoxFuture<'static, http::Response<Body>> {
        Box::pin(async { http::Response::new(empty()) })
    }
}

/// An APIServer on port 0, with its store.
pub(crate) struct Node {
    pub(crate) runtime: Runtime,
    pub(crate) fabric: Fabric,
    folder: TempDir,
    address: std::net::SocketAddr,
    store: Store,
    watches: Gauge,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Node {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let fabric = Fabric::new();
        let folder = TempDir::new().unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let guard = runtime.enter();
        let store = runtime
            .block_on(Store::open(
                &folder.path().join("store.db"),
                StoreConfig::default(),
            ))
            .unwrap();
        let watches = Gauge::default();
        let api = Api::counted(
            ApiConfig {
                node: "edge-a".parse().unwrap(),
            },
            store.clone(),
            Arc::new(Nobody),
            ApiMetrics {
                watches: watches.clone(),
                ..ApiMetrics::default()
            },
        );
        let metrics = TransportMetrics::register(&mut Registry::default());
        let listen = "127.0.0.1:0".parse().unwrap();
        let live = fabric.node("edge-a");
        let server = ApiServer::bind(
            &listen,
            &live,
            &QuicKeys::ephemeral(),
            Arc::new(api),
            Limits::default(),
            metrics,
        )
        .unwrap();
        let address = server.local_addrs()[0];
        tasks.spawn(server.run(stop.clone()));
        drop(guard);
        Self {
            runtime,
            fabric,
            folder,
            address,
            store,
            watches,
            stop,
            tasks,
        }
    }

    /// Waits until so many watches are open.
    #[track_caller]
    pub(crate) fn has_watches(&self, count: i64) {
        let deadline = Instant::now() + SOON;
        self.runtime.block_on(async {
            while self.watches.get() != count {
                assert!(Instant::now() < deadline, "{} watches", self.watches.get());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    pub(crate) fn client(&self) -> Client {
        let _guard = self.runtime.enter();
        let expect: NodeName = "edge-a".parse().unwrap();
        Client::new(ClientConfig {
            server: self.address.into(),
            expect,
            live: self.fabric.node("edge-a"),
        })
        .unwrap()
    }

    pub(crate) fn stop(mut self) {
        self.stop.cancel();
        self.runtime.block_on(async {
            while self.tasks.join_next().await.is_some() {}
            self.store.close().await;
        });
    }

    pub(crate) fn user(&self, kubectl: &Path, name: &str, live: &LiveIdentity) -> Kubectl {
        let folder = self.folder.path().join(name);
        live.save(&folder).unwrap();
        let login = "client-certificate: tls.crt, client-key: tls.key";
        self.kubeconfig(kubectl, folder, login)
    }

    pub(crate) fn user_without_certificate(&self, kubectl: &Path) -> Kubectl {
        let folder = self.folder.path().join("nobody");
        self.fabric.node("edge-a").save(&folder).unwrap();
        // A token means nothing here; without any login kubectl would ask for a password.
        self.kubeconfig(kubectl, folder, "token: nothing")
    }

    fn kubeconfig(&self, kubectl: &Path, folder: PathBuf, login: &str) -> Kubectl {
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: keel\n\
             clusters: [{{name: keel, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]\n\
             users: [{{name: me, user: {{{login}}}}}]\n\
             contexts: [{{name: keel, context: {{cluster: keel, user: me}}}}]\n",
            self.address
        );
        fs::write(folder.join("config"), config).unwrap();
        Kubectl {
            program: kubectl.to_owned(),
            folder,
        }
    }
}
