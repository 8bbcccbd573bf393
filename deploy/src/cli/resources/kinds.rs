//! The kinds that can be named on the command line.

use std::fmt;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use keel_control::api::{KindNames, kept_kinds};

/// A kind, as it was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(pub(crate) KindNames);

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.singular)
    }
}

impl Kind {
    /// Takes every kind by its plural, its singular and its short names.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        let values = kept_kinds().map(|kind| {
            let short = kind.short.iter().copied();
            PossibleValue::new(kind.plural)
                .aliases(std::iter::once(kind.singular).chain(short))
                .help(format!("{} of {}", kind.kind, kind.api_version()))
        });
        PossibleValuesParser::new(values.collect::<Vec<_>>()).try_map(|word| {
            let mut kinds = kept_kinds();
            let named = kinds.find(|kind| {
                kind.plural == word || kind.singular == word || kind.short.contains(&word.as_str())
            });
            // Invariant: the parser takes nothing else.
            named.map(Self).ok_or("no such kind")
        })
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
