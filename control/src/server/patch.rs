//! Patches: JSON merge patch (RFC 7396) and JSON patch (RFC 6902), with bounds on what they may cost.

use json_patch::PatchOperation;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::path::Named;
use super::write::unsupported;
use crate::api::decode::{self, Decoded, Extent, FieldValidation, Format, MAX_DEPTH};
use crate::api::kind::Kind;
use crate::api::{MAX_OBJECT, Reason, Status};

/// Steps of a JSON patch.
const MAX_STEPS: usize = 1000;
/// Steps among them that copy or move: each of them can double the object or its depth, so the object is measured after it.
const MAX_COPIES: usize = 100;

/// A patch, parsed.
pub(super) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
}

impl Patch {
    /// Parses a body of this media type.
    ///
    /// # Errors
    /// What is wrong with the body, or which media types are taken.
    pub(super) fn parse(kind: &Kind, media: &str, bytes: &[u8]) -> Result<Self, Status> {
        let parse =
            || decode::parse(bytes, Format::Json, kind.about.kind).map(|parsed| parsed.value);
        match media {
            "application/merge-patch+json" => match parse()? {
                patch @ Value::Object(_) => Ok(Self::Merge(patch)),
                _ => Err(Status::failure(
                    Reason::BadRequest,
                    "a merge patch must be an object",
                )),
            },
            "application/json-patch+json" => {
                let patch = json_patch::Patch::deserialize(parse()?).map_err(|error| {
                    Status::failure(
                        Reason::BadRequest,
                        format!("this is no JSON patch: {error}"),
                    )
                })?;
                let copies = patch.0.iter().filter(|step| copies(step)).count();
                if patch.0.len() > MAX_STEPS || copies > MAX_COPIES {
                    let message = format!(
                        "a JSON patch may have {MAX_STEPS} steps, {MAX_COPIES} of them copies or moves"
                    );
                    return Err(Status::failure(Reason::RequestEntityTooLarge, message));
                }
                Ok(Self::Json(patch))
            }
            other => Err(unsupported(
                other,
                "application/json-patch+json, application/merge-patch+json",
            )),
        }
    }

    /// The held object with the patch applied, checked like a replacement, and the warnings of that check.
    ///
    /// # Errors
    /// `Invalid` if a step does not apply, `RequestEntityTooLarge` if the object would get too large or too deep, and what
    /// [`decode::object`] finds.
    pub(super) fn apply(
        self,
        named: &Named,
        held: &Map<String, Value>,
        validation: FieldValidation,
    ) -> Result<Decoded, Status> {
        let mut value = Value::Object(held.clone());
        match self {
            // Both sides are no deeper than a body may be, so the result is not either.
            Self::Merge(patch) => json_patch::merge(&mut value, &patch),
            Self::Json(patch) => {
                for step in patch.0 {
                    apply(&mut value, step, named)?;
                }
            }
        }
        let parsed = decode::Parsed {
            value,
            duplicates: Vec::new(),
        };
        decode::object(named.kind, parsed, validation, Extent::Whole)
    }
}

fn apply(value: &mut Value, step: PatchOperation, named: &Named) -> Result<(), Status> {
    let too_large = || {
        let message = "the patch makes the object larger or deeper than it may be";
        Status::about(
            &named.kind.about,
            Reason::RequestEntityTooLarge,
            &named.name,
            message,
        )
    };
    // Checked before it is applied: dropping a value that is too deep would overflow the stack already.
    let below = step.path().tokens().count();
    let added = match &step {
        PatchOperation::Add(add) => below + depth(&add.value),
        PatchOperation::Replace(replace) => below + depth(&replace.value),
        PatchOperation::Copy(_) | PatchOperation::Move(_) => below,
        PatchOperation::Remove(_) | PatchOperation::Test(_) => 0,
    };
    if added > MAX_DEPTH {
        return Err(too_large());
    }
    let measure = copies(&step);
    json_patch::patch(value, &[step]).map_err(|error| {
        let message =
            format!("the server rejected our request due to an error in our request: {error}");
        Status::about(&named.kind.about, Reason::Invalid, &named.name, message)
    })?;
    let size =
        |value: &Value| serde_json::to_vec(value).map_or(usize::MAX, |encoded| encoded.len());
    if measure && (depth(value) > MAX_DEPTH || size(value) > MAX_OBJECT) {
        return Err(too_large());
    }
    Ok(())
}

fn copies(step: &PatchOperation) -> bool {
    matches!(step, PatchOperation::Copy(_) | PatchOperation::Move(_))
}

/// How deep the value nests; a scalar does not. Values here are at most twice as deep as a body, so recursion is safe.
fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(fields) => fields.values().map(depth).max(),
        _ => return 0,
    };
    deepest.unwrap_or(0) + 1
}
