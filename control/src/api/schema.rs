//! The OpenAPI schema of a kind, derived from its Rust type.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// The schema of a kind's type: structural (no references, no unions), as Kubernetes wants it of a custom resource.
pub(super) fn of<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    tidy(&mut schema);
    schema
}

/// Extension by which a type says what an absent field means.
const DEFAULT: &str = "x-default";

/// Extension by which fields that are not described are kept.
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";

/// Takes away what Kubernetes' structural schemas do not have, and names integer formats as it does.
fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    for key in [
        "$schema", "title", "default", "nullable", "examples", "$comment",
    ] {
        object.remove(key);
    }
    // schemars writes what serde fills in; this is what the schema is meant to say.
    if let Some(default) = object.remove(DEFAULT) {
        object.insert("default".into(), default);
    }
    if let Some(format) = object.get_mut("format") {
        match format.as_str() {
            Some("uint8" | "uint16" | "int8" | "int16") => *format = "int32".into(),
            Some("uint32" | "uint64" | "uint") => *format = "int64".into(),
            _ => {}
        }
    }
    for key in ["properties", "patternProperties"] {
        if let Some(children) = object.get_mut(key).and_then(Value::as_object_mut) {
            children.values_mut().for_each(tidy);
        }
    }
    // Before 1.31 kubectl cannot explain a word that stands in the place of a schema.
    if object.get("additionalProperties") == Some(&Value::Bool(true)) {
        object.remove("additionalProperties");
        object.insert(PRESERVE.into(), true.into());
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = object.get_mut(key) {
            tidy(child);
        }
    }
}

/// The child schema of an object's field; `None` if the schema does not know it.
pub(crate) fn field<'a>(schema: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    match schema
        .get("properties")
        .and_then(|properties| properties.get(name))
    {
        Some(child) => Some(child),
        None => schema
            .get("additionalProperties")
            .filter(|child| child.is_object()),
    }
}

/// Whether fields that the schema does not know are kept as they are.
pub(crate) fn keeps_unknown(schema: &Map<String, Value>) -> bool {
    schema.get(PRESERVE) == Some(&Value::Bool(true))
}
