//! Requests that are nearly right.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::super::{ADMIN, HERE, POD, ROUTERS, THERE};
use crate::fuzz::{Json, Random, hurt};
use crate::server::query::Continue;

/// A request as it would come out of a transport.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) who: &'static str,
    pub(super) method: &'static str,
    pub(super) uri: String,
    pub(super) media: String,
    pub(super) accept: String,
    pub(super) body: Vec<u8>,
}

const SELECTORS: [&str; 20] = [
    "a",
    "!a",
    "a=b",
    "a==b",
    "a!=b",
    "a in (b,c)",
    "a notin (b)",
    "a>1",
    "a<1",
    "example.com/a=",
    "metadata.name=x",
    "metadata.name!=x",
    "metadata.namespace=",
    "status.cluster=c",
    r"metadata.name=a\,b",
    "a in ()",
    "in in (in)",
    "(",
    "a,b,!c",
    "=",
];
const MEDIA: [&str; 12] = [
    "application/json",
    "application/json",
    "application/json; charset=utf-8",
    "application/yaml",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
    "application/strategic-merge-patch+json",
    "text/plain",
    "",
];
pub(super) const NAMES: [&str; 3] = ["here", "there", "x"];
const FRPSERVERS: &str = "/apis/tunnel.kubeinfra.io/v1alpha1/frpservers";
/// Good bodies, each with its collection.
pub(super) static GOLDEN: LazyLock<Vec<(&str, Value)>> = LazyLock::new(|| {
    let meta = json!({"name": "x", "labels": {"a": "b"}, "annotations": {"k": "v"}, "finalizers": ["example.com/f"]});
    vec![
        (
            ROUTERS,
            json!({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": meta,
                "spec": {"addresses": ["203.0.113.10:7000"], "frps": {"bindPort": 7000, "bindAddr": "0.0.0.0", "allowPorts": [{"start": 1, "end": 2}]},
                    "advertisedServices": [{"name": "mysql", "namespace": "default", "port": 3306, "protocol": "TCP", "target": "127.0.0.1:3306",
                        "limit": "10MB/s", "resumeWindow": "60s", "check": {"interval": "5s", "http": "/healthz"}}]},
                "status": {"cluster": "c", "source": {"revision": 5}, "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        ),
        (
            FRPSERVERS,
            json!({"apiVersion": "tunnel.kubeinfra.io/v1alpha1", "kind": "FRPServer", "metadata": meta,
                "spec": {"bindPort": 7000, "bindAddr": "0.0.0.0", "webServer": {"port": 7500, "user": "u", "password": "p"}},
                "status": {"startTime": "0000-05-04T23:10:04Z", "activeConnections": [{"id": "a"}]}}),
        ),
        (
            "/api/v1/namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta, "spec": {"finalizers": ["kubernetes"]}}),
        ),
        (
            "/api/v1/namespaces/default/events",
            json!({"apiVersion": "v1", "kind": "Event", "metadata": meta, "involvedObject": {"kind": "Router", "name": "x"}, "reason": "R",
                "message": "m", "count": 2, "firstTimestamp": "2026-01-01T00:00:00Z", "type": "Normal", "source": {"component": "c"}}),
        ),
        (
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {},
                "spec": {"resourceAttributes": {"verb": "get", "group": "edge.example.com", "resource": "routers", "name": "x"}}}),
        ),
        (
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "metadata": {}, "spec": {"namespace": "default"}}),
        ),
    ]
});

/// Good patches.
static PATCHES: LazyLock<Vec<(&str, Value)>> = LazyLock::new(|| {
    let applied = json!({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "x", "labels": {"a": "c"}},
        "spec": {"advertisedServices": [{"name": "web", "port": 80}]}});
    vec![
        (
            MEDIA[6],
            json!({"metadata": {"labels": {"a": null, "n": "1"}}, "spec": {"frps": {"bindPort": 1}}}),
        ),
        (
            MEDIA[7],
            json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}, {"op": "test", "path": "/kind", "value": "Router"},
                {"op": "copy", "from": "/spec", "path": "/spec/frps"}, {"op": "move", "from": "/metadata/labels/a", "path": "/metadata/labels/~1~0"},
                {"op": "replace", "path": "/spec/advertisedServices/-", "value": 1}, {"op": "remove", "path": "/spec/frps"}]),
        ),
        (MEDIA[8], applied),
        (
            MEDIA[9],
            json!({"metadata": {"labels": {"a": "b"}, "$patch": "replace"}}),
        ),
    ]
});

fn who(random: &mut Random) -> &'static str {
    random.word(&[ADMIN, ADMIN, ADMIN, HERE, THERE, POD, "/admin/root"])
}

/// A message of Kubernetes' binary encoding with what is in the JSON, by numbers that are nearly right.
fn protobuf(random: &mut Random, value: &Value, out: &mut Vec<u8>) {
    let fields: Vec<&Value> = match value {
        Value::Object(fields) => fields.values().collect(),
        Value::Array(items) => items.iter().collect(),
        _ => Vec::new(),
    };
    for (at, field) in fields.into_iter().enumerate() {
        let mut inner = Vec::new();
        match field {
            Value::String(text) => inner.extend_from_slice(text.as_bytes()),
            other => protobuf(random, other, &mut inner),
        }
        let number = if random.once_in(4) {
            random.below(16)
        } else {
            at + 1
        };
        out.push((number << 3 | 2) as u8);
        out.push(inner.len().min(127) as u8);
        out.extend_from_slice(&inner);
    }
}

fn envelope(random: &mut Random, golden: &Value) -> Vec<u8> {
    let mut kind = Vec::new();
    protobuf(
        random,
        &json!([golden["apiVersion"], golden["kind"]]),
        &mut kind,
    );
    let mut raw = Vec::new();
    protobuf(
        random,
        &json!([golden["metadata"], golden["spec"]]),
        &mut raw,
    );
    let mut bytes = b"k8s\0".to_vec();
    for (number, part) in [(1_u8, kind), (2, raw)] {
        bytes.extend_from_slice(&[number << 3 | 2, part.len().min(127) as u8]);
        bytes.extend_from_slice(&part);
    }
    if random.once_in(2) {
        hurt(random, &mut bytes);
    }
    bytes
}

/// A write.
pub(super) fn write(random: &mut Random) -> Input {
    let (collection, golden) = random.pick(&GOLDEN);
    let mut uri = (*collection).to_owned();
    let method = *random.pick(&["POST", "POST", "PUT", "PATCH", "PATCH", "DELETE"]);
    let mut named = golden.clone();
    if method == "POST" && !random.once_in(4) {
        named["metadata"]["name"] = "fresh".into();
    }
    if method != "POST" {
        let name = if random.once_in(8) {
            random.pick(&NAMES)
        } else {
            "x"
        };
        uri = format!("{uri}/{name}");
        if random.once_in(4) {
            uri.push_str("/status");
        }
    }
    let mut media = random.text(&MEDIA[..5]);
    let mut golden = &named;
    if method == "PATCH" && !random.once_in(8) {
        let (kind, patch) = random.pick(&PATCHES);
        (media, golden) = ((*kind).to_owned(), patch);
    } else if random.once_in(8) {
        media = random.text(&MEDIA);
    }
    let empty = json!({"preconditions": {"uid": "a", "resourceVersion": "1"}, "dryRun": ["All"], "propagationPolicy": "Orphan"});
    if method == "DELETE" {
        golden = &empty;
    }
    let body = match media.as_str() {
        "application/vnd.kubernetes.protobuf" => envelope(random, golden),
        // An anchor that stands for more and more.
        "application/yaml" | "application/apply-patch+yaml" if random.once_in(16) => {
            let mut yaml = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
            for level in 1..=random.below(12) {
                let last = format!("*a{},", level - 1).repeat(9);
                yaml.push_str(&format!("a{level}: &a{level} [{last}]\n"));
            }
            yaml.into_bytes()
        }
        _ => Json::like(random, golden),
    };
    let validation = random.pick(&["Strict", "Warn", "Ignore", ""]);
    uri.push_str(&format!("?fieldValidation={validation}&fieldManager=f"));
    if method == "DELETE" || !random.once_in(8) {
        uri.push_str("&dryRun=All");
    }
    if media == MEDIA[8] && random.once_in(2) {
        uri.push_str("&force=true");
    }
    Input {
        who: who(random),
        method,
        uri,
        media,
        accept: String::new(),
        body,
    }
}

/// A query, with what belongs into it and what does not.
pub(super) fn query(random: &mut Random) -> String {
    let mut query = String::new();
    for _ in 0..random.below(4) {
        let number = random.text(&[
            "0",
            "1",
            "2",
            "-1",
            "18446744073709551615",
            "18446744073709551616",
            "01",
            "+1",
            "x",
            "",
        ]);
        let flag = random.text(&["1", "true", "0", "x", ""]);
        let token = Continue {
            revision: crate::api::Revision(random.next() % 9),
            after: random.text(&NAMES),
        };
        let (name, value) = match random.below(12) {
            0..3 => ("labelSelector", random.text(&SELECTORS)),
            3..5 => ("fieldSelector", random.text(&SELECTORS)),
            5 => ("limit", number),
            6 => ("continue", token.to_string()),
            7 => ("resourceVersion", number),
            8 => (
                "resourceVersionMatch",
                random.text(&["Exact", "NotOlderThan", "", "x"]),
            ),
            9 => (
                "includeObject",
                random.text(&["None", "Object", "Metadata", "x"]),
            ),
            10 => ("timeoutSeconds", number),
            _ => (
                *random.pick(&[
                    "watch",
                    "allowWatchBookmarks",
                    "sendInitialEvents",
                    "force",
                    "dryRun",
                ]),
                flag,
            ),
        };
        let mut value = value.into_bytes();
        if random.once_in(4) {
            hurt(random, &mut value);
        }
        let joined = if query.is_empty() { "" } else { "&" };
        query.push_str(&format!("{joined}{name}="));
        for byte in value {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => query.push(byte.into()),
                // What stands there as it is, must be read too; a URI has no other bytes.
                b'!'..=b'~' if !b"#&<>\"\\^`{|}".contains(&byte) && random.once_in(2) => {
                    query.push(byte.into())
                }
                _ => query.push_str(&format!("%{byte:02x}")),
            }
        }
    }
    query
}

/// A read, or something on a path that nobody has.
pub(super) fn read(random: &mut Random) -> Input {
    let golden = *random.pick(&[
        ROUTERS,
        ROUTERS,
        FRPSERVERS,
        "/api/v1/namespaces",
        "/api/v1/events",
        "/openapi/v3",
        "/apis",
        "/version",
    ]);
    let mut uri = golden.as_bytes().to_vec();
    if random.once_in(3) {
        uri.extend_from_slice(format!("/{}", random.pick(&NAMES)).as_bytes());
    }
    if random.once_in(4) {
        hurt(random, &mut uri);
        uri.retain(u8::is_ascii_graphic);
        uri.insert(0, b'/');
    }
    let mut uri = String::from_utf8(uri).unwrap_or_default();
    uri.push('?');
    uri.push_str(&query(random));
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let mut accept = random
        .text(&[
            "",
            "application/json",
            table,
            "application/vnd.kubernetes.protobuf",
            "*/*",
            ";;,as=,;v=",
            "a/b",
        ])
        .into_bytes();
    if random.once_in(4) {
        hurt(random, &mut accept);
    }
    Input {
        who: who(random),
        method: random.word(&["GET", "GET", "GET", "HEAD", "OPTIONS", "DELETE", "BREW"]),
        uri,
        media: String::new(),
        accept: String::from_utf8_lossy(&accept).into_owned(),
        body: Vec::new(),
    }
}
