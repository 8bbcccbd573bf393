//! The identity that a process has right now. Connections made before a renewal stay, those made after it use the new one.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{ServerCertVerified, ServerCertVerifier},
    },
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::KeyUsage;

use crate::{
    der::Facts,
    disk::{self, DiskError},
    identity::{Identity, IdentityError},
    issue::{Chain, ChainError, KeyError, KeyPair, certs_from_pem, certs_to_pem},
    name::NodeName,
    tls::{self, Clients, Present, provider, signatures},
    verify::{self, VerifyError},
};

/// Key, chain and trust bundle of this process. Clones share them: every rustls config made from any clone follows
/// [`LiveIdentity::replace`].
#[derive(Clone)]
pub struct LiveIdentity(Arc<Shared>);

struct Shared {
    current: ArcSwap<Current>,
    /// Serialises replacements, and says where each is written.
    keep: Mutex<Option<PathBuf>>,
}

struct Current {
    identity: Identity,
    key: KeyPair,
    chain: Chain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    certified: Arc<CertifiedKey>,
    /// The same with the root at the end, for servers that joiners dial.
    with_root: Arc<CertifiedKey>,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The certificates cannot be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A file of the identity's directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The leaf names nobody.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key is not the one that was certified.
    #[error("the private key does not belong to the certificate of {0}")]
    KeyMismatch(Identity),
    /// No moment is in the life of all certificates of the chain, as after one was signed under a clock that was far off.
    #[error(
        "the certificate and those above it are never valid at the same time: is this machine's clock right? It says {0}"
    )]
    Never(String),
    /// A renewed certificate names somebody else.
    #[error("the new certificate is for {found}, this is {expected}")]
    Other {
        /// Who this process is.
        expected: Box<Identity>,
        /// Whom the new certificate names.
        found: Box<Identity>,
    },
    /// rustls does not take the key.
    #[error("the private key cannot be used: {0}")]
    Rustls(rustls::Error),
    /// The chain does not lead to the roots.
    #[error("the certificates do not fit together: {0}")]
    Verify(#[from] VerifyError),
}

impl LiveIdentity {
    /// Takes a key, the chain certified for it, and the roots of the trust domain.
    ///
    /// # Errors
    /// [`LiveError`] if they do not belong together. An expired chain is taken: it may be all there is until somebody can be
    /// asked for a new one.
    pub fn new(
        key: KeyPair,
        chain: Chain,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, LiveError> {
        let current = ArcSwap::from_pointee(Current::new(key, chain, roots)?);
        Ok(Self(Arc::new(Shared {
            current,
            keep: Mutex::new(None),
        })))
    }

    /// Who this process is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.current.load().identity.clone()
    }

    /// Begin of the leaf's validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.0.current.load().chain.not_before
    }

    /// End of the leaf's validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.0.current.load().chain.not_after
    }

    /// Leaf and intermediate.
    #[must_use]
    pub fn chain(&self) -> Chain {
        self.0.current.load().chain.clone()
    }

    /// The roots of the trust domain.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.0.current.load().roots.clone()
    }

    /// Changes to a renewed key and chain of the same identity, under the roots that are held, and writes them where [`LiveIdentity::keep_in`] said. New
    /// handshakes use them; no connection ends.
    ///
    /// # Errors
    /// [`LiveError`] if they are unusable or of somebody else: the old ones stay. [`LiveError::Disk`] if only writing
    /// failed: the new ones are in use.
    pub fn replace(&self, key: KeyPair, chain: Chain) -> Result<(), LiveError> {
        self.swap(|current| Current::new(key, chain, current.roots.clone()))
    }

    /// Changes key, chain and trust bundle together, for a bundle that the owner of this machine keeps. The new chain must
    /// lead to a root of the bundle before too, so that none becomes trusted on nothing but its own word. Never for what came
    /// over the network: that is [`LiveIdentity::replace`].
    ///
    /// # Errors
    /// As [`LiveIdentity::replace`].
    pub fn replace_all(
        &self,
        key: KeyPair,
        chain: Chain,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<(), LiveError> {
        self.swap(|current| {
            Current::new(key.clone(), chain.clone(), current.roots.clone())?;
            Current::new(key, chain, roots)
        })
    }

    /// Settings of a server with this identity. `alpn` in order of preference.
    #[must_use]
    pub fn server_config(&self, alpn: &[&[u8]], clients: Clients) -> Arc<ServerConfig> {
        let verifier = Verifier {
            live: self.clone(),
            expect: None,
            clients,
        };
        let resolver = Resolver {
            live: self.clone(),
            with_root: clients == Clients::Optional,
        };
        tls::server(alpn, Arc::new(verifier), Arc::new(resolver))
    }

    /// Settings of a client with this identity that talks to the node `expect` and to nobody else, whatever name or address
    /// was dialled.
    #[must_use]
    pub fn client_config(&self, alpn: &[&[u8]], expect: &NodeName) -> Arc<ClientConfig> {
        let verifier = Verifier {
            live: self.clone(),
            expect: Some(expect.clone()),
            clients: Clients::Required,
        };
        let resolver = Resolver {
            live: self.clone(),
            with_root: false,
        };
        tls::client(
            alpn,
            Arc::new(verifier),
            Present::Certificate(Arc::new(resolver)),
        )
    }

    /// Writes the identity into a directory (made if needed): `tls.crt` (leaf, intermediate), `tls.key`, `ca.crt`.
    ///
    /// # Errors
    /// [`LiveError::Disk`].
    pub fn save(&self, dir: &Path) -> Result<(), LiveError> {
        Ok(self.0.current.load().save(dir)?)
    }

    /// Writes the identity into a directory now and after each replacement.
    ///
    /// # Errors
    /// [`LiveError::Disk`] if it cannot be written now.
    pub fn keep_in(&self, dir: &Path) -> Result<(), LiveError> {
        let mut keep = self.0.keep.lock().unwrap_or_else(PoisonError::into_inner);
        self.save(dir)?;
        disk::remove_leftovers(dir);
        *keep = Some(dir.to_owned());
        Ok(())
    }

    /// Reads an identity from a directory, see [`LiveIdentity::save`].
    ///
    /// # Errors
    /// [`LiveError`].
    pub fn load(dir: &Path) -> Result<Self, LiveError> {
        let chain = Chain::from_pem(&disk::read(&dir.join("tls.crt"))?)?;
        let roots = certs_from_pem(&disk::read(&dir.join("ca.crt"))?)?;
        let next = disk::read_optional(&dir.join(NEXT_KEY))?;
        // A crash between certificate and key: the key that belongs to the certificate is the next one. The first time that
        // an identity is written there is no other yet.
        let key = match (disk::read_optional(&dir.join("tls.key"))?, &next) {
            (Some(key), _) => key,
            (None, Some(next)) => next.clone(),
            // Read again for the error that names the file.
            (None, None) => disk::read(&dir.join("tls.key"))?,
        };
        let key = KeyPair::from_pem(&key)?;
        match (Self::new(key, chain.clone(), roots.clone()), next) {
            (Err(LiveError::KeyMismatch(_)), Some(next)) => {
                Self::new(KeyPair::from_pem(&next)?, chain, roots)
            }
            (outcome, _) => outcome,
        }
    }

    /// The key as PEM, for a file that the user asked for.
    #[must_use]
    pub fn key(&self) -> KeyPair {
        self.0.current.load().key.clone()
    }

    fn swap(
        &self,
        next: impl FnOnce(&Current) -> Result<Current, LiveError>,
    ) -> Result<(), LiveError> {
        // A panic under the lock leaves nothing half done: the swap is one store.
        let keep = self.0.keep.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.0.current.load();
        let next = Arc::new(next(&current)?);
        if next.identity != current.identity {
            return Err(LiveError::Other {
                expected: Box::new(current.identity.clone()),
                found: Box::new(next.identity.clone()),
            });
        }
        self.0.current.store(next.clone());
        keep.as_deref()
            .map_or(Ok(()), |dir| next.save(dir).map_err(LiveError::from))
    }
}

/// The key of a chain that is being written; becomes `tls.key` after the chain is there.
const NEXT_KEY: &str = "tls.key.next";

impl fmt::Debug for LiveIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveIdentity({})", self.identity())
    }
}

// === impl Current ===

impl Current {
    fn new(
        key: KeyPair,
        chain: Chain,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, LiveError> {
        let leaf = chain.certs.first().ok_or(ChainError::Empty)?;
        let facts = Facts::of(leaf).map_err(ChainError::Parse)?;
        let identity = facts.identity()?;
        if facts.spki != key.spki() {
            return Err(LiveError::KeyMismatch(identity));
        }
        let anchors = roots
            .iter()
            .map(verify::anchor)
            .collect::<Result<Vec<_>, _>>()?;
        // Checked at a time when all of it was valid: whether it still is depends on a clock that may be wrong.
        let now = SystemTime::now();
        let all = chain.certs.iter().map(Facts::of);
        let all: Vec<Facts> = all.collect::<Result<_, _>>().map_err(ChainError::Parse)?;
        let begin = all.iter().map(|facts| facts.not_before).max();
        let end = all.iter().map(|facts| facts.not_after).min();
        let (begin, end) = (begin.unwrap_or(now), end.unwrap_or(now));
        if begin > end {
            return Err(LiveError::Never(verify::rfc3339(now)));
        }
        let at = now.clamp(begin, end);
        verify::verify(
            &anchors,
            leaf,
            &chain.certs[1..],
            verify::unix_time(at),
            KeyUsage::client_auth(),
        )?;
        let signer = provider()
            .key_provider
            .load_private_key(key.rustls_der())
            .map_err(LiveError::Rustls)?;
        let mut long = chain.certs.clone();
        long.extend(roots.iter().cloned());
        Ok(Self {
            certified: Arc::new(CertifiedKey::new(chain.certs.clone(), signer.clone())),
            with_root: Arc::new(CertifiedKey::new(long, signer)),
            identity,
            key,
            chain,
            roots,
            anchors,
        })
    }

    fn save(&self, dir: &Path) -> Result<(), DiskError> {
        disk::create_dir(dir)?;
        let next = dir.join(NEXT_KEY);
        disk::write_atomic(&next, self.key.pem().as_bytes(), 0o600)?;
        disk::write_atomic(
            &dir.join("ca.crt"),
            certs_to_pem(&self.roots).as_bytes(),
            0o644,
        )?;
        disk::write_atomic(&dir.join("tls.crt"), self.chain.pem().as_bytes(), 0o644)?;
        disk::rename(&next, &dir.join("tls.key"))
    }
}

// === impl Resolver ===

/// Presents whatever certificate is current.
struct Resolver {
    live: LiveIdentity,
    with_root: bool,
}

impl Resolver {
    fn certified(&self) -> Arc<CertifiedKey> {
        let current = self.live.0.current.load();
        if self.with_root {
            current.with_root.clone()
        } else {
            current.certified.clone()
        }
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolver({:?})", self.live)
    }
}

// === impl Verifier ===

/// Believes the identities of the current trust bundle; a client's verifier only one node.
#[derive(Debug)]
struct Verifier {
    live: LiveIdentity,
    expect: Option<NodeName>,
    clients: Clients,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Identity, VerifyError> {
        let current = self.live.0.current.load();
        let identity = verify::verify(&current.anchors, leaf, intermediates, now, usage)?;
        if identity.trust_domain == current.identity.trust_domain {
            Ok(identity)
        } else {
            Err(VerifyError::TrustDomain {
                expected: current.identity.trust_domain.clone(),
                found: identity.trust_domain,
            })
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = self.verify(leaf, intermediates, now, KeyUsage::server_auth())?;
        match &self.expect {
            Some(expected) if found.subject.is_node() && found.subject.node() == Some(expected) => {
                Ok(ServerCertVerified::assertion())
            }
            Some(expected) => Err(VerifyError::UnexpectedNode {
                expected: expected.clone(),
                found,
            }
            .into()),
            // A server's verifier is never asked about a server.
            None => Err(VerifyError::NotANode(found).into()),
        }
    }

    signatures!();
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.clients == Clients::Required
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

#[cfg(test)]
mod tests;
