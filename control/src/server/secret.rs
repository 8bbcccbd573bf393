//! What only admins are shown.

use bytes::Bytes;
use keel_certs::{Identity, Subject};
use serde_json::Value;

/// How much of an object somebody is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// All of it.
    Everything,
    /// All but `spec.frps.webServer.password`: nobody but who writes specs needs it.
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
    pub(super) fn show(self, object: &Bytes) -> Bytes {
        // Nearly no object has one, and a search is far cheaper than reading them all. Stored objects were encoded here, so the key
        // is not written with escapes.
        let may_have =
            || std::str::from_utf8(object).is_ok_and(|text| text.contains("\"password\""));
        if self == Self::Everything || !may_have() {
            return object.clone();
        }
        let Ok(mut value) = serde_json::from_slice::<Value>(object) else {
            return object.clone();
        };
        let server = value.pointer_mut("/spec/frps/webServer");
        let removed = server
            .and_then(Value::as_object_mut)
            .and_then(|server| server.remove("password"));
        match removed {
            Some(_) => value.to_string().into(),
            None => object.clone(),
        }
    }
}
