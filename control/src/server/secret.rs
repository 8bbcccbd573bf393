//! What is shown of a stored object, and what only admins are shown.

use bytes::Bytes;
use keel_certs::{Identity, Subject};
use serde_json::{Map, Value};

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

    /// The stored object as it is shown, in the words of the kind.
    pub(super) fn show(self, about: &About, object: &Bytes) -> Bytes {
        let hides =
            self != Self::Everything && about.secrets.iter().any(|one| mentions(object, one));
        if !hides && about.words.is_none() {
            return object.clone();
        }
        let Ok(mut shown) = serde_json::from_slice(object) else {
            return object.clone();
        };
        about.tell(&mut shown);
        self.hide(about, &mut shown);
        Value::Object(shown).to_string().into()
    }

    /// Takes what is not shown out of the object.
    pub(super) fn hide(self, about: &About, object: &mut Map<String, Value>) {
        if self == Self::Everything || about.secrets.is_empty() {
            return;
        }
        for secret in about.secrets {
            if let Some((parent, field)) = secret.rsplit_once('/') {
                remove(object, parent, field);
            }
        }
        // A copy of the whole object in a text; who reads only has no use for it.
        remove(object, "/metadata/annotations", LAST_APPLIED);
    }
}

/// Takes the field out of the object that the pointer leads to.
fn remove(object: &mut Map<String, Value>, parent: &str, field: &str) {
    let mut steps = parent.split('/').skip(1);
    let parent = steps.try_fold(object, |object, step| object.get_mut(step)?.as_object_mut());
    if let Some(parent) = parent {
        parent.remove(field);
    }
}

/// Whether the object may hold the secret. Nearly no object has one, and a search is far cheaper than reading them all. Stored objects
/// were encoded here, so a key is not written with escapes.
fn mentions(object: &[u8], secret: &str) -> bool {
    let name = secret.rsplit('/').next().unwrap_or_default();
    std::str::from_utf8(object).is_ok_and(|text| text.contains(name))
}
