use std::sync::Arc;

use futures_util::future::BoxFuture;
use keel_certs::{Chain, Identity, NodeName, Subject, TrustDomain};
use keel_control::enroll::wire::{Issued, RenewRequest};
use keel_control::http::{Body, Caller, Handler, full, read};
use keel_control::transport::{ApiServer, Limits, TransportMetrics};
use keel_fabric::quic::{HostPort, QuicKeys};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

use super::super::peers;
use super::*;
use crate::settings::PeerArg;

const LIFE: Duration = Duration::from_secs(3600);

fn root() -> Arc<RootAuthority> {
    Arc::new(RootAuthority::create(Some(TrustDomain::new("test.keel").unwrap())).unwrap())
}

/// A node under `root`, and its own identity.
fn node(root: &RootAuthority, name: &str) -> (NodeAuthority, LiveIdentity) {
    let (name, key) = (NodeName::new(name).unwrap(), KeyPair::generate().unwrap());
    let signed = root
        .sign_intermediate(&key.csr().unwrap(), &name, &Hosts::loopback(), LIFE)
        .unwrap();
    let authority = NodeAuthority::create(key, signed, vec![root.certificate().clone()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = authority
        .sign_node(&key.csr().unwrap(), &Hosts::loopback(), LIFE)
        .unwrap();
    let live = LiveIdentity::new(key, leaf, authority.roots()).unwrap();
    (authority, live)
}

/// Answers every renewal with an intermediate of this root, and with the root.
struct Signs(Arc<RootAuthority>);

impl Handler for Signs {
    fn handle(
        &self,
        request: http::Request<Body>,
        caller: Caller,
    ) -> BoxFuture<'static, http::Response<Body>> {
        let root = self.0.clone();
        Box::pin(async move {
            let Some(Identity { subject, .. }) = caller.identity else {
                panic!("nobody asks");
            };
            let Subject::Node { node } = &subject else {
                panic!("{subject} asks");
            };
            let body = read(request.into_body(), 1 << 16).await.unwrap();
            let RenewRequest { csr, hosts } = serde_json::from_slice(&body).unwrap();
            let signed = root.sign_intermediate(&csr.0, node, &hosts, LIFE).unwrap();
            let issued = Issued {
                certificates: Chain::new(vec![signed]).unwrap().pem(),
                roots: Chain::new(vec![root.certificate().clone()]).unwrap().pem(),
                node: node.clone(),
                subject,
            };
            http::Response::new(full(serde_json::to_vec(&issued).unwrap()))
        })
    }
}

#[tokio::test]
async fn a_peer_that_lies_changes_nothing_and_keeps_nobody_from_being_asked() {
    let (ours, theirs) = (root(), root());
    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    let mut serve = |name: &str, signer: &Arc<RootAuthority>| {
        let (_, live) = node(&ours, name);
        let server = ApiServer::bind(
            &"127.0.0.1:0".parse().unwrap(),
            &live,
            &QuicKeys::ephemeral(),
            Arc::new(Signs(signer.clone())),
            Limits::default(),
            TransportMetrics::register(&mut Registry::default()),
        )
        .unwrap();
        let server_at = HostPort::from(server.local_addrs()[0]);
        servers.spawn(server.run(stop.clone()));
        PeerArg {
            node: NodeName::new(name).unwrap(),
            server: server_at,
        }
    };
    let (liar, honest) = (serve("liar", &theirs), serve("honest", &ours));

    let temp = tempfile::tempdir().unwrap();
    let (authority, live) = node(&ours, "b");
    let renewal = Renewal {
        path: temp.path().to_owned(),
        authority: authority.clone(),
        root: None,
        hosts: Hosts::loopback(),
        live: live.clone(),
        leaf_life: LIFE,
        peers: PeersSource::kept(temp.path().join("peers.yaml")),
    };
    let known = |all: &[&PeerArg]| {
        let all: Vec<PeerArg> = all.iter().copied().cloned().collect();
        peers::save(&temp.path().join("peers.yaml"), &all).unwrap();
    };
    known(&[&liar]);
    let roots = vec![ours.certificate().clone()];
    let before = (authority.intermediate(), live.chain());
    let mut is_kept = true;
    let error = renewal.renew(&mut is_kept).await.unwrap_err().to_string();
    assert!(
        error.contains("liar: ") && error.contains("not signed by a root"),
        "{error}"
    );
    assert_eq!((authority.intermediate(), live.chain()), before);

    // Whom the node knows may change while it runs.
    known(&[&liar, &honest]);
    renewal.renew(&mut is_kept).await.unwrap();
    assert_ne!(authority.intermediate(), before.0);
    assert_ne!(live.chain(), before.1);
    assert_eq!((authority.roots(), live.roots()), (roots.clone(), roots));
    let kept = NodeAuthority::load(&DataDir::peek(temp.path()))
        .unwrap()
        .unwrap();
    assert_eq!(kept.roots(), authority.roots());

    // On a full disk it is in use, and is kept later without being asked for again.
    let file = temp.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut renewal = Renewal {
        path: file.join("node"),
        ..renewal
    };
    renewal.renew(&mut is_kept).await.unwrap_err();
    assert!(!is_kept);
    let unsaved = authority.intermediate();
    assert_ne!(unsaved, kept.intermediate());
    known(&[]);
    renewal.path = temp.path().to_owned();
    renewal.renew(&mut is_kept).await.unwrap();
    let kept = NodeAuthority::load(&DataDir::peek(temp.path()))
        .unwrap()
        .unwrap();
    assert!(is_kept && kept.intermediate() == unsaved);

    stop.cancel();
    while servers.join_next().await.is_some() {}
}
