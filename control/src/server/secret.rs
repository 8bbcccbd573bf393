//! What only admins are shown.

use bytes::Bytes;
use keel_certs::{Identity, Subject};
use serde_json::Value;

use crate::api::kind::About;

/// Where `kubectl apply` keeps what it sent last, secrets included.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// How much of an object somebody is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// All of it.
    Everything,
    /// All but the secrets of its kind: nobody but who writes specs needs them.
    NoSecrets,
}

impl Sight {
    /// What `identity` is shown.
    pub(super) fn of(identity: &Identity) -> Self {
        match identity.subject {
            Subject::FabricAdmin { .. } | Subject::NodeAdmin { .. } => Self::Everything,
            Subject::Node { .. } | Subject::Pod { .. } => Self::NoSecrets,
        }
    }

    /// The stored object as it is shown.
    pub(super) fn show(self, about: &About, object: &Bytes) -> Bytes {
        if self == Self::Everything || !about.secrets.iter().any(|one| mentions(object, one)) {
            return object.clone();
        }
        let Ok(mut value) = serde_json::from_slice::<Value>(object) else {
            return object.clone();
        };
        for secret in about.secrets {
            let Some((parent, field)) = secret.rsplit_once('/') else {
                continue;
            };
            if let Some(parent) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
                parent.remove(field);
            }
        }
        // A copy of the whole object in a text; who reads only has no use for it.
        let annotations = value.pointer_mut("/metadata/annotations");
        if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
        value.to_string().into()
    }
}

/// Whether the object may hold the secret. Nearly no object has one, and a search is far cheaper than reading them all. Stored objects
/// were encoded here, so a key is not written with escapes.
fn mentions(object: &[u8], secret: &str) -> bool {
    let name = secret.rsplit('/').next().unwrap_or_default();
    std::str::from_utf8(object).is_ok_and(|text| text.contains(name))
}
