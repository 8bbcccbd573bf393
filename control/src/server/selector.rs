//! Label and field selectors.

use serde_json::Value;

use crate::api::kind::About;
use crate::api::metadata::{is_key, is_value};
use crate::api::{Reason, Status};

/// Which objects are meant. Every requirement must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Above(String, i64),
    Below(String, i64),
    Exists(String),
    In(String, Vec<String>),
    NotExists(String),
    NotIn(String, Vec<String>),
}

/// A field (`metadata.name`) equal or unequal to something. What is absent is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    /// Several with a bar between them: the first that is not empty counts.
    path: String,
    equal: bool,
    value: String,
}

/// Fields that every kind can be selected by.
const FIELDS: [&str; 2] = ["metadata.name", "metadata.namespace"];

impl Selector {
    /// Only the object of this name.
    pub(super) fn name(&mut self, name: &str) {
        self.equal("metadata.name", name);
    }

    /// Only the objects of this namespace, if there is one.
    pub(super) fn namespace(&mut self, namespace: Option<&str>) {
        if let Some(namespace) = namespace {
            self.equal("metadata.namespace", namespace);
        }
    }

    fn equal(&mut self, path: &str, value: &str) {
        self.fields.push(Field {
            path: path.into(),
            equal: true,
            value: value.into(),
        });
    }

    /// Whether every object is meant.
    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Refuses fields that the kind cannot be selected by.
    pub(super) fn check(&self, about: &About) -> Result<(), Status> {
        let known = |path: &str| FIELDS.contains(&path) || about.fields.contains(&path);
        match self.fields.iter().find(|field| !known(&field.path)) {
            None => Ok(()),
            Some(field) => {
                let shown: String = field.path.chars().take(100).collect();
                let known = [&FIELDS[..], about.fields].concat().join(", ");
                Err(Status::failure(
                    Reason::BadRequest,
                    format!("field label not supported: {shown} (supported: {known})"),
                ))
            }
        }
    }

    /// Names fields as they are kept.
    pub(super) fn keep(&mut self, about: &About) {
        let renamed = about.words.map_or(&[][..], |words| words.fields);
        for field in &mut self.fields {
            let (first, rest) = match field.path.split_once('.') {
                Some((first, rest)) => (first, Some(rest)),
                None => (field.path.as_str(), None),
            };
            if let Some((_, kept)) = renamed.iter().find(|(here, _)| *here == first) {
                field.path = match rest {
                    Some(rest) => format!("{kept}.{rest}"),
                    None => (*kept).to_owned(),
                };
            }
            let elsewhere = about.places.iter().find(|(name, _)| *name == field.path);
            if let Some((_, place)) = elsewhere {
                field.path = (*place).to_owned();
            }
        }
    }

    /// Whether the object is meant.
    pub(super) fn matches(&self, object: &Value) -> bool {
        self.labels
            .iter()
            .all(|requirement| requirement.holds(object))
            && self.fields.iter().all(|field| field.holds(object))
    }

    /// Adds a label selector: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`. Without a word it selects everything, and only then: what is
    /// selected may be deleted.
    pub(super) fn labels(&mut self, text: &str) -> Result<(), Status> {
        for part in split(text) {
            let requirement = requirement(part).ok_or_else(|| {
                let shown: String = text.chars().take(200).collect();
                Status::failure(
                    Reason::BadRequest,
                    format!("unable to parse requirement {part:?} of the label selector {shown:?}: use k=v, k!=v, k in (a,b), k notin (a,b), k, !k, k>1 or k<1"),
                )
            })?;
            self.labels.push(requirement);
        }
        Ok(())
    }

    /// Adds a field selector: `metadata.name=a,status.cluster!=b`. A backslash takes its meaning from a comma, an equals sign and a
    /// backslash.
    pub(super) fn fields(&mut self, text: &str) -> Result<(), Status> {
        for part in split_unescaped(text) {
            let Some((key, equal, value)) = split_operator(part) else {
                let message = format!("invalid field selector {part:?}: use metadata.name=NAME");
                return Err(Status::failure(Reason::BadRequest, message));
            };
            self.fields.push(Field {
                path: key.into(),
                equal,
                value: unescape(value),
            });
        }
        Ok(())
    }
}

impl Requirement {
    fn holds(&self, object: &Value) -> bool {
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        let number = |key: &str| label(key)?.parse::<i64>().ok();
        let has = |key: &str, values: &[String]| {
            label(key).is_some_and(|found| values.iter().any(|value| value == found))
        };
        match self {
            Self::Above(key, bound) => number(key).is_some_and(|found| found > *bound),
            Self::Below(key, bound) => number(key).is_some_and(|found| found < *bound),
            Self::Exists(key) => label(key).is_some(),
            Self::In(key, values) => has(key, values),
            Self::NotExists(key) => label(key).is_none(),
            Self::NotIn(key, values) => !has(key, values),
        }
    }
}

impl Field {
    fn holds(&self, object: &Value) -> bool {
        let at = |place: &str| {
            let mut steps = place.split('.');
            steps.try_fold(object, |value, step| value.get(step))
        };
        let mut found = self.path.split('|').filter_map(at);
        let equal = match found.find(|value| !value.is_null() && *value != "") {
            None => self.value.is_empty(),
            Some(Value::String(text)) => *text == self.value,
            Some(other) => {
                let text = other.to_string();
                text == self.value
            }
        };
        equal == self.equal
    }
}

/// Splits at the commas that stand outside parentheses. What has no word has no part.
fn split(text: &str) -> Vec<&str> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    let mut depth = 0_usize;
    text.split(|char| {
        match char {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        char == ',' && depth == 0
    })
    .map(str::trim)
    .collect()
}

/// Splits at the commas that no backslash stands before.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut escaped = false;
    text.split(|char| {
        let ends = char == ',' && !escaped;
        escaped = char == '\\' && !escaped;
        ends
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
    .collect()
}

fn unescape(text: &str) -> String {
    let mut escaped = false;
    let plain = text.chars().filter(|char| {
        escaped = *char == '\\' && !escaped;
        !escaped
    });
    plain.collect()
}

fn split_operator(part: &str) -> Option<(&str, bool, &str)> {
    let (key, equal, value) = if let Some((key, value)) = part.split_once("!=") {
        (key, false, value)
    } else if let Some((key, value)) = part.split_once("==") {
        (key, true, value)
    } else {
        let (key, value) = part.split_once('=')?;
        (key, true, value)
    };
    Some((key.trim(), equal, value.trim()))
}

fn requirement(part: &str) -> Option<Requirement> {
    if let Some(key) = part.strip_prefix('!') {
        return Some(Requirement::NotExists(key_of(key)?));
    }
    if let Some(rest) = part.strip_suffix(')') {
        let (head, values) = rest.split_once('(')?;
        let (key, operator) = head.trim().rsplit_once(char::is_whitespace)?;
        if values.trim().is_empty() {
            return None;
        }
        let values = values
            .split(',')
            .map(value_of)
            .collect::<Option<Vec<_>>>()?;
        let key = key_of(key)?;
        return match operator {
            "in" => Some(Requirement::In(key, values)),
            "notin" => Some(Requirement::NotIn(key, values)),
            _ => None,
        };
    }
    if let Some((key, bound)) = part.split_once('>') {
        return Some(Requirement::Above(key_of(key)?, bound.trim().parse().ok()?));
    }
    if let Some((key, bound)) = part.split_once('<') {
        return Some(Requirement::Below(key_of(key)?, bound.trim().parse().ok()?));
    }
    match split_operator(part) {
        Some((key, true, value)) => Some(Requirement::In(key_of(key)?, vec![value_of(value)?])),
        Some((key, false, value)) => Some(Requirement::NotIn(key_of(key)?, vec![value_of(value)?])),
        None => Some(Requirement::Exists(key_of(part)?)),
    }
}

fn key_of(text: &str) -> Option<String> {
    let text = text.trim();
    is_key(text).then(|| text.to_owned())
}

fn value_of(text: &str) -> Option<String> {
    let text = text.trim();
    is_value(text).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_read_with_their_escapes() {
        let mut selector = Selector::default();
        selector
            .fields(r"metadata.name=a\,b\=c\\d,status.number=5,status.none=")
            .unwrap();
        let object = json!({"metadata": {"name": r"a,b=c\d"}, "status": {"number": 5}});
        assert!(selector.matches(&object));
        assert!(selector.check(&About::PLAIN).is_err());
        let about = About {
            fields: &["status.number", "status.none"],
            ..About::PLAIN
        };
        assert!(selector.check(&about).is_ok());
    }

    #[test]
    fn a_selector_that_says_nothing_clear_selects_nothing() {
        let read = |text: &str| Selector::default().labels(text);
        for wrong in [
            ",",
            " , ",
            "a=b,",
            ",a=b",
            "a,,b",
            "x in ()",
            "x notin ( )",
            "-a=b",
            "a//b=c",
            "a/b/c",
            "app=-",
            "!",
            "=b",
            "!=b",
            "a in b",
            "a=(b)",
            "a in (b",
            "A.B/c=d ,",
            "a b",
            "a>",
            "a>b",
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        for right in [
            "",
            " ",
            "a",
            "!a",
            "a=",
            "a==b",
            "a!=b",
            "a.b/c in (d, e)",
            "a notin (,)",
            "a in (b,)",
            " a = b , c ",
            "a>1",
            "a<-1",
        ] {
            assert!(read(right).is_ok(), "{right:?}");
        }
    }

    #[test]
    fn labels_compare_as_numbers() {
        let holds = |text: &str| {
            let mut selector = Selector::default();
            selector.labels(text).unwrap();
            selector.matches(&json!({"metadata": {"labels": {"n": "10"}}}))
        };
        assert!(holds("n>9") && holds("n<11") && !holds("n>10") && !holds("other>1"));
    }
}
