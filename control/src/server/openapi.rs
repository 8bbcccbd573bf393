//! The OpenAPI v3 documents: what `kubectl explain` shows, and what lets `kubectl apply` leave validation to us.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::patch::accepted;
use super::path::GroupVersion;
use super::reply;
use crate::api::Status;
use crate::api::kind::{About, Kind};
use crate::http::{Body, empty};

/// The list of documents; the hash in an address changes with the document, so that clients may keep it.
pub(super) fn index() -> Response<Body> {
    let paths: Map<String, Value> = DOCUMENTS
        .iter()
        .map(|(path, document)| {
            let address = format!("/openapi/v3/{path}?hash={}", document.hash);
            (path.clone(), json!({"serverRelativeURL": address}))
        })
        .collect();
    let index = json!({ "paths": paths });
    let tag = reply::tag(index.to_string().as_bytes());
    reply::tagged(reply::json(StatusCode::OK, &index), &tag)
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

/// The document of a group and version.
pub(super) fn document(version: GroupVersion) -> Option<Response<Body>> {
    let document = DOCUMENTS.get(&version.path())?;
    let response = reply::bytes(StatusCode::OK, document.bytes.clone());
    Some(reply::tagged(response, &document.hash))
}

struct Document {
    bytes: Bytes,
    hash: String,
}

/// Documents by the path of their group and version.
static DOCUMENTS: LazyLock<BTreeMap<String, Document>> = LazyLock::new(|| {
    let document = |version: GroupVersion| {
        let bytes = Bytes::from(build(version).to_string());
        let hash = reply::tag(&bytes);
        (version.path(), Document { bytes, hash })
    };
    GroupVersion::all().into_iter().map(document).collect()
});

fn build(version: GroupVersion) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for kind in version.kinds() {
        describe(kind, &version.path(), &mut paths, &mut schemas);
    }
    schemas.insert(STATUS.to_owned(), Status::schema());
    let failure = json!({
        "description": "What went wrong, in Kubernetes' form.",
        "content": {"application/json": {"schema": {"$ref": reference(STATUS)}}},
    });
    json!({
        "openapi": "3.0.0",
        "info": {"title": "ServiceKeel", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": schemas, "responses": {FAILURE: failure}},
    })
}

/// Name of the schema of [`Status`], as Kubernetes calls it.
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
/// What every failure is answered with.
const FAILURE: &str = "Failure";

/// Paths and schemas of one kind.
fn describe(
    kind: &Kind,
    prefix: &str,
    paths: &mut Map<String, Value>,
    schemas: &mut Map<String, Value>,
) {
    let about = &kind.about;
    let (one, many) = (name(about, ""), name(about, "List"));
    let mut schema = kind.schema().clone();
    schema["x-kubernetes-group-version-kind"] = json!([identified(about, "")]);
    schemas.insert(one.clone(), schema);
    let operation =
        |action: &str, id: String, answer: &str, parameters: &[(&str, &str)], media: &[&str]| {
            operation(
                about,
                action,
                &format!("{id}{}", about.kind),
                answer,
                parameters,
                media,
            )
        };
    let root = match about.is_namespaced() {
        true => format!("/{prefix}/namespaces/{{namespace}}/{}", about.plural),
        false => format!("/{prefix}/{}", about.plural),
    };
    let mut parameters = Vec::new();
    if about.is_namespaced() {
        parameters.push(parameter("namespace", "path", "string"));
    }
    let create = operation("post", "create".into(), &one, WRITE, WHOLE);
    if !about.is_stored {
        paths.insert(root, json!({"parameters": parameters, "post": create}));
        return;
    }
    let text = |description: &str| json!({"type": "string", "description": description});
    let list = json!({
        "type": "object",
        "description": format!("A list of objects of kind {}.", about.kind),
        "required": ["items"],
        "properties": {
            "apiVersion": text("Version of the schema of this object."),
            "kind": text("Kind of the object."),
            "metadata": {"type": "object", "properties": {
                "continue": text("Where the next page begins, if there is one."),
                "remainingItemCount": {"type": "integer", "format": "int64", "description": "Objects on the pages behind this one, if known."},
                "resourceVersion": text("Revision of the list."),
            }},
            "items": {"type": "array", "items": {"$ref": reference(&one)}},
        },
        "x-kubernetes-group-version-kind": [identified(about, "List")],
    });
    schemas.insert(many.clone(), list);
    let all = operation("list", "list".into(), &many, READ, &[]);
    if about.is_namespaced() {
        paths.insert(format!("/{prefix}/{}", about.plural), json!({ "get": all }));
    }
    let delete = operation(
        "deletecollection",
        "deleteCollection".into(),
        &many,
        DELETE_COLLECTION,
        &[],
    );
    paths.insert(
        root.clone(),
        json!({"parameters": parameters, "get": all, "post": create, "delete": delete}),
    );
    parameters.push(parameter("name", "path", "string"));
    for (path, suffix) in [("", ""), ("/status", "Status")] {
        if !path.is_empty() && !about.has_status {
            continue;
        }
        let mut item = json!({
            "parameters": parameters,
            "get": operation("get", format!("read{suffix}"), &one, READ, &[]),
            "put": operation("put", format!("replace{suffix}"), &one, WRITE, WHOLE),
            "patch": operation("patch", format!("patch{suffix}"), &one, PATCH, &accepted(about)),
        });
        if path.is_empty() {
            item["delete"] = operation("delete", "delete".into(), &one, DELETE, &[]);
        }
        paths.insert(format!("{root}/{{name}}{path}"), item);
    }
}

/// Media types of whole objects.
const WHOLE: &[&str] = &["application/json", "application/yaml"];

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
const PATCH: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
    ("force", "boolean"),
];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

const DELETE_COLLECTION: &[(&str, &str)] = &[
    ("continue", "string"),
    ("dryRun", "string"),
    ("fieldSelector", "string"),
    ("gracePeriodSeconds", "integer"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
];

fn operation(
    about: &About,
    action: &str,
    id: &str,
    answer: &str,
    parameters: &[(&str, &str)],
    media: &[&str],
) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|(name, kind)| parameter(name, "query", kind))
        .collect();
    let schema = json!({"schema": {"$ref": reference(answer)}});
    let mut operation = json!({
        "operationId": id,
        "parameters": parameters,
        "responses": responses(action, &schema),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": identified(about, ""),
    });
    if !media.is_empty() {
        let content: Map<String, Value> = media
            .iter()
            .map(|media| ((*media).to_owned(), schema.clone()))
            .collect();
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

/// Every answer that there may be: what was asked for, or a failure.
fn responses(action: &str, schema: &Value) -> Value {
    let gone = json!({"schema": {"anyOf": [schema["schema"], {"$ref": reference(STATUS)}]}});
    let (good, schema, bad): (&[u16], _, &[u16]) = match action {
        "post" => (&[201], schema, &[404, 409, 413, 415]),
        "put" | "patch" => (&[200, 201], schema, &[404, 409, 413, 415]),
        // An object with finalizers is shown as it stays for now.
        "delete" => (&[200], &gone, &[404, 409, 413]),
        "deletecollection" => (&[200], schema, &[404, 409, 410, 413, 504]),
        // Of pages and watches, and of revisions that are past or to come.
        _ => (&[200], schema, &[404, 410, 504]),
    };
    let mut responses = Map::new();
    for code in good {
        let description = if *code == 201 { "Created" } else { "OK" };
        let answer = json!({"description": description, "content": {"application/json": schema}});
        responses.insert(code.to_string(), answer);
    }
    for code in [400, 401, 403, 406, 422, 429, 500, 503].iter().chain(bad) {
        let failure = format!("#/components/responses/{FAILURE}");
        responses.insert(code.to_string(), json!({ "$ref": failure }));
    }
    responses.into()
}

fn parameter(name: &str, place: &str, kind: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": {"type": kind, "uniqueItems": true}})
}

fn identified(about: &About, suffix: &str) -> Value {
    json!({"group": about.group, "version": about.version, "kind": format!("{}{suffix}", about.kind)})
}

/// Name of a schema, in Kubernetes' manner: the group reversed.
fn name(about: &About, suffix: &str) -> String {
    let group = match about.group {
        "" => "api.core".to_owned(),
        group => {
            let mut labels: Vec<&str> = group.split('.').collect();
            labels.reverse();
            labels.join(".")
        }
    };
    format!("{group}.{}.{}{suffix}", about.version, about.kind)
}

fn reference(schema: &str) -> String {
    format!("#/components/schemas/{schema}")
}
