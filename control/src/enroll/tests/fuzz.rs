//! Whatever comes to the enrolment, the answer has Kubernetes' shape, is no failure of the server's, and a token is good for no more
//! keys than it was made for.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::enroll::wire::EnrollRequest;
use crate::fuzz::{Json, Random, drive, hurt};

const REQUESTS: u64 = 8_000;
const TOKENS: u64 = 400_000;
/// Uses of the one token of a server.
const USES: usize = 4;
/// Bytes that an error may have.
const MAX_ERROR: usize = 64 << 10;

/// A node and its one token.
struct Joined {
    node: Node,
    token: JoinToken,
    /// Keys that got a certificate by the token.
    joined: RefCell<BTreeSet<[u8; 32]>>,
}

/// Where a body goes, and how it differs from a good one.
#[derive(Debug)]
struct Input {
    path: &'static str,
    seed: u64,
}

/// Keys are dear to make; a few do.
fn keys() -> &'static [KeyPair] {
    static KEYS: std::sync::LazyLock<Vec<KeyPair>> =
        std::sync::LazyLock::new(|| (0..8).map(|_| KeyPair::generate().unwrap()).collect());
    &KEYS
}

fn golden(path: &str, token: &JoinToken, random: &mut Random) -> Value {
    let csr = random.pick(keys()).csr().unwrap().pem();
    match path {
        "/v1/enroll" => {
            json!({"id": token.id, "secret": token.secret.encoded().to_string(), "csr": csr,
            "wants": {"node": {"name": "b", "hosts": {"dns": ["b.example.net"], "ips": ["203.0.113.9"]}}}})
        }
        "/v1/renew" => json!({"csr": csr, "hosts": {"dns": ["b.example.net"], "ips": ["::1"]}}),
        "/v1/tokens" => {
            json!({"scope": {"node": {"node": "b"}}, "ttlSeconds": 600, "uses": 1, "endpoint": "a.example.net:7443"})
        }
        "/v1/admin" => json!({"user": "root", "ttlSeconds": 60, "fabric": false, "csr": csr}),
        "/v1/node" => json!({"csr": csr}),
        _ => json!({"namespace": "default", "pod": "p", "csr": csr}),
    }
}

fn body_of(input: &Input, token: &JoinToken) -> Vec<u8> {
    let mut random = Random::new(input.seed);
    let mut good = golden(input.path, token, &mut random);
    if let Some(csr) = good["csr"].as_str().filter(|_| random.once_in(3)) {
        let mut csr = csr.as_bytes().to_vec();
        hurt(&mut random, &mut csr);
        good["csr"] = String::from_utf8_lossy(&csr).into();
    }
    Json::like(&mut random, &good)
}

#[test]
fn requests() {
    let start = async || {
        let node = Node::first("a").await;
        let token = node
            .token(
                node_scope(None),
                u32::try_from(USES).unwrap(),
                "a.example.net:7443",
            )
            .await;
        Joined {
            node,
            token,
            joined: RefCell::default(),
        }
    };
    let make = |random: &mut Random| Input {
        path: random.word(&[
            "/v1/enroll",
            "/v1/enroll",
            "/v1/renew",
            "/v1/tokens",
            "/v1/admin",
            "/v1/node",
            "/v1/workload",
        ]),
        seed: random.next(),
    };
    drive(
        "enrolment",
        REQUESTS,
        start,
        make,
        async |subject, input| {
            let body = body_of(input, &subject.token);
            let enrolment = &subject.node.enrolment;
            let request = raw(Method::POST, input.path, body.clone());
            let local = Remote::Unix {
                uid: nix::unistd::geteuid().as_raw(),
                gid: 0,
                pid: None,
            };
            let nobody = |remote| Caller {
                identity: None,
                remote,
            };
            let response = match input.path {
                "/v1/enroll" => {
                    let remote = Remote::Tcp("192.0.2.1:4000".parse().unwrap());
                    enrolment.handle(request, nobody(remote)).await
                }
                "/v1/renew" => {
                    let caller = Caller {
                        identity: Some("spiffe://test.keel/node/b".parse().unwrap()),
                        remote: Remote::Tcp("192.0.2.1:4000".parse().unwrap()),
                    };
                    enrolment.handle(request, caller).await
                }
                "/v1/workload" => enrolment.handle_workload(request, nobody(local)).await,
                _ => enrolment.handle_admin(request, nobody(local)).await,
            };
            let code = response.status();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            assert!(!code.is_server_error(), "{code}: {bytes:?}");
            let answer: Value = serde_json::from_slice(&bytes).unwrap();
            let said = answer.to_string();
            assert!(
                code.is_success() || said.len() <= MAX_ERROR,
                "an error of {} bytes",
                said.len()
            );
            if !code.is_success() {
                assert_eq!(answer["code"], code.as_u16());
                assert!(
                    !said.contains(&**subject.token.secret.encoded()),
                    "the secret is told"
                );
            } else if input.path == "/v1/enroll" {
                let asked: EnrollRequest = serde_json::from_slice(&body).unwrap();
                let mut joined = subject.joined.borrow_mut();
                joined.insert(asked.csr.0.key_hash());
                assert!(joined.len() <= USES, "more keys than uses");
            }
        },
    );
}

/// A text is a token or none; what is one, is printed as it was read, and an error never tells the secret.
#[test]
fn tokens() {
    let token: JoinToken = JoinToken::generate(RootPin::of(&root()).unwrap(), "a.example.net:7443");
    let make = |random: &mut Random| {
        let mut text = token.to_string().into_bytes();
        for _ in 0..random.below(3) {
            hurt(random, &mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    let secret = token.secret.encoded().to_string();
    drive(
        "tokens",
        TOKENS,
        async || (),
        make,
        async |(), text| match text.parse::<JoinToken>() {
            Ok(read) => assert_eq!(read.to_string().parse(), Ok(read)),
            Err(error) => assert!(!error.to_string().contains(&secret), "{error}"),
        },
    );
}

fn root() -> rustls_pki_types::CertificateDer<'static> {
    let name = TrustDomain::new("test.keel").unwrap();
    RootAuthority::create(Some(name))
        .unwrap()
        .certificate()
        .clone()
}
