//! The kinds that can be named on the command line.

use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use keel_control::api::{KindNames, kept_kinds};

use crate::errors::Usage;
use crate::settings::ObjectName;

/// A kind, as it was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(pub(crate) KindNames);

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.singular)
    }
}

impl Kind {
    /// The kind with this plural, singular or short name, in any case.
    fn named(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        let mut kinds = kept_kinds();
        let named = kinds.find(|kind| {
            kind.plural == word || kind.singular == word || kind.short.contains(&word.as_str())
        });
        named.map(Self)
    }

    /// The kind that a document says it is.
    ///
    /// # Errors
    /// What is wrong, and what there is.
    pub(crate) fn of(kind: &str, api_version: &str) -> Result<Self, String> {
        let Some(known) = kept_kinds().find(|known| known.kind == kind) else {
            let all: Vec<&str> = kept_kinds().map(|known| known.kind).collect();
            return Err(format!(
                "kind {kind:?} is not known; there are {}",
                all.join(", ")
            ));
        };
        if known.api_version() != api_version {
            return Err(format!(
                "apiVersion {api_version:?} is not known; write {} for a {kind}",
                known.api_version()
            ));
        }
        Ok(Self(known))
    }

    /// Path of its objects.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        self.0.path(namespace)
    }
}

/// What is named where a kind is: `KIND`, or one object of it as `KIND/NAME`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selected {
    pub(crate) kind: Kind,
    name: Option<ObjectName>,
}

/// What is named behind it: `NAME`, or one more object as `KIND/NAME`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Further {
    kind: Option<Kind>,
    name: ObjectName,
}

impl FromStr for Further {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let Some((word, name)) = text.split_once('/') else {
            let name = text.parse()?;
            return Ok(Self { kind: None, name });
        };
        let kind = Kind::named(word).ok_or_else(|| Usage(format!("no such kind: {word:?}")))?;
        Ok(Self {
            kind: Some(kind),
            name: name.parse()?,
        })
    }
}

impl Selected {
    /// The names: those behind the kind, or those of objects that are written `KIND/NAME`.
    ///
    /// # Errors
    /// The two are mixed, or there is more than one kind.
    pub(crate) fn names(&self, behind: &[Further]) -> Result<Vec<String>, Usage> {
        let kind = self.kind;
        for Further { kind: other, name } in behind {
            let name = &name.0;
            match (&self.name, other) {
                (_, Some(other)) if *other != kind => {
                    let text =
                        format!("{other}/{name} is no {kind}: name objects of one kind at a time");
                    return Err(Usage(text));
                }
                (None, Some(_)) => {
                    let text = format!("{kind} is named already: write {name} for {kind}/{name}");
                    return Err(Usage(text));
                }
                (Some(_), None) => {
                    let text =
                        format!("{name} stands behind an object, not a kind: write {kind}/{name}");
                    return Err(Usage(text));
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        let behind = behind.iter().map(|one| &one.name);
        let names = self.name.iter().chain(behind);
        Ok(names.map(|name| name.0.clone()).collect())
    }
}

/// Reads [`Selected`]; offers the kinds by their plurals.
#[derive(Clone)]
pub(crate) struct SelectedParser;

impl TypedValueParser for SelectedParser {
    type Value = Selected;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Selected, clap::Error> {
        let text = value.to_str().unwrap_or_default();
        let (word, name) = match text.split_once('/') {
            Some((word, name)) => (word, Some(name)),
            None => (text, None),
        };
        let Some(kind) = Kind::named(word) else {
            // In clap's own words, with the kinds that there are.
            let kinds = PossibleValuesParser::new(possible_values());
            kinds.parse_ref(command, arg, OsStr::new(word))?;
            return Err(command
                .clone()
                .error(ErrorKind::InvalidValue, format!("no such kind: {word:?}")));
        };
        let name = name.map(str::parse).transpose().map_err(|error: Usage| {
            command.clone().error(
                ErrorKind::ValueValidation,
                format!("invalid value '{text}': {error}"),
            )
        })?;
        Ok(Selected { kind, name })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(possible_values().into_iter()))
    }
}

/// Every kind by its plural; its other names are taken as well, and short ones are told in the help.
fn possible_values() -> Vec<PossibleValue> {
    let values = kept_kinds().map(|kind| {
        let short = kind.short.iter().copied();
        let also = match kind.short {
            [] => String::new(),
            short => format!(" ({})", short.join(", ")),
        };
        PossibleValue::new(kind.plural)
            .aliases(std::iter::once(kind.singular).chain(short))
            .help(format!("{} of {}{also}", kind.kind, kind.api_version()))
    });
    values.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_may_name_one_of_its_objects_and_no_empty_name() {
        let command = clap::Command::new("keel");
        let read = |text: &str| SelectedParser.parse_ref(&command, None, OsStr::new(text));
        for text in ["router/a", "Router/a", "RT/a"] {
            let selected = read(text).unwrap();
            assert_eq!(selected.kind.0.kind, "Router");
            assert_eq!(selected.names(&[]).unwrap(), ["a"]);
            let names = |behind: &[&str]| {
                let behind: Vec<Further> = behind.iter().map(|one| one.parse().unwrap()).collect();
                selected.names(&behind)
            };
            assert_eq!(names(&["router/b", "rt/c"]).unwrap(), ["a", "b", "c"]);
            let mixed = names(&["b"]).unwrap_err().to_string();
            assert!(mixed.ends_with("write router/b"), "{mixed}");
            let other = names(&["frpserver/b"]).unwrap_err().to_string();
            assert!(other.contains("one kind at a time"), "{other}");
        }
        let all = read("routers").unwrap();
        let behind = |text: &str| text.parse::<Further>();
        assert_eq!(all.names(&[behind("b").unwrap()]).unwrap(), ["b"]);
        let twice = all.names(&[behind("router/b").unwrap()]).unwrap_err();
        assert!(
            twice.to_string().contains("write b for router/b"),
            "{twice}"
        );
        for wrong in ["router/", "pods/a", "router/b/c", ""] {
            assert!(behind(wrong).is_err(), "{wrong}");
        }
        assert!(read("routers").unwrap().names(&[]).unwrap().is_empty());
        for (text, word) in [
            ("router/", "a name is empty"),
            ("router/a/b", "a/b"),
            ("pods/a", "routers"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
