//! What new objects are called and known by.

use keel_certs::{Namespace, NodeName};
use serde_json::{Map, Value};

use super::change::Birth;
use crate::api::decode::invalid_field;
use crate::api::kind::{About, Names};
use crate::api::metadata::is_subdomain;
use crate::api::{Status, Time};

/// What an object gets that is made now.
pub(super) fn birth() -> Birth {
    let mut bytes: [u8; 16] = rand::random();
    // Version 4, variant 1: a random UUID (RFC 9562 section 5.4).
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    let uid = format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    );
    Birth {
        uid,
        at: Time::now(),
    }
}

/// The name of an object to be created: the one given, or one made from `generateName`.
pub(super) fn new_name(about: &About, object: &Map<String, Value>) -> Result<String, Status> {
    let text = |key: &str| {
        object
            .get("metadata")
            .and_then(|meta| meta.get(key))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut name = text("name");
    if name.is_empty() {
        let prefix = text("generateName");
        if prefix.is_empty() {
            return Err(invalid_field(
                about,
                "",
                "metadata.name",
                "",
                "name or generateName is required",
            ));
        }
        let suffix: [u8; 5] = rand::random();
        // No vowels and nothing that looks alike, as Kubernetes does.
        let letters = b"bcdfghjklmnpqrstvwxz2456789";
        name = prefix
            .chars()
            .take(58)
            .chain(
                suffix
                    .iter()
                    .map(|byte| char::from(letters[usize::from(*byte) % letters.len()])),
            )
            .collect();
    }
    check_name(about, &name)?;
    Ok(name)
}

/// Refuses a name that the kind does not take.
pub(super) fn check_name(about: &About, name: &str) -> Result<(), Status> {
    let fault = match about.names {
        Names::Node => name
            .parse::<NodeName>()
            .err()
            .map(|error| format!("must be the name of a node: {error}")),
        Names::Label => name
            .parse::<Namespace>()
            .err()
            .map(|error| format!("must be a DNS label: {error}")),
        Names::Subdomain => (!is_subdomain(name)).then(|| {
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end \
             with an alphanumeric character"
                .to_owned()
        }),
    };
    match fault {
        None => Ok(()),
        Some(why) => {
            let shown: String = name.chars().take(100).collect();
            Err(invalid_field(about, &shown, "metadata.name", &shown, &why))
        }
    }
}
