//! The root of a trust domain.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyUsagePurpose, NameConstraints, SanType,
};
use rustls_pki_types::CertificateDer;

use super::{AuthorityError, RootPin, check_life};
use crate::{
    der::{self, Facts, NODE_CN},
    disk::{self, DataDir},
    hosts::{Hosts, is_dns_name, is_shared_suffix},
    identity::{Identity, Subject},
    issue::{self, Chain, Csr, KeyPair, ROOT_LIFE, certs_from_pem, certs_to_pem},
    name::{NodeName, TrustDomain, UserName},
};

/// More names than this in one intermediate are refused.
const MAX_HOSTS: usize = 64;

/// The root certificate and its key. Only the first node of a trust domain has it; it signs the intermediates of nodes
/// and the leaves of fabric admins, nothing else.
pub struct RootAuthority {
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    trust_domain: TrustDomain,
    pin: RootPin,
    not_after: SystemTime,
}

impl RootAuthority {
    /// Makes a new trust domain. Without a name it is `keel-<first 8 hex digits of the root key's hash>`.
    ///
    /// # Errors
    /// [`AuthorityError`] if the cryptographic library fails.
    pub fn create(trust_domain: Option<TrustDomain>) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let trust_domain = match trust_domain {
            Some(name) => name,
            None => {
                let hash = data_encoding::HEXLOWER.encode(&der::spki_hash(&key.spki())[..4]);
                // A fixed prefix and eight hexadecimal digits are always a valid name.
                TrustDomain::new(&format!("keel-{hash}"))
                    .map_err(|e| AuthorityError::Certificates(e.to_string()))?
            }
        };
        let mut params = issue::params(ROOT_LIFE, SystemTime::now() + ROOT_LIFE);
        params
            .distinguished_name
            .push(DnType::OrganizationName, trust_domain.as_str());
        params
            .distinguished_name
            .push(DnType::CommonName, "keel root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?;
        Self::from_parts(key, certificate.der().clone())
    }

    /// Reads the root of a data directory (`ca/root.crt`, `ca/root.key`); `None` if this node does not have it.
    ///
    /// # Errors
    /// [`AuthorityError`] if the files are there and cannot be used.
    pub fn load(data: &DataDir) -> Result<Option<Self>, AuthorityError> {
        let Some(key) = disk::read_optional(&data.ca().join("root.key"))? else {
            return Ok(None);
        };
        let certs = disk::read(&data.ca().join("root.crt"))?;
        let mut certs = certs_from_pem(&certs)?;
        if certs.len() != 1 {
            return Err(AuthorityError::Certificates(format!(
                "ca/root.crt holds {} certificates, not one",
                certs.len()
            )));
        }
        Self::from_parts(KeyPair::from_pem(&key)?, certs.remove(0)).map(Some)
    }

    /// Writes the root into a data directory.
    ///
    /// # Errors
    /// [`AuthorityError::Disk`].
    pub fn save(&self, data: &DataDir) -> Result<(), AuthorityError> {
        disk::create_dir(&data.ca())?;
        // The certificate first: a key without one would be taken for a broken root, a certificate alone is ignored.
        disk::write_atomic(
            &data.ca().join("root.crt"),
            certs_to_pem(std::slice::from_ref(&self.certificate)).as_bytes(),
            0o644,
        )?;
        disk::write_atomic(
            &data.ca().join("root.key"),
            self.key.pem().as_bytes(),
            0o600,
        )?;
        Ok(())
    }

    /// The trust domain that the root speaks for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Hash of the root's public key.
    #[must_use]
    pub fn pin(&self) -> RootPin {
        self.pin
    }

    /// Whether an intermediate can be signed for these hosts.
    ///
    /// # Errors
    /// As [`RootAuthority::sign_intermediate`].
    pub fn check_hosts(&self, hosts: &Hosts) -> Result<(), AuthorityError> {
        constraints(hosts).map(drop)
    }

    /// Signs the intermediate of a node. Its name constraints permit loopback and `hosts` and nothing else, because
    /// stock TLS clients would believe any name that a node signs.
    ///
    /// # Errors
    /// [`AuthorityError::Host`] for a name that would permit more than one host: no DNS name, or a single label other
    /// than `localhost` and those that hosts use as their own names.
    pub fn sign_intermediate(
        &self,
        csr: &Csr,
        node: &NodeName,
        hosts: &Hosts,
        life: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = issue::params(check_life(life)?, self.not_after);
        params
            .distinguished_name
            .push(DnType::OrganizationName, self.trust_domain.as_str());
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{NODE_CN}{node}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.name_constraints = Some(constraints(hosts)?);
        Ok(params
            .signed_by(&csr.public_key, &self.issuer)?
            .der()
            .clone())
    }

    /// Signs the leaf of a user who may do everything at every node. The chain is the leaf alone.
    ///
    /// # Errors
    /// [`AuthorityError::Life`] or a failure to sign.
    pub fn sign_fabric_admin(
        &self,
        csr: &Csr,
        user: &UserName,
        life: Duration,
    ) -> Result<Chain, AuthorityError> {
        let identity = Identity::new(
            self.trust_domain.clone(),
            Subject::FabricAdmin { user: user.clone() },
        );
        let leaf = sign_leaf(
            &self.issuer,
            csr,
            &identity,
            &Hosts::default(),
            check_life(life)?,
            self.not_after,
        )?;
        Ok(Chain::new(vec![leaf])?)
    }

    fn from_parts(
        key: KeyPair,
        certificate: CertificateDer<'static>,
    ) -> Result<Self, AuthorityError> {
        let broken = |text: &str| AuthorityError::Certificates(text.to_owned());
        let facts = Facts::of(&certificate).map_err(AuthorityError::Certificates)?;
        if facts.spki != key.spki() {
            return Err(broken("the root's key does not belong to its certificate"));
        }
        if !facts.is_ca {
            return Err(broken("the root certificate is no CA"));
        }
        let trust_domain = facts.trust_domain().ok_or_else(|| {
            broken("the root certificate's organisation (O) does not name a trust domain")
        })?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key.clone())?,
            pin: RootPin(der::spki_hash(&facts.spki)),
            not_after: facts.not_after,
            key,
            certificate,
            trust_domain,
        })
    }
}

impl fmt::Debug for RootAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootAuthority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// Signs a leaf for `identity`, for both TLS roles, with `hosts` as further names.
pub(super) fn sign_leaf(
    issuer: &Issuer<'_, KeyPair>,
    csr: &Csr,
    identity: &Identity,
    hosts: &Hosts,
    life: Duration,
    latest: SystemTime,
) -> Result<CertificateDer<'static>, AuthorityError> {
    let mut params = issue::params(life, latest);
    params
        .subject_alt_names
        .push(SanType::URI(identity.to_string().as_str().try_into()?));
    for name in &hosts.dns {
        params
            .subject_alt_names
            .push(SanType::DnsName(name.as_str().try_into()?));
    }
    params
        .subject_alt_names
        .extend(hosts.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params.signed_by(&csr.public_key, issuer)?.der().clone())
}

fn constraints(hosts: &Hosts) -> Result<NameConstraints, AuthorityError> {
    if hosts.dns.len() + hosts.ips.len() > MAX_HOSTS {
        return Err(AuthorityError::Certificates(format!(
            "more than {MAX_HOSTS} host names and addresses"
        )));
    }
    // Both kinds are always listed: a kind without a permitted subtree would be unconstrained.
    let mut permitted = vec![
        GeneralSubtree::DnsName("localhost".to_owned()),
        GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8)),
        GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(
            std::net::Ipv6Addr::LOCALHOST.octets(),
            128,
        )),
    ];
    for name in &hosts.dns {
        // A permitted DNS name permits all names below it.
        if !is_dns_name(name) || is_shared_suffix(name) {
            return Err(AuthorityError::Host(name.clone()));
        }
        if name != "localhost" {
            permitted.push(GeneralSubtree::DnsName(name.clone()));
        }
    }
    for ip in hosts.ips.iter().filter(|ip| !ip.is_loopback()) {
        let all = if ip.is_ipv4() { 32 } else { 128 };
        permitted.push(GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(
            *ip, all,
        )));
    }
    Ok(NameConstraints {
        permitted_subtrees: permitted,
        excluded_subtrees: Vec::new(),
    })
}
