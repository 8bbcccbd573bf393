//! The one check of a peer's certificates, for both sides of every connection.
//!
//! It looks at the *path that webpki verified*, never at the list that the peer sent (the peer chooses what is in there, and
//! in which order): a leaf of a node, of its pods or of its admins must have been signed by exactly one intermediate, and
//! that one must be the node's own. A fabric admin's leaf must have been signed by the root itself.

use std::{
    cell::RefCell,
    fmt,
    time::{Duration, SystemTime},
};

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{
    der::Facts,
    identity::{Identity, IdentityError},
    name::{NodeName, TrustDomain},
    tls,
};

/// Who the peer of a connection is, and until when that is vouched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Who.
    pub identity: Identity,
    /// End of the leaf's validity: the connection must end by then.
    pub not_after: SystemTime,
}

/// The identity in a chain that one of this crate's verifiers accepted.
///
/// # Errors
/// [`IdentityError`] for an empty chain, or one that no verifier of this crate can have accepted.
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Result<PeerIdentity, IdentityError> {
    let leaf = certs.first().ok_or(IdentityError::Count(0))?;
    let facts = Facts::of(leaf).map_err(IdentityError::Certificate)?;
    Ok(PeerIdentity {
        identity: facts.identity()?,
        not_after: facts.not_after,
    })
}

/// Why a peer's certificates are refused. `Debug` is the same as `Display`, because rustls shows errors of verifiers by it.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A certificate of the path is over.
    #[error(
        "the peer's certificate has expired: it was valid until {}, this machine's clock says {}; \
         if that is wrong set the clock, else the peer must renew", rfc3339(*.not_after), rfc3339(*.now)
    )]
    Expired {
        /// The clock of this machine.
        now: SystemTime,
        /// End of validity.
        not_after: SystemTime,
    },
    /// The leaf does not name exactly one identity.
    #[error("the peer's certificate: {0}")]
    Identity(#[from] IdentityError),
    /// The leaf was signed, but not by the authority that may vouch for its name.
    #[error("the peer says that it is {identity}, but its certificate was signed by {signer}")]
    Issuer {
        /// The name in the leaf.
        identity: Identity,
        /// Who really signed it.
        signer: String,
    },
    /// A certificate of the path is not valid yet.
    #[error(
        "the peer's certificate is not valid yet: it is valid from {}, this machine's clock says {}; \
         set the clock that is wrong", rfc3339(*.not_before), rfc3339(*.now)
    )]
    NotYetValid {
        /// The clock of this machine.
        now: SystemTime,
        /// Begin of validity.
        not_before: SystemTime,
    },
    /// While joining: no root in the presented chain has the hash that the token names.
    #[error(
        "the server does not present the root key that the join token names: wrong endpoint, or somebody in between"
    )]
    Pin,
    /// While joining: the server is not one for the host that the token names.
    #[error(
        "the server's certificate is not valid for the host {0}; name it with --advertise at that node, or give its endpoint with --endpoint when the token is made"
    )]
    Host(String),
    /// While joining: the server is no node.
    #[error("the server is {0}, not a node")]
    NotANode(Identity),
    /// The peer belongs to another trust domain.
    #[error("the peer belongs to trust domain {found}, this is {expected}")]
    TrustDomain {
        /// Ours.
        expected: TrustDomain,
        /// The peer's.
        found: TrustDomain,
    },
    /// Another node answered than the one dialled.
    #[error("expected /node/{expected}, but {found} answered")]
    UnexpectedNode {
        /// The node that was dialled.
        expected: NodeName,
        /// Who answered.
        found: Identity,
    },
    /// The certificates do not lead to a trusted root.
    #[error("the peer's certificate does not lead to a root of this trust domain ({0})")]
    Untrusted(webpki::Error),
}

/// Verifies `leaf` at the time `now` and returns whom it names. `intermediates` may hold anything in any order.
pub(crate) fn verify(
    anchors: &[TrustAnchor<'_>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: KeyUsage,
) -> Result<Identity, VerifyError> {
    let facts = Facts::of(leaf).map_err(IdentityError::Certificate)?;
    let identity = facts.identity()?;
    let end_entity = EndEntityCert::try_from(leaf).map_err(VerifyError::Untrusted)?;
    // webpki goes on with other paths after a refusal and reports its own error in the end; ours says more.
    let refused = RefCell::new(None);
    let check = |path: &VerifiedPath<'_>| {
        check_path(&identity, path).map_err(|error| {
            refused.borrow_mut().get_or_insert(error);
            webpki::Error::UnknownIssuer
        })
    };
    let algorithms = tls::provider().signature_verification_algorithms.all;
    match end_entity.verify_for_usage(
        algorithms,
        anchors,
        intermediates,
        now,
        usage,
        None,
        Some(&check),
    ) {
        Ok(_) => Ok(identity),
        Err(error) => Err(refused.take().unwrap_or_else(|| VerifyError::from(error))),
    }
}

fn check_path(identity: &Identity, path: &VerifiedPath<'_>) -> Result<(), VerifyError> {
    let issuers: Vec<Facts> = path
        .intermediate_certificates()
        .map(|cert| Facts::of(&cert.der()))
        .collect::<Result<_, _>>()
        .map_err(IdentityError::Certificate)?;
    let signer = match (identity.subject.node(), &issuers[..]) {
        (None, []) => return Ok(()),
        (Some(node), [issuer]) => match issuer.node() {
            Some((trust_domain, name))
                if trust_domain == identity.trust_domain && name == *node =>
            {
                return Ok(());
            }
            Some((trust_domain, name)) => format!("node {name} of {trust_domain}"),
            None => "an intermediate of no node".to_owned(),
        },
        (Some(_), []) => "the root itself".to_owned(),
        (None, [_]) => "an intermediate".to_owned(),
        (_, _) => format!("{} intermediates in a row", issuers.len()),
    };
    Err(VerifyError::Issuer {
        identity: identity.clone(),
        signer,
    })
}

/// Whether `root` signed `cert`. Validity is not looked at.
pub(crate) fn signed_by(cert: &CertificateDer<'_>, root: &CertificateDer<'_>) -> bool {
    let (Ok((_, cert)), Ok((_, root))) = (
        X509Certificate::from_der(cert),
        X509Certificate::from_der(root),
    ) else {
        return false;
    };
    cert.issuer() == root.subject() && cert.verify_signature(Some(root.public_key())).is_ok()
}

/// The trust anchor of a root certificate.
pub(crate) fn anchor(root: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, VerifyError> {
    webpki::anchor_from_trusted_cert(root)
        .map(|anchor| anchor.to_owned())
        .map_err(VerifyError::Untrusted)
}

/// A time of the system as webpki wants it.
pub(crate) fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}

fn system_time(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

impl VerifyError {
    /// The reason in a rustls error, if a verifier of this crate gave it.
    #[must_use]
    pub fn of(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
                other.0.downcast_ref()
            }
            _ => None,
        }
    }
}

impl From<webpki::Error> for VerifyError {
    fn from(error: webpki::Error) -> Self {
        match error {
            webpki::Error::CertExpired { time, not_after } => Self::Expired {
                now: system_time(time),
                not_after: system_time(not_after),
            },
            webpki::Error::CertNotValidYet { time, not_before } => Self::NotYetValid {
                now: system_time(time),
                not_before: system_time(not_before),
            },
            error => Self::Untrusted(error),
        }
    }
}

impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        let other = rustls::OtherError(std::sync::Arc::new(error));
        Self::InvalidCertificate(rustls::CertificateError::Other(other))
    }
}

impl fmt::Debug for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
