//! SPIFFE identities: what a certificate says about who somebody is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::name::{NameError, Namespace, NodeName, PodName, TrustDomain, UserName};

/// Who somebody is within a trust domain. Written as the path of a SPIFFE ID: `/node/a/ns/default/pod/db-0`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A user who may do everything at every node.
    FabricAdmin {
        /// Name of the user.
        user: UserName,
    },
    /// A node: its APIServer, Router and Syncer.
    Node {
        /// Name of the node.
        node: NodeName,
    },
    /// A user who may do everything at one node.
    NodeAdmin {
        /// The node.
        node: NodeName,
        /// Name of the user.
        user: UserName,
    },
    /// A pod, or a sidecar that plays the part of one.
    Pod {
        /// The node that the pod runs on.
        node: NodeName,
        /// Namespace of the pod.
        namespace: Namespace,
        /// Name of the pod.
        pod: PodName,
    },
}

/// A [`Subject`] in its trust domain. Written `spiffe://example.org/node/a`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Who, within it.
    pub subject: Subject,
}

/// Why a text (or a certificate) names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate could not be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// The certificate does not have exactly one URI SAN.
    #[error("the certificate names {0} identities, it must name exactly one")]
    Count(usize),
    /// A part of the text is not a valid name.
    #[error("in the identity {text:?}: {source}")]
    Name {
        /// What was given, cut to 300 characters.
        text: String,
        /// What is wrong with the part.
        source: NameError,
    },
    /// The text has none of the known shapes.
    #[error("{0:?} is no identity of a node, pod or admin")]
    Shape(String),
}

// === impl Subject ===

impl Subject {
    /// The path of the SPIFFE ID.
    #[must_use]
    pub fn path(&self) -> String {
        self.to_string()
    }

    /// The node that vouches for the subject; none for a fabric admin.
    #[must_use]
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::FabricAdmin { .. } => None,
            Self::Node { node } | Self::NodeAdmin { node, .. } | Self::Pod { node, .. } => {
                Some(node)
            }
        }
    }

    /// The namespace, of a pod.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::Pod { namespace, .. } => Some(namespace),
            _ => None,
        }
    }

    /// Whether this is a node itself (not one of its pods or admins).
    #[must_use]
    pub fn is_node(&self) -> bool {
        matches!(self, Self::Node { .. })
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FabricAdmin { user } => write!(f, "/admin/{user}"),
            Self::Node { node } => write!(f, "/node/{node}"),
            Self::NodeAdmin { node, user } => write!(f, "/node/{node}/admin/{user}"),
            Self::Pod {
                node,
                namespace,
                pod,
            } => write!(f, "/node/{node}/ns/{namespace}/pod/{pod}"),
        }
    }
}

impl FromStr for Subject {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let shape = || IdentityError::Shape(shortened(text));
        let name = |source| IdentityError::Name {
            text: shortened(text),
            source,
        };
        let mut parts = text.split('/');
        // The text before the first slash must be empty: the path is absolute.
        if parts.next() != Some("") {
            return Err(shape());
        }
        // Six parts are the longest shape, one more shows that there is too much.
        let parts: Vec<&str> = parts.take(7).collect();
        Ok(match parts[..] {
            ["admin", user] => Self::FabricAdmin {
                user: UserName::new(user).map_err(name)?,
            },
            ["node", node] => Self::Node {
                node: NodeName::new(node).map_err(name)?,
            },
            ["node", node, "admin", user] => Self::NodeAdmin {
                node: NodeName::new(node).map_err(name)?,
                user: UserName::new(user).map_err(name)?,
            },
            ["node", node, "ns", namespace, "pod", pod] => Self::Pod {
                node: NodeName::new(node).map_err(name)?,
                namespace: Namespace::new(namespace).map_err(name)?,
                pod: PodName::new(pod).map_err(name)?,
            },
            _ => return Err(shape()),
        })
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

// === impl Identity ===

impl Identity {
    /// The identity of `subject` in `trust_domain`.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, subject: Subject) -> Self {
        Self {
            trust_domain,
            subject,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.subject)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    /// Only the canonical spelling is an identity: no upper case in scheme or trust domain, no escapes, no `.` or `..`
    /// segments, no port, query or fragment. So two identities are equal exactly if their texts are.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let shape = || IdentityError::Shape(shortened(text));
        let rest = text.strip_prefix("spiffe://").ok_or_else(shape)?;
        let (trust_domain, _) = rest.split_once('/').ok_or_else(shape)?;
        let path = &rest[trust_domain.len()..];
        let trust_domain =
            TrustDomain::new(trust_domain).map_err(|source| IdentityError::Name {
                text: shortened(text),
                source,
            })?;
        Ok(Self {
            trust_domain,
            subject: path.parse()?,
        })
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shapes() {
        for good in [
            "/node/a",
            "/node/a.b/ns/default/pod/db-0",
            "/node/a/admin/ann",
            "/admin/cloud",
        ] {
            assert_eq!(good.parse::<Subject>().unwrap().path(), good);
        }
        for bad in [
            "",
            "/",
            "node/a",
            "/node",
            "/node/",
            "/node/a/",
            "//node/a",
            "/node/a/../b",
            "/node/./a",
            "/node/A",
            "/node/a/ns/x",
            "/node/a/ns/x/pod",
            "/node/a/ns/x/pod/p/q",
            "/admin/..",
            "/node/a%2Fb",
            "/node/a/admin/x/",
        ] {
            assert!(bad.parse::<Subject>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_canonical_spelling_is_an_identity() {
        assert!("spiffe://td/node/a".parse::<Identity>().is_ok());
        for bad in [
            "SPIFFE://td/node/a",
            "spiffe://TD/node/a",
            "spiffe://td:1/node/a",
            "spiffe://td/node/a?x",
            "spiffe:///node/a",
            "spiffe://td/node/a#x",
            "spiffe://td",
            "https://td/node/a",
            "spiffe://u@td/node/a",
            " spiffe://td/node/a",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn identities_round_trip(td in "[a-z][a-z0-9-]{0,8}[a-z]", node in "[a-z0-9]{1,9}(\\.[a-z0-9]{1,3})?",
                                 ns in "[a-z]{1,9}", pod in "[a-z0-9]{1,9}", user in "[A-Za-z0-9][A-Za-z0-9._-]{0,9}") {
            let node = NodeName::new(&node).unwrap();
            let user = UserName::new(&user).unwrap();
            for subject in [
                Subject::Node { node: node.clone() },
                Subject::NodeAdmin { node: node.clone(), user: user.clone() },
                Subject::FabricAdmin { user },
                Subject::Pod { node, namespace: Namespace::new(&ns).unwrap(), pod: PodName::new(&pod).unwrap() },
            ] {
                let identity = Identity::new(TrustDomain::new(&td).unwrap(), subject);
                prop_assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = text.parse::<Identity>();
            let _ = text.parse::<Subject>();
        }
    }
}
