//! From the bytes of a request to an object that holds, or to what a Kubernetes server would say about it.

use std::fmt::{self, Write};

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::options::DuplicateKeyPolicy;

use super::answer::{Details, MAX_NAME, Reason, Status, shown};
use super::kind::{About, Kind};
use super::protobuf;
use super::validate::{FieldError, Findings, MAX_PATH, check};

/// How deep a body may nest. Deep bodies cost stack; the deepest resource has 8 levels, annotations are strings.
pub(crate) const MAX_DEPTH: usize = 64;
/// Duplicate fields that are told at most.
const MAX_DUPLICATES: usize = 50;

/// What happens to fields that the schema does not know, or that stand twice: `fieldValidation` of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// They are dropped silently.
    Ignore,
    /// The request fails.
    Strict,
    /// They are dropped, each with a warning. Kubernetes' default.
    #[default]
    Warn,
}

/// The format of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Format {
    /// JSON.
    Json,
    /// YAML, one document.
    Yaml,
    /// Kubernetes' binary encoding of this message.
    Protobuf(protobuf::Message),
}

/// A parsed body: any JSON value, and the fields that stood in it twice (the last one counts).
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The value.
    pub(crate) value: Value,
    /// Paths of the fields that stood there twice.
    pub(crate) duplicates: Vec<String>,
}

impl Parsed {
    /// Says in which namespace the object is, if it does not say so itself.
    pub(crate) fn place(&mut self, namespace: &str) {
        let meta = self.value.get_mut("metadata");
        if let Some(meta) = meta.and_then(Value::as_object_mut)
            && meta
                .get("namespace")
                .is_none_or(|given| given.is_null() || given == "")
        {
            meta.insert("namespace".into(), namespace.into());
        }
    }
}

/// Parses a body that should be of this kind.
///
/// # Errors
/// A `BadRequest` that says where the body is malformed or too deep.
pub(crate) fn parse(bytes: &[u8], format: Format, kind: &str) -> Result<Parsed, Status> {
    let parsed = match format {
        Format::Json => {
            serde_json::from_slice(bytes).map_err(|error| format!("json parse error: {error}"))
        }
        Format::Yaml => {
            // What stands there twice is noted when it is read, as in JSON.
            let options = serde_saphyr::options! {
                duplicate_keys: DuplicateKeyPolicy::LastWins,
                with_snippet: false,
            };
            serde_saphyr::from_slice_with_options(bytes, options)
                .map_err(|error| format!("yaml parse error: {error}"))
        }
        Format::Protobuf(message) => protobuf::parse(bytes, message)
            .map(|value| Parsed {
                value,
                duplicates: Vec::new(),
            })
            .map_err(|error| format!("protobuf parse error: {error}")),
    };
    parsed.map_err(|error| {
        let message = format!("the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; {error}");
        Status::failure(Reason::BadRequest, message)
    })
}

/// How much of an object a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Some of its fields: what is required may be absent.
    Partial,
    /// All of it.
    Whole,
}

/// An object that holds: the right kind, known fields only, values that the schema allows.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// The object: `metadata` (and `spec`, where the kind has one and all of the object is there) are objects, `status` (if any) is as
    /// it was given.
    pub(crate) object: Map<String, Value>,
    /// What to tell the client, if it asked for warnings.
    pub(crate) warnings: Vec<String>,
}

/// Checks an object.
///
/// # Errors
/// `BadRequest` for another kind and, if `validation` is strict, for fields that are unknown or stand twice; `Invalid` (with every
/// field that is wrong) for values that the schema does not allow.
pub(crate) fn object(
    kind: &Kind,
    parsed: Parsed,
    validation: FieldValidation,
    extent: Extent,
) -> Result<Decoded, Status> {
    let Parsed { value, duplicates } = parsed;
    let about = &kind.about;
    let Value::Object(mut object) = value else {
        return Err(Status::failure(
            Reason::BadRequest,
            format!("the body must be an object of kind {}", about.kind),
        ));
    };
    check_kind(about, &object)?;
    // The status is lenient: it is taken aside, so that nothing in it can be unknown or wrong.
    let status = object.remove("status");
    // What a part of an object does not say, it does not mean: who applies no spec owns none.
    let needs_spec = kind.has_spec() && extent == Extent::Whole;
    let parts = ["metadata"].into_iter().chain(needs_spec.then_some("spec"));
    for part in parts {
        if object.get(part).is_none_or(Value::is_null) {
            object.insert(part.into(), Value::Object(Map::new()));
        }
    }
    let mut findings = Findings {
        partial: extent == Extent::Partial,
        ..Findings::default()
    };
    let mut value = Value::Object(object);
    check(&mut value, kind.schema(), "", &mut findings);
    let duplicates = duplicates
        .into_iter()
        .map(|path| format!("duplicate field {path:?}"));
    let unknown = findings
        .unknown
        .iter()
        .map(|path| format!("unknown field {path:?}"));
    let complaints: Vec<String> = unknown.chain(duplicates).collect();
    if validation == FieldValidation::Strict && !complaints.is_empty() {
        let message = format!(
            "{0} in version \"{1}\" cannot be handled as a {0}: strict decoding error: {2}",
            about.kind,
            about.version,
            complaints.join(", ")
        );
        return Err(Status::failure(Reason::BadRequest, message));
    }
    if findings.errors.is_empty() && extent == Extent::Whole {
        findings.errors.extend(kind.check(&value));
    }
    let name = value["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if !findings.errors.is_empty() {
        return Err(invalid(about, &name, &findings.errors));
    }
    let Value::Object(mut object) = value else {
        return Err(Status::failure(
            Reason::InternalError,
            "the checked object is no object",
        ));
    };
    match status {
        None | Some(Value::Null) => {}
        Some(status @ Value::Object(_)) => {
            object.insert("status".into(), status);
        }
        Some(_) => {
            let error = FieldError::invalid("status".into(), "", "status must be of type object");
            return Err(invalid(about, &name, &[error]));
        }
    }
    let warnings = if validation == FieldValidation::Warn {
        complaints
    } else {
        Vec::new()
    };
    Ok(Decoded { object, warnings })
}

/// The `Invalid` answer about one field of an object.
pub(crate) fn invalid_field(
    about: &About,
    name: &str,
    path: &str,
    value: &str,
    why: &str,
) -> Status {
    let error = if value.is_empty() {
        FieldError::required(path.into(), why)
    } else {
        FieldError::invalid(path.into(), value, why)
    };
    invalid(about, name, &[error])
}

/// The `Invalid` answer about all that is wrong with an object.
pub(crate) fn invalid(about: &About, name: &str, errors: &[FieldError]) -> Status {
    let texts: Vec<String> = errors.iter().map(FieldError::text).collect();
    let text = match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    let causes = errors.iter().map(FieldError::cause).collect();
    let details = Details {
        name: shown(name, MAX_NAME).into(),
        group: about.group.into(),
        kind: about.kind.into(),
        causes,
        ..Details::default()
    };
    let name = shown(name, MAX_NAME);
    let message = format!("{} {name:?} is invalid: {text}", about.kind_and_group());
    Status {
        details: Some(Box::new(details)),
        ..Status::failure(Reason::Invalid, message)
    }
}

fn check_kind(about: &About, object: &Map<String, Value>) -> Result<(), Status> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let expected = about.api_version();
    let message = if version.is_empty() {
        "Object 'apiVersion' is missing".to_owned()
    } else if kind.is_empty() {
        "Object 'Kind' is missing".to_owned()
    } else if version != expected {
        format!(
            "the API version in the data ({}) does not match the expected API version ({expected})",
            shown(version, 100)
        )
    } else if kind != about.kind {
        format!(
            "{} in version \"{}\" cannot be handled as a {}",
            shown(kind, 100),
            about.version,
            about.kind
        )
    } else {
        return Ok(());
    };
    Err(Status::failure(Reason::BadRequest, message))
}

// === impl Parsed ===

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut duplicates = Vec::new();
        let mut path = String::new();
        let value = Walk {
            path: &mut path,
            duplicates: &mut duplicates,
            depth: 0,
        }
        .deserialize(deserializer)?;
        Ok(Self { value, duplicates })
    }
}

/// Reads any value and notes the fields that stand twice.
struct Walk<'a> {
    path: &'a mut String,
    duplicates: &'a mut Vec<String>,
    depth: usize,
}

impl Walk<'_> {
    fn inner(&mut self) -> Walk<'_> {
        Walk {
            path: self.path,
            duplicates: self.duplicates,
            depth: self.depth + 1,
        }
    }

    fn check_depth<E: de::Error>(&self) -> Result<(), E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!(
                "the body nests deeper than {MAX_DEPTH} levels"
            )));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut list = Vec::new();
        let length = self.path.len();
        loop {
            // It cannot fail: it is a text in memory.
            let _ = write!(self.path, "[{}]", list.len());
            let item = items.next_element_seed(self.inner())?;
            self.path.truncate(length);
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut map = Map::new();
        let length = self.path.len();
        while let Some(name) = fields.next_key::<String>()? {
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&name);
            let value = fields.next_value_seed(self.inner())?;
            if map.insert(name, value).is_some() && self.duplicates.len() < MAX_DUPLICATES {
                self.duplicates
                    .push(shown(self.path, MAX_PATH).into_owned());
            }
            self.path.truncate(length);
        }
        Ok(Value::Object(map))
    }
}
