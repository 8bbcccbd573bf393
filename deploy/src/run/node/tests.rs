use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use keel_control::api::{Router, RouterStatus};
use keel_control::enroll::local;
use keel_control::enroll::wire::TokenRequest;
use keel_control::store::TokenScope;
use keel_fabric::quic::ListenAddr;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::cli::access::Admin;
use crate::settings::{NodeFlags, TokenSource};

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn settings(dir: &Path, name: &str) -> NodeSettings {
    let flags = NodeFlags {
        node_name: Some(name.parse().unwrap()),
        data_dir: Some(dir.join(name)),
        apiserver_listen: Some(ListenAddr::from(loopback(0))),
        metrics_listen: Some(loopback(0)),
        ..NodeFlags::default()
    };
    let mut settings = flags.resolve(dir.to_owned(), name.to_owned()).unwrap();
    settings.router_listen = Some(ListenAddr::from(loopback(0)));
    settings
}

fn node_token(node: &RunningNode) -> TokenRequest {
    TokenRequest {
        scope: TokenScope::Node { node: None },
        ttl_seconds: 600,
        uses: 1,
        endpoint: Some(node.apiserver_addr().to_string()),
    }
}

async fn token(node: &RunningNode, scope: TokenScope) -> String {
    let request = TokenRequest {
        scope,
        ..node_token(node)
    };
    let socket = node.data_dir().join("admin.sock");
    local::create_token(&socket, &request)
        .await
        .unwrap()
        .to_string()
}

/// The status of Router `name` at `node`, once it is as `wanted`.
async fn status(
    node: &RunningNode,
    name: &str,
    wanted: impl Fn(&RouterStatus) -> bool,
) -> RouterStatus {
    let client = node.client().unwrap();
    let name: NodeName = name.parse().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = client
            .get_router(&name)
            .await
            .ok()
            .and_then(|router| router.status);
        match found {
            Some(status) if wanted(&status) => return status,
            other => assert!(
                Instant::now() < deadline,
                "{name} at {} never came to be: {other:?}",
                node.node()
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn apply(node: &RunningNode, spec: serde_json::Value) {
    let admin = Admin::get(node.data_dir(), None, None).await.unwrap();
    let patch = serde_json::json!({ "spec": spec });
    admin
        .client()
        .unwrap()
        .merge_patch_router(node.node(), &patch)
        .await
        .unwrap();
}

fn condition<'a>(status: &'a RouterStatus, kind: &str) -> Option<&'a str> {
    status
        .conditions
        .iter()
        .find(|condition| condition.kind == kind)
        .map(|condition| condition.status.as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_node_joins_and_stays_what_it_is() {
    let dir = TempDir::new().unwrap();
    let first = Node::start(settings(dir.path(), "a")).await.unwrap();
    let mut joining = settings(dir.path(), "b");
    let text = token(
        &first,
        TokenScope::Node {
            node: Some("b".parse().unwrap()),
        },
    )
    .await;
    joining.join = Some(text.parse().unwrap());
    // A peer that is given comes before the one joined through, and is not where the root is.
    joining.peers = vec!["z=127.0.0.1:9".parse().unwrap()];
    let second = Node::start(joining.clone()).await.unwrap();
    let socket = second.data_dir().join("admin.sock");
    let refused = local::create_token(&socket, &node_token(&second))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("ask node a,"), "{refused}");
    assert_eq!(first.trust_domain(), second.trust_domain());
    status(&first, "b", |status| {
        condition(status, "Ready") == Some("True")
    })
    .await;
    status(&second, "a", |status| {
        condition(status, "Ready") == Some("True")
    })
    .await;

    let info = local::info(&socket).await.unwrap();
    let peers = info.peers.unwrap();
    let a = peers.iter().find(|peer| peer.node == *first.node());
    assert!(a.unwrap().connected && a.unwrap().last_contact.is_some());

    second.stop().await.unwrap();
    status(&first, "b", |status| {
        condition(status, "Ready") == Some("False")
    })
    .await;

    // The token is used up, and its file may be gone: neither matters to a node that has joined.
    joining.join = Some(TokenSource::File(dir.path().join("gone")));
    let again = Node::start(joining).await.unwrap();
    status(&first, "b", |status| {
        condition(status, "Ready") == Some("True")
    })
    .await;
    again.stop().await.unwrap();
    first.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_directory_or_one_port_serves_one_node_and_the_error_says_so() {
    let dir = TempDir::new().unwrap();
    let first = Node::start(settings(dir.path(), "a")).await.unwrap();
    let text = |outcome: anyhow::Result<RunningNode>| {
        crate::errors::chain(outcome.err().unwrap().as_ref())
    };

    let same_dir = text(Node::start(settings(dir.path(), "a")).await);
    assert!(same_dir.contains("in use by process"), "{same_dir}");

    let mut same_port = settings(dir.path(), "b");
    same_port.apiserver_listen = ListenAddr::from(first.apiserver_addr());
    let port = first.apiserver_addr().port().to_string();
    let taken = text(Node::start(same_port).await);
    assert!(taken.contains(&port) && taken.contains("taken"), "{taken}");
    let left = || dir.path().join("b/ca").exists() || dir.path().join("b/node").exists();
    assert!(!left(), "no trust domain is made that cannot be served");

    let socket = UdpSocket::bind(loopback(0)).unwrap();
    let mut same_port = settings(dir.path(), "b");
    same_port.router_listen = Some(ListenAddr::from(socket.local_addr().unwrap()));
    let port = socket.local_addr().unwrap().port().to_string();
    let taken = text(Node::start(same_port).await);
    assert!(taken.contains(&port) && taken.contains("router"), "{taken}");
    assert!(!left(), "no trust domain is made that cannot be served");

    let mut no_token = settings(dir.path(), "b");
    no_token.join = Some(TokenSource::File(dir.path().join("gone")));
    let missing = text(Node::start(no_token).await);
    assert!(missing.starts_with("--join"), "{missing}");
    assert!(!dir.path().join("b/store.db").exists(), "made for nothing");
    Node::start(settings(dir.path(), "b"))
        .await
        .unwrap()
        .stop()
        .await
        .unwrap();

    let mut other_name = settings(dir.path(), "b");
    other_name.node = Some("c".parse().unwrap());
    let wrong = text(Node::start(other_name).await);
    assert!(wrong.contains("belongs to node b"), "{wrong}");
    first.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spec_moves_the_router_unless_a_flag_holds_it() {
    let dir = TempDir::new().unwrap();
    let free = || {
        UdpSocket::bind(loopback(0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    };
    let (first_port, next_port) = (free(), free());
    let mut held = settings(dir.path(), "b");
    held.router_listen = Some(ListenAddr::from(loopback(first_port)));
    let b = Node::start(held).await.unwrap();
    apply(
        &b,
        serde_json::json!({"frps": {"bindAddr": "127.0.0.1", "bindPort": next_port}}),
    )
    .await;
    let seen = status(&b, "b", |status| {
        condition(status, "SpecOverridden") == Some("True")
    })
    .await;
    assert_eq!(seen.node_addresses, [loopback(first_port).to_string()]);
    b.stop().await.unwrap();

    // Without the flag the same directory follows its spec, and goes on following it.
    let mut free_now = settings(dir.path(), "b");
    free_now.router_listen = None;
    let b = Node::start(free_now).await.unwrap();
    assert_eq!(b.router_addrs(), [loopback(next_port)]);
    apply(&b, serde_json::json!({"frps": {"bindPort": first_port}})).await;
    status(&b, "b", |status| {
        status.node_addresses == [loopback(first_port).to_string()]
    })
    .await;

    // A port that cannot be had is said, and the router stays where it is.
    let taken = UdpSocket::bind(loopback(0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    apply(&b, serde_json::json!({"frps": {"bindPort": port}})).await;
    let seen = status(&b, "b", |status| {
        condition(status, "Ready") == Some("False")
    })
    .await;
    assert_eq!(seen.node_addresses, [loopback(first_port).to_string()]);
    let said = seen
        .conditions
        .iter()
        .find(|condition| condition.kind == "Ready")
        .unwrap();
    assert!(
        said.message.contains(&port.to_string()) && said.message.contains("still listening"),
        "{}",
        said.message
    );
    b.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_behind_nat_publishes_its_services_at_one_that_is_reachable() {
    let dir = TempDir::new().unwrap();
    let mut public = settings(dir.path(), "a");
    public.advertise = vec![HostPort::from(loopback(0))];
    let a = Node::start(public).await.unwrap();
    let port = a.router_addrs()[0].port();
    let seen = status(&a, "a", |status| condition(status, "Ready") == Some("True")).await;
    assert_eq!(seen.addresses, [loopback(port).to_string()]);

    let mut hidden = settings(dir.path(), "b");
    hidden.join = Some(
        token(&a, TokenScope::Node { node: None })
            .await
            .parse()
            .unwrap(),
    );
    let b = Node::start(hidden).await.unwrap();
    status(&b, "b", |status| condition(status, "Ready") == Some("True")).await;
    let services = serde_json::json!([{"name": "mysql", "port": 3306, "target": "127.0.0.1:9"}, {"name": "later", "port": 1}]);
    apply(&b, serde_json::json!({ "advertisedServices": services })).await;

    let provided = |status: &RouterStatus| {
        status.active_services.iter().any(|service| {
            service
                .providers
                .iter()
                .any(|provider| provider.identity == "/node/b")
        })
    };
    status(&b, "b", provided).await;
    let seen = status(&a, "a", provided).await;
    assert_eq!(seen.active_services[0].name.as_deref(), Some("mysql"));
    let own = status(&b, "b", |status| status.active_services.len() == 2).await;
    let later = own
        .active_services
        .iter()
        .find(|service| service.name.as_deref() == Some("later"))
        .unwrap();
    assert!(
        later.providers.is_empty(),
        "announced services wait for a provider"
    );
    b.stop().await.unwrap();
    // What was published by a router that stopped is gone at once.
    status(&a, "a", |status| status.active_services.is_empty()).await;
    a.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_that_it_is_ready_and_a_wrong_spec_does_not_stop_it() {
    let dir = TempDir::new().unwrap();
    let a = Node::start(settings(dir.path(), "a")).await.unwrap();
    assert!(a.ready().missing().is_empty());
    let client = a.client().unwrap();
    let own = Router::named("a");
    // A node may make its own Router, but not somebody else's, and never a spec.
    assert!(client.create_router(&Router::named("b")).await.is_err());
    assert!(client.create_router(&own).await.is_ok() || client.get_router(a.node()).await.is_ok());
    a.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_nobody_answers_ends_when_it_is_told_to() {
    let dir = TempDir::new().unwrap();
    let a = Node::start(settings(dir.path(), "a")).await.unwrap();
    // A port that takes packets and says nothing.
    let silent = UdpSocket::bind(loopback(0)).unwrap();
    let text = token(&a, TokenScope::Node { node: None }).await.replace(
        &a.apiserver_addr().to_string(),
        &silent.local_addr().unwrap().to_string(),
    );
    a.stop().await.unwrap();
    let mut joining = settings(dir.path(), "b");
    joining.join = Some(text.parse().unwrap());
    let stop = CancellationToken::new();
    let running = Node::start_unless(joining, &stop);
    let interrupt = async {
        silent.set_nonblocking(false).unwrap();
        tokio::task::spawn_blocking(move || silent.recv(&mut [0; 64]).unwrap())
            .await
            .unwrap();
        stop.cancel();
    };
    let (started, ()) = tokio::join!(running, interrupt);
    assert!(started.unwrap().is_none());
}

/// The sample of frp's operator as its cluster shows it, with these ports.
fn frpserver(port: u16) -> String {
    format!(
        "apiVersion: tunnel.kubeinfra.io/v1alpha1
kind: FRPServer
metadata:
  creationTimestamp: '2025-05-04T14:09:04Z'
  generation: 1
  name: frpserver-sample
  resourceVersion: '689594'
  uid: 61fcd8f5-a5e4-47af-90e3-b5645b026c5a
spec:
  allowPorts: [{{end: 2000, start: 2000}}]
  bindAddr: 127.0.0.1
  bindPort: {port}
  detailedErrorsToClient: true
  kcpBindPort: {port}
  natholeAnalysisDataReserveHours: 168
  proxyBindAddr: 0.0.0.0
  udpPacketSize: 1500
  userConnTimeout: 10
  version: v1
  vhostHTTPTimeout: 60
  webServer: {{addr: 0.0.0.0, password: pass-w0rd, port: 7500, user: admin}}
status:
  activeConnections:
  - {{proxyName: mysql.abc, proxyType: tcp, startTime: '0000-05-04T23:10:04Z', status: online, todayTrafficIn: 4029}}
  serviceStatus: {{totalConnections: 0, uptime: 0s}}
"
    )
}

/// The FRPServer at the node, once it is as wanted.
async fn followed(
    node: &RunningNode,
    wanted: impl Fn(&keel_control::api::FrpServer) -> bool,
) -> keel_control::api::FrpServer {
    use futures_util::StreamExt as _;
    use keel_control::client::WatchEvent;
    let client = node.client().unwrap();
    let mut events = client.watch_frpserver("frpserver-sample");
    let found = async {
        loop {
            let one = match events.next().await.unwrap() {
                WatchEvent::Applied(one) => Some(one),
                WatchEvent::Snapshot { mut routers, .. } => routers.pop(),
                _ => None,
            };
            if let Some(one) = one.filter(&wanted) {
                return one;
            }
        }
    };
    timeout(Duration::from_secs(20), found).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_follows_an_frpserver_and_reports_there() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("frpserver.yaml");
    let free = || {
        let socket = UdpSocket::bind(loopback(0)).unwrap();
        socket.local_addr().unwrap().port()
    };
    let keel_apply = async |node: &RunningNode, port: u16| {
        std::fs::write(&file, frpserver(port)).unwrap();
        let (dir, file) = (node.data_dir().as_os_str(), file.as_os_str());
        crate::cli::apply(&[dir, file]).await.unwrap();
    };
    let (first, second) = (free(), free());
    let node = Node::start(settings(dir.path(), "a")).await.unwrap();
    keel_apply(&node, first).await;
    node.stop().await.unwrap();

    let mut following = settings(dir.path(), "a");
    following.router_listen = None;
    following.follow = Some("frpserver-sample".to_owned());
    let node = Node::start(following).await.unwrap();
    assert_eq!(node.router_addrs(), [loopback(first)]);
    let backend = std::net::TcpListener::bind(loopback(0)).unwrap();
    let target = backend.local_addr().unwrap().to_string();
    let service =
        serde_json::json!({"name": "mysql", "namespace": "abc", "port": 3306, "target": target});
    apply(&node, serde_json::json!({"advertisedServices": [service]})).await;

    let is_served = |one: &keel_control::api::FrpServer| {
        let connections = one
            .status
            .iter()
            .flat_map(|status| &status.active_connections);
        let mut served =
            connections.filter(|one| one.status == "online" && one.proxy_type == "stcp");
        served.any(|one| one.proxy_name == "mysql.abc")
    };
    let status = followed(&node, is_served).await.status.unwrap();
    let of = |kind: &str| {
        status
            .conditions
            .iter()
            .find(|one| one.kind == kind)
            .unwrap()
    };
    assert_eq!(
        (of("Ready").status.as_str(), of("Ready").observed_generation),
        ("True", Some(1))
    );
    let unused = &of("SettingsWithoutEffect").message;
    for field in ["allowPorts", "kcpBindPort", "vhostHTTPTimeout", "webServer"] {
        assert!(unused.contains(field), "{unused}");
    }
    assert!(!unused.contains("bindAddr"), "{unused}");
    assert!(status.service_status.is_some());
    let own = self::status(&node, "a", |status| {
        condition(status, "FollowsFRPServer") == Some("True")
    })
    .await;
    for text in [
        serde_json::to_string(&status).unwrap(),
        serde_json::to_string(&own).unwrap(),
    ] {
        assert!(!text.contains("pass-w0rd"), "{text}");
    }

    keel_apply(&node, second).await;
    let moved = |one: &keel_control::api::FrpServer| {
        let conditions = one.status.iter().flat_map(|status| &status.conditions);
        let mut ready =
            conditions.filter(|one| one.kind == "Ready" && one.observed_generation == Some(2));
        ready.any(|one| one.message.contains(&second.to_string()))
    };
    followed(&node, moved).await;
    assert_eq!(node.router_addrs(), [loopback(second)]);

    // Without it the Router's own settings are in force.
    let third = free();
    let spec = serde_json::json!({"frps": {"bindAddr": "127.0.0.1", "bindPort": third}});
    apply(&node, spec).await;
    self::status(&node, "a", |status| {
        condition(status, "SpecOverridden") == Some("True")
    })
    .await;
    let admin = Admin::get(node.data_dir(), None, None).await.unwrap();
    let request =
        http::Request::delete("/apis/tunnel.kubeinfra.io/v1alpha1/frpservers/frpserver-sample");
    let request = request.body(bytes::Bytes::new()).unwrap();
    let answer = admin.client().unwrap().request(request).await.unwrap();
    assert!(answer.status().is_success());
    let told = |status: &RouterStatus| {
        let at = format!("127.0.0.1:{third}");
        condition(status, "FollowsFRPServer") == Some("False") && status.node_addresses == [at]
    };
    self::status(&node, "a", told).await;
    node.stop().await.unwrap();
}
