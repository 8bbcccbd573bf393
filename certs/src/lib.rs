//! Names, identities, certificates and join tokens of a ServiceKeel fabric.
//!
//! A *trust domain* has one root key. The root signs one intermediate for each node; a node's intermediate signs the
//! leaves of the node itself, of its pods and of its admins. Every leaf carries exactly one URI SAN, its SPIFFE ID:
//!
//! ```text
//! root (10 y, pathlen 1)          O=<trust domain>, CN=keel root
//! ├─ intermediate (30 d)          O=<trust domain>, CN=keel node <node>      pathlen 0, DNS and IP name constraints
//! │  ├─ leaf                      spiffe://<trust domain>/node/<node>
//! │  ├─ leaf                      spiffe://<trust domain>/node/<node>/ns/<namespace>/pod/<pod>
//! │  └─ leaf                      spiffe://<trust domain>/node/<node>/admin/<user>
//! └─ leaf                         spiffe://<trust domain>/admin/<user>       (fabric admin)
//! ```
//!
//! Both sides of every connection check the path that webpki verified, not the list that the peer sent: a leaf is
//! believed only under the intermediate of its own node ([`verify`]). Whoever dials says which node it expects.
//!
//! This crate opens no listener and knows no resource of the control plane.

mod authority;
mod der;
mod disk;
#[cfg(any(test, feature = "testing"))]
pub mod fixture;
mod hosts;
mod identity;
mod issue;
mod join;
mod live;
mod name;
mod rotate;
mod tls;
mod token;
pub mod verify;

pub use authority::{AuthorityError, NodeAuthority, RootAuthority, RootPin, RootPinError};
pub use disk::{DataDir, DataDirError, DiskError, PartLock, default_data_dir, write_atomic};
pub use hosts::Hosts;
pub use identity::{Identity, IdentityError, Subject};
pub use issue::{
    BACKDATE, Chain, ChainError, Csr, CsrError, INTERMEDIATE_LIFE, KeyError, KeyPair, LEAF_LIFE,
    MIN_LIFE, ROOT_LIFE,
};
pub use join::join_client_config;
pub use live::{LiveError, LiveIdentity};
pub use name::{
    ClusterName, NameError, Namespace, NodeName, PodName, ServiceId, ServiceName, TrustDomain,
    UserName,
};
pub use rotate::{Issuer, RenewError, Renewed, rotate};
pub use tls::{Clients, provider};
pub use token::{JoinToken, TokenError, TokenId, TokenSecret};
pub use verify::{PeerIdentity, VerifyError, peer_identity};
