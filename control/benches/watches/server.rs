//! The server's process: this program, started once more.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use keel_certs::LiveIdentity;
use keel_control::http::{Body, Caller, Handler, empty};
use keel_control::server::{Api, ApiConfig};
use keel_control::store::{Store, StoreConfig};
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::quic::QuicKeys;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// Set in the child: the folder with its identity and its store.
const FOLDER: &str = "KEEL_BENCH_SERVER";
pub(crate) const NODE: &str = "edge-a";

pub(crate) fn is_asked_for() -> bool {
    std::env::var_os(FOLDER).is_some()
}

struct Nobody;

impl Handler for Nobody {
    fn handle(&self, _: Request<Body>, _: Caller) -> BoxFuture<'static, Response<Body>> {
        async { Response::new(empty()) }.boxed()
    }
}

/// Where a server writes its address, and where the next one on the folder listens.
const ADDRESS: &str = "address";

/// Serves until it is killed; comes back under the same address and with the same QUIC keys, as a node does.
pub(crate) async fn serve() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let before = std::fs::read_to_string(folder.join(ADDRESS));
    let listen = before.unwrap_or_else(|_| "127.0.0.1:0".to_owned());
    let store = Store::open(&folder.join("store.db"), StoreConfig::default())
        .await
        .unwrap();
    let node = NODE.parse().unwrap();
    let api = Api::new(ApiConfig { node }, store, Arc::new(Nobody));
    let server = ApiServer::bind(
        &listen.parse().unwrap(),
        &LiveIdentity::load(&folder).unwrap(),
        &QuicKeys::load_or_create(&folder.join("quic")).unwrap(),
        Arc::new(api),
        Limits {
            // A herd is larger than what one node usually has.
            connections: 20_000,
            ..Limits::default()
        },
        TransportMetrics::register(&mut Registry::default()),
    )
    .unwrap();
    let address = server.local_addrs()[0].to_string();
    std::fs::write(folder.join(ADDRESS), &address).unwrap();
    println!("{address}");
    std::io::stdout().flush().unwrap();
    server.run(CancellationToken::new()).await;
}

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts it on what is in the folder.
    pub(crate) fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().parse().unwrap();
        Self { child, address }
    }

    /// Resident memory in KiB.
    pub(crate) fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.unwrap().parse().unwrap()
    }

    /// Processor time so far, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        // User and system time, in ticks of 10 ms.
        let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
