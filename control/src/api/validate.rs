//! Checks an object against its schema, in the words of a Kubernetes server, and prunes what the schema does not know.

use std::net::IpAddr;

use keel_certs::NameError;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::answer::{Cause, shown};
use super::schema;

/// How many wrong fields are told before the rest is left out: an answer must stay readable, and bounded.
pub(super) const MAX_FINDINGS: usize = 50;
/// How much of a field's path is told: names in it are as long as a body may be.
pub(super) const MAX_PATH: usize = 256;
/// How much of a value is told.
pub(super) const MAX_SHOWN: usize = 256;

/// One wrong field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldError {
    path: String,
    reason: &'static str,
    message: String,
}

impl FieldError {
    pub(crate) fn duplicate(path: String, value: &str) -> Self {
        let message = format!("Duplicate value: {:?}", shown(value, MAX_SHOWN));
        Self::new(&path, "FieldValueDuplicate", message)
    }

    pub(crate) fn forbidden(path: &str, why: &str) -> Self {
        Self::new(path, "FieldValueForbidden", format!("Forbidden: {why}"))
    }

    pub(crate) fn invalid(path: String, value: &str, why: &str) -> Self {
        let message = format!("Invalid value: {:?}: {why}", shown(value, MAX_SHOWN));
        Self::new(&path, "FieldValueInvalid", message)
    }

    pub(crate) fn required(path: String, why: &str) -> Self {
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(": {why}")
        };
        Self::new(&path, "FieldValueRequired", format!("Required value{why}"))
    }

    pub(crate) fn too_long(path: &str, why: &str) -> Self {
        Self::new(path, "FieldValueTooLong", format!("Too long: {why}"))
    }

    /// None of those that there are.
    pub(crate) fn unsupported(path: &str, value: &Value, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|one| format!("{one:?}")).collect();
        let message = format!(
            "Unsupported value: {}: supported values: {}",
            shown(&value.to_string(), MAX_SHOWN),
            supported.join(", ")
        );
        Self::new(path, "FieldValueNotSupported", message)
    }

    /// A number that is not given.
    pub(crate) fn unset(path: &str, why: &str) -> Self {
        let message = format!("Invalid value: 0: {why}");
        Self::new(path, "FieldValueInvalid", message)
    }

    fn in_body(path: &str, reason: &'static str, value: &str, rule: &str) -> Self {
        let path = shown(path, MAX_PATH);
        let message = format!("Invalid value: {value}: {path} in body {rule}");
        Self::new(&path, reason, message)
    }

    fn new(path: &str, reason: &'static str, message: String) -> Self {
        Self {
            path: shown(path, MAX_PATH).into_owned(),
            reason,
            message,
        }
    }

    /// The error as Kubernetes writes it into a message: `spec.x: Invalid value: ...`.
    pub(super) fn text(&self) -> String {
        format!("{}: {}", self.path, self.message)
    }

    pub(super) fn cause(&self) -> Cause {
        Cause {
            reason: self.reason.into(),
            message: self.message.clone(),
            field: self.path.clone(),
        }
    }
}

/// What a walk over an object found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Values that the schema does not allow.
    pub(super) errors: Vec<FieldError>,
    /// Paths of fields that the schema does not know; they were taken out.
    pub(super) unknown: Vec<String>,
    /// Whether what is required may be absent, because the rest of the object is elsewhere.
    pub(super) partial: bool,
}

/// Checks `value`, found at `path`, against `schema`; takes out unknown fields, and nulls, which count as absent.
pub(super) fn check(value: &mut Value, schema: &Value, path: &str, findings: &mut Findings) {
    let Some(schema) = schema.as_object() else {
        return;
    };
    if findings.errors.len() >= MAX_FINDINGS {
        return;
    }
    if let Some(wanted) = schema.get("type").and_then(Value::as_str)
        && !has_type(value, wanted)
    {
        let found = type_name(value);
        let rule = format!("must be of type {wanted}: \"{found}\"");
        findings.errors.push(FieldError::in_body(
            path,
            "FieldValueTypeInvalid",
            &format!("\"{found}\""),
            &rule,
        ));
        return;
    }
    match value {
        Value::Object(fields) => check_fields(fields, schema, path, findings),
        Value::Array(items) => {
            let Some(item) = schema.get("items") else {
                return;
            };
            for (index, value) in items.iter_mut().enumerate() {
                check(value, item, &format!("{path}[{index}]"), findings);
            }
        }
        Value::Number(number) => {
            let shown = number.to_string();
            let bound = |key: &str| schema.get(key).and_then(Value::as_i64);
            let found = number
                .as_i64()
                .map_or(i128::from(number.as_u64().unwrap_or(u64::MAX)), i128::from);
            if let Some(least) = bound("minimum").filter(|least| found < i128::from(*least)) {
                let rule = format!("should be greater than or equal to {least}");
                findings.errors.push(FieldError::in_body(
                    path,
                    "FieldValueInvalid",
                    &shown,
                    &rule,
                ));
            }
            if let Some(most) = bound("maximum").filter(|most| found > i128::from(*most)) {
                let rule = format!("should be less than or equal to {most}");
                findings.errors.push(FieldError::in_body(
                    path,
                    "FieldValueInvalid",
                    &shown,
                    &rule,
                ));
            }
        }
        Value::String(text) => check_text(text, schema, path, findings),
        Value::Bool(_) | Value::Null => {}
    }
}

fn check_fields(
    fields: &mut Map<String, Value>,
    schema: &Map<String, Value>,
    path: &str,
    findings: &mut Findings,
) {
    let keeps_unknown = schema::keeps_unknown(schema);
    fields.retain(|name, value| {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        match schema::field(schema, name) {
            Some(_) if value.is_null() => false,
            Some(child) => {
                check(value, child, &path, findings);
                true
            }
            None if keeps_unknown => true,
            None => {
                if findings.unknown.len() < MAX_FINDINGS {
                    findings.unknown.push(shown(&path, MAX_PATH).into_owned());
                }
                false
            }
        }
    });
    if findings.partial {
        return;
    }
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            let path = match path {
                "" => name.to_owned(),
                path => format!("{path}.{name}"),
            };
            findings.errors.push(FieldError::required(path, ""));
        }
    }
}

fn check_text(text: &str, schema: &Map<String, Value>, path: &str, findings: &mut Findings) {
    let shown: String = format!("{:?}", text.chars().take(100).collect::<String>());
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.iter().any(|one| one.as_str() == Some(text))
    {
        let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        let message = format!(
            "Unsupported value: {shown}: supported values: {}",
            allowed.join(", ")
        );
        findings
            .errors
            .push(FieldError::new(path, "FieldValueNotSupported", message));
    }
    let Some(format) = schema.get("format").and_then(Value::as_str) else {
        return;
    };
    let (holds, rule) = match format {
        "ip" => (
            text.parse::<IpAddr>().is_ok(),
            "must be an IP address".to_owned(),
        ),
        "date-time" => (
            OffsetDateTime::parse(text, &Rfc3339).is_ok(),
            "must be a time as RFC 3339 writes it, e.g. 2026-01-31T15:04:05Z".to_owned(),
        ),
        "micro-time" => (
            OffsetDateTime::parse(text, &Rfc3339).is_ok() && has_microseconds(text),
            "must be a time as RFC 3339 writes it, in microseconds, e.g. 2026-01-31T15:04:05.000000Z"
                .to_owned(),
        ),
        "host-port" => (
            is_host_port(text),
            "must be host:port, e.g. 203.0.113.10:7000 or [2001:db8::1]:7000".to_owned(),
        ),
        "label" => match text.parse::<keel_certs::Namespace>() {
            Ok(_) => (true, String::new()),
            // Whatever the label is of: what it is not, the field says.
            Err(NameError::Invalid { value, rule, .. }) => (
                false,
                format!("must be a DNS label, which {value:?} is not: use {rule}"),
            ),
            Err(error) => (false, format!("must be a DNS label: {error}")),
        },
        "rate" => of_unit(text.parse::<keel_fabric::units::Rate>()),
        "span" => of_unit(text.parse::<keel_fabric::units::Span>()),
        _ => return,
    };
    if !holds {
        findings.errors.push(FieldError::in_body(
            path,
            "FieldValueInvalid",
            &shown,
            &rule,
        ));
    }
}

/// Whether a value with a unit could be read, and what to say if not.
fn of_unit<T>(parsed: Result<T, keel_fabric::units::UnitError>) -> (bool, String) {
    match parsed {
        Ok(_) => (true, String::new()),
        Err(error) => (false, format!("must have a unit: {error}")),
    }
}

/// Whether a time is as precise as clients insist on: six digits, no more and no less.
fn has_microseconds(time: &str) -> bool {
    let digits = time.split_once('.').map_or("", |(_, digits)| digits);
    digits.bytes().take_while(u8::is_ascii_digit).count() == 6
}

/// Whether the text is `host:port` with a port of at least 1; an IPv6 address stands in brackets.
fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let host_holds = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        }
    };
    host_holds
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn has_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        _ => true,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "array",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::Object(_) => "object",
        Value::String(_) => "string",
    }
}
