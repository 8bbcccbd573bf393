//! The APIServer in a process of its own, which can be killed: this test's program, started once more.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use keel_certs::LiveIdentity;
use keel_certs::fixture::Fabric;
use keel_control::http::{Body, Caller, Handler, empty};
use keel_control::server::{Api, ApiConfig};
use keel_control::store::{Store, StoreConfig};
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::quic::QuicKeys;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::again::{Again, ready};

/// The test that is the server in the other process.
const SERVER: &str = "server::serves";
const NODE: &str = "edge-a";
/// Set in the other process: the folder with the store and the identity, where to listen, and whether to forget all events first.
const FOLDER: &str = "KEEL_TEST_KUBE_RS_FOLDER";
const LISTEN: &str = "KEEL_TEST_KUBE_RS_LISTEN";
const FORGET: &str = "KEEL_TEST_KUBE_RS_FORGET";

/// Serves until it is killed, in the other process; passes at once in any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serves() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let config = StoreConfig {
        // What a watch that is resumed reads comes from the database, and is forgotten only when the test says so.
        ring: 16,
        keep_events: u64::MAX,
        ballast: 0,
        ..StoreConfig::default()
    };
    let store = Store::open(&folder.join("store.db"), config).await.unwrap();
    if std::env::var_os(FORGET).is_some() {
        store.compact(store.current()).await.unwrap();
    }
    let node = NODE.parse().unwrap();
    let api = Api::new(ApiConfig { node }, store, Arc::new(Nobody));
    let server = ApiServer::bind(
        &std::env::var(LISTEN).unwrap().parse().unwrap(),
        &LiveIdentity::load(&folder.join(NODE)).unwrap(),
        &QuicKeys::ephemeral(),
        Arc::new(api),
        Limits::default(),
        TransportMetrics::register(&mut Registry::default()),
    )
    .unwrap();
    ready(&server.local_addrs()[0].to_string());
    server.run(CancellationToken::new()).await;
}

/// Nobody joins here.
struct Nobody;

impl Handler for Nobody {
    fn handle(&self, _: Request<Body>, _: Caller) -> BoxFuture<'static, Response<Body>> {
        async { Response::new(empty()) }.boxed()
    }
}

/// How a server starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Where it was.
    Again,
    /// On another port.
    Elsewhere,
    /// Where it was, but with no memory of what happened.
    Forgetful,
}

pub(crate) struct Server {
    pub(crate) fabric: Fabric,
    folder: TempDir,
    /// Where clients look for it.
    home: SocketAddr,
    address: SocketAddr,
    process: Option<Again>,
}

impl Server {
    pub(crate) async fn new() -> Self {
        let (fabric, folder) = (Fabric::new(), TempDir::new().unwrap());
        fabric.node(NODE).save(&folder.path().join(NODE)).unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self {
            fabric,
            folder,
            home: nowhere,
            address: nowhere,
            process: None,
        };
        server.start(Start::Elsewhere).await;
        server.home = server.address;
        server
    }

    /// Starts the process and waits until it serves.
    pub(crate) async fn start(&mut self, how: Start) {
        let listen = match how {
            Start::Elsewhere => "127.0.0.1:0".to_owned(),
            Start::Again | Start::Forgetful => self.home.to_string(),
        };
        let mut variables = vec![
            (FOLDER, self.folder.path().as_os_str()),
            (LISTEN, OsStr::new(&listen)),
        ];
        if how == Start::Forgetful {
            variables.push((FORGET, OsStr::new("1")));
        }
        let (process, address) = Again::start(SERVER, &variables).await;
        self.process = Some(process);
        self.address = address.parse().unwrap();
    }

    /// Kills the process as `kill -9` does, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// A client of the server that runs, by a kubeconfig.
    pub(crate) async fn client(&self, name: &str, live: &LiveIdentity) -> Client {
        let login = "client-certificate: tls.crt, client-key: tls.key";
        self.client_by(name, live, login).await
    }

    pub(crate) async fn client_without_certificate(&self) -> Client {
        let live = self.fabric.node(NODE);
        self.client_by("nobody", &live, "token: nothing").await
    }

    pub(crate) async fn admin(&self) -> Client {
        let admin = self.fabric.node_admin(NODE, "root");
        self.client("root", &admin).await
    }

    pub(crate) async fn pod(&self) -> Client {
        let pod = self.fabric.pod(NODE, "default", "reader");
        self.client("reader", &pod).await
    }

    async fn client_by(&self, name: &str, live: &LiveIdentity, login: &str) -> Client {
        let folder = self.folder.path().join(name);
        live.save(&folder).unwrap();
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: keel\n\
             clusters: [{{name: keel, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]\n\
             users: [{{name: me, user: {{{login}}}}}]\n\
             contexts: [{{name: keel, context: {{cluster: keel, user: me}}}}]\n",
            self.address
        );
        let path = folder.join("config");
        fs::write(&path, config).unwrap();
        let config = Kubeconfig::read_from(path).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
        Client::try_from(config.unwrap()).unwrap()
    }
}
