//! The query of a request, as Kubernetes' list, write and delete options.

use std::collections::BTreeSet;
use std::fmt;
use std::num::{IntErrorKind, ParseIntError};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use http::Method;

use super::path::Collection;
use super::selector::Selector;
use crate::api::answer::shown;
use crate::api::decode::FieldValidation;
use crate::api::validate::FieldError;
use crate::api::{Reason, Revision, Status};

/// What the query of a request asks for. Unknown parameters are ignored, as Kubernetes does.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) watch: bool,
    /// `None` if unset or empty.
    pub(super) revision: Option<Revision>,
    pub(super) revision_match: Option<Match>,
    pub(super) selector: Selector,
    pub(super) bookmarks: bool,
    pub(super) initial_events: Option<bool>,
    pub(super) timeout: Option<Duration>,
    pub(super) dry_run: bool,
    pub(super) validation: FieldValidation,
    pub(super) include: Include,
    /// Objects in a page of a list.
    pub(super) limit: Option<usize>,
    /// Which page comes now; the first one if absent.
    pub(super) from: Option<Continue>,
    /// Who owns the fields that are written; empty if the client does not say.
    pub(super) manager: String,
    /// Whether fields that others own are taken from them.
    pub(super) force: Option<bool>,
    /// What becomes of that which a deleted object owns, in an old word and in a newer one.
    pub(super) orphan: Option<bool>,
    pub(super) propagation: Option<String>,
    /// What Kubernetes calls the options.
    kind: &'static str,
}

/// Where a page of a list begins: behind the object of this name, in the state of this revision. Clients see it as a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Continue {
    pub(super) revision: Revision,
    /// `name`, or `namespace/name`.
    pub(super) after: String,
}

impl fmt::Display for Continue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}:{}", self.revision, self.after);
        f.write_str(&BASE64URL_NOPAD.encode(text.as_bytes()))
    }
}

impl Continue {
    fn parse(token: &str) -> Option<Self> {
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (revision, after) = text.split_once(':')?;
        Some(Self {
            revision: revision
                .parse()
                .ok()
                .filter(|revision: &Revision| revision.0 > 0)?,
            after: after.to_owned(),
        })
    }
}

/// Longest name of a field manager, as Kubernetes has it.
const MAX_MANAGER: usize = 128;
/// How much of a value is told.
const MAX_SHOWN: usize = 100;

/// How exactly a list has to be of the revision asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Exact,
    NotOlderThan,
}

/// What a row of a Table carries beside its cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Include {
    #[default]
    Metadata,
    None,
    Object,
}

impl Options {
    /// Reads the query of a request with this method.
    ///
    /// # Errors
    /// `BadRequest` (or `Invalid`, where Kubernetes says so) that names the parameter.
    pub(super) fn parse(method: &Method, query: &str) -> Result<Self, Status> {
        let mut options = Self {
            kind: kind_of(method),
            ..Self::default()
        };
        let mut seen = BTreeSet::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decode(name, true), decode(value, true)) else {
                return Err(bad("query", pair, "it is not percent-encoded UTF-8"));
            };
            // Kubernetes takes the first and says nothing of the others, so half of what was asked for would not count.
            if options.set(&name, &value)? && name != "dryRun" && !seen.insert(name.clone()) {
                return Err(bad(&name, &value, "it stands there twice: give it once"));
            }
        }
        options.check()?;
        Ok(options)
    }

    /// Refuses what does not go together.
    fn check(&self) -> Result<(), Status> {
        let forbidden =
            |name: &str, why: &str| Err(self.invalid(&FieldError::forbidden(name, why)));
        let (matching, initial) = (self.revision_match, self.initial_events.is_some());
        if initial && !self.watch {
            let why = "sendInitialEvents is forbidden for list";
            return forbidden("sendInitialEvents", why);
        }
        if initial && matching != Some(Match::NotOlderThan) {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return forbidden("resourceVersionMatch", why);
        }
        if self.watch && matching.is_some() && !initial {
            let why =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return forbidden("resourceVersionMatch", why);
        }
        if self.from.is_some() {
            if self.revision.is_some_and(|revision| revision.0 > 0) {
                let why = "specifying resource version is not allowed when using continue";
                return Err(Status::failure(Reason::BadRequest, why));
            }
            if matching.is_some() {
                let why = "resourceVersionMatch is forbidden when continue is provided";
                return forbidden("resourceVersionMatch", why);
            }
        }
        match (matching, self.revision) {
            (Some(_), None) if !self.watch => {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                forbidden("resourceVersionMatch", why)
            }
            (Some(Match::Exact), Some(Revision(0))) => {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                forbidden("resourceVersionMatch", why)
            }
            _ => Ok(()),
        }
    }

    /// The options are wrong, as Kubernetes says it.
    fn invalid(&self, error: &FieldError) -> Status {
        Status::invalid_options(self.kind, error)
    }

    /// Makes them about this collection.
    ///
    /// # Errors
    /// `BadRequest` if its kind has no such field to select by.
    pub(super) fn narrow(&mut self, collection: &Collection) -> Result<(), Status> {
        self.selector.check(&collection.kind.about)?;
        self.selector.keep(&collection.kind.about);
        self.selector.namespace(collection.namespace.as_deref());
        Ok(())
    }

    /// Sets what the parameter says; whether there is such a one.
    fn set(&mut self, name: &str, value: &str) -> Result<bool, Status> {
        let unsupported = |allowed: &[&str]| {
            let error = FieldError::unsupported(name, &value.into(), allowed);
            Err(Status::invalid_options(self.kind, &error))
        };
        match name {
            "watch" => self.watch = flag(name, value)?,
            "allowWatchBookmarks" => self.bookmarks = flag(name, value)?,
            "sendInitialEvents" => self.initial_events = Some(flag(name, value)?),
            "resourceVersion" if value.is_empty() => self.revision = None,
            "resourceVersion" => {
                let revision = value.parse().map_err(|_| {
                    let why = "it must be a resourceVersion: a decimal number";
                    self.invalid(&FieldError::invalid(name.into(), value, why))
                })?;
                self.revision = Some(revision);
            }
            "resourceVersionMatch" => {
                self.revision_match = match value {
                    "" => None,
                    "Exact" => Some(Match::Exact),
                    "NotOlderThan" => Some(Match::NotOlderThan),
                    _ => return unsupported(&["Exact", "NotOlderThan", ""]),
                };
            }
            "labelSelector" => self.selector.labels(value)?,
            "fieldSelector" => self.selector.fields(value)?,
            "timeoutSeconds" => {
                // As long as a timer can be set, and a time that is over already ends at once.
                let seconds = number(name, value)?.clamp(-1, i64::from(u32::MAX));
                self.timeout = (seconds != 0)
                    .then(|| Duration::from_secs(u64::try_from(seconds).unwrap_or_default()));
            }
            "limit" => {
                let limit = number(name, value)?;
                self.limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
            }
            "continue" if value.is_empty() => self.from = None,
            "continue" => {
                let from = Continue::parse(value);
                self.from = Some(
                    from.ok_or_else(|| bad(name, value, "it is no token that this server gave"))?,
                );
            }
            "fieldManager" => {
                if let Some(error) = wrong_manager(value) {
                    return Err(self.invalid(&error));
                }
                self.manager = value.to_owned();
            }
            "force" => self.force = Some(flag(name, value)?),
            "dryRun" => match value {
                "All" => self.dry_run = true,
                _ => return unsupported(&["All"]),
            },
            "fieldValidation" => {
                self.validation = match value {
                    "" | "Warn" => FieldValidation::Warn,
                    "Ignore" => FieldValidation::Ignore,
                    "Strict" => FieldValidation::Strict,
                    _ => return unsupported(&["", "Ignore", "Strict", "Warn"]),
                };
            }
            // Nothing here takes its time to end.
            "gracePeriodSeconds" => _ = number(name, value)?,
            "orphanDependents" => self.orphan = Some(flag(name, value)?),
            "propagationPolicy" => self.propagation = Some(value.to_owned()),
            "includeObject" => {
                self.include = match value {
                    "" | "Metadata" => Include::Metadata,
                    "None" => Include::None,
                    "Object" => Include::Object,
                    _ => return Err(bad(name, value, "it must be Metadata, None or Object")),
                };
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// What Kubernetes calls the options of a request with this method.
fn kind_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "CreateOptions",
        Method::PUT => "UpdateOptions",
        Method::PATCH => "PatchOptions",
        Method::DELETE => "DeleteOptions",
        _ => "ListOptions",
    }
}

/// A name without a value is a yes, as in Kubernetes, which takes every other word for one, too.
fn flag(name: &str, value: &str) -> Result<bool, Status> {
    match value {
        "0" | "false" | "False" | "f" | "F" => Ok(false),
        "" | "1" | "true" | "True" | "t" | "T" => Ok(true),
        _ => Err(bad(name, value, "it must be true or false")),
    }
}

/// A whole number, or why not, in the words of Kubernetes.
fn number(name: &str, value: &str) -> Result<i64, Status> {
    value.parse().map_err(|error: ParseIntError| {
        let why = match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        let value = shown(value, MAX_SHOWN);
        bad(
            name,
            &value,
            &format!("strconv.ParseInt: parsing {value:?}: {why}"),
        )
    })
}

/// Why nobody can be called so who owns fields.
fn wrong_manager(name: &str) -> Option<FieldError> {
    if name.len() > MAX_MANAGER {
        let why = format!("may not be more than {MAX_MANAGER} bytes");
        return Some(FieldError::too_long("fieldManager", &why));
    }
    let (at, char) = name.char_indices().find(|(_, char)| char.is_control())?;
    let why = format!(
        "invalid character U+{:04X} (at position {at})",
        u32::from(char)
    );
    Some(FieldError::invalid("fieldManager".into(), name, &why))
}

fn bad(name: &str, value: &str, why: &str) -> Status {
    let value = shown(value, MAX_SHOWN);
    Status::failure(
        Reason::BadRequest,
        format!("the parameter {name}={value:?} cannot be used: {why}"),
    )
}

/// Takes percent-encoding (and, in a query, plus signs for spaces) away; `None` if the result is no UTF-8.
pub(super) fn decode(text: &str, plus: bool) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}
