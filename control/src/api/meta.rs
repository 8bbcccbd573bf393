//! What every object has: a name, a revision, times.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::state::lenient;

/// The APIServer's only clock: the number of a commit.
///
/// Compared as a number, written in `metadata.resourceVersion` as a decimal string. Numbers grow, are never reused and need not
/// be consecutive.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The largest number that the store can hold.
    pub const MAX: Self = Self(i64::MAX.unsigned_abs());

    /// How far ahead of the clock a number may be: further, no store that counts from its clock can have come.
    pub const MAX_AHEAD: Duration = Duration::from_secs(24 * 3600);

    /// The number that a store begins with at that time: Unix time in milliseconds.
    #[must_use]
    pub fn at(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).map_or(0, |millis| millis.min(Self::MAX.0)))
    }

    /// The largest number that can be believed now.
    #[must_use]
    pub fn latest() -> Self {
        Self::at(SystemTime::now() + Self::MAX_AHEAD)
    }

    /// The largest number that a store raises its own to because a peer says that it holds one: the peer may lie, so it is half of
    /// what can be believed. A store that really gave out such numbers had a clock that was ahead and was lost when it was not any
    /// more; and what it counts from there is believed by every node whose clock is less than the other half behind.
    #[must_use]
    pub fn highest_raised() -> Self {
        Self::at(SystemTime::now() + Self::MAX_AHEAD / 2)
    }

    /// The number behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Revision {
    type Err = RevisionError;

    fn from_str(text: &str) -> Result<Self, RevisionError> {
        // Only digits: `u64::from_str` would also take a leading plus sign.
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits && Self(number) <= Self::MAX => Ok(Self(number)),
            _ => Err(RevisionError {
                text: text.chars().take(40).collect(),
            }),
        }
    }
}

impl<'de> Deserialize<'de> for Revision {
    /// A number, or the same number as a string.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) if Self(number) <= Self::MAX => Ok(Self(number)),
            Either::Number(number) => Err(serde::de::Error::custom(RevisionError {
                text: number.to_string(),
            })),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// A text that is no revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a revision: use the decimal number of a metadata.resourceVersion")]
pub struct RevisionError {
    /// What was given, cut to 40 characters.
    pub text: String,
}

/// A time as it stands in an object: RFC 3339, but any text is kept as it was written.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Time(String);

impl Time {
    /// The current time, to the second.
    #[must_use]
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The time that the text names; none if it is not RFC 3339 (year 0000 is).
    #[must_use]
    pub fn to_system_time(&self) -> Option<SystemTime> {
        OffsetDateTime::parse(&self.0, &Rfc3339)
            .ok()
            .map(SystemTime::from)
    }
}

impl From<SystemTime> for Time {
    fn from(at: SystemTime) -> Self {
        let at = OffsetDateTime::from(at);
        let whole = at.replace_nanosecond(0).unwrap_or(at);
        // Years past 9999 have no RFC 3339 form; nothing here is that far off, and an empty text reads as "unknown".
        Self(whole.format(&Rfc3339).unwrap_or_default())
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name, labels and bookkeeping of an object, as Kubernetes has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// Name of the object; of a Router, the name of its node.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// A prefix for a name that the server completes, used if `name` is empty.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub generate_name: Option<String>,
    /// Namespace of the object; empty for Routers, which belong to the whole cluster.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Identifies this object in all time: another object of the same name has another one.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Revision of the last write to the object. Given in a write, it must be the current one.
    #[serde(
        deserialize_with = "lenient",
        serialize_with = "revision_text",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub resource_version: Option<Revision>,
    /// Counts the changes of the spec.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// When the object was created.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Time>,
    /// When the object was asked to go; it goes when its finalizers are gone.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Time>,
    /// How long the deletion may take.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub deletion_grace_period_seconds: Option<i64>,
    /// Labels, for selectors.
    #[serde(
        deserialize_with = "lenient",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Annotations, for tools.
    #[serde(
        deserialize_with = "lenient",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// Who must agree before the object goes.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    // The strategy is for kubectl, which makes strategic patches by it of the kinds that take them.
    #[schemars(extend(
        "x-kubernetes-list-type" = "set",
        "x-kubernetes-patch-strategy" = "merge"
    ))]
    pub finalizers: Vec<String>,
    /// Objects that this one depends on.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["uid"],
        "x-kubernetes-patch-strategy" = "merge",
        "x-kubernetes-patch-merge-key" = "uid"
    ))]
    pub owner_references: Vec<OwnerReference>,
    /// Who manages which field.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("items" = {"type": "object", "x-kubernetes-preserve-unknown-fields": true}))]
    pub managed_fields: Vec<serde_json::Value>,
    /// No longer used by anybody.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub self_link: Option<String>,
}

/// An object that another one depends on; without effect here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Version of the schema of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Identity of the owner.
    pub uid: String,
    /// Whether it is the one that manages the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    /// Whether it has to stay until the object has gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

impl ObjectMeta {
    /// Metadata with nothing but a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }
}

fn revision_text<S: serde::Serializer>(
    revision: &Option<Revision>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match revision {
        Some(revision) => serializer.collect_str(revision),
        None => serializer.serialize_none(),
    }
}
