//! A node's intermediate: signs the leaves of the node, its pods and its admins, also without the network.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::Issuer;
use rustls_pki_types::CertificateDer;

use super::{AuthorityError, RootPin, check_life, root::sign_leaf};
use crate::{
    der::{self, Facts},
    disk::{self, DataDir},
    hosts::Hosts,
    identity::{Identity, Subject},
    issue::{Chain, Csr, KeyPair, certs_from_pem, certs_to_pem},
    name::{Namespace, NodeName, PodName, TrustDomain, UserName},
    rotate, verify,
};

/// One file for key, intermediate and roots, so that a crash never leaves parts of different ages.
const FILE: &str = "intermediate.pem";

/// The intermediate of this node with its key. Clones share it: all see a [`NodeAuthority::replace`].
#[derive(Clone)]
pub struct NodeAuthority(Arc<ArcSwap<Current>>);

struct Current {
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
    intermediate: CertificateDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    node: NodeName,
    trust_domain: TrustDomain,
    facts: Facts,
}

impl NodeAuthority {
    /// Takes a key, the intermediate that the root signed for it, and the roots of the trust domain.
    ///
    /// # Errors
    /// [`AuthorityError::Certificates`] if they do not belong together. Being out of date is no error: the node goes on
    /// and renews it.
    pub fn create(
        key: KeyPair,
        intermediate: CertificateDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, AuthorityError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(Current::new(
            key,
            intermediate,
            roots,
        )?))))
    }

    /// Reads the authority of a data directory; `None` if the node has none yet.
    ///
    /// # Errors
    /// [`AuthorityError`] if the file is there and cannot be used.
    pub fn load(data: &DataDir) -> Result<Option<Self>, AuthorityError> {
        let Some(text) = disk::read_optional(&data.node().join(FILE))? else {
            return Ok(None);
        };
        let key = KeyPair::from_pem(&text)?;
        let mut certs = certs_from_pem(&text)?;
        if certs.len() < 2 {
            return Err(AuthorityError::Certificates(format!(
                "{FILE} does not hold an intermediate and its root"
            )));
        }
        let roots = certs.split_off(1);
        Self::create(key, certs.remove(0), roots).map(Some)
    }

    /// Writes the authority into a data directory.
    ///
    /// # Errors
    /// [`AuthorityError::Disk`].
    pub fn save(&self, data: &DataDir) -> Result<(), AuthorityError> {
        let current = self.0.load();
        let mut text = current.key.pem();
        text.push_str(&certs_to_pem(std::slice::from_ref(&current.intermediate)));
        text.push_str(&certs_to_pem(&current.roots));
        disk::create_dir(&data.node())?;
        Ok(disk::write_atomic(
            &data.node().join(FILE),
            text.as_bytes(),
            0o600,
        )?)
    }

    /// Changes to a renewed intermediate of the same node. The roots stay: whoever answers a renewal must not choose whom
    /// this node believes.
    ///
    /// # Errors
    /// [`AuthorityError::Certificates`] if no root that is held signed it, if it is of another node or trust domain, or
    /// unusable; the old one stays.
    pub fn replace(
        &self,
        key: KeyPair,
        intermediate: CertificateDer<'static>,
    ) -> Result<(), AuthorityError> {
        let current = self.0.load();
        let next = Current::new(key, intermediate, current.roots.clone())?;
        if (&next.node, &next.trust_domain) != (&current.node, &current.trust_domain) {
            return Err(AuthorityError::Certificates(format!(
                "the new intermediate is for node {} of {}, this is node {} of {}",
                next.node, next.trust_domain, current.node, current.trust_domain
            )));
        }
        self.0.store(Arc::new(next));
        Ok(())
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeName {
        self.0.load().node.clone()
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        self.0.load().trust_domain.clone()
    }

    /// The intermediate certificate.
    #[must_use]
    pub fn intermediate(&self) -> CertificateDer<'static> {
        self.0.load().intermediate.clone()
    }

    /// The roots of the trust domain.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.0.load().roots.clone()
    }

    /// The hash of the root that signed the intermediate.
    ///
    /// # Errors
    /// [`AuthorityError::Certificates`] if the root cannot be read.
    pub fn pin(&self) -> Result<RootPin, AuthorityError> {
        // `Current::new` keeps the root that verified the intermediate in the first place.
        let current = self.0.load();
        let root = current
            .roots
            .first()
            .ok_or_else(|| AuthorityError::Certificates("no root".to_owned()))?;
        RootPin::of(root)
    }

    /// Begin of the intermediate's validity. It lies ahead if it was signed while a clock was.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.0.load().facts.not_before
    }

    /// End of the intermediate's validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.0.load().facts.not_after
    }

    /// Whether half of the intermediate's life is over, or it has not begun.
    #[must_use]
    pub fn needs_renewal(&self, now: SystemTime) -> bool {
        let current = self.0.load();
        now < current.facts.not_before
            || now >= rotate::half_life(current.facts.not_before, current.facts.not_after)
    }

    /// Whether certificates of this authority may carry all of `hosts`; if not, a new intermediate is needed.
    #[must_use]
    pub fn covers(&self, hosts: &Hosts) -> bool {
        self.0.load().permitted(hosts) == *hosts
    }

    /// Signs the leaf of the node itself. Of `hosts` it carries those that the intermediate permits.
    ///
    /// # Errors
    /// [`AuthorityError::Life`] or a failure to sign.
    pub fn sign_node(
        &self,
        csr: &Csr,
        hosts: &Hosts,
        life: Duration,
    ) -> Result<Chain, AuthorityError> {
        let current = self.0.load();
        let hosts = current.permitted(hosts);
        current.sign(
            csr,
            Subject::Node {
                node: current.node.clone(),
            },
            &hosts,
            life,
        )
    }

    /// Signs the leaf of a pod of this node.
    ///
    /// # Errors
    /// [`AuthorityError::Life`] or a failure to sign.
    pub fn sign_pod(
        &self,
        csr: &Csr,
        namespace: &Namespace,
        pod: &PodName,
        life: Duration,
    ) -> Result<Chain, AuthorityError> {
        let current = self.0.load();
        let subject = Subject::Pod {
            node: current.node.clone(),
            namespace: namespace.clone(),
            pod: pod.clone(),
        };
        current.sign(csr, subject, &Hosts::default(), life)
    }

    /// Signs the leaf of an admin of this node.
    ///
    /// # Errors
    /// [`AuthorityError::Life`] or a failure to sign.
    pub fn sign_admin(
        &self,
        csr: &Csr,
        user: &UserName,
        life: Duration,
    ) -> Result<Chain, AuthorityError> {
        let current = self.0.load();
        let subject = Subject::NodeAdmin {
            node: current.node.clone(),
            user: user.clone(),
        };
        current.sign(csr, subject, &Hosts::default(), life)
    }
}

impl fmt::Debug for NodeAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = self.0.load();
        f.debug_struct("NodeAuthority")
            .field("node", &current.node)
            .field("trust_domain", &current.trust_domain)
            .finish_non_exhaustive()
    }
}

impl Current {
    fn new(
        key: KeyPair,
        intermediate: CertificateDer<'static>,
        mut roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, AuthorityError> {
        let broken = |text: String| AuthorityError::Certificates(text);
        let facts = Facts::of(&intermediate).map_err(AuthorityError::Certificates)?;
        if facts.spki != key.spki() {
            return Err(broken(
                "the key does not belong to the intermediate certificate".to_owned(),
            ));
        }
        let (trust_domain, node) = facts.node().ok_or_else(|| {
            broken(
                "the intermediate does not name a node (O=<trust domain>, CN=keel node <name>)"
                    .to_owned(),
            )
        })?;
        let signer = roots
            .iter()
            .position(|root| verify::signed_by(&intermediate, root));
        let Some(signer) = signer else {
            return Err(broken(format!(
                "the intermediate of node {node} was not signed by a root of its trust domain that is at hand"
            )));
        };
        roots.swap(0, signer);
        let issuer = Issuer::from_ca_cert_der(&intermediate, key.clone())?;
        Ok(Self {
            issuer,
            key,
            intermediate,
            roots,
            node,
            trust_domain,
            facts,
        })
    }

    fn sign(
        &self,
        csr: &Csr,
        subject: Subject,
        hosts: &Hosts,
        life: Duration,
    ) -> Result<Chain, AuthorityError> {
        let identity = Identity::new(self.trust_domain.clone(), subject);
        let leaf = sign_leaf(
            &self.issuer,
            csr,
            &identity,
            hosts,
            check_life(life)?,
            self.facts.not_after,
        )?;
        Ok(Chain::new(vec![leaf, self.intermediate.clone()])?)
    }

    /// The part of `hosts` that the intermediate's name constraints permit.
    fn permitted(&self, hosts: &Hosts) -> Hosts {
        let below = |name: &str, parent: &str| {
            name == parent
                || name
                    .strip_suffix(parent)
                    .is_some_and(|rest| rest.ends_with('.'))
        };
        Hosts {
            dns: hosts
                .dns
                .iter()
                .filter(|name| self.facts.permitted_dns.iter().any(|p| below(name, p)))
                .cloned()
                .collect(),
            ips: hosts
                .ips
                .iter()
                .filter(|ip| {
                    self.facts
                        .permitted_ips
                        .iter()
                        .any(|subnet| der::contains(subnet, **ip))
                })
                .copied()
                .collect(),
        }
    }
}
