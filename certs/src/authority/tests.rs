use std::time::SystemTime;

use super::*;
use crate::{
    Csr, Hosts, KeyPair,
    disk::DataDir,
    fixture::Fabric,
    issue::{INTERMEDIATE_LIFE, LEAF_LIFE, ROOT_LIFE},
    name::{NodeName, TrustDomain, UserName},
};

fn csr() -> Csr {
    KeyPair::generate().unwrap().csr().unwrap()
}

#[test]
fn a_trust_domain_without_a_name_is_named_after_its_key() {
    let root = RootAuthority::create(None).unwrap();
    let expected = format!("keel-{}", &root.pin().to_string()[..8]);
    assert_eq!(root.trust_domain().as_str(), expected);
    let named = RootAuthority::create(Some(TrustDomain::new("example.org").unwrap())).unwrap();
    assert_eq!(named.trust_domain().as_str(), "example.org");
}

#[test]
fn root_and_node_are_the_same_after_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let data = DataDir::open(temp.path().join("data")).unwrap();
    assert!(RootAuthority::load(&data).unwrap().is_none());
    assert!(NodeAuthority::load(&data).unwrap().is_none());
    let root = RootAuthority::create(None).unwrap();
    root.save(&data).unwrap();
    let key = KeyPair::generate().unwrap();
    let node = NodeName::new("edge-a").unwrap();
    let cert = root
        .sign_intermediate(
            &key.csr().unwrap(),
            &node,
            &Hosts::local(),
            INTERMEDIATE_LIFE,
        )
        .unwrap();
    let authority = NodeAuthority::create(key, cert, vec![root.certificate().clone()]).unwrap();
    authority.save(&data).unwrap();

    let root_again = RootAuthority::load(&data).unwrap().unwrap();
    assert_eq!(
        (root_again.pin(), root_again.certificate()),
        (root.pin(), root.certificate())
    );
    let again = NodeAuthority::load(&data).unwrap().unwrap();
    assert_eq!(
        (again.node(), again.intermediate()),
        (node, authority.intermediate())
    );
    assert_eq!(again.pin().unwrap(), root.pin());
    again.sign_node(&csr(), &Hosts::local(), LEAF_LIFE).unwrap();
    for file in ["ca/root.key", "node/intermediate.pem"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(data.path().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let (fabric, other) = (Fabric::new(), Fabric::new());
    let node = NodeName::new("edge-a").unwrap();
    let key = KeyPair::generate().unwrap();
    let csr = key.csr().unwrap();
    let cert = fabric
        .root()
        .sign_intermediate(&csr, &node, &Hosts::loopback(), LEAF_LIFE)
        .unwrap();
    let create = |key: &KeyPair, cert: &_, roots| {
        NodeAuthority::create(key.clone(), Clone::clone(cert), roots)
    };
    assert!(create(&key, &cert, fabric.roots()).is_ok());
    assert!(create(&KeyPair::generate().unwrap(), &cert, fabric.roots()).is_err());
    assert!(create(&key, &cert, other.roots()).is_err());
    assert!(create(&key, &cert, vec![]).is_err());
    let root = fabric.root().certificate();
    assert!(create(&key, root, fabric.roots()).is_err());

    let authority = fabric.node_authority("edge-b");
    let error = authority.replace(key, cert).unwrap_err().to_string();
    assert!(
        error.contains("edge-a") && error.contains("edge-b"),
        "{error}"
    );
}

#[test]
fn a_renewed_intermediate_is_seen_by_all_clones() {
    let fabric = Fabric::new();
    let authority = fabric.node_authority("edge-a");
    let clone = authority.clone();
    let key = KeyPair::generate().unwrap();
    let mut hosts = Hosts::loopback();
    hosts.add("a.example.net");
    assert!(!clone.covers(&hosts));
    let csr = key.csr().unwrap();
    let cert = fabric
        .root()
        .sign_intermediate(&csr, &authority.node(), &hosts, LEAF_LIFE)
        .unwrap();
    authority.replace(key, cert).unwrap();
    assert!(clone.covers(&hosts));
}

#[test]
fn no_renewal_brings_a_root() {
    let (fabric, liar) = (Fabric::new(), Fabric::new());
    let authority = fabric.node_authority("edge-a");
    let before = (authority.intermediate(), authority.roots());
    let key = KeyPair::generate().unwrap();
    // The same trust domain, the same node, the right key: only the root is another.
    let cert = liar
        .root()
        .sign_intermediate(
            &key.csr().unwrap(),
            &authority.node(),
            &Hosts::loopback(),
            LEAF_LIFE,
        )
        .unwrap();
    let error = authority.replace(key, cert).unwrap_err().to_string();
    assert!(error.contains("not signed by a root"), "{error}");
    assert_eq!((authority.intermediate(), authority.roots()), before);
}

#[test]
fn a_life_beyond_all_clocks_ends_with_the_issuer() {
    let fabric = Fabric::new();
    let authority = fabric.node_authority("edge-a");
    let chain = authority
        .sign_admin(&csr(), &UserName::new("ann").unwrap(), Duration::MAX)
        .unwrap();
    assert_eq!(chain.not_after, authority.not_after());
}

#[test]
fn renewal_is_due_from_half_life() {
    let authority = Fabric::new().node_authority("edge-a");
    let now = SystemTime::now();
    assert!(!authority.needs_renewal(now));
    assert!(!authority.needs_renewal(now + INTERMEDIATE_LIFE.mul_f32(0.49)));
    assert!(authority.needs_renewal(now + INTERMEDIATE_LIFE.mul_f32(0.51)));
    // A clock was ahead when it was signed.
    assert!(authority.needs_renewal(authority.not_before() - Duration::from_secs(1)));
    assert!(authority.not_after() <= now + INTERMEDIATE_LIFE + Duration::from_secs(1));
}

#[test]
fn lives_have_bounds() {
    let fabric = Fabric::new();
    let authority = fabric.node_authority("edge-a");
    let user = UserName::new("ann").unwrap();
    let short = authority.sign_admin(&csr(), &user, Duration::from_secs(59));
    assert!(matches!(short, Err(AuthorityError::Life(_))));
    // No leaf outlives its intermediate.
    let long = authority.sign_admin(&csr(), &user, ROOT_LIFE).unwrap();
    assert_eq!(long.not_after, authority.not_after());
}

#[test]
fn hosts_that_would_permit_more_than_themselves_are_refused() {
    let fabric = Fabric::new();
    let node = NodeName::new("edge-a").unwrap();
    for bad in ["com", "local", "*.example.net", "a b", ""] {
        let hosts = Hosts {
            dns: [bad.to_owned()].into(),
            ..Hosts::default()
        };
        let refused = fabric
            .root()
            .sign_intermediate(&csr(), &node, &hosts, LEAF_LIFE);
        assert!(matches!(refused, Err(AuthorityError::Host(_))), "{bad}");
    }
    let many = Hosts {
        dns: (0..100).map(|n| format!("h{n}.example.net")).collect(),
        ..Hosts::default()
    };
    assert!(
        fabric
            .root()
            .sign_intermediate(&csr(), &node, &many, LEAF_LIFE)
            .is_err()
    );
}

#[test]
fn pins_round_trip() {
    let pin = Fabric::new().pin();
    assert_eq!(pin.to_string().parse(), Ok(pin));
    for bad in ["", "00", &"g".repeat(64), &"0".repeat(66)] {
        assert_eq!(bad.parse::<RootPin>(), Err(RootPinError));
    }
}

#[test]
fn what_a_request_asks_for_is_not_what_it_gets() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType};

    let mut wish = CertificateParams::default();
    wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wish.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let uri = "spiffe://test.keel/node/edge-b".try_into().unwrap();
    wish.subject_alt_names = vec![
        SanType::URI(uri),
        SanType::DnsName("evil.example".try_into().unwrap()),
    ];
    let key = KeyPair::generate().unwrap();
    let csr = Csr::from_der(wish.serialize_request(&key).unwrap().der().to_vec()).unwrap();

    let fabric = Fabric::new();
    let authority = fabric.node_authority("edge-a");
    let chain = authority
        .sign_admin(&csr, &UserName::new("ann").unwrap(), LEAF_LIFE)
        .unwrap();
    let facts = crate::der::Facts::of(&chain.certs[0]).unwrap();
    assert!(!facts.is_ca);
    assert_eq!(facts.uris, ["spiffe://test.keel/node/edge-a/admin/ann"]);
    let leaf = webpki::EndEntityCert::try_from(&chain.certs[0]).unwrap();
    assert_eq!(leaf.valid_dns_names().count(), 0);
}
