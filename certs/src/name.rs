//! Validated names. A value of one of these types is well formed, short and in its canonical (lower-case) spelling, so
//! two equal names compare equal byte for byte and none of them can smuggle a path separator into an identity.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("the {what} is empty")]
    Empty {
        /// Kind of name, as users call it.
        what: &'static str,
    },
    /// A character or its place is not allowed.
    #[error("{value:?} is not a {what}: use {rule}")]
    Invalid {
        /// Kind of name, as users call it.
        what: &'static str,
        /// What was given, cut to 80 characters.
        value: String,
        /// What would have been right.
        rule: &'static str,
    },
    /// The name has a meaning of its own.
    #[error("{value:?} cannot be a {what}: the word is reserved")]
    Reserved {
        /// Kind of name, as users call it.
        what: &'static str,
        /// What was given.
        value: String,
    },
    /// More characters than the kind of name may have.
    #[error("the {what} has {len} characters, at most {max} are allowed")]
    TooLong {
        /// Kind of name, as users call it.
        what: &'static str,
        /// Length of what was given, in bytes.
        len: usize,
        /// The limit, in bytes.
        max: usize,
    },
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:literal, $check:expr, $rule:literal, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks and takes `text`.
            ///
            /// # Errors
            /// A [`NameError`] that says what is wrong and what would be right.
            pub fn new(text: &str) -> Result<Self, NameError> {
                let reserved: &[&str] = &$reserved;
                check(text, $what, $max, $check, $rule, reserved).map(|()| Self(Arc::from(text)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(de::Error::custom)
            }
        }
    };
}

name!(
    /// The name of a trust domain: all that one root key vouches for.
    TrustDomain, "trust domain", 255, is_subdomain,
    "lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part", []
);
name!(
    /// The name of a node, as in the `Router` resource: an RFC 1123 subdomain.
    NodeName, "node name", 253, is_subdomain,
    "lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part", []
);
name!(
    /// The name of a cluster (a site): a DNS label other than `svc`, so that `name.namespace.svc` stays unambiguous.
    ClusterName, "cluster name", 63, is_label,
    "lower-case letters, digits and '-', with a letter or digit at both ends", ["svc"]
);
name!(
    /// A namespace: a DNS label.
    Namespace, "namespace", 63, is_label,
    "lower-case letters, digits and '-', with a letter or digit at both ends", []
);
name!(
    /// The name of a pod, or of whatever plays the part of one: an RFC 1123 subdomain.
    PodName, "pod name", 253, is_subdomain,
    "lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part", []
);
name!(
    /// The name of a service: a DNS label.
    ServiceName, "service name", 63, is_label,
    "lower-case letters, digits and '-', with a letter or digit at both ends", []
);
name!(
    /// The name of an admin: letters of either case, digits, `-`, `_` and `.`, first character a letter or digit.
    UserName, "user name", 64, is_user,
    "letters, digits, '-', '_' and '.', beginning with a letter or digit", []
);

impl NodeName {
    /// The node name that a host name gives: lower case, every other character replaced by `-`.
    ///
    /// # Errors
    /// [`NameError::Empty`] if nothing usable is left.
    pub fn from_host(host: &str) -> Result<Self, NameError> {
        Self::new(&canonical(host))
    }
}

impl PodName {
    /// A pod name made of free text (a user's name, a host's name, a suffix): lower case, every other character
    /// replaced by `-`.
    ///
    /// # Errors
    /// [`NameError::Empty`] if nothing usable is left.
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        Self::new(&canonical(text))
    }
}

impl Namespace {
    /// The namespace `default`.
    #[must_use]
    pub fn default_namespace() -> Self {
        Self(Arc::from("default"))
    }
}

impl ClusterName {
    /// The cluster `default`.
    #[must_use]
    pub fn default_cluster() -> Self {
        Self(Arc::from("default"))
    }
}

/// A service: its name in its namespace. Written `mysql.default`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// Name of the service.
    pub name: ServiceName,
    /// Namespace of the service.
    pub namespace: Namespace,
}

impl fmt::Debug for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl FromStr for ServiceId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((name, namespace)) = text.split_once('.') else {
            return Err(NameError::Invalid {
                what: "service",
                value: shortened(text),
                rule: "name.namespace",
            });
        };
        Ok(Self {
            name: ServiceName::new(name)?,
            namespace: Namespace::new(namespace)?,
        })
    }
}

impl Serialize for ServiceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

fn check(
    text: &str,
    what: &'static str,
    max: usize,
    allowed: fn(&str) -> bool,
    rule: &'static str,
    reserved: &[&str],
) -> Result<(), NameError> {
    if text.is_empty() {
        Err(NameError::Empty { what })
    } else if text.len() > max {
        Err(NameError::TooLong {
            what,
            len: text.len(),
            max,
        })
    } else if !allowed(text) {
        Err(NameError::Invalid {
            what,
            value: shortened(text),
            rule,
        })
    } else if reserved.contains(&text) {
        Err(NameError::Reserved {
            what,
            value: text.to_owned(),
        })
    } else {
        Ok(())
    }
}

fn is_label(text: &str) -> bool {
    let inside = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    text.len() <= 63
        && !text.is_empty()
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_user(text: &str) -> bool {
    let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    text.bytes().all(inside) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Lower case, `-` for what no name may hold, no `-` at the ends of a label, labels and the whole cut to size.
fn canonical(text: &str) -> String {
    let replaced: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let labels = replaced.split('.').map(|label| {
        let label = label.trim_matches('-');
        // All characters are ASCII after the replacement, so every index is a character boundary.
        label[..label.len().min(63)].trim_end_matches('-')
    });
    let mut name = String::new();
    for label in labels.filter(|label| !label.is_empty()) {
        if name.len() + 1 + label.len() > 253 {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(label);
    }
    name
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests;
