//! What a client wants objects as: whole, as rows of a Table, or no more of each than every object has.

use http::header::HeaderMap;
use serde_json::{Value, json};

use super::accept::{accepted, not_acceptable};
use super::query::Include;
use crate::api::Status;

/// The group and version of what is not a kind of ours.
const META: &str = "meta.k8s.io/v1";

/// What objects are shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Their metadata, for who follows many kinds and needs nothing else.
    Metadata,
    /// Rows, which carry so much.
    Table(Include),
    /// All of them.
    Whole,
}

impl Form {
    /// What the client likes best of that which is there.
    ///
    /// # Errors
    /// `NotAcceptable` if nothing is.
    pub(super) fn asked(headers: &HeaderMap, include: Include) -> Result<Self, Status> {
        for range in accepted(headers)? {
            match (
                range.wanted(),
                range.has("g=meta.k8s.io") && range.has("v=v1"),
            ) {
                (None, _) => return Ok(Self::Whole),
                (Some("Table"), true) => return Ok(Self::Table(include)),
                (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), true) => {
                    return Ok(Self::Metadata);
                }
                // Another version, or another form: the client lists what else it takes.
                (Some(_), _) => {}
            }
        }
        Err(not_acceptable())
    }
}

/// No more of an object than every object has.
pub(super) fn metadata(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": metadata})
}

/// The beginning of a list of those, up to its items.
pub(super) fn metadata_list(metadata: &Value) -> String {
    format!(
        "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"{META}\",\"metadata\":{metadata},\"items\":["
    )
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT;

    use super::*;
    use crate::api::Reason;

    #[test]
    fn what_is_there_and_liked_best_is_taken() {
        let asked = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            Form::asked(&headers, Include::None)
        };
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let older = "application/json;as=Table;v=v1beta1;g=meta.k8s.io";
        let kubectl = format!("{table},{older},application/json");
        assert_eq!(asked(&kubectl), Ok(Form::Table(Include::None)));
        let go = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
            application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(asked(go), Ok(Form::Metadata));
        let rust = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        assert_eq!(asked(rust), Ok(Form::Metadata));
        for whole in [
            "",
            "text/html,*/*",
            "application/json; charset=utf-8",
            "Application/JSON;q=0.1, text/html",
            &format!("{older},application/json"),
            &format!("{table};q=0.5,application/json;q=0.8"),
            &format!("{table};q=0,*/*;q=0.1"),
        ] {
            assert_eq!(asked(whole), Ok(Form::Whole), "{whole}");
        }
        let specific = format!("*/*,{table}");
        assert_eq!(asked(&specific), Ok(Form::Table(Include::None)));
        for nothing in [
            "text/html",
            "application/yaml",
            "application/json;q=0",
            older,
            "application/json;as=PartialObjectMetadata;g=other.io;v=v1",
        ] {
            let refused = asked(nothing).unwrap_err();
            assert_eq!(refused.reason, Some(Reason::NotAcceptable), "{nothing}");
        }
    }
}
