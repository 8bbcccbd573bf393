//! Joining and renewing.

use std::time::SystemTime;

use keel_certs::Issuer as _;

use super::wire::{EnrollRequest, Issued, PemCsr, PlainSecret, RenewRequest, TokenList, Wants};
use super::*;
use crate::client::{Client, ClientConfig};
use crate::store::TokenRecord;

const ENDPOINT: &str = "a.example.net:7443";

fn wants(name: &str) -> Wants {
    Wants::Node {
        name: NodeName::new(name).unwrap(),
        hosts: Hosts::loopback(),
    }
}

fn enroll(token: &JoinToken, csr: &Csr, wants: Wants) -> EnrollRequest {
    let secret = PlainSecret(token.secret.clone());
    EnrollRequest {
        id: token.id.clone(),
        secret,
        csr: PemCsr(csr.clone()),
        wants,
    }
}

async fn join(node: &Node, token: &JoinToken, csr: &Csr, wants: Wants) -> Answer<Issued> {
    node.remote("/v1/enroll", &enroll(token, csr, wants), None)
        .await
}

async fn refusal(node: &Node, token: &JoinToken, wants: Wants) -> String {
    join(node, token, &csr(), wants).await.unwrap_err().message
}

#[tokio::test]
async fn a_node_token_makes_a_node_and_the_same_key_gets_the_same_certificate() {
    let node = Node::first("a").await;
    let token = node.token(node_scope(Some("b")), 1, ENDPOINT).await;
    let key = KeyPair::generate().unwrap();
    let csr = key.csr().unwrap();
    let issued = join(&node, &token, &csr, wants("b")).await.unwrap();
    assert_eq!(
        (issued.subject.path().as_str(), issued.node.as_str()),
        ("/node/b", "a")
    );
    let again = join(&node, &token, &key.csr().unwrap(), wants("b"))
        .await
        .unwrap();
    assert_eq!(again, issued);
    let (chain, roots) = local::parse(&issued).unwrap();
    let authority = NodeAuthority::create(key, chain.certs[0].clone(), roots).unwrap();
    assert_eq!(
        (authority.node().as_str(), authority.pin().unwrap()),
        ("b", node.pin())
    );

    let other = refusal(&node, &token, wants("b")).await;
    assert!(
        other.contains("used as often as it may") && other.contains(token.id.as_str()),
        "{other}"
    );
}

#[tokio::test]
async fn of_many_at_once_exactly_one_key_wins() {
    let node = Node::first("a").await;
    let token = node.token(node_scope(None), 1, ENDPOINT).await;
    let mut joins = JoinSet::new();
    for number in 0..64 {
        let (enrolment, body) = (
            node.enrolment.clone(),
            enroll(&token, &csr(), wants(&format!("n{number}"))),
        );
        joins.spawn(async move {
            let caller = Caller {
                identity: None,
                remote: Remote::Quic("192.0.2.1:4000".parse().unwrap()),
            };
            let answer = enrolment
                .handle(request(Method::POST, "/v1/enroll", &body), caller)
                .await;
            parsed::<Issued>(answer).await
        });
    }
    let answers = joins.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    for refused in answers.into_iter().filter_map(Result::err) {
        assert_eq!(refused.code, 403, "{refused}");
    }
}

#[tokio::test]
async fn a_token_for_something_else_is_refused_and_stays_good() {
    let node = Node::first("a").await;
    let token = node.token(node_scope(Some("b")), 1, ENDPOINT).await;
    assert!(
        refusal(&node, &token, wants("c"))
            .await
            .contains("for node b, not for c")
    );
    assert!(
        refusal(&node, &token, Wants::Sidecar {})
            .await
            .contains("for a node, not for a sidecar")
    );
    assert!(join(&node, &token, &csr(), wants("b")).await.is_ok());

    let any = node.token(node_scope(None), 1, ENDPOINT).await;
    assert!(
        refusal(&node, &any, wants("a"))
            .await
            .contains("name of the node you join at")
    );

    let sidecar = node.token(sidecar_scope("team", "web"), 1, ENDPOINT).await;
    assert!(
        refusal(&node, &sidecar, wants("b"))
            .await
            .contains("for the sidecar team/web, not for a node")
    );
    let issued = join(&node, &sidecar, &csr(), Wants::Sidecar {})
        .await
        .unwrap();
    assert_eq!(issued.subject.path(), "/node/a/ns/team/pod/web");
}

#[tokio::test]
async fn expired_revoked_unknown_and_foreign_tokens_are_refused() {
    let node = Node::first("a").await;
    let over = JoinToken::generate(node.pin(), ENDPOINT);
    let now = SystemTime::now();
    let record = TokenRecord {
        id: over.id.clone(),
        secret_hash: over.secret_hash(),
        scope: node_scope(None),
        created_at: now - LIFE,
        expires_at: now - Duration::from_secs(2),
        uses_left: 1,
        revoked: false,
    };
    node.enrolment
        .inner
        .store
        .create_token(record)
        .await
        .unwrap();
    assert!(refusal(&node, &over, wants("b")).await.contains("expired"));

    let revoked = node.token(node_scope(None), 1, ENDPOINT).await;
    let path = format!("/v1/tokens/{}", revoked.id);
    let list: TokenList = node.admin(Method::DELETE, &path, &()).await.unwrap();
    assert_eq!(list.tokens.iter().filter(|token| token.revoked).count(), 1);
    assert!(
        refusal(&node, &revoked, wants("b"))
            .await
            .contains("revoked")
    );

    let unknown = JoinToken::generate(node.pin(), ENDPOINT);
    assert!(
        refusal(&node, &unknown, wants("b"))
            .await
            .contains("no such token")
    );
    // The right id with another secret looks like no token at all.
    let guessed = JoinToken {
        id: revoked.id.clone(),
        ..unknown
    };
    assert!(
        refusal(&node, &guessed, wants("b"))
            .await
            .contains("no such token")
    );
    assert!(
        node.admin::<TokenList>(Method::DELETE, "/v1/tokens/aaaaaaaa", &())
            .await
            .unwrap_err()
            .code
            == 404
    );
}

#[tokio::test]
async fn garbage_is_refused_with_what_is_wrong() {
    let node = Node::first("a").await;
    let token = node.token(node_scope(None), 1, ENDPOINT).await;
    let good = serde_json::to_value(enroll(&token, &csr(), wants("b"))).unwrap();
    let caller = || Caller {
        identity: None,
        remote: Remote::Tcp("192.0.2.1:1".parse().unwrap()),
    };
    let mut bad: Vec<(Vec<u8>, u16, &str)> = vec![
        (b"{".to_vec(), 400, "body"),
        (b"[]".to_vec(), 400, "body"),
        (vec![b' '; MAX_BODY + 1], 413, "larger than"),
    ];
    for (field, value, text) in [
        ("csr", "-----BEGIN", "no PEM block"),
        ("id", "x", "token's id"),
        ("secret", "x", "token's secret"),
        ("wants", "all", "unknown variant"),
    ] {
        let mut body = good.clone();
        body[field] = value.into();
        bad.push((body.to_string().into_bytes(), 400, text));
    }
    let mut hosts = good.clone();
    hosts["wants"]["node"]["hosts"]["dns"] = serde_json::json!(["*.example.net"]);
    bad.push((hosts.to_string().into_bytes(), 400, "*.example.net"));
    for (body, code, text) in bad {
        let answer = node
            .enrolment
            .handle(raw(Method::POST, "/v1/enroll", body), caller())
            .await;
        let status = parsed::<Issued>(answer).await.unwrap_err();
        assert_eq!(status.code, code, "{status}");
        assert!(status.message.contains(text), "{status} lacks {text}");
    }
    let answer = node
        .enrolment
        .handle(raw(Method::GET, "/v1/enroll", Vec::new()), caller())
        .await;
    assert_eq!(answer.status(), 405);
    let answer = node
        .enrolment
        .handle(raw(Method::GET, "/v1/tokens", Vec::new()), caller())
        .await;
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn node_tokens_are_made_where_the_root_key_is() {
    let first = Node::first("a").await;
    let token = first.token(node_scope(Some("b")), 1, ENDPOINT).await;
    let key = KeyPair::generate().unwrap();
    let issued = join(&first, &token, &key.csr().unwrap(), wants("b"))
        .await
        .unwrap();
    let (chain, roots) = local::parse(&issued).unwrap();
    let authority = NodeAuthority::create(key, chain.certs[0].clone(), roots).unwrap();
    let second = Node::with(authority, None, Some("a")).await;

    let request = TokenRequest {
        scope: node_scope(Some("c")),
        ttl_seconds: 60,
        uses: 1,
        endpoint: None,
    };
    let refused = second
        .admin::<TokenAnswer>(Method::POST, "/v1/tokens", &request)
        .await
        .unwrap_err();
    assert_eq!(
        refused.message,
        "node b does not hold the root key: ask node a, where it is"
    );
    let sidecar = second
        .token(sidecar_scope("default", "web"), 1, ENDPOINT)
        .await;
    let issued = join(&second, &sidecar, &csr(), Wants::Sidecar {})
        .await
        .unwrap();
    assert_eq!(issued.subject.path(), "/node/b/ns/default/pod/web");

    // A token has to say where to go; loopback is nowhere for others.
    let refused = first
        .admin::<TokenAnswer>(Method::POST, "/v1/tokens", &request)
        .await
        .unwrap_err();
    assert_eq!(
        refused.message,
        "the APIServer listens on loopback only; or name it with --endpoint HOST:PORT"
    );
    first.info.send_modify(|info| {
        Arc::make_mut(info).token_endpoint = Some("a.example.net:1".to_owned())
    });
    let made: TokenAnswer = first
        .admin(Method::POST, "/v1/tokens", &request)
        .await
        .unwrap();
    assert_eq!(
        made.token.parse::<JoinToken>().unwrap().endpoint,
        "a.example.net:1"
    );
    for (ttl_seconds, uses, endpoint) in [
        (0, 1, ENDPOINT),
        (u64::MAX, 1, ENDPOINT),
        (60, 0, ENDPOINT),
        (60, 1, "nowhere"),
    ] {
        let request = TokenRequest {
            scope: node_scope(None),
            ttl_seconds,
            uses,
            endpoint: Some(endpoint.to_owned()),
        };
        assert_eq!(
            first
                .admin::<TokenAnswer>(Method::POST, "/v1/tokens", &request)
                .await
                .unwrap_err()
                .code,
            400
        );
    }
}

#[tokio::test]
async fn identities_are_renewed_by_whoever_may() {
    let node = Node::first("a").await;
    let renew = || RenewRequest {
        csr: PemCsr(csr()),
        hosts: Hosts::loopback(),
    };
    let renewed = |answer: Answer<Issued>| {
        answer
            .map(|issued| issued.subject.path())
            .map_err(|status| status.code)
    };
    assert_eq!(
        renewed(node.remote("/v1/renew", &renew(), None).await),
        Err(401)
    );
    let (own, pod) = (node.live(), node.pod("team", "db-0"));
    assert_eq!(
        renewed(node.remote("/v1/renew", &renew(), Some(&own)).await),
        Ok("/node/a".to_owned())
    );
    assert_eq!(
        renewed(node.remote("/v1/renew", &renew(), Some(&pod)).await),
        Ok("/node/a/ns/team/pod/db-0".to_owned())
    );
    let stranger = Node::first("b").await;
    // A peer node gets its own name again and no other; a peer's pod goes to its own node.
    assert_eq!(
        renewed(
            node.remote("/v1/renew", &renew(), Some(&stranger.live()))
                .await
        ),
        Ok("/node/b".to_owned())
    );
    assert_eq!(
        renewed(
            node.remote("/v1/renew", &renew(), Some(&stranger.pod("team", "x")))
                .await
        ),
        Err(403)
    );
}

#[tokio::test]
async fn nobody_gets_the_name_that_the_first_node_is_known_by() {
    let node = Node::first("a").await;
    let token = node.token(node_scope(Some("b")), 1, ENDPOINT).await;
    let own = Hosts::local();
    let key = KeyPair::generate().unwrap();
    let asked = Wants::Node {
        name: NodeName::new("b").unwrap(),
        hosts: own.clone(),
    };
    let issued = join(&node, &token, &key.csr().unwrap(), asked)
        .await
        .unwrap();
    let (chain, roots) = local::parse(&issued).unwrap();
    let authority = NodeAuthority::create(key, chain.certs[0].clone(), roots).unwrap();
    let names = |dns: &[&str]| Hosts {
        dns: dns.iter().map(|name| (*name).to_owned()).collect(),
        ..Hosts::default()
    };
    assert!(authority.covers(&names(&["localhost"])));
    for name in own.dns.iter().filter(|name| *name != "localhost") {
        assert!(!authority.covers(&names(&[name])), "{name}");
    }
}

#[tokio::test]
async fn joining_and_renewing_over_http3() {
    let node = Node::first("a").await;
    let served = node.serve();
    let endpoint = served.address.to_string();
    let token = node.token(node_scope(Some("b")), 1, &endpoint).await;
    let b = NodeName::new("b").unwrap();
    let key = KeyPair::generate().unwrap();
    let joined = join::node(&token, &b, &key.csr().unwrap(), &Hosts::loopback())
        .await
        .unwrap();
    assert_eq!(joined.through.as_str(), "a");
    let authority = NodeAuthority::create(key, joined.intermediate, joined.roots).unwrap();

    // The wrong pin: nothing is sent, so the token stays good.
    let token = node
        .token(sidecar_scope("default", "web"), 1, &endpoint)
        .await;
    let other = JoinToken {
        pin: Node::first("a").await.pin(),
        ..token.clone()
    };
    let error = join::sidecar(&other, &csr()).await.unwrap_err();
    assert!(
        error.to_string().contains("does not present the root key"),
        "{error}"
    );
    let key = KeyPair::generate().unwrap();
    let joined = join::sidecar(&token, &key.csr().unwrap()).await.unwrap();
    let error = join::sidecar(&token, &csr()).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("used as often"), "{error}");

    let live = LiveIdentity::new(key, joined.chain, joined.roots).unwrap();
    let client = |live: LiveIdentity| {
        Client::new(ClientConfig {
            server: served.address.clone(),
            expect: NodeName::new("a").unwrap(),
            live,
        })
        .unwrap()
    };
    let key = KeyPair::generate().unwrap();
    let issuer = RemoteIssuer {
        client: client(live.clone()),
    };
    let (chain, roots) = issuer.renew(&key.csr().unwrap()).await.unwrap();
    live.replace_all(key, chain, roots).unwrap();

    let key = KeyPair::generate().unwrap();
    let node_key = KeyPair::generate().unwrap();
    let chain = authority
        .sign_node(&node_key.csr().unwrap(), &Hosts::loopback(), LIFE)
        .unwrap();
    let b = client(LiveIdentity::new(node_key, chain, authority.roots()).unwrap());
    let intermediate = renew_intermediate(&b, &key.csr().unwrap(), &Hosts::loopback())
        .await
        .unwrap();
    authority.replace(key, intermediate).unwrap();

    served.stop().await;
    let error = join::sidecar(&token, &csr()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}
