//! APIServers as processes of their own, which can be killed: this test's program, started once more.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use keel_certs::fixture::Fabric;
use keel_certs::{LiveIdentity, NodeName};
use keel_control::client::{Client, ClientConfig};
use keel_control::http::{Body, Caller, Handler, empty};
use keel_control::server::{Api, ApiConfig};
use keel_control::store::StoreConfig;
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::quic::QuicKeys;
use nix::sys::signal::Signal;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::plant::{Bug, Planted};
use crate::again::{Again, ready};
use crate::place::open;

/// Set in the child: the store, the folder with its identity, its node's name and the bug that is planted in it.
const STORE: &str = "KEEL_TEST_WATCHES_STORE";
const FOLDER: &str = "KEEL_TEST_WATCHES_FOLDER";
const NODE: &str = "KEEL_TEST_WATCHES_NODE";
const BUG: &str = "KEEL_TEST_WATCHES_BUG";

/// How both sides open the store.
pub(crate) fn config() -> StoreConfig {
    StoreConfig {
        // Most of what a slow or resumed watch reads comes from the database, and is forgotten only when the test says so.
        ring: 64,
        keep_events: u64::MAX,
        ballast: 0,
        ..StoreConfig::default()
    }
}

/// The child: serves until it is killed. Returns at once in any other process.
pub(crate) async fn serve() {
    let Ok(url) = std::env::var(STORE) else {
        return;
    };
    let said = |name| std::env::var(name).unwrap();
    let folder = PathBuf::from(said(FOLDER));
    let store = open(&url, config()).await.unwrap();
    let node: NodeName = said(NODE).parse().unwrap();
    let api = Api::new(ApiConfig { node }, store.clone(), Arc::new(Nobody));
    let planted = Planted::new(Arc::new(api), store, Bug::named(&said(BUG)));
    let server = ApiServer::bind(
        &"127.0.0.1:0".parse().unwrap(),
        &LiveIdentity::load(&folder).unwrap(),
        &QuicKeys::ephemeral(),
        Arc::new(planted),
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

/// A server that runs, as clients know it.
#[derive(Debug)]
pub(crate) struct Life {
    node: NodeName,
    address: std::net::SocketAddr,
    /// Cancelled when it was killed, so that no client has to wait until its connection gives up.
    pub(crate) gone: CancellationToken,
}

impl Life {
    pub(crate) fn client(&self, live: &LiveIdentity) -> Client {
        Client::new(ClientConfig {
            server: self.address.into(),
            expect: self.node.clone(),
            live: live.clone(),
        })
        .unwrap()
    }
}

/// The place of one server: which process runs there, if any.
pub(crate) struct Slot {
    node: String,
    folder: PathBuf,
    url: String,
    bug: Bug,
    process: Option<Again>,
    life: watch::Sender<Option<Arc<Life>>>,
}

impl Slot {
    pub(crate) fn new(fabric: &Fabric, folder: &Path, node: &str, url: String, bug: Bug) -> Self {
        let folder = folder.join(node);
        fabric.node(node).save(&folder).unwrap();
        Self {
            node: node.to_owned(),
            folder,
            url,
            bug,
            process: None,
            life: watch::Sender::new(None),
        }
    }

    pub(crate) fn life(&self) -> watch::Receiver<Option<Arc<Life>>> {
        self.life.subscribe()
    }

    /// Starts the process and waits until it serves.
    pub(crate) async fn start(&mut self) {
        let bug = self.bug.name();
        let variables = [
            (STORE, OsStr::new(&self.url)),
            (FOLDER, self.folder.as_os_str()),
            (NODE, OsStr::new(&self.node)),
            (BUG, OsStr::new(&bug)),
        ];
        let (process, address) = Again::start(super::SERVER, &variables).await;
        self.process = Some(process);
        self.life.send_replace(Some(Arc::new(Life {
            node: self.node.parse().unwrap(),
            address: address.parse().unwrap(),
            gone: CancellationToken::new(),
        })));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Kills the process as `kill -9` does, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.process = None;
        if let Some(life) = self.life.send_replace(None) {
            life.gone.cancel();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.kill();
    }
}
