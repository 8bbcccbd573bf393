//! A whole trust domain in memory, for tests: `Fabric::new().node("edge-a")`.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustls_pki_types::CertificateDer;

use crate::{
    authority::{NodeAuthority, RootAuthority, RootPin},
    hosts::Hosts,
    issue::{Chain, INTERMEDIATE_LIFE, KeyPair, LEAF_LIFE},
    live::LiveIdentity,
    name::{Namespace, NodeName, PodName, TrustDomain, UserName},
};

/// A root and the nodes under it, made as they are asked for. Every method panics on a malformed name.
pub struct Fabric {
    root: RootAuthority,
    nodes: Mutex<HashMap<NodeName, NodeAuthority>>,
}

impl Default for Fabric {
    fn default() -> Self {
        Self::new()
    }
}

impl Fabric {
    /// The trust domain `test.keel`.
    #[must_use]
    pub fn new() -> Self {
        Self::named("test.keel")
    }

    /// A trust domain of that name. Two of one name have different roots.
    #[must_use]
    pub fn named(trust_domain: &str) -> Self {
        let name = TrustDomain::new(trust_domain).expect("a test gives valid names");
        let root = RootAuthority::create(Some(name)).expect("keys can be made");
        Self {
            root,
            nodes: Mutex::default(),
        }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &RootAuthority {
        &self.root
    }

    /// The pin of the root.
    #[must_use]
    pub fn pin(&self) -> RootPin {
        self.root.pin()
    }

    /// The trust bundle.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.certificate().clone()]
    }

    /// The intermediate of a node, for this machine's hosts; the same each time.
    #[must_use]
    pub fn node_authority(&self, node: &str) -> NodeAuthority {
        let node = NodeName::new(node).expect("a test gives valid names");
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes
            .entry(node.clone())
            .or_insert_with(|| self.new_authority(&node))
            .clone()
    }

    /// The identity `/node/<node>`, valid for this machine's hosts.
    #[must_use]
    pub fn node(&self, node: &str) -> LiveIdentity {
        self.node_for(node, LEAF_LIFE)
    }

    /// The identity `/node/<node>` with a life of its own.
    #[must_use]
    pub fn node_for(&self, node: &str, life: Duration) -> LiveIdentity {
        let authority = self.node_authority(node);
        self.live(|key| {
            authority
                .sign_node(&key.csr().expect("signs"), &Hosts::local(), life)
                .expect("signs")
        })
    }

    /// The identity `/node/<node>/ns/<namespace>/pod/<pod>`.
    #[must_use]
    pub fn pod(&self, node: &str, namespace: &str, pod: &str) -> LiveIdentity {
        self.pod_for(node, namespace, pod, LEAF_LIFE)
    }

    /// The identity `/node/<node>/ns/<namespace>/pod/<pod>` with a life of its own.
    #[must_use]
    pub fn pod_for(&self, node: &str, namespace: &str, pod: &str, life: Duration) -> LiveIdentity {
        let authority = self.node_authority(node);
        let namespace = Namespace::new(namespace).expect("a test gives valid names");
        let pod = PodName::new(pod).expect("a test gives valid names");
        self.live(|key| {
            authority
                .sign_pod(&key.csr().expect("signs"), &namespace, &pod, life)
                .expect("signs")
        })
    }

    /// The identity `/node/<node>/admin/<user>`.
    #[must_use]
    pub fn node_admin(&self, node: &str, user: &str) -> LiveIdentity {
        let authority = self.node_authority(node);
        let user = UserName::new(user).expect("a test gives valid names");
        self.live(|key| {
            authority
                .sign_admin(&key.csr().expect("signs"), &user, LEAF_LIFE)
                .expect("signs")
        })
    }

    /// The identity `/admin/<user>`.
    #[must_use]
    pub fn fabric_admin(&self, user: &str) -> LiveIdentity {
        let user = UserName::new(user).expect("a test gives valid names");
        self.live(|key| {
            self.root
                .sign_fabric_admin(&key.csr().expect("signs"), &user, LEAF_LIFE)
                .expect("signs")
        })
    }

    fn new_authority(&self, node: &NodeName) -> NodeAuthority {
        let key = KeyPair::generate().expect("keys can be made");
        let csr = key.csr().expect("signs");
        let intermediate = self
            .root
            .sign_intermediate(&csr, node, &Hosts::local(), INTERMEDIATE_LIFE)
            .expect("signs");
        NodeAuthority::create(key, intermediate, self.roots()).expect("the parts belong together")
    }

    fn live(&self, sign: impl FnOnce(&KeyPair) -> Chain) -> LiveIdentity {
        let key = KeyPair::generate().expect("keys can be made");
        let chain = sign(&key);
        LiveIdentity::new(key, chain, self.roots()).expect("the parts belong together")
    }
}

impl std::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fabric({})", self.root.trust_domain())
    }
}
