//! What the server has: versions, groups, resources.

use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::reply;
use crate::api::{API_VERSION, GROUP, KIND, PLURAL, VERSION};
use crate::http::Body;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The Kubernetes version whose conventions this server follows, as far as kubectl checks for skew.
const KUBERNETES_MINOR: &str = "32";

/// Whether the client takes aggregated discovery in version `v2`. Clients that know only `v2beta1` would choke on a `v2` answer and
/// get plain discovery.
pub(super) fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accepts = headers
        .get_all(ACCEPT)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    accepts.flat_map(|value| value.split(',')).any(|media| {
        let mut parts = media.split(';').map(str::trim);
        let parameters: Vec<&str> = parts.by_ref().skip(1).collect();
        ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"]
            .iter()
            .all(|wanted| parameters.contains(wanted))
    })
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

/// The legacy group has no versions: one without resources would be an error to kubectl 1.27.
pub(super) fn api() -> Response<Body> {
    ok(&json!({"kind": "APIVersions", "versions": [], "serverAddressByClientCIDRs": []}))
}

pub(super) fn apis() -> Response<Body> {
    ok(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [our_group()]}))
}

pub(super) fn group() -> Response<Body> {
    let mut group = our_group();
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    ok(&group)
}

pub(super) fn resources() -> Response<Body> {
    ok(&json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": API_VERSION,
        "resources": [
            {
                "name": PLURAL, "singularName": "router", "namespaced": false, "kind": KIND,
                "verbs": verbs(), "shortNames": ["rt"], "categories": ["all", "keel"],
            },
            {"name": format!("{PLURAL}/status"), "singularName": "", "namespaced": false, "kind": KIND, "verbs": status_verbs()},
        ],
    }))
}

/// Everything in one answer: the groups (`/apis`), or the legacy group (`/api`).
pub(super) fn aggregated(groups: bool) -> Response<Body> {
    let kind = json!({"group": GROUP, "version": VERSION, "kind": KIND});
    let ours = json!({
        "metadata": {"name": GROUP, "creationTimestamp": null},
        "versions": [{
            "version": VERSION,
            "freshness": "Current",
            "resources": [{
                "resource": PLURAL, "responseKind": kind, "scope": "Cluster", "singularResource": "router",
                "verbs": verbs(), "shortNames": ["rt"], "categories": ["all", "keel"],
                "subresources": [{"subresource": "status", "responseKind": kind, "verbs": status_verbs()}],
            }],
        }],
    });
    let items = if groups { vec![ours] } else { Vec::new() };
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    let mut response = ok(&list);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    response
}

fn our_group() -> Value {
    let version = json!({"groupVersion": API_VERSION, "version": VERSION});
    json!({"name": GROUP, "versions": [version], "preferredVersion": version})
}

fn verbs() -> Value {
    json!([
        "create", "delete", "get", "list", "patch", "update", "watch"
    ])
}

fn status_verbs() -> Value {
    json!(["get", "patch", "update"])
}

fn ok(value: &Value) -> Response<Body> {
    reply::json(StatusCode::OK, value)
}
