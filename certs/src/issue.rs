//! Keys, signing requests and certificate chains.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SerialNumber, SigningKey};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject,
};
use zeroize::Zeroizing;

use crate::der::{self, Facts};

/// How far back certificates begin to be valid, for clocks that are a little behind.
pub const BACKDATE: Duration = Duration::from_secs(10 * 60);
/// Life of a root: 10 years.
pub const ROOT_LIFE: Duration = Duration::from_secs(3652 * 24 * 3600);
/// Life of a node's intermediate: 30 days.
pub const INTERMEDIATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Life of a leaf unless configured otherwise: 24 hours.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Shortest life that is signed.
pub const MIN_LIFE: Duration = Duration::from_secs(60);

/// A request larger than this is nothing that a P-256 key needs.
const MAX_CSR: usize = 8 * 1024;

/// A P-256 private key. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct KeyPair(Arc<rcgen::KeyPair>);

/// Why a key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The random source or the cryptographic library failed.
    #[error("cannot make a key: {0}")]
    Generate(rcgen::Error),
    /// The text holds no PEM private key that can be used.
    #[error(
        "the private key cannot be read: give a PEM file with an ECDSA P-256 key in PKCS#8 ({0})"
    )]
    Parse(rcgen::Error),
    /// The key is of another kind.
    #[error("the private key is not an ECDSA P-256 key")]
    Kind,
}

/// A certificate signing request whose signature was verified: who sent it has the private key.
#[derive(Clone)]
pub struct Csr {
    der: CertificateSigningRequestDer<'static>,
    pub(crate) public_key: rcgen::PublicKey,
}

/// Why a signing request is refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The key is of another kind than this fabric uses.
    #[error("the signing request is for another kind of key: use ECDSA P-256")]
    Kind,
    /// Not a signing request, or its signature is wrong.
    #[error("the signing request cannot be read: {0}")]
    Parse(rcgen::Error),
    /// Not PEM.
    #[error("the signing request is no PEM block \"CERTIFICATE REQUEST\"")]
    Pem,
    /// More bytes than any request needs.
    #[error("the signing request has {0} bytes, at most {MAX_CSR} are allowed")]
    TooLarge(usize),
}

/// A leaf and the intermediate that signed it (none for a fabric admin), with the leaf's validity.
#[derive(Clone, PartialEq, Eq)]
pub struct Chain {
    /// Leaf first.
    pub certs: Vec<CertificateDer<'static>>,
    /// Begin of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

/// Why a chain cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// No certificate was given.
    #[error("there is no certificate in it: give PEM blocks \"CERTIFICATE\", leaf first")]
    Empty,
    /// A certificate cannot be read.
    #[error("a certificate in it cannot be read: {0}")]
    Parse(String),
}

// === impl KeyPair ===

impl KeyPair {
    /// A new key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if the system's random source fails.
    pub fn generate() -> Result<Self, KeyError> {
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map(|key| Self(Arc::new(key)))
            .map_err(KeyError::Generate)
    }

    /// Reads a PKCS#8 PEM key.
    ///
    /// # Errors
    /// [`KeyError`] if it is no P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = rcgen::KeyPair::from_pem(pem).map_err(KeyError::Parse)?;
        if !key.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
            return Err(KeyError::Kind);
        }
        Ok(Self(Arc::new(key)))
    }

    /// The key as PKCS#8 PEM; wiped from memory when dropped.
    #[must_use]
    pub fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// A signing request for this key. It carries no names: those come from the signer's policy.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if signing fails.
    pub fn csr(&self) -> Result<Csr, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&*self.0)
            .map_err(KeyError::Generate)?;
        Csr::from_der(request.der().to_vec()).map_err(|error| match error {
            CsrError::Parse(error) => KeyError::Generate(error),
            _ => KeyError::Kind,
        })
    }

    /// SHA-256 of the public key, as in [`Csr::key_hash`].
    #[must_use]
    pub fn key_hash(&self) -> [u8; 32] {
        der::spki_hash(&self.spki())
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    pub(crate) fn rustls_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

impl PublicKeyData for KeyPair {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&*self.0)
    }
}

impl SigningKey for KeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

// === impl Csr ===

impl Csr {
    /// Reads a request and verifies its signature.
    ///
    /// # Errors
    /// [`CsrError`] for everything that is not a correctly signed request of a P-256 key.
    pub fn from_der(der: Vec<u8>) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR {
            return Err(CsrError::TooLarge(der.len()));
        }
        let der = CertificateSigningRequestDer::from(der);
        let params =
            rcgen::CertificateSigningRequestParams::from_der(&der).map_err(CsrError::Parse)?;
        if params.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CsrError::Kind);
        }
        Ok(Self {
            der,
            public_key: params.public_key,
        })
    }

    /// Reads a PEM request, see [`Csr::from_der`].
    ///
    /// # Errors
    /// [`CsrError`], also if the text is no PEM.
    pub fn from_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > 2 * MAX_CSR {
            return Err(CsrError::TooLarge(pem.len()));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| CsrError::Pem)?;
        Self::from_der(der.to_vec())
    }

    /// The request as DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The request as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        pem("CERTIFICATE REQUEST", &self.der)
    }

    /// SHA-256 of the public key: what a join token is bound to.
    #[must_use]
    pub fn key_hash(&self) -> [u8; 32] {
        der::spki_hash(&self.public_key.subject_public_key_info())
    }
}

impl fmt::Debug for Csr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Csr({})",
            data_encoding::HEXLOWER.encode(&self.key_hash()[..4])
        )
    }
}

// === impl Chain ===

impl Chain {
    /// A chain of certificates, leaf first.
    ///
    /// # Errors
    /// [`ChainError`] if there is none, or the first cannot be read.
    pub fn new(certs: Vec<CertificateDer<'static>>) -> Result<Self, ChainError> {
        let leaf = certs.first().ok_or(ChainError::Empty)?;
        let facts = Facts::of(leaf).map_err(ChainError::Parse)?;
        Ok(Self {
            not_before: facts.not_before,
            not_after: facts.not_after,
            certs,
        })
    }

    /// Reads PEM, leaf first.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn from_pem(pem: &str) -> Result<Self, ChainError> {
        Self::new(certs_from_pem(pem)?)
    }

    /// All certificates as PEM, leaf first.
    #[must_use]
    pub fn pem(&self) -> String {
        certs_to_pem(&self.certs)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({} certificates)", self.certs.len())
    }
}

/// All certificates of a PEM text.
pub(crate) fn certs_from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| ChainError::Parse(error.to_string()))
}

pub(crate) fn certs_to_pem(certs: &[CertificateDer<'_>]) -> String {
    certs.iter().map(|cert| pem("CERTIFICATE", cert)).collect()
}

/// Certificate parameters with nothing of rcgen's defaults left in the places that matter: random serial, our validity.
/// The end is cut to `latest`, the issuer's own end.
pub(crate) fn params(life: Duration, latest: SystemTime) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - BACKDATE).into();
    // A life that no clock can express ends with the issuer too.
    let end = now.checked_add(life).unwrap_or(latest);
    params.not_after = end.min(latest).into();
    // 126 random bits: unguessable, positive, and never with a leading zero byte.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    params
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = data_encoding::BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so every index is a character boundary.
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_requests_round_trip() {
        let key = KeyPair::generate().unwrap();
        let again = KeyPair::from_pem(&key.pem()).unwrap();
        let csr = key.csr().unwrap();
        assert_eq!(key.key_hash(), csr.key_hash());
        assert_eq!(again.key_hash(), csr.key_hash());
        assert_eq!(Csr::from_pem(&csr.pem()).unwrap().der(), csr.der());
    }

    #[test]
    fn a_request_with_a_wrong_signature_is_refused() {
        let mut der = KeyPair::generate().unwrap().csr().unwrap().der().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(matches!(Csr::from_der(der), Err(CsrError::Parse(_))));
        assert!(matches!(
            Csr::from_der(vec![0; MAX_CSR + 1]),
            Err(CsrError::TooLarge(_))
        ));
        assert!(matches!(Csr::from_pem("garbage"), Err(CsrError::Pem)));
    }

    #[test]
    fn other_kinds_of_keys_are_refused() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        assert!(matches!(
            Csr::from_der(request.der().to_vec()),
            Err(CsrError::Kind)
        ));
        assert!(matches!(
            KeyPair::from_pem(&key.serialize_pem()),
            Err(KeyError::Kind)
        ));
    }

    #[test]
    fn keys_are_not_shown() {
        assert_eq!(format!("{:?}", KeyPair::generate().unwrap()), "KeyPair(..)");
    }
}
