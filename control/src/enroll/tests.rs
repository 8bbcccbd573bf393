use std::path::PathBuf;

use http_body_util::BodyExt;
use keel_certs::{
    ClusterName, Csr, DataDir, JoinToken, KeyPair, LiveIdentity, NodeName, PodName, RootPin,
    Subject, TrustDomain, UserName,
};
use keel_fabric::quic::{HostPort, QuicKeys};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::wire::{TokenAnswer, TokenRequest};
use super::*;
use crate::http::Remote;
use crate::store::{StoreConfig, TokenScope};
use crate::transport::{ApiServer, Limits, TransportMetrics};

mod fuzz;
mod names;
mod sockets;
mod tokens;

const LIFE: Duration = Duration::from_secs(3600);

/// A node with its enrolment, as `keel up` puts one together.
struct Node {
    enrolment: Enrolment,
    authority: NodeAuthority,
    data: DataDir,
    info: watch::Sender<Arc<NodeInfo>>,
    _temp: TempDir,
}

impl Node {
    /// The first node of a trust domain.
    async fn first(name: &str) -> Self {
        let root = RootAuthority::create(Some(TrustDomain::new("test.keel").unwrap())).unwrap();
        let key = KeyPair::generate().unwrap();
        let node = NodeName::new(name).unwrap();
        let intermediate = root
            .sign_intermediate(&key.csr().unwrap(), &node, &Hosts::local(), LIFE)
            .unwrap();
        let roots = vec![root.certificate().clone()];
        Self::with(
            NodeAuthority::create(key, intermediate, roots).unwrap(),
            Some(root),
            None,
        )
        .await
    }

    /// The first node, with these names and addresses.
    async fn known_as(name: &str, hosts: Hosts) -> Self {
        let mut node = Self::first(name).await;
        let inner = Arc::get_mut(&mut node.enrolment.inner).unwrap();
        inner.config.hosts = hosts;
        node
    }

    /// A node whose root key is elsewhere.
    async fn with(
        authority: NodeAuthority,
        root: Option<RootAuthority>,
        root_node: Option<&str>,
    ) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::open(temp.path().join("data")).unwrap();
        let store = Store::open(&data.store(), StoreConfig::default())
            .await
            .unwrap();
        let (info, follow) = watch::channel(Arc::new(NodeInfo {
            node: authority.node(),
            cluster: ClusterName::default_cluster(),
            trust_domain: authority.trust_domain(),
            apiserver: "https://127.0.0.1:7443".to_owned(),
            routers: vec!["127.0.0.1:7000".to_owned()],
            token_endpoint: None,
            unreachable: Some("the APIServer listens on loopback only".to_owned()),
            peers: None,
        }));
        let config = EnrolmentConfig {
            info: follow,
            hosts: Hosts::local(),
            leaf_life: LIFE,
            intermediate_life: LIFE,
            local_namespaces: BTreeSet::from([Namespace::new("open").unwrap()]),
            owner: nix::unistd::geteuid().as_raw(),
            root_node: root_node.map(|name| NodeName::new(name).unwrap()),
            flows: None,
        };
        let enrolment = Enrolment::new(config, authority.clone(), root, store);
        Self {
            enrolment,
            authority,
            data,
            info,
            _temp: temp,
        }
    }

    fn pin(&self) -> RootPin {
        self.authority.pin().unwrap()
    }

    fn live(&self) -> LiveIdentity {
        let key = KeyPair::generate().unwrap();
        let chain = self
            .authority
            .sign_node(&key.csr().unwrap(), &Hosts::local(), LIFE)
            .unwrap();
        LiveIdentity::new(key, chain, self.authority.roots()).unwrap()
    }

    fn pod(&self, namespace: &str, name: &str) -> LiveIdentity {
        let key = KeyPair::generate().unwrap();
        let (namespace, name) = (
            Namespace::new(namespace).unwrap(),
            PodName::new(name).unwrap(),
        );
        let chain = self
            .authority
            .sign_pod(&key.csr().unwrap(), &namespace, &name, LIFE)
            .unwrap();
        LiveIdentity::new(key, chain, self.authority.roots()).unwrap()
    }

    async fn token(&self, scope: TokenScope, uses: u32, endpoint: &str) -> JoinToken {
        let endpoint = Some(endpoint.to_owned());
        let request = TokenRequest {
            scope,
            ttl_seconds: 600,
            uses,
            endpoint,
        };
        let made: TokenAnswer = self
            .admin(Method::POST, "/v1/tokens", &request)
            .await
            .unwrap();
        made.token.parse().unwrap()
    }

    /// A call by the owner over `admin.sock`, without the socket.
    async fn admin<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Answer<T> {
        let owner = Remote::Unix {
            uid: nix::unistd::geteuid().as_raw(),
            gid: 0,
            pid: None,
        };
        let caller = Caller {
            identity: None,
            remote: owner,
        };
        parsed(
            self.enrolment
                .handle_admin(request(method, path, body), caller)
                .await,
        )
        .await
    }

    /// A call over the APIServer's port, without the port.
    async fn remote<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        as_: Option<&LiveIdentity>,
    ) -> Answer<T> {
        let remote = Remote::Tcp("192.0.2.1:4000".parse().unwrap());
        let caller = Caller {
            identity: as_.map(LiveIdentity::identity),
            remote,
        };
        parsed(
            self.enrolment
                .handle(request(Method::POST, path, body), caller)
                .await,
        )
        .await
    }

    /// The enrolment on a real port, over HTTP/3.
    fn serve(&self) -> Served {
        self.serve_with(self.enrolment.clone())
    }

    /// Another handler there.
    fn serve_with(&self, handler: impl Handler) -> Served {
        let metrics = TransportMetrics::register(&mut Registry::default());
        let handler = Arc::new(handler);
        let listen = "127.0.0.1:0".parse().unwrap();
        let server = ApiServer::bind(
            &listen,
            &self.live(),
            &QuicKeys::ephemeral(),
            handler,
            Limits::default(),
            metrics,
        )
        .unwrap();
        let address = HostPort::from(server.local_addrs()[0]);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(stop.clone()));
        Served {
            address,
            stop,
            tasks,
        }
    }
}

struct Served {
    address: HostPort,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Served {
    async fn stop(mut self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.tasks.join_next())
            .await
            .unwrap();
    }
}

fn request(method: Method, path: &str, body: &impl Serialize) -> http::Request<Body> {
    raw(method, path, serde_json::to_vec(body).unwrap())
}

fn raw(method: Method, path: &str, body: Vec<u8>) -> http::Request<Body> {
    http::Request::builder()
        .method(method)
        .uri(path)
        .body(full(body))
        .unwrap()
}

async fn parsed<T: DeserializeOwned>(response: Response<Body>) -> Answer<T> {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    if parts.status.is_success() {
        return Ok(serde_json::from_slice(&bytes).unwrap());
    }
    let status: Box<Status> = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(status.code, parts.status.as_u16());
    Err(status)
}

fn csr() -> Csr {
    KeyPair::generate().unwrap().csr().unwrap()
}

fn node_scope(name: Option<&str>) -> TokenScope {
    TokenScope::Node {
        node: name.map(|name| NodeName::new(name).unwrap()),
    }
}

fn sidecar_scope(namespace: &str, name: &str) -> TokenScope {
    TokenScope::Sidecar {
        namespace: Namespace::new(namespace).unwrap(),
        name: PodName::new(name).unwrap(),
    }
}
