//! Whose names a node may carry, and what a use of a token is taken for.

use std::time::SystemTime;

use keel_certs::RenewError;

use super::wire::{EnrollRequest, Issued, PemCsr, PlainSecret, RenewRequest, Wants};
use super::*;
use crate::enroll::names::note_join;
use crate::store::{Change, Key, TokenRecord};

fn hosts(all: &[&str]) -> Hosts {
    let mut hosts = Hosts::default();
    for host in all {
        hosts.add(host);
    }
    hosts
}

fn ask(token: &JoinToken, key: &KeyPair, name: &str, hosts: &Hosts) -> EnrollRequest {
    EnrollRequest {
        id: token.id.clone(),
        secret: PlainSecret(token.secret.clone()),
        csr: PemCsr(key.csr().unwrap()),
        wants: Wants::Node {
            name: NodeName::new(name).unwrap(),
            hosts: hosts.clone(),
        },
    }
}

/// A Router that another node advertises.
async fn advertise(node: &Node, name: &str, spec: &str, status: &str) {
    let router = serde_json::json!({
        "apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": name},
        "spec": {"addresses": [spec]}, "status": {"addresses": [status], "nodeAddresses": ["10.0.0.9:7000"]},
    });
    let key = Key {
        resource: "routers.edge.example.com".into(),
        name: name.to_owned(),
    };
    let router = router.to_string();
    node.enrolment
        .inner
        .store
        .write(key, |_, _| (Change::Put(router.into()), ()))
        .await
        .unwrap();
}

#[tokio::test]
async fn nobody_gets_a_name_or_an_address_that_another_is_known_by() {
    let own = hosts(&["root.example.net", "rooty", "10.0.0.1", "127.0.0.1"]);
    let node = Node::known_as("a", own).await;
    node.info.send_modify(|info| {
        Arc::make_mut(info).token_endpoint = Some("Join.Example.ORG:7443".to_owned());
    });
    advertise(&node, "c", "c.example.net:7000", "192.0.2.3:7000").await;
    advertise(&node, "b", "b.example.net:7000", "192.0.2.2:7000").await;

    let refused = [
        // Equal, in other cases and with a dot at the end.
        "ROOT.example.net.",
        "join.example.org",
        "C.example.net",
        "rooty",
        // Above: that would permit the name itself. Below.
        "example.net",
        "example.org",
        "net",
        "x.root.example.net",
        "a.b.c.example.net",
        "x.join.example.org",
        // Single labels, but for that of the node.
        "intranet",
        "10.0.0.1",
        "::ffff:10.0.0.1",
        "192.0.2.3",
    ];
    let given = hosts(&[
        "localhost",
        "b",
        "b.example.net",
        "notroot.example.net",
        "127.0.0.1",
        // A private address of another one, and what its own Router advertises.
        "10.0.0.9",
        "192.0.2.2",
    ]);
    let mut all = given.clone();
    all.extend(&hosts(&refused));
    // As somebody who does not write them in one form would send them.
    let mut as_sent = serde_json::to_value(&all).unwrap();
    as_sent["dns"]
        .as_array_mut()
        .unwrap()
        .push("Root.EXAMPLE.net.".into());
    as_sent["ips"]
        .as_array_mut()
        .unwrap()
        .push("::ffff:192.0.2.3".into());

    let token = node.token(node_scope(Some("b")), 1, "h.example:1").await;
    let key = KeyPair::generate().unwrap();
    let mut joining = serde_json::to_value(ask(&token, &key, "b", &all)).unwrap();
    joining["wants"]["node"]["hosts"] = as_sent;
    let issued: Issued = node.remote("/v1/enroll", &joining, None).await.unwrap();
    let (chain, roots) = local::parse(&issued).unwrap();
    let authority = NodeAuthority::create(key, chain.certs[0].clone(), roots).unwrap();
    assert!(authority.covers(&given));
    for name in refused {
        assert!(!authority.covers(&hosts(&[name])), "{name}");
    }

    // Renewing opens no other way.
    let key = KeyPair::generate().unwrap();
    let leaf = authority
        .sign_node(&key.csr().unwrap(), &Hosts::loopback(), LIFE)
        .unwrap();
    let live = LiveIdentity::new(key, leaf, authority.roots()).unwrap();
    let key = KeyPair::generate().unwrap();
    let renewal = RenewRequest {
        csr: PemCsr(key.csr().unwrap()),
        hosts: all,
    };
    let issued: Issued = node
        .remote("/v1/renew", &renewal, Some(&live))
        .await
        .unwrap();
    let (chain, _) = local::parse(&issued).unwrap();
    authority.replace(key, chain.certs[0].clone()).unwrap();
    assert!(authority.covers(&given));
    for name in refused {
        assert!(!authority.covers(&hosts(&[name])), "{name}");
    }
}

#[tokio::test]
async fn hosts_that_cannot_be_signed_cost_no_use() {
    let node = Node::first("a").await;
    let token = node.token(node_scope(Some("b")), 1, "h.example:1").await;
    let many: Vec<String> = (0..100)
        .map(|number| format!("h{number}.example"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let bad = ask(&token, &KeyPair::generate().unwrap(), "b", &hosts(&many));
    let refused = node
        .remote::<Issued>("/v1/enroll", &bad, None)
        .await
        .unwrap_err();
    assert_eq!(refused.code, 400, "{refused}");
    let good = ask(
        &token,
        &KeyPair::generate().unwrap(),
        "b",
        &Hosts::loopback(),
    );
    node.remote::<Issued>("/v1/enroll", &good, None)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_repeat_gets_a_certificate_that_is_good_as_long_as_the_token_is() {
    let node = Node::first("a").await;
    let store = &node.enrolment.inner.store;
    let now = SystemTime::now();
    for (expires_at, again) in [(now + LIFE, Ok(())), (now - LIFE, Err(403))] {
        let token = JoinToken::generate(node.pin(), "h.example:1");
        let key = KeyPair::generate().unwrap();
        let record = TokenRecord {
            id: token.id.clone(),
            secret_hash: token.secret_hash(),
            scope: node_scope(Some("b")),
            created_at: now - 2 * LIFE,
            expires_at,
            uses_left: 1,
            revoked: false,
        };
        store.create_token(record).await.unwrap();
        let hash = key.key_hash();
        store
            .consume_token(&token.id, token.secret_hash(), hash, now - 2 * LIFE)
            .await
            .unwrap();
        // The first answer, but from long ago.
        let over = Issued {
            subject: Subject::Node {
                node: NodeName::new("b").unwrap(),
            },
            certificates: over(&key),
            roots: String::new(),
            node: NodeName::new("a").unwrap(),
        };
        let kept = serde_json::to_vec(&over).unwrap();
        store
            .keep_result(&token.id, hash, kept.into())
            .await
            .unwrap();
        let request = ask(&token, &key, "b", &Hosts::loopback());
        let answer = node.remote::<Issued>("/v1/enroll", &request, None).await;
        let answer = answer.map_err(|status| status.code).map(|issued| {
            assert_ne!(issued.certificates, over.certificates);
        });
        assert_eq!(answer, again);
    }
}

/// A certificate that has ended.
fn over(key: &KeyPair) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.not_after = (SystemTime::now() - LIFE).into();
    params.self_signed(key).unwrap().pem()
}

#[tokio::test]
async fn another_key_for_a_name_replaces_a_node() {
    let node = Node::first("a").await;
    let inner = &node.enrolment.inner;
    let replaces = async |name: &str, key: u8| {
        let name = NodeName::new(name).unwrap();
        note_join(inner, &name, &[key; 32]).await.unwrap()
    };
    assert!(!replaces("b", 1).await);
    assert!(!replaces("b", 1).await, "the same key again");
    assert!(replaces("b", 2).await);
    // Also one that joined before anything was kept.
    advertise(&node, "c", "c.example.net:7000", "192.0.2.3:7000").await;
    assert!(replaces("c", 1).await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_end_is_given_up() {
    let never = std::future::pending::<Result<(), RenewError>>();
    let error = issuers::within(Duration::from_secs(45), never)
        .await
        .unwrap_err();
    assert!(matches!(error, RenewError::Unreachable(_)), "{error}");
}

/// Answers as the node does, with one root more.
struct MoreRoots(Enrolment, String);

impl Handler for MoreRoots {
    fn handle(
        &self,
        request: http::Request<Body>,
        caller: Caller,
    ) -> BoxFuture<'static, Response<Body>> {
        let (answer, more) = (self.0.handle(request, caller), self.1.clone());
        Box::pin(async move {
            let mut issued: Issued = parsed(answer.await).await.unwrap();
            issued.roots.insert_str(0, &more);
            super::super::answer(Ok(issued))
        })
    }
}

#[tokio::test]
async fn a_joiner_keeps_the_root_of_its_token_only() {
    let node = Node::first("a").await;
    let other = Node::first("a").await.authority.roots();
    let other = keel_certs::Chain::new(other).unwrap().pem();
    let served = node.serve_with(MoreRoots(node.enrolment.clone(), other));
    let endpoint = served.address.to_string();
    let token = node.token(node_scope(Some("b")), 1, &endpoint).await;
    let b = NodeName::new("b").unwrap();
    let joined = join::node(&token, &b, &csr(), &Hosts::loopback())
        .await
        .unwrap();
    assert_eq!(joined.roots, node.authority.roots());
    served.stop().await;
}
