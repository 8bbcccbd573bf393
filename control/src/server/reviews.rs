//! Questions of callers about themselves, answered from the table of [`access`](super::access).

use http::{Response, StatusCode};
use keel_certs::{Identity, Subject};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::access::{self, Names, Who, Wish};
use super::{Inner, reply};
use crate::api::kind::Kind;
use crate::api::review::{AccessQuestion, PathAttributes, ResourceAttributes};
use crate::http::Body;

/// Paths that stand for no object.
const PATHS: [&str; 10] = [
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
];

impl Inner {
    /// The review with its answer.
    pub(super) fn review(
        &self,
        identity: &Identity,
        kind: &Kind,
        mut review: Map<String, Value>,
    ) -> Response<Body> {
        let who = access::who(&identity.subject, &self.config.node);
        let status = match kind.about.kind {
            "SelfSubjectReview" => json!({"userInfo": user(identity, who)}),
            "SelfSubjectAccessReview" => {
                let question = review.get("spec").map(AccessQuestion::deserialize);
                let question = question.and_then(Result::ok).unwrap_or_default();
                json!({"allowed": self.may(identity, &question)})
            }
            _ => rules(identity, who),
        };
        review.insert("status".into(), status);
        reply::json(StatusCode::CREATED, &review)
    }

    fn may(&self, identity: &Identity, question: &AccessQuestion) -> bool {
        if let Some(asked) = &question.resource_attributes {
            let wish = Wish {
                verb: &asked.verb,
                resource: &resource(asked),
                name: (!asked.name.is_empty()).then_some(asked.name.as_str()),
            };
            return access::grant(&identity.subject, &self.config.node, wish).is_some();
        }
        let asked = question.non_resource_attributes.as_ref();
        asked.is_some_and(|PathAttributes { path, verb }| {
            let is_there = PATHS.iter().any(|known| match known.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => path == known,
            });
            is_there && verb == "get" && access::may_look(&identity.subject, &self.config.node)
        })
    }
}

/// The resource as the table calls it.
fn resource(asked: &ResourceAttributes) -> String {
    let mut name = asked.resource.clone();
    if asked.resource != "*" && !asked.group.is_empty() {
        name = format!("{name}.{}", asked.group);
    }
    if !asked.subresource.is_empty() {
        name = format!("{name}/{}", asked.subresource);
    }
    name
}

fn user(identity: &Identity, who: Option<Who>) -> Value {
    let group = match who {
        Some(Who::Admin) => "keel:admins",
        Some(Who::ThisNode | Who::AnotherNode) => "keel:nodes",
        Some(Who::Pod) => "keel:pods",
        None => "keel:strangers",
    };
    json!({"username": identity.to_string(), "groups": [group, "system:authenticated"]})
}

/// The rows of the table that are about the caller.
fn rules(identity: &Identity, who: Option<Who>) -> Value {
    let own = match &identity.subject {
        Subject::Node { node } => node.as_str(),
        _ => "",
    };
    let rows = access::TABLE
        .iter()
        .filter(|row| who.is_some_and(|who| row.who.contains(&who)));
    let mut rules = Vec::new();
    for row in rows {
        for resource in row.resources {
            let (base, subresource) = match resource.split_once('/') {
                Some((base, subresource)) => (base, format!("/{subresource}")),
                None => (*resource, String::new()),
            };
            let (plural, group) = match base.split_once('.') {
                Some((plural, group)) => (plural, group),
                None if base == "*" => ("*", "*"),
                None => (base, ""),
            };
            let mut rule = json!({
                "verbs": row.verbs, "apiGroups": [group], "resources": [format!("{plural}{subresource}")],
            });
            if row.names == Names::Own {
                rule["resourceNames"] = json!([own]);
            }
            rules.push(rule);
        }
    }
    let paths = match who {
        Some(_) => json!([{"verbs": ["get"], "nonResourceURLs": PATHS}]),
        None => json!([]),
    };
    json!({"resourceRules": rules, "nonResourceRules": paths, "incomplete": false})
}
