//! Kinds by which callers ask about themselves: who they are, and what they may do. They are answered and not kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kind::{About, Typed};
use super::meta::ObjectMeta;
use super::protobuf::{Content, Field, METADATA};

/// Who the caller is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SelfSubjectReview {
    /// Version of the schema of this object: `authentication.k8s.io/v1`.
    api_version: String,
    /// Kind of the object: `SelfSubjectReview`.
    kind: String,
    /// Has no effect.
    metadata: ObjectMeta,
    /// The answer: `userInfo`.
    status: Map<String, Value>,
}

/// Whether the caller may do something.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SelfSubjectAccessReview {
    /// Version of the schema of this object: `authorization.k8s.io/v1`.
    api_version: String,
    /// Kind of the object: `SelfSubjectAccessReview`.
    kind: String,
    /// Has no effect.
    metadata: ObjectMeta,
    /// The question.
    pub(crate) spec: AccessQuestion,
    /// The answer: `allowed`.
    status: Map<String, Value>,
}

/// What somebody wants to do: to objects, or with a path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AccessQuestion {
    /// To objects.
    pub(crate) resource_attributes: Option<ResourceAttributes>,
    /// With a path that stands for no object.
    pub(crate) non_resource_attributes: Option<PathAttributes>,
}

/// Something that can be done to objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ResourceAttributes {
    /// Namespace of the objects.
    pub(crate) namespace: String,
    /// E.g. `get`; `*` for all.
    pub(crate) verb: String,
    /// API group; `*` for all.
    pub(crate) group: String,
    /// API version; has no effect.
    pub(crate) version: String,
    /// Plural, e.g. `routers`; `*` for all.
    pub(crate) resource: String,
    /// E.g. `status`.
    pub(crate) subresource: String,
    /// Name of the object; empty for all of them.
    pub(crate) name: String,
    /// Has no effect.
    field_selector: Map<String, Value>,
    /// Has no effect.
    label_selector: Map<String, Value>,
}

/// Something that can be done with a path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PathAttributes {
    /// E.g. `/version`.
    pub(crate) path: String,
    /// E.g. `get`.
    pub(crate) verb: String,
}

/// What the caller may do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SelfSubjectRulesReview {
    /// Version of the schema of this object: `authorization.k8s.io/v1`.
    api_version: String,
    /// Kind of the object: `SelfSubjectRulesReview`.
    kind: String,
    /// Has no effect.
    metadata: ObjectMeta,
    /// The question.
    spec: RulesQuestion,
    /// The answer: `resourceRules` and `nonResourceRules`.
    status: Map<String, Value>,
}

/// Where somebody wants to do something.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RulesQuestion {
    /// A namespace; the answer is the same in all of them.
    namespace: String,
}

impl Typed for SelfSubjectReview {
    const ABOUT: About = About {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        resource: "selfsubjectreviews.authentication.k8s.io",
        is_stored: false,
        protobuf: Some(&[METADATA]),
        ..About::PLAIN
    };
}

impl Typed for SelfSubjectAccessReview {
    const ABOUT: About = About {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        resource: "selfsubjectaccessreviews.authorization.k8s.io",
        is_stored: false,
        protobuf: Some(&[METADATA, Field(2, "spec", Content::Message(QUESTION))]),
        ..About::PLAIN
    };
}

impl Typed for SelfSubjectRulesReview {
    const ABOUT: About = About {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        resource: "selfsubjectrulesreviews.authorization.k8s.io",
        is_stored: false,
        protobuf: Some(&[
            METADATA,
            Field(
                2,
                "spec",
                Content::Message(&[Field(1, "namespace", Content::Text)]),
            ),
        ]),
        ..About::PLAIN
    };
}

const QUESTION: &[Field] = &[
    Field(
        1,
        "resourceAttributes",
        Content::Message(&[
            Field(1, "namespace", Content::Text),
            Field(2, "verb", Content::Text),
            Field(3, "group", Content::Text),
            Field(4, "version", Content::Text),
            Field(5, "resource", Content::Text),
            Field(6, "subresource", Content::Text),
            Field(7, "name", Content::Text),
        ]),
    ),
    Field(
        2,
        "nonResourceAttributes",
        Content::Message(&[
            Field(1, "path", Content::Text),
            Field(2, "verb", Content::Text),
        ]),
    ),
];
