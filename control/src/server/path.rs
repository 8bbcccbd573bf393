//! From a request's path to what it is about.

use std::borrow::Cow;

use http::Method;

use super::query;
use crate::api::kind::{self, KINDS, Kind};
use crate::store::Key;

/// What a path is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Versions of the core group.
    Api,
    /// The groups.
    Apis,
    /// All objects of a kind, perhaps in one namespace.
    Collection(Collection),
    /// Identities: another handler's.
    Enroll,
    /// Versions of a group.
    Group(&'static str),
    /// Resources of a group and version.
    GroupVersion(GroupVersion),
    /// `ok`.
    Health,
    /// One object.
    Object(Named),
    /// The list of OpenAPI documents.
    OpenApi,
    /// The OpenAPI v2 document, which old clients insist on.
    OpenApiV2,
    /// The OpenAPI document of a group and version.
    OpenApiGroup(GroupVersion),
    /// `ok`, if the store answers.
    Ready,
    /// The status of one object.
    Status(Named),
    /// The server's version.
    Version,
}

/// A group (empty for the core group) and a version of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupVersion {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
}

/// All objects of a kind, or those of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Collection {
    pub(super) kind: &'static Kind,
    pub(super) namespace: Option<String>,
}

/// One object, there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) kind: &'static Kind,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

impl GroupVersion {
    /// Every group and version, in the order of [`KINDS`].
    pub(super) fn all() -> Vec<Self> {
        let mut all = KINDS.iter().map(Self::of).collect::<Vec<_>>();
        all.dedup();
        all
    }

    fn of(kind: &Kind) -> Self {
        Self {
            group: kind.about.group,
            version: kind.about.version,
        }
    }

    fn find(group: &str, version: &str) -> Option<Self> {
        Self::all()
            .into_iter()
            .find(|one| (one.group, one.version) == (group, version))
    }

    /// Its kinds.
    pub(super) fn kinds(self) -> impl Iterator<Item = &'static Kind> {
        KINDS.iter().filter(move |kind| Self::of(kind) == self)
    }

    /// Its path, without a slash in front: `apis/edge.example.com/v1`.
    pub(super) fn path(self) -> String {
        match self.group {
            "" => format!("api/{}", self.version),
            group => format!("apis/{group}/{}", self.version),
        }
    }
}

impl Collection {
    /// The object of this name in it.
    pub(super) fn named(&self, name: &str) -> Named {
        Named {
            kind: self.kind,
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }
}

impl Named {
    /// The object in the words in which it is kept.
    pub(super) fn kept(&self) -> Self {
        Self {
            kind: self.kind.kept(),
            ..self.clone()
        }
    }

    /// How the store calls it.
    pub(super) fn key(&self) -> Key {
        Key {
            resource: Cow::Borrowed(self.kind.about.kept()),
            name: match &self.namespace {
                // No name has a slash.
                Some(namespace) => format!("{namespace}/{}", self.name),
                None => self.name.clone(),
            },
        }
    }

    /// The collection that it is in.
    pub(super) fn collection(&self) -> Collection {
        Collection {
            kind: self.kind,
            namespace: self.namespace.clone(),
        }
    }
}

impl Route {
    /// The methods that it takes.
    pub(super) fn methods(&self) -> &'static [Method] {
        const READ: &[Method] = &[Method::GET, Method::HEAD];
        match self {
            Self::Collection(collection) if !collection.kind.about.is_stored => &[Method::POST],
            // Those of all namespaces: a new object belongs to one, and nobody deletes in all of them.
            Self::Collection(Collection { kind, namespace })
                if kind.about.is_namespaced() && namespace.is_none() =>
            {
                READ
            }
            Self::Collection(_) => &[Method::GET, Method::HEAD, Method::POST, Method::DELETE],
            Self::Object(_) => &[
                Method::GET,
                Method::HEAD,
                Method::PUT,
                Method::PATCH,
                Method::DELETE,
            ],
            Self::Status(_) => &[Method::GET, Method::HEAD, Method::PUT, Method::PATCH],
            _ => READ,
        }
    }
}

/// What the path is about; `None` if there is no such path.
pub(super) fn route(path: &str) -> Option<Route> {
    let decoded: Vec<String> = path
        .trim_matches('/')
        .split('/')
        .map(|segment| query::decode(segment, false))
        .collect::<Option<_>>()?;
    let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
    Some(match segments.as_slice() {
        ["api"] => Route::Api,
        ["apis"] => Route::Apis,
        ["api", version] => Route::GroupVersion(GroupVersion::find("", version)?),
        ["api", version, rest @ ..] => objects("", version, rest)?,
        ["apis", group] => Route::Group(find_group(group)?),
        ["apis", group, version] => Route::GroupVersion(GroupVersion::find(group, version)?),
        ["apis", group, version, rest @ ..] => objects(group, version, rest)?,
        ["healthz" | "livez"] => Route::Health,
        ["readyz"] => Route::Ready,
        ["openapi", "v2"] => Route::OpenApiV2,
        ["openapi", "v3"] => Route::OpenApi,
        ["openapi", "v3", "api", version] => Route::OpenApiGroup(GroupVersion::find("", version)?),
        ["openapi", "v3", "apis", group, version] => {
            Route::OpenApiGroup(GroupVersion::find(group, version)?)
        }
        ["v1", ..] => Route::Enroll,
        ["version"] => Route::Version,
        _ => return None,
    })
}

fn find_group(name: &str) -> Option<&'static str> {
    let groups = KINDS.iter().map(|kind| kind.about.group);
    groups
        .filter(|group| !group.is_empty())
        .find(|group| *group == name)
}

/// What comes behind a group and version: `routers/a/status`, `namespaces/default/events/a`.
fn objects(group: &str, version: &str, segments: &[&str]) -> Option<Route> {
    if let ["namespaces", namespace, plural, rest @ ..] = segments
        && let Some(kind) = kind::find(group, version, plural)
    {
        // A kind that belongs to no namespace has no such path.
        return (kind.about.is_namespaced() && !namespace.is_empty())
            .then(|| within(kind, Some((*namespace).to_owned()), rest))?;
    }
    let (plural, rest) = segments.split_first()?;
    let kind = kind::find(group, version, plural)?;
    // Reviews are answered and not kept: there is none to be found by its name.
    if !kind.about.is_stored && !rest.is_empty() {
        return None;
    }
    // Objects in a namespace are found there, only lists go over all of them.
    if kind.about.is_namespaced() && !rest.is_empty() {
        return None;
    }
    within(kind, None, rest)
}

fn within(kind: &'static Kind, namespace: Option<String>, rest: &[&str]) -> Option<Route> {
    let collection = Collection { kind, namespace };
    match rest {
        [] => Some(Route::Collection(collection)),
        [name] => Some(Route::Object(collection.named(name))),
        [name, "status"] if kind.about.has_status => Some(Route::Status(collection.named(name))),
        _ => None,
    }
}
