//! What the server has: versions, groups, resources.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::accept::accepted;
use super::path::GroupVersion;
use super::reply;
use crate::api::kind::{About, Kind};
use crate::http::Body;

/// The Kubernetes version whose conventions this server follows, as far as kubectl checks for skew.
const KUBERNETES_MINOR: &str = "32";

/// The versions of aggregated discovery. kubectl up to 1.29 knows only `v2beta1` and would choke on a `v2` answer.
const AGGREGATED: [&str; 2] = ["v2", "v2beta1"];

/// The version of aggregated discovery that the client likes best; `None` if it takes none.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    let ranges = accepted(headers).unwrap_or_default();
    for range in ranges {
        // One that wants nothing special is for the plain form.
        let wanted = range.wanted()?;
        let found = AGGREGATED
            .into_iter()
            .find(|version| range.has(&format!("v={version}")));
        if wanted == "APIGroupDiscoveryList"
            && range.has("g=apidiscovery.k8s.io")
            && found.is_some()
        {
            return found;
        }
    }
    None
}

pub(super) fn version() -> Response<Body> {
    ok(&json!({
        "major": "1",
        "minor": KUBERNETES_MINOR,
        "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+servicekeel-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    }))
}

/// The core group: its versions, or all of it.
pub(super) fn api(headers: &HeaderMap) -> Response<Body> {
    let versions = GroupVersion::all()
        .into_iter()
        .filter(|one| one.group.is_empty());
    match aggregated_version(headers) {
        Some(version) => aggregated(version, versions),
        None => {
            let names: Vec<&str> = versions.map(|one| one.version).collect();
            ok(&json!({"kind": "APIVersions", "versions": names, "serverAddressByClientCIDRs": []}))
        }
    }
}

/// The other groups: their versions, or all of them.
pub(super) fn apis(headers: &HeaderMap) -> Response<Body> {
    let versions = GroupVersion::all()
        .into_iter()
        .filter(|one| !one.group.is_empty());
    match aggregated_version(headers) {
        Some(version) => aggregated(version, versions),
        None => {
            let groups: Vec<Value> = versions.map(group_of).collect();
            ok(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
    }
}

pub(super) fn group(name: &str) -> Response<Body> {
    let found = GroupVersion::all()
        .into_iter()
        .find(|one| one.group == name);
    let mut group = found.map(group_of).unwrap_or_default();
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    ok(&group)
}

pub(super) fn resources(version: GroupVersion) -> Response<Body> {
    let mut resources = Vec::new();
    for Kind { about, .. } in version.kinds() {
        resources.push(json!({
            "name": about.plural, "singularName": about.singular, "namespaced": about.is_namespaced(), "kind": about.kind,
            "verbs": about.verbs(), "shortNames": about.short_names, "categories": about.categories,
        }));
        if about.has_status {
            resources.push(json!({
                "name": format!("{}/status", about.plural), "singularName": "", "namespaced": about.is_namespaced(),
                "kind": about.kind, "verbs": About::STATUS_VERBS,
            }));
        }
    }
    ok(&json!({
        "kind": "APIResourceList", "apiVersion": "v1", "resources": resources,
        "groupVersion": version.path().trim_start_matches("apis/").trim_start_matches("api/"),
    }))
}

/// Everything of these groups in one answer. Each group has one version.
fn aggregated(version: &str, versions: impl Iterator<Item = GroupVersion>) -> Response<Body> {
    let items: Vec<Value> = versions
        .map(|one| {
            let resources: Vec<Value> = one.kinds().map(|kind| described(&kind.about)).collect();
            let served = json!({"version": one.version, "freshness": "Current", "resources": resources});
            json!({"metadata": {"name": one.group, "creationTimestamp": null}, "versions": [served]})
        })
        .collect();
    let mut response = ok(&json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items,
    }));
    let media =
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(media) = HeaderValue::from_str(&media) {
        response.headers_mut().insert(CONTENT_TYPE, media);
    }
    response
        .headers_mut()
        .insert(VARY, HeaderValue::from_static("Accept"));
    response
}

fn described(about: &About) -> Value {
    let kind = json!({"group": about.group, "version": about.version, "kind": about.kind});
    let scope = match about.is_namespaced() {
        true => "Namespaced",
        false => "Cluster",
    };
    let mut described = json!({
        "resource": about.plural, "responseKind": kind, "scope": scope, "singularResource": about.singular,
        "verbs": about.verbs(), "shortNames": about.short_names, "categories": about.categories,
    });
    if about.has_status {
        let status =
            json!({"subresource": "status", "responseKind": kind, "verbs": About::STATUS_VERBS});
        described["subresources"] = json!([status]);
    }
    described
}

fn group_of(one: GroupVersion) -> Value {
    let path = one.path();
    let version = json!({"groupVersion": path.trim_start_matches("apis/"), "version": one.version});
    json!({"name": one.group, "versions": [version], "preferredVersion": version})
}

fn ok(value: &Value) -> Response<Body> {
    let tag = reply::tag(value.to_string().as_bytes());
    reply::tagged(reply::json(StatusCode::OK, value), &tag)
}
