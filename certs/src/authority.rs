//! The two kinds of authority: the root of a trust domain, and one intermediate per node under it.

mod node;
mod root;

use std::{fmt, str::FromStr, time::Duration};

pub use node::NodeAuthority;
pub use root::RootAuthority;

use crate::{
    disk::DiskError,
    issue::{ChainError, KeyError, MIN_LIFE},
};

/// SHA-256 of the root's public key (SubjectPublicKeyInfo). Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootPin(pub(crate) [u8; 32]);

/// The text is not the hash of a root key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hash of a root key has 64 hexadecimal digits")]
pub struct RootPinError;

/// Why an authority cannot be made, read, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificates read or received do not fit together.
    #[error("the certificates of the authority cannot be used: {0}")]
    Certificates(String),
    /// A file of the authority.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A name or address that no certificate of this fabric may carry.
    #[error(
        "the host {0:?} cannot be put into a certificate: give a full DNS name or an IP address"
    )]
    Host(String),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Shorter than the shortest life.
    #[error("a certificate for {0:?} is too short-lived: at least {MIN_LIFE:?} are needed")]
    Life(Duration),
    /// The cryptographic library did not sign.
    #[error("cannot sign a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// A certificate that was just made cannot be read, or one that was read holds none.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// # Errors
/// [`AuthorityError::Life`] for a life that renewal could not keep up with.
fn check_life(life: Duration) -> Result<Duration, AuthorityError> {
    if life < MIN_LIFE {
        Err(AuthorityError::Life(life))
    } else {
        Ok(life)
    }
}

// === impl RootPin ===

impl RootPin {
    /// The hash itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The pin of a root certificate.
    ///
    /// # Errors
    /// [`AuthorityError::Certificates`] if it cannot be read.
    pub fn of(root: &rustls_pki_types::CertificateDer<'_>) -> Result<Self, AuthorityError> {
        let facts = crate::der::Facts::of(root).map_err(AuthorityError::Certificates)?;
        Ok(Self(crate::der::spki_hash(&facts.spki)))
    }
}

impl fmt::Debug for RootPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for RootPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl FromStr for RootPin {
    type Err = RootPinError;

    fn from_str(text: &str) -> Result<Self, RootPinError> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .map_err(|_| RootPinError)?;
        bytes.try_into().map(Self).map_err(|_| RootPinError)
    }
}

#[cfg(test)]
mod tests;
