use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use keel_control::enroll::{local, wire::TokenRequest};
use keel_control::store::TokenScope;
use keel_fabric::quic::ListenAddr;

use super::*;
use crate::run::node::{Node, RunningNode};
use crate::settings::{NodeFlags, TokenSource};

fn settings(dir: &Path, name: &str) -> NodeSettings {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let flags = NodeFlags {
        node_name: Some(name.parse().unwrap()),
        data_dir: Some(dir.join(name)),
        apiserver_listen: Some(ListenAddr::from(loopback)),
        metrics_listen: Some(loopback),
        ..NodeFlags::default()
    };
    let mut settings = flags.resolve(dir.to_owned(), name.to_owned()).unwrap();
    settings.router_listen = Some(ListenAddr::from(loopback));
    settings
}

/// A token for node b.
async fn token(node: &RunningNode) -> TokenSource {
    let request = TokenRequest {
        scope: TokenScope::Node {
            node: Some("b".parse().unwrap()),
        },
        ttl_seconds: 600,
        uses: 1,
        endpoint: Some(node.apiserver_addr().to_string()),
    };
    let socket = node.data_dir().join("admin.sock");
    let token = local::create_token(&socket, &request).await.unwrap();
    token.to_string().parse().unwrap()
}

#[tokio::test]
async fn a_node_whose_intermediate_has_expired_joins_again_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let first = Node::start(settings(dir.path(), "a")).await.unwrap();
    let mut b = settings(dir.path(), "b");
    b.join = Some(token(&first).await);
    let data = DataDir::open(&b.data_dir).unwrap();
    let joined = establish(&data, &b).await.unwrap().authority;

    // Used up by now, which matters only to a node that needs it.
    establish(&data, &b).await.unwrap();
    let later = SystemTime::now() + INTERMEDIATE_LIFE + Duration::from_secs(1);
    let said = |outcome: anyhow::Result<Established>| match outcome {
        Ok(_) => panic!("an expired intermediate is of no use"),
        Err(error) => format!("{error:#}"),
    };
    let refused = said(establish_at(&data, &b, later).await);
    assert!(
        refused.contains("has expired") && refused.contains("used as often"),
        "{refused}"
    );
    b.join = None;
    let remedy = said(establish_at(&data, &b, later).await);
    assert!(remedy.contains("keel token create --node b"), "{remedy}");

    b.join = Some(token(&first).await);
    // The name is that of the directory, whatever the host is called.
    b.node = None;
    let again = establish_at(&data, &b, later).await.unwrap().authority;
    assert_eq!(
        (again.node(), again.roots()),
        (joined.node(), joined.roots())
    );
    assert_ne!(again.intermediate(), joined.intermediate());
    let kept = NodeAuthority::load(&data).unwrap().unwrap();
    assert_eq!(kept.intermediate(), again.intermediate());
    first.stop().await.unwrap();
}

#[tokio::test]
async fn a_store_that_cannot_be_had_leaves_no_trust_domain_behind() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    for url in [
        format!("postgres://keel@localhost/keel?host={}", nowhere.display()),
        format!("sqlite:{}/store.db", nowhere.display()),
    ] {
        let mut settings = settings(dir.path(), "a");
        settings.store = Some(url.parse().unwrap());
        let error = format!("{:#}", Node::start(settings.clone()).await.err().unwrap());
        assert!(error.contains("cannot open the store"), "{error}");
        let data = DataDir::open(&settings.data_dir).unwrap();
        assert!(NodeAuthority::load(&data).unwrap().is_none(), "{url}");
        assert!(!data.ca().exists(), "{url}");
    }
}

#[tokio::test]
async fn a_clock_that_was_ahead_leaves_no_node_behind() {
    let dir = tempfile::tempdir().unwrap();
    let founder = settings(dir.path(), "a");
    let data = DataDir::open(&founder.data_dir).unwrap();
    let made = establish(&data, &founder).await.unwrap().authority;
    let earlier = made.not_before() - Duration::from_secs(16 * 24 * 3600);
    let again = establish_at(&data, &founder, earlier).await.unwrap();
    assert_ne!(again.authority.intermediate(), made.intermediate());
    drop(data);

    let first = Node::start(founder).await.unwrap();
    let mut b = settings(dir.path(), "b");
    b.join = Some(token(&first).await);
    let data = DataDir::open(&b.data_dir).unwrap();
    establish(&data, &b).await.unwrap();
    b.join = None;
    let refused = establish_at(&data, &b, earlier)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("a clock was ahead") && refused.contains("keel token create --node b"),
        "{refused}"
    );
    b.join = Some(token(&first).await);
    establish_at(&data, &b, earlier).await.unwrap();
    first.stop().await.unwrap();
}

#[test]
fn a_key_that_others_can_read_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("root.key");
    std::fs::write(&key, "").unwrap();
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    close(&key);
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
}
