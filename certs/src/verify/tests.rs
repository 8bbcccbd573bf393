use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose, SanType};

use super::*;
use crate::{
    fixture::Fabric,
    issue::{Chain, KeyPair, LEAF_LIFE, params},
};

/// An intermediate of `node` with its key, for leaves that no honest authority would sign.
struct Forger {
    issuer: Issuer<'static, KeyPair>,
    intermediate: CertificateDer<'static>,
}

impl Forger {
    /// The key of node `node` was stolen.
    fn of(fabric: &Fabric, node: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let hosts = crate::Hosts::loopback();
        let node = NodeName::new(node).unwrap();
        let intermediate = fabric
            .root()
            .sign_intermediate(&key.csr().unwrap(), &node, &hosts, LEAF_LIFE)
            .unwrap();
        Self {
            issuer: Issuer::from_ca_cert_der(&intermediate, key).unwrap(),
            intermediate,
        }
    }

    fn leaf(&self, uris: &[&str]) -> CertificateDer<'static> {
        let mut params = params(LEAF_LIFE, SystemTime::now() + LEAF_LIFE);
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> CertificateDer<'static> {
        params
            .signed_by(&KeyPair::generate().unwrap(), &self.issuer)
            .unwrap()
            .der()
            .clone()
    }
}

fn check(
    fabric: &Fabric,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<Identity, VerifyError> {
    check_at(fabric, leaf, intermediates, SystemTime::now())
}

fn check_at(
    fabric: &Fabric,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<Identity, VerifyError> {
    let anchors = [anchor(fabric.root().certificate()).unwrap()];
    verify(
        &anchors,
        leaf,
        intermediates,
        unix_time(now),
        KeyUsage::client_auth(),
    )
}

fn check_chain(fabric: &Fabric, chain: &Chain) -> Result<Identity, VerifyError> {
    check(fabric, &chain.certs[0], &chain.certs[1..])
}

/// All orders of `items`.
fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for index in 0..items.len() {
        let mut rest = items.to_vec();
        let first = rest.remove(index);
        for mut order in orders(&rest) {
            order.insert(0, first.clone());
            all.push(order);
        }
    }
    all
}

#[test]
fn every_kind_of_identity_is_accepted_under_its_own_signer() {
    let fabric = Fabric::new();
    for (live, path) in [
        (fabric.node("edge-a"), "/node/edge-a"),
        (
            fabric.pod("edge-a", "default", "db-0"),
            "/node/edge-a/ns/default/pod/db-0",
        ),
        (fabric.node_admin("edge-a", "ann"), "/node/edge-a/admin/ann"),
        (fabric.fabric_admin("cloud"), "/admin/cloud"),
    ] {
        assert_eq!(
            check_chain(&fabric, &live.chain()).unwrap().subject.path(),
            path
        );
        let peer = peer_identity(&live.chain().certs).unwrap();
        assert_eq!(
            (peer.identity, peer.not_after),
            (live.identity(), live.not_after())
        );
    }
}

#[test]
fn a_node_cannot_sign_the_name_of_another_whatever_else_it_sends_in_whatever_order() {
    let fabric = Fabric::new();
    let stolen = Forger::of(&fabric, "edge-b");
    let others = [
        stolen.intermediate.clone(),
        fabric.node_authority("edge-c").intermediate(),
        fabric.node_authority("edge-d").intermediate(),
        fabric.root().certificate().clone(),
    ];
    for name in [
        "spiffe://test.keel/node/edge-c",
        "spiffe://test.keel/node/edge-c/ns/default/pod/db-0",
        "spiffe://test.keel/node/edge-c/admin/ann",
        "spiffe://test.keel/admin/cloud",
        // Names that only share a prefix with the signer's.
        "spiffe://test.keel/node/edge-b2",
        "spiffe://test.keel/node/edge-b.x/ns/default/pod/p",
        "spiffe://test.keel/node/edge",
        // Another trust domain.
        "spiffe://other/node/edge-b",
    ] {
        let leaf = stolen.leaf(&[name]);
        for order in orders(&others) {
            let error = check(&fabric, &leaf, &order).unwrap_err();
            assert!(
                matches!(error, VerifyError::Issuer { .. }),
                "{name}: {error}"
            );
            assert!(
                error.to_string().contains("node edge-b of test.keel")
                    || name.contains("/admin/cloud"),
                "{error}"
            );
        }
    }
}

#[test]
fn extra_intermediates_do_not_hide_the_right_one() {
    let fabric = Fabric::new();
    let chain = fabric.pod("edge-a", "default", "db-0").chain();
    let sent = [
        chain.certs[1].clone(),
        fabric.node_authority("edge-b").intermediate(),
        fabric.root().certificate().clone(),
    ];
    for order in orders(&sent) {
        assert!(check(&fabric, &chain.certs[0], &order).is_ok());
    }
}

#[test]
fn a_leaf_names_exactly_one_canonical_identity() {
    let fabric = Fabric::new();
    let forger = Forger::of(&fabric, "edge-b");
    let own = "spiffe://test.keel/node/edge-b";
    let sent = std::slice::from_ref(&forger.intermediate);
    assert!(check(&fabric, &forger.leaf(&[own]), sent).is_ok());
    for uris in [&[][..], &[own, own][..], &[own, "https://example.net/"][..]] {
        let error = check(&fabric, &forger.leaf(uris), sent).unwrap_err();
        assert_eq!(
            error,
            VerifyError::Identity(IdentityError::Count(uris.len()))
        );
    }
    for uri in [
        "spiffe://test.keel/node/edge-b/../edge-c",
        "spiffe://TEST.keel/node/edge-b",
        "https://x/",
    ] {
        let error = check(&fabric, &forger.leaf(&[uri]), sent).unwrap_err();
        assert!(matches!(error, VerifyError::Identity(_)), "{error}");
    }
}

#[test]
fn only_the_root_signs_fabric_admins_and_intermediates() {
    let fabric = Fabric::new();
    let forger = Forger::of(&fabric, "edge-b");
    // An intermediate signed by an intermediate: pathlen 0.
    let mut under = params(LEAF_LIFE, SystemTime::now() + LEAF_LIFE);
    under
        .distinguished_name
        .push(DnType::OrganizationName, "test.keel");
    under
        .distinguished_name
        .push(DnType::CommonName, "keel node edge-c");
    under.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    under.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let second = under.signed_by(&key, &forger.issuer).unwrap().der().clone();
    let second = Forger {
        issuer: Issuer::from_ca_cert_der(&second, key).unwrap(),
        intermediate: second,
    };
    let leaf = second.leaf(&["spiffe://test.keel/node/edge-c"]);
    for order in orders(&[second.intermediate.clone(), forger.intermediate.clone()]) {
        assert!(check(&fabric, &leaf, &order).is_err());
    }
    // The missing intermediate, and an intermediate as a leaf.
    let chain = fabric.node("edge-a").chain();
    assert!(matches!(
        check(&fabric, &chain.certs[0], &[]),
        Err(VerifyError::Untrusted(_))
    ));
    assert!(check(&fabric, &chain.certs[1], &[]).is_err());
}

#[test]
fn another_root_of_the_same_name_is_not_trusted() {
    let (ours, theirs) = (Fabric::new(), Fabric::new());
    let chain = theirs.node("edge-a").chain();
    assert!(matches!(
        check_chain(&ours, &chain),
        Err(VerifyError::Untrusted(_))
    ));
    let with_ours = [
        chain.certs[1].clone(),
        ours.node_authority("edge-a").intermediate(),
    ];
    assert!(matches!(
        check(&ours, &chain.certs[0], &with_ours),
        Err(VerifyError::Untrusted(_))
    ));
}

#[test]
fn a_wrong_clock_is_told_with_both_times() {
    let fabric = Fabric::new();
    let chain = fabric.node("edge-a").chain();
    let early = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
    let error = check_at(&fabric, &chain.certs[0], &chain.certs[1..], early).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, VerifyError::NotYetValid { .. }), "{text}");
    assert!(
        text.contains("1970-01-02T00:00:00Z") && text.contains(&rfc3339(chain.not_before)),
        "{text}"
    );

    let late = chain.not_after + Duration::from_secs(1);
    let error = check_at(&fabric, &chain.certs[0], &chain.certs[1..], late).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, VerifyError::Expired { .. }), "{text}");
    assert!(
        text.contains(&rfc3339(chain.not_after)) && text.contains(&rfc3339(late)),
        "{text}"
    );
}

#[test]
fn ten_minutes_behind_is_no_wrong_clock() {
    let fabric = Fabric::new();
    let chain = fabric.node("edge-a").chain();
    let behind = SystemTime::now() - Duration::from_secs(9 * 60);
    assert!(check_at(&fabric, &chain.certs[0], &chain.certs[1..], behind).is_ok());
}

#[test]
fn garbage_is_an_error() {
    let fabric = Fabric::new();
    let garbage = CertificateDer::from(vec![0x30; 100]);
    assert!(check(&fabric, &garbage, &[]).is_err());
    let leaf = &fabric.node("edge-a").chain().certs[0];
    assert!(check(&fabric, leaf, std::slice::from_ref(&garbage)).is_err());
    assert!(peer_identity(&[]).is_err());
    assert!(peer_identity(&[garbage]).is_err());
}
