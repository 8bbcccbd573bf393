//! What a client takes for an answer: the header `Accept` (RFC 9110, section 12.5.1).

use http::header::{ACCEPT, HeaderMap};

use crate::api::{Reason, Status};

/// The parameters of a media range that takes JSON, without its weight: `as=Table`, `v=v1`.
pub(super) struct Parameters(Vec<String>);

impl Parameters {
    pub(super) fn has(&self, parameter: &str) -> bool {
        self.0.iter().any(|one| one == parameter)
    }

    /// What the answer is wanted as.
    pub(super) fn wanted(&self) -> Option<&str> {
        let mut all = self.0.iter();
        all.find_map(|parameter| parameter.strip_prefix("as="))
    }
}

/// The media ranges that take JSON, those that the client likes best first.
///
/// # Errors
/// `NotAcceptable` if it takes none.
pub(super) fn accepted(headers: &HeaderMap) -> Result<Vec<Parameters>, Status> {
    let values = headers.get_all(ACCEPT).into_iter();
    let values: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    if values.iter().all(|value| value.trim().is_empty()) {
        return Ok(vec![Parameters(Vec::new())]);
    }
    let ranges = values.iter().flat_map(|value| value.split(','));
    let mut found: Vec<Range> = ranges.filter_map(Range::parse).collect();
    found.sort_by(|one, other| {
        let weight = other.weight.total_cmp(&one.weight);
        weight.then(one.wildcards.cmp(&other.wildcards))
    });
    match found.is_empty() {
        true => Err(not_acceptable()),
        false => Ok(found.into_iter().map(|range| range.parameters).collect()),
    }
}

/// Nothing that the client takes is there.
pub(super) fn not_acceptable() -> Status {
    Status::failure(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json",
    )
}

/// One of those that JSON falls into.
struct Range {
    parameters: Parameters,
    /// From 0, which is not at all, to 1.
    weight: f32,
    /// How many parts of the media type it leaves open.
    wildcards: u8,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(|part| part.replace([' ', '\t'], ""));
        let wildcards = match parts.next()?.to_ascii_lowercase().as_str() {
            "application/json" => 0,
            "application/*" => 1,
            "*/*" => 2,
            _ => return None,
        };
        let (weights, parameters): (Vec<String>, Vec<String>) =
            parts.partition(|part| part.starts_with("q="));
        // A weight that cannot be read is none, as Kubernetes has it.
        let weight = weights.first().and_then(|weight| weight[2..].parse().ok());
        let weight = weight.unwrap_or(1.0);
        (weight > 0.0).then_some(Self {
            parameters: Parameters(parameters),
            weight,
            wildcards,
        })
    }
}
