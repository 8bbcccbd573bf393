use std::sync::Arc;

use futures_util::future::BoxFuture;
use keel_certs::fixture::Fabric;
use keel_certs::{
    ClusterName, DataDir, Hosts, INTERMEDIATE_LIFE, Issuer, LEAF_LIFE, MIN_LIFE, RenewError,
    Renewed,
};
use keel_control::enroll::{Enrolment, EnrolmentConfig, LocalSockets, NodeInfo};
use keel_control::store::{Store, StoreConfig};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::fresh::{NodeIssuer, follow_files};
use super::*;

fn lookup(state: Option<&Path>) -> Lookup {
    let mut config = SidecarConfig::new("default".parse().unwrap(), PathBuf::from("/nonexistent"));
    config.identity_timeout = Some(Duration::ZERO);
    config.workload_sockets = vec![PathBuf::from("/nonexistent/workload.sock")];
    Lookup::new(&config, "app-0".parse().unwrap(), state, None)
}

/// A node's workload socket in `dir`, whose APIServer is said to be at port 7999.
async fn node(fabric: &Fabric, dir: &Path, tasks: &mut JoinSet<()>) -> PathBuf {
    node_giving(LEAF_LIFE, fabric, dir, tasks).await
}

async fn node_giving(
    leaf_life: Duration,
    fabric: &Fabric,
    dir: &Path,
    tasks: &mut JoinSet<()>,
) -> PathBuf {
    let data = DataDir::open(dir).unwrap();
    let info = NodeInfo {
        node: "a".parse().unwrap(),
        cluster: ClusterName::default_cluster(),
        trust_domain: fabric.root().trust_domain().clone(),
        apiserver: "https://127.0.0.1:7999".to_owned(),
        routers: Vec::new(),
        token_endpoint: None,
        unreachable: None,
        peers: None,
    };
    let config = EnrolmentConfig {
        info: watch::channel(Arc::new(info)).1,
        hosts: Hosts::local(),
        leaf_life,
        intermediate_life: INTERMEDIATE_LIFE,
        local_namespaces: Default::default(),
        owner: nix::unistd::getuid().as_raw(),
        root_node: None,
        flows: None,
    };
    let store = Store::open(&data.store(), StoreConfig::default())
        .await
        .unwrap();
    let enrolment = Enrolment::new(config, fabric.node_authority("a"), None, store);
    let sockets = LocalSockets::bind(&data).unwrap();
    let path = data.workload_sock();
    tasks.spawn(async move {
        sockets.run(enrolment, CancellationToken::new()).await;
        drop(data);
    });
    path
}

#[tokio::test]
async fn with_nothing_it_names_both_remedies() {
    let error = lookup(None).run().await.err().unwrap().to_string();
    for part in [
        "keel up",
        "keel token create --sidecar default/app-0",
        "--join",
        "/nonexistent/workload.sock",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[tokio::test]
async fn a_nodes_socket_gives_an_identity_that_is_kept_without_the_node() {
    let (fabric, dir, mut tasks) = (Fabric::new(), tempfile::tempdir().unwrap(), JoinSet::new());
    let state = tempfile::tempdir().unwrap();
    let mut lookup = lookup(Some(state.path()));
    lookup
        .sockets
        .push(node(&fabric, dir.path(), &mut tasks).await);
    let found = lookup.run().await.unwrap();
    assert_eq!(
        found.live.identity().subject.path(),
        "/node/a/ns/default/pod/app-0"
    );
    assert_eq!(found.apiserver.to_string(), "127.0.0.1:7999");
    tasks.shutdown().await;
    lookup.origin = Some(Origin {
        node: found.node.clone(),
        apiserver: "127.0.0.1:7998".to_owned(),
    });
    let again = lookup.run().await.unwrap();
    assert_eq!(again.live.identity(), found.live.identity());
    assert_eq!(
        again.live.chain().certs,
        found.live.chain().certs,
        "the kept one, not a new one"
    );
    assert_eq!(
        again.apiserver.to_string(),
        "127.0.0.1:7998",
        "where it was last"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(state.path().join("identity/tls.key"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_kept_identity_of_another_namespace_or_without_life_is_passed_over() {
    let (fabric, state) = (Fabric::new(), tempfile::tempdir().unwrap());
    let lookup = lookup(Some(state.path()));
    let kept = state.path().join("identity");
    fabric.pod("a", "prod", "app-0").save(&kept).unwrap();
    assert!(lookup.run().await.is_err());
    fabric.pod("a", "default", "app-9").save(&kept).unwrap();
    assert!(lookup.run().await.is_ok(), "no name was asked for");
    std::fs::write(kept.join("tls.crt"), "torn").unwrap();
    assert!(lookup.run().await.is_err());
}

#[tokio::test]
async fn a_kept_identity_of_another_pod_counts_only_if_a_token_gave_it() {
    let (fabric, state) = (Fabric::new(), tempfile::tempdir().unwrap());
    let lookup = Lookup {
        pod_given: true,
        ..lookup(Some(state.path()))
    };
    let kept = state.path().join("identity");
    fabric.pod("a", "default", "app-0").save(&kept).unwrap();
    assert!(lookup.run().await.is_ok(), "it is ours");
    fabric.pod("a", "default", "app-9").save(&kept).unwrap();
    assert!(lookup.run().await.is_err(), "it is another pod's");

    // What a token gave is taken whatever it is called, also when the token is gone, and leads to where it came from.
    let token = JoinToken::generate(fabric.pin(), "198.51.100.2:7443".to_owned());
    note_joined(&kept, Some(&token)).unwrap();
    fabric.pod("a", "prod", "app-9").save(&kept).unwrap();
    let found = lookup.run().await.unwrap();
    assert_eq!(found.apiserver.to_string(), "198.51.100.2:7443");
    note_joined(&kept, None).unwrap();
    assert!(
        lookup.run().await.is_err(),
        "replaced by one from a socket: the token no longer counts"
    );
}

#[tokio::test]
async fn a_token_whose_server_is_away_is_tried_again_with_the_same_key() {
    let (fabric, state) = (Fabric::new(), tempfile::tempdir().unwrap());
    // Nobody listens on the discard port of this machine; QUIC to it is given up after its timeout.
    let unused = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let token = JoinToken::generate(fabric.pin(), unused.local_addr().unwrap().to_string());
    let lookup = Lookup {
        join: Some(token.clone()),
        ..lookup(Some(state.path()))
    };
    let pending = pending(&state.path().join("identity"));
    let (_, first) = lookup.key().ok().unwrap();
    let (_, second) = lookup.key().ok().unwrap();
    assert_eq!(first.key_hash(), second.key_hash());
    assert!(pending.exists());
    drop(unused);
    let error = lookup.run().await.err().unwrap().to_string();
    assert!(
        !error.contains(&token.to_string()),
        "the secret is never shown: {error}"
    );
    assert!(error.contains(&token.id.to_string()), "{error}");
}

/// The network's way to the node: always gives the same certificate, which is how the test knows it.
struct Network(LiveIdentity);

impl Issuer for Network {
    fn renew(&self, _: &Csr) -> BoxFuture<'static, Result<Renewed, RenewError>> {
        let renewed = (self.0.chain(), self.0.roots());
        Box::pin(async { Ok(renewed) })
    }
}

#[tokio::test]
async fn a_renewal_asks_the_nodes_own_socket_and_then_the_network() {
    let (fabric, other) = (Fabric::new(), Fabric::new());
    let (dir, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut tasks = JoinSet::new();
    let socket = node_giving(MIN_LIFE, &fabric, dir.path(), &mut tasks).await;
    let live = fabric.pod("a", "default", "app-0");
    let remote = fabric.pod("a", "default", "app-0");
    let issuer = |who: &LiveIdentity, sockets: &[&PathBuf]| NodeIssuer {
        live: who.clone(),
        sockets: sockets.iter().map(|socket| (*socket).clone()).collect(),
        remote: Arc::new(Network(remote.clone())),
    };
    let csr = || KeyPair::generate().unwrap().csr().unwrap();
    let missing = there.path().join("workload.sock");

    let (chain, roots) = issuer(&live, &[&missing, &socket])
        .renew(&csr())
        .await
        .unwrap();
    assert_ne!(chain.certs, remote.chain().certs, "by the socket");
    assert_eq!(roots, fabric.roots());
    let life = chain.not_after.duration_since(SystemTime::now()).unwrap();
    assert!(life <= MIN_LIFE, "as short as the node gives it: {life:?}");

    // No socket, and one of another node than the one that vouches for us.
    let elsewhere = other.pod("b", "default", "app-0");
    // Machines of one image have one name.
    let namesake = other.pod("a", "default", "app-0");
    for (who, socket) in [
        (&live, &missing),
        (&elsewhere, &socket),
        (&namesake, &socket),
    ] {
        let (chain, _) = issuer(who, &[socket]).renew(&csr()).await.unwrap();
        assert_eq!(chain.certs, remote.chain().certs, "over the network");
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_somebody_replaces_are_taken_over() {
    let (fabric, dir) = (Fabric::new(), tempfile::tempdir().unwrap());
    fabric
        .pod("a", "default", "app-0")
        .save(dir.path())
        .unwrap();
    let lookup = Lookup {
        identity_dir: Some(dir.path().to_owned()),
        ..lookup(None)
    };
    let found = lookup.run().await.unwrap();
    assert_eq!(found.apiserver.to_string(), "127.0.0.1:7443");
    let (live, stop) = (found.live.clone(), CancellationToken::new());
    let new = fabric.pod("a", "default", "app-0");
    new.save(dir.path()).unwrap();
    let following = follow_files(&live, dir.path(), stop.clone());
    let watching = async {
        while live.chain().certs != new.chain().certs {
            sleep(Duration::from_secs(1)).await;
        }
        stop.cancel();
    };
    timeout(Duration::from_secs(60), async {
        tokio::join!(following, watching)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_directory_that_cannot_be_looked_into_is_not_taken_for_no_node() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    // As a directory of another user, for root as well.
    let socket = file.join("workload.sock");
    let looking = Lookup {
        sockets: vec!["/nonexistent/workload.sock".into(), socket.clone()],
        ..lookup(None)
    };
    let error = looking.run().await.err().unwrap().to_string();
    assert!(!error.contains("there is no node"), "{error}");
    assert!(error.contains(socket.to_str().unwrap()), "{error}");
    let error = lookup(None).run().await.err().unwrap().to_string();
    assert!(
        error.contains("there is no node on this machine"),
        "{error}"
    );
}

#[test]
fn an_expired_certificate_that_somebody_else_keeps_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let live = Fabric::new().pod("a", "default", "app-0");
    live.save(folder.path()).unwrap();
    let at = |now| lookup(None).in_directory(folder.path(), now);
    assert!(at(live.not_after() - MIN_LIFE).is_ok());
    let Err(Attempt::Again(why)) = at(live.not_after()) else {
        panic!("it was taken");
    };
    assert!(why.contains("has expired"), "{why}");
    assert!(why.contains(&folder.path().display().to_string()), "{why}");
}
