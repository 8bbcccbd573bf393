//! What a client wants objects as: whole, as rows of a Table, or no more of each than every object has.

use http::header::{ACCEPT, HeaderMap};
use serde_json::{Value, json};

use super::query::Include;

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
    /// What the client takes before anything else that is there.
    pub(super) fn asked(headers: &HeaderMap, include: Include) -> Self {
        let accepts = headers
            .get_all(ACCEPT)
            .into_iter()
            .filter_map(|value| value.to_str().ok());
        let media = accepts
            .flat_map(|value| value.split(','))
            .map(|media| media.replace(' ', ""));
        for media in media {
            let mut parts = media.split(';');
            if !matches!(
                parts.next(),
                Some("application/json" | "*/*" | "application/*")
            ) {
                continue;
            }
            let parameters: Vec<&str> = parts.collect();
            let has = |parameter: &str| parameters.contains(&parameter);
            let wanted = parameters
                .iter()
                .find_map(|parameter| parameter.strip_prefix("as="));
            match (wanted, has("g=meta.k8s.io") && has("v=v1")) {
                (None, _) => return Self::Whole,
                (Some("Table"), true) => return Self::Table(include),
                (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), true) => {
                    return Self::Metadata;
                }
                // Another version, or another form: the client lists what else it takes.
                (Some(_), _) => {}
            }
        }
        Self::Whole
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
    use super::*;

    #[test]
    fn the_first_form_that_is_there_is_taken() {
        let asked = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            Form::asked(&headers, Include::None)
        };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(asked(kubectl), Form::Table(Include::None));
        let go = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
            application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(asked(go), Form::Metadata);
        let rust = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        assert_eq!(asked(rust), Form::Metadata);
        let older = "application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(asked(older), Form::Whole);
        let other = "application/json;as=PartialObjectMetadata;g=other.io;v=v1";
        assert_eq!(asked(other), Form::Whole);
        assert_eq!(asked("text/html,*/*"), Form::Whole);
    }
}
