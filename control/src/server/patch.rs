//! Patches: JSON merge patch (RFC 7396), JSON patch (RFC 6902), strategic merge patch and configurations to apply, with bounds on what
//! they may cost.

use json_patch::PatchOperation;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::ownership::{self, Writer};
use super::path::Named;
use super::query::Options;
use super::secret::Sight;
use super::strategic;
use super::write::unsupported;
use crate::api::decode::{self, Decoded, Extent, FieldValidation, Format, MAX_DEPTH};
use crate::api::kind::{About, Kind};
use crate::api::validate::FieldError;
use crate::api::{MAX_OBJECT, Reason, Status};

/// Steps of a JSON patch.
const MAX_STEPS: usize = 1000;
/// Steps among them that copy or move: each of them can double the object or its depth, so the object is measured after it.
const MAX_COPIES: usize = 100;

/// What server-side apply is sent as. JSON is YAML too.
pub(super) const APPLY: &str = "application/apply-patch+yaml";
/// What `kubectl` patches the kinds with that it knows by type.
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// What is taken for this kind.
pub(super) fn accepted(about: &About) -> Vec<&'static str> {
    let (json, merge) = (
        "application/json-patch+json",
        "application/merge-patch+json",
    );
    match about.is_builtin() {
        true => vec![json, merge, STRATEGIC, APPLY],
        false => vec![json, merge, APPLY],
    }
}

/// A patch, parsed.
pub(super) struct Patch {
    form: Form,
    /// Paths of the fields that stood in it twice, as far as nobody was told yet.
    duplicates: Vec<String>,
}

enum Form {
    /// All that its sender wants, with what to tell it.
    Apply {
        config: Decoded,
        force: bool,
    },
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Map<String, Value>),
}

impl Patch {
    /// Parses a body of this media type.
    ///
    /// # Errors
    /// What is wrong with the body, or which media types are taken.
    pub(super) fn parse(
        kind: &Kind,
        media: &str,
        bytes: &[u8],
        options: &Options,
    ) -> Result<Self, Status> {
        if media == APPLY {
            return Self::parse_apply(kind, bytes, options);
        }
        if options.force.is_some() {
            let why = "may not be specified for non-apply patch";
            return Err(invalid_options(&FieldError::forbidden("force", why)));
        }
        let accepted = accepted(&kind.about);
        if !accepted.contains(&media) {
            return Err(unsupported(media, &accepted.join(", ")));
        }
        let decode::Parsed { value, duplicates } =
            decode::parse(bytes, Format::Json, kind.about.kind)?;
        let form = match media {
            "application/merge-patch+json" => match value {
                patch @ Value::Object(_) => Form::Merge(patch),
                _ => {
                    return Err(Status::failure(
                        Reason::BadRequest,
                        "a merge patch must be an object",
                    ));
                }
            },
            "application/json-patch+json" => {
                let patch = json_patch::Patch::deserialize(value).map_err(|error| {
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
                Form::Json(patch)
            }
            _ => match value {
                Value::Object(patch) => Form::Strategic(patch),
                _ => {
                    return Err(Status::failure(
                        Reason::BadRequest,
                        "a strategic merge patch must be an object",
                    ));
                }
            },
        };
        Ok(Self { form, duplicates })
    }

    fn parse_apply(kind: &Kind, bytes: &[u8], options: &Options) -> Result<Self, Status> {
        if options.manager.is_empty() {
            let why = "is required for apply patch";
            return Err(invalid_options(&FieldError::required(
                "fieldManager".into(),
                why,
            )));
        }
        let parsed = decode::parse(bytes, Format::Yaml, kind.about.kind)?;
        let config = decode::object(kind, parsed, options.validation, Extent::Partial)?;
        let managed = config
            .object
            .get("metadata")
            .and_then(|meta| meta.get("managedFields"));
        if managed.is_some_and(|managed| managed.as_array().is_none_or(|all| !all.is_empty())) {
            let why = "metadata.managedFields must be nil";
            return Err(Status::failure(Reason::BadRequest, why));
        }
        let force = options.force.unwrap_or_default();
        Ok(Self {
            form: Form::Apply { config, force },
            duplicates: Vec::new(),
        })
    }

    /// Whether the patch says all that its sender wants.
    pub(super) fn is_apply(&self) -> bool {
        matches!(self.form, Form::Apply { .. })
    }

    /// The held object, as far as its sender is shown it, with the patch applied, as it is kept; checked like a replacement, and the
    /// warnings of that check. A JSON patch can copy from anywhere to anywhere, and test for anything.
    ///
    /// # Errors
    /// `Conflict` if fields would be changed that others own, `Invalid` if a step does not apply, `RequestEntityTooLarge` if the object
    /// would get too large or too deep, and what [`decode::object`] finds.
    pub(super) fn apply(
        self,
        named: &Named,
        held: &Map<String, Value>,
        validation: FieldValidation,
        writer: &Writer,
        sight: Sight,
    ) -> Result<Decoded, Status> {
        let mut held = held.clone();
        sight.hide(&named.kind.about, &mut held);
        // Who owns what is noted in the words in which an object is kept; all else is said in those of the kind that was asked for.
        let (kind, kept) = (named.kind, named.kind.kept());
        if !self.is_apply() {
            kind.about.tell(&mut held);
        }
        let value = match self.form {
            Form::Apply { mut config, force } => {
                kind.keep(&mut config.object);
                let mut object = ownership::apply(kept, &held, &config.object, writer, force)?;
                // What it says about which object it means is checked by whoever writes it.
                if let (Some(meta), Some(sent)) = (
                    object.get_mut("metadata").and_then(Value::as_object_mut),
                    config.object.get("metadata"),
                ) {
                    for key in ["name", "namespace", "resourceVersion", "uid"] {
                        if let Some(value) = sent.get(key) {
                            meta.insert(key.into(), value.clone());
                        }
                    }
                }
                let parsed = decode::Parsed {
                    value: Value::Object(object),
                    duplicates: Vec::new(),
                };
                let ignore = FieldValidation::Ignore;
                let whole = decode::object(kept, parsed, ignore, Extent::Whole)?;
                return Ok(Decoded {
                    warnings: config.warnings,
                    ..whole
                });
            }
            // Both sides are no deeper than a body may be, so the result is not either.
            Form::Merge(patch) => {
                let mut value = Value::Object(held);
                json_patch::merge(&mut value, &patch);
                value
            }
            Form::Strategic(patch) => {
                strategic::merge(&mut held, patch).map_err(|why| {
                    let message = format!("this is no strategic merge patch: {why}");
                    Status::about(&named.kind.about, Reason::BadRequest, &named.name, message)
                })?;
                Value::Object(held)
            }
            Form::Json(patch) => {
                let mut value = Value::Object(held);
                for (number, step) in patch.0.into_iter().enumerate() {
                    apply(&mut value, number, step, named)?;
                }
                value
            }
        };
        let parsed = decode::Parsed {
            value,
            duplicates: self.duplicates,
        };
        let mut decoded = decode::object(kind, parsed, validation, Extent::Whole)?;
        kind.keep(&mut decoded.object);
        Ok(decoded)
    }
}

fn invalid_options(error: &FieldError) -> Status {
    Status::invalid_options("PatchOptions", error)
}

fn apply(
    value: &mut Value,
    number: usize,
    step: PatchOperation,
    named: &Named,
) -> Result<(), Status> {
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
        // Without the object's name, because kubectl shows the name instead of the message.
        let message = format!(
            "the server rejected our request due to an error in our request: step {number} of the patch, {:?}: {}",
            error.path.as_str(),
            error.kind
        );
        Status::failure(Reason::Invalid, message)
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
