//! The OpenAPI v3 documents: what `kubectl explain` shows, and what lets `kubectl apply` leave validation to us.

use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::path::group_path;
use super::reply;
use crate::api::{GROUP, KIND, PLURAL, VERSION, schema};
use crate::http::{Body, empty};

/// Names of the schemas, in Kubernetes' manner: the group reversed.
const ROUTER: &str = "com.example.edge.v1.Router";
const ROUTER_LIST: &str = "com.example.edge.v1.RouterList";

/// The list of documents; the hash in an address changes with the document, so that clients may keep it.
pub(super) fn index() -> Response<Body> {
    let path = group_path();
    let address = format!("/openapi/v3/{path}?hash={}", DOCUMENT.hash);
    reply::json(
        StatusCode::OK,
        &json!({"paths": {path: {"serverRelativeURL": address}}}),
    )
}

/// The OpenAPI v2 document: an empty one. kubectl up to 1.28 gives up without it, but then works by v3. In protobuf, the only
/// form it is asked for in, an empty message has no bytes.
pub(super) fn v2() -> Response<Body> {
    let mut response = Response::new(empty());
    let media =
        HeaderValue::from_static("application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    response.headers_mut().insert(CONTENT_TYPE, media);
    response
}

/// The document of our group.
pub(super) fn document(headers: &HeaderMap) -> Response<Body> {
    let tag = format!("\"{}\"", DOCUMENT.hash);
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    let mut response = if known.is_some_and(|known| known.split(',').any(|one| one.trim() == tag)) {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        reply::bytes(StatusCode::OK, DOCUMENT.bytes.clone())
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

struct Document {
    bytes: Bytes,
    hash: String,
}

static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let bytes = Bytes::from(build().to_string());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    Document {
        hash: data_encoding::HEXUPPER.encode(&digest.as_ref()[..16]),
        bytes,
    }
});

fn build() -> Value {
    let mut router = schema::router().clone();
    let kind = json!({"group": GROUP, "version": VERSION, "kind": KIND});
    router["x-kubernetes-group-version-kind"] = json!([kind]);
    let text = |description: &str| json!({"type": "string", "description": description});
    let list = json!({
        "type": "object",
        "description": "A list of routers.",
        "required": ["items"],
        "properties": {
            "apiVersion": text("Version of the schema of this object."),
            "kind": text("Kind of the object."),
            "metadata": {"type": "object", "properties": {"resourceVersion": text("Revision of the list.")}},
            "items": {"type": "array", "items": {"$ref": reference(ROUTER)}},
        },
        "x-kubernetes-group-version-kind": [{"group": GROUP, "version": VERSION, "kind": format!("{KIND}List")}],
    });
    let root = format!("/{}/{PLURAL}", group_path());
    let mut paths = Map::new();
    paths.insert(
        root.clone(),
        json!({
            "get": operation("list", "listRouter", ROUTER_LIST, READ, None),
            "post": operation("post", "createRouter", ROUTER, WRITE, Some(&["application/json", "application/yaml"])),
        }),
    );
    for (path, suffix, deletes) in [("", "", true), ("/status", "Status", false)] {
        let mut item = json!({
            "parameters": [parameter("name", "path", "string")],
            "get": operation("get", &format!("readRouter{suffix}"), ROUTER, READ, None),
            "put": operation("put", &format!("replaceRouter{suffix}"), ROUTER, WRITE, Some(&["application/json", "application/yaml"])),
            "patch": operation(
                "patch", &format!("patchRouter{suffix}"), ROUTER, WRITE,
                Some(&["application/json-patch+json", "application/merge-patch+json"]),
            ),
        });
        if deletes {
            item["delete"] = operation("delete", "deleteRouter", ROUTER, DELETE, None);
        }
        paths.insert(format!("{root}/{{name}}{path}"), item);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "ServiceKeel", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": {ROUTER: router, ROUTER_LIST: list}},
    })
}

const READ: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
/// kubectl looks for `fieldValidation` here: without it, it validates by another, older document.
const WRITE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("propagationPolicy", "string"),
];

fn operation(
    action: &str,
    id: &str,
    answer: &str,
    parameters: &[(&str, &str)],
    body: Option<&[&str]>,
) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|(name, kind)| parameter(name, "query", kind))
        .collect();
    let schema = json!({"schema": {"$ref": reference(answer)}});
    let mut operation = json!({
        "operationId": id,
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": schema}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": GROUP, "version": VERSION, "kind": KIND},
    });
    if let Some(media) = body {
        let content: Map<String, Value> = media
            .iter()
            .map(|media| ((*media).to_owned(), schema.clone()))
            .collect();
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

fn parameter(name: &str, place: &str, kind: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": {"type": kind, "uniqueItems": true}})
}

fn reference(schema: &str) -> String {
    format!("#/components/schemas/{schema}")
}
