//! Reading certificates: the few facts that the rest of the crate asks of one, with an owned answer.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use crate::{
    identity::{Identity, IdentityError},
    name::{NodeName, TrustDomain},
};

/// What every common name of a node's intermediate begins with.
pub(crate) const NODE_CN: &str = "keel node ";

/// The facts of one certificate.
pub(crate) struct Facts {
    pub(crate) common_name: Option<String>,
    pub(crate) organization: Option<String>,
    pub(crate) spki: Vec<u8>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) is_ca: bool,
    /// All URI SANs.
    pub(crate) uris: Vec<String>,
    /// DNS names and addresses that name constraints permit.
    pub(crate) permitted_dns: Vec<String>,
    pub(crate) permitted_ips: Vec<(IpAddr, IpAddr)>,
}

impl Facts {
    /// # Errors
    /// What the parser said.
    pub(crate) fn of(cert: &CertificateDer<'_>) -> Result<Self, String> {
        let (rest, cert) = X509Certificate::from_der(cert).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("bytes follow the certificate".to_owned());
        }
        let text = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            attribute
                .and_then(|value| value.as_str().ok())
                .map(str::to_owned)
        };
        // More than one common name or organisation would leave open which of them counts.
        let only = |mut all: Vec<Option<String>>| {
            if all.len() == 1 {
                all.pop().flatten()
            } else {
                None
            }
        };
        let mut facts = Self {
            common_name: only(
                cert.subject()
                    .iter_common_name()
                    .map(|a| text(Some(a)))
                    .collect(),
            ),
            organization: only(
                cert.subject()
                    .iter_organization()
                    .map(|a| text(Some(a)))
                    .collect(),
            ),
            spki: cert.public_key().raw.to_vec(),
            not_before: system_time(cert.validity().not_before.timestamp()),
            not_after: system_time(cert.validity().not_after.timestamp()),
            is_ca: cert.is_ca(),
            uris: Vec::new(),
            permitted_dns: Vec::new(),
            permitted_ips: Vec::new(),
        };
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    facts
                        .uris
                        .extend(names.general_names.iter().filter_map(|name| match name {
                            GeneralName::URI(uri) => Some((*uri).to_owned()),
                            _ => None,
                        }));
                }
                ParsedExtension::NameConstraints(constraints) => {
                    for subtree in constraints.permitted_subtrees.iter().flatten() {
                        match &subtree.base {
                            GeneralName::DNSName(name) => {
                                facts.permitted_dns.push((*name).to_owned())
                            }
                            GeneralName::IPAddress(bytes) => {
                                facts.permitted_ips.extend(subnet(bytes))
                            }
                            _ => {}
                        }
                    }
                }
                ParsedExtension::ParseError { error } => return Err(error.to_string()),
                _ => {}
            }
        }
        Ok(facts)
    }

    /// The one identity of a leaf.
    pub(crate) fn identity(&self) -> Result<Identity, IdentityError> {
        match &self.uris[..] {
            [uri] => uri.parse(),
            uris => Err(IdentityError::Count(uris.len())),
        }
    }

    /// The node of an intermediate: `O=<trust domain>, CN=keel node <node>`.
    pub(crate) fn node(&self) -> Option<(TrustDomain, NodeName)> {
        let node = self.common_name.as_deref()?.strip_prefix(NODE_CN)?;
        Some((self.trust_domain()?, NodeName::new(node).ok()?))
    }

    /// The trust domain of a root or an intermediate: its organisation.
    pub(crate) fn trust_domain(&self) -> Option<TrustDomain> {
        TrustDomain::new(self.organization.as_deref()?).ok()
    }
}

/// SHA-256 of a public key in SubjectPublicKeyInfo form.
pub(crate) fn spki_hash(spki: &[u8]) -> [u8; 32] {
    sha256(spki)
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Whether `ip` lies in the subnet `(address, mask)`.
pub(crate) fn contains((address, mask): &(IpAddr, IpAddr), ip: IpAddr) -> bool {
    match (address, mask, ip) {
        (IpAddr::V4(address), IpAddr::V4(mask), IpAddr::V4(ip)) => *address & *mask == ip & *mask,
        (IpAddr::V6(address), IpAddr::V6(mask), IpAddr::V6(ip)) => *address & *mask == ip & *mask,
        _ => false,
    }
}

fn subnet(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let (address, mask) = bytes.split_at(bytes.len() / 2);
    if let (Ok(address), Ok(mask)) = (<[u8; 4]>::try_from(address), <[u8; 4]>::try_from(mask)) {
        return Some((address.into(), mask.into()));
    }
    if let (Ok(address), Ok(mask)) = (<[u8; 16]>::try_from(address), <[u8; 16]>::try_from(mask)) {
        return Some((address.into(), mask.into()));
    }
    None
}

fn system_time(timestamp: i64) -> SystemTime {
    // A certificate from before 1970 is as good as one from 1970: long over.
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}
