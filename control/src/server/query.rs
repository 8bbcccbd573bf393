//! The query of a request, as Kubernetes' list, write and delete options.

use std::fmt;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;

use super::path::Collection;
use super::selector::Selector;
use crate::api::decode::FieldValidation;
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
    /// Reads a query.
    ///
    /// # Errors
    /// `BadRequest` (or `Invalid`, where Kubernetes says so) that names the parameter.
    pub(super) fn parse(query: &str) -> Result<Self, Status> {
        let mut options = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decode(name, true), decode(value, true)) else {
                return Err(bad("query", pair, "it is not percent-encoded UTF-8"));
            };
            options.set(&name, &value)?;
        }
        if options.initial_events.is_some() {
            if !options.watch {
                return Err(invalid("sendInitialEvents", "it is forbidden for a list"));
            }
            if options.revision_match != Some(Match::NotOlderThan) {
                return Err(invalid(
                    "resourceVersionMatch",
                    "it must be NotOlderThan if sendInitialEvents is set",
                ));
            }
        } else if options.watch && options.revision_match.is_some() {
            return Err(invalid(
                "resourceVersionMatch",
                "it is forbidden for a watch without sendInitialEvents",
            ));
        }
        if options.from.is_some() {
            if options.revision.is_some_and(|revision| revision.0 > 0) {
                return Err(bad(
                    "resourceVersion",
                    "",
                    "it is not allowed together with continue, which names a revision",
                ));
            }
            if options.revision_match.is_some() {
                return Err(invalid(
                    "resourceVersionMatch",
                    "it is forbidden together with continue",
                ));
            }
        }
        if options.revision_match == Some(Match::Exact)
            && options.revision.is_none_or(|revision| revision.0 == 0)
        {
            return Err(invalid(
                "resourceVersionMatch",
                "Exact needs a resourceVersion other than 0",
            ));
        }
        Ok(options)
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

    fn set(&mut self, name: &str, value: &str) -> Result<(), Status> {
        match name {
            "watch" => self.watch = flag(name, value)?,
            "allowWatchBookmarks" => self.bookmarks = flag(name, value)?,
            "sendInitialEvents" => self.initial_events = Some(flag(name, value)?),
            "resourceVersion" if value.is_empty() => self.revision = None,
            "resourceVersion" => {
                let revision = value
                    .parse()
                    .map_err(|_| invalid(name, "it must be a resourceVersion: a decimal number"))?;
                self.revision = Some(revision);
            }
            "resourceVersionMatch" => {
                self.revision_match = match value {
                    "" => None,
                    "Exact" => Some(Match::Exact),
                    "NotOlderThan" => Some(Match::NotOlderThan),
                    _ => {
                        return Err(invalid(
                            name,
                            "supported values: \"Exact\", \"NotOlderThan\"",
                        ));
                    }
                };
            }
            "labelSelector" => self.selector.labels(value)?,
            "fieldSelector" => self.selector.fields(value)?,
            "timeoutSeconds" => {
                let seconds: u32 = value
                    .parse()
                    .map_err(|_| bad(name, value, "it must be a number of seconds"))?;
                self.timeout = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
            }
            "limit" => {
                let limit: i64 = value
                    .parse()
                    .map_err(|_| bad(name, value, "it must be a number"))?;
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
                if value.len() > MAX_MANAGER || value.chars().any(char::is_control) {
                    return Err(invalid(
                        name,
                        "it must have at most 128 bytes, all of them printable",
                    ));
                }
                self.manager = value.to_owned();
            }
            "force" => self.force = Some(flag(name, value)?),
            "dryRun" => match value {
                "All" => self.dry_run = true,
                _ => return Err(invalid(name, "supported values: \"All\"")),
            },
            "fieldValidation" => {
                self.validation = match value {
                    "" | "Warn" => FieldValidation::Warn,
                    "Ignore" => FieldValidation::Ignore,
                    "Strict" => FieldValidation::Strict,
                    _ => {
                        return Err(invalid(
                            name,
                            "supported values: \"Ignore\", \"Strict\", \"Warn\"",
                        ));
                    }
                };
            }
            "includeObject" => {
                self.include = match value {
                    "" | "Metadata" => Include::Metadata,
                    "None" => Include::None,
                    "Object" => Include::Object,
                    _ => return Err(bad(name, value, "it must be Metadata, None or Object")),
                };
            }
            _ => {}
        }
        Ok(())
    }
}

fn flag(name: &str, value: &str) -> Result<bool, Status> {
    match value {
        "" | "0" | "false" | "False" | "f" | "F" => Ok(false),
        "1" | "true" | "True" | "t" | "T" => Ok(true),
        _ => Err(bad(name, value, "it must be true or false")),
    }
}

fn bad(name: &str, value: &str, why: &str) -> Status {
    let value: String = value.chars().take(100).collect();
    Status::failure(
        Reason::BadRequest,
        format!("the parameter {name}={value:?} cannot be used: {why}"),
    )
}

fn invalid(name: &str, why: &str) -> Status {
    Status::failure(Reason::Invalid, format!("{name}: Invalid value: {why}"))
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
