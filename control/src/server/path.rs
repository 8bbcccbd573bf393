//! From a request's path to what it is about.

use super::query;
use crate::api::{API_VERSION, GROUP, PLURAL, VERSION};

/// What a path is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Versions of the legacy group.
    Api,
    /// The groups.
    Apis,
    /// Identities: another handler's.
    Enroll,
    /// Versions of our group.
    Group,
    /// Resources of our group.
    GroupVersion,
    /// `ok`.
    Health,
    /// The list of OpenAPI documents.
    OpenApi,
    /// The OpenAPI v2 document, which old clients insist on.
    OpenApiV2,
    /// The OpenAPI document of our group.
    OpenApiGroup,
    /// One router.
    Router(String),
    /// The status of one router.
    RouterStatus(String),
    /// All routers.
    Routers,
    /// The server's version.
    Version,
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
        ["apis", GROUP] => Route::Group,
        ["apis", GROUP, VERSION] => Route::GroupVersion,
        ["apis", GROUP, VERSION, PLURAL] => Route::Routers,
        ["apis", GROUP, VERSION, PLURAL, name] => Route::Router((*name).to_owned()),
        ["apis", GROUP, VERSION, PLURAL, name, "status"] => Route::RouterStatus((*name).to_owned()),
        ["healthz" | "livez" | "readyz"] => Route::Health,
        ["openapi", "v2"] => Route::OpenApiV2,
        ["openapi", "v3"] => Route::OpenApi,
        ["openapi", "v3", "apis", GROUP, VERSION] => Route::OpenApiGroup,
        ["v1", ..] => Route::Enroll,
        ["version"] => Route::Version,
        _ => return None,
    })
}

/// The path of our group, without a slash in front: `apis/edge.example.com/v1`.
pub(super) fn group_path() -> String {
    format!("apis/{API_VERSION}")
}
