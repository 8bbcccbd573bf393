//! Kinds of Kubernetes' core group that its tools expect to find: namespaces and events.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kind::{About, Column, Names, Scope, Typed};
use super::meta::{ObjectMeta, Time};
use super::metadata::check_key;
use super::protobuf::{Content, Field, METADATA, Message};
use super::validate::FieldError;

/// A namespace of services, for its labels and annotations.
///
/// Services and events name namespaces freely: none needs an object here, and nothing goes with one that is deleted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Namespace {
    /// Version of the schema of this object: `v1`.
    pub api_version: String,
    /// Kind of the object: `Namespace`.
    pub kind: String,
    /// Name, labels and bookkeeping.
    pub metadata: ObjectMeta,
    /// What Kubernetes keeps here has no effect.
    pub spec: NamespaceSpec,
    /// Whether it is still to be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<NamespaceStatus>,
}

/// What Kubernetes keeps about a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceSpec {
    /// Who must agree before Kubernetes empties the namespace; has no effect here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
}

/// The state of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct NamespaceStatus {
    /// `Active`; `Terminating` if it is deleted once its finalizers have gone.
    pub phase: String,
}

impl Typed for Namespace {
    const ABOUT: About = About {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        resource: "namespaces",
        short_names: &["ns"],
        has_status: true,
        names: Names::Label,
        phase: Some("Active"),
        name_label: Some("kubernetes.io/metadata.name"),
        fields: &["status.phase"],
        protobuf: Some(&[
            METADATA,
            Field(
                2,
                "spec",
                Content::Message(&[Field(1, "finalizers", Content::Texts)]),
            ),
        ]),
        columns: &[
            Column::new("Name", "string", ".metadata.name", "Name of the namespace."),
            Column::new(
                "Status",
                "string",
                ".status.phase",
                "Whether it can be used.",
            ),
            Column::new(
                "Age",
                "date",
                ".metadata.creationTimestamp",
                "Since when the object exists.",
            ),
        ],
        ..About::PLAIN
    };
}

/// What events consist of, in Kubernetes' binary encoding.
pub(super) const REFERENCE: Message = &[
    Field(1, "kind", Content::Text),
    Field(2, "namespace", Content::Text),
    Field(3, "name", Content::Text),
    Field(4, "uid", Content::Text),
    Field(5, "apiVersion", Content::Text),
    Field(6, "resourceVersion", Content::Text),
    Field(7, "fieldPath", Content::Text),
];
pub(super) const SOURCE: Message = &[
    Field(1, "component", Content::Text),
    Field(2, "host", Content::Text),
];
pub(super) const SERIES: Message = &[
    Field(1, "count", Content::Number),
    Field(2, "lastObservedTime", Content::MicroTime),
];

/// Something that happened to an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    /// Version of the schema of this object: `v1`.
    pub api_version: String,
    /// Kind of the object: `Event`.
    pub kind: String,
    /// Name, labels and bookkeeping.
    pub metadata: ObjectMeta,
    /// The object that it happened to.
    pub involved_object: ObjectReference,
    /// One word for programs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// `Normal` or `Warning`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub severity: String,
    /// Who tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<EventSource>,
    /// When it happened first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub first_timestamp: Option<Time>,
    /// When it happened last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_timestamp: Option<Time>,
    /// When it happened, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "micro-time"))]
    pub event_time: Option<Time>,
    /// How often it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i32>,
    /// How often and when it happened, in newer clients' words.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schemars(extend("properties" = {"lastObservedTime": {"type": "string", "format": "micro-time"}}))]
    pub series: Map<String, Value>,
    /// What was done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub action: String,
    /// Another object that has to do with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub related: Option<ObjectReference>,
    /// Name of the component that tells it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reporting_component: String,
    /// Which one of its instances.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reporting_instance: String,
}

/// Who tells an event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EventSource {
    /// Name of the component.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub component: String,
    /// The node that it runs on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
}

/// Which object is meant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectReference {
    /// Version of the schema of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Kind of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Namespace of the object, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Identity of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Revision of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Which part of the object is meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_path: String,
}

impl Typed for Event {
    const ABOUT: About = About {
        kind: "Event",
        plural: "events",
        singular: "event",
        resource: "events",
        short_names: &["ev"],
        scope: Scope::Namespaced,
        fields: &[
            "involvedObject.apiVersion",
            "involvedObject.fieldPath",
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.resourceVersion",
            "involvedObject.uid",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        places: &[("source", "source.component|reportingComponent")],
        protobuf: Some(&[
            METADATA,
            Field(2, "involvedObject", Content::Message(REFERENCE)),
            Field(3, "reason", Content::Text),
            Field(4, "message", Content::Text),
            Field(5, "source", Content::Message(SOURCE)),
            Field(6, "firstTimestamp", Content::Time),
            Field(7, "lastTimestamp", Content::Time),
            Field(8, "count", Content::Number),
            Field(9, "type", Content::Text),
            Field(10, "eventTime", Content::MicroTime),
            Field(11, "series", Content::Message(SERIES)),
            Field(12, "action", Content::Text),
            Field(13, "related", Content::Message(REFERENCE)),
            Field(14, "reportingComponent", Content::Text),
            Field(15, "reportingInstance", Content::Text),
        ]),
        columns: &[
            Column::new("Name", "string", ".metadata.name", "Name of the event.").wide(),
            Column::new(
                "Last Seen",
                "date",
                ".series.lastObservedTime|.lastTimestamp|.eventTime",
                "When it happened last.",
            ),
            Column::new("Type", "string", ".type", "Normal or Warning."),
            Column::new("Reason", "string", ".reason", "One word for programs."),
            Column::new(
                "Kind",
                "string",
                ".involvedObject.kind",
                "Kind of the object that it happened to.",
            ),
            Column::new(
                "Object",
                "string",
                ".involvedObject.name",
                "Name of the object that it happened to.",
            ),
            Column::new("Message", "string", ".message", "A sentence for people."),
        ],
        ..About::PLAIN
    };

    fn check(&self) -> Vec<FieldError> {
        let told = Told {
            namespace: self.metadata.namespace.as_deref().unwrap_or_default(),
            about: &self.involved_object,
            at: self.event_time.as_ref(),
            reporter: ("reportingComponent", &self.reporting_component),
            instance: &self.reporting_instance,
            action: &self.action,
            reason: &self.reason,
            message: ("message", &self.message),
        };
        told.check()
    }
}

/// What an event says, in whatever words.
pub(super) struct Told<'a> {
    /// Where the event is; not known if it is empty.
    pub(super) namespace: &'a str,
    pub(super) about: &'a ObjectReference,
    /// When it happened, if it is told as newer clients do.
    pub(super) at: Option<&'a Time>,
    /// Who tells it, behind what the field is called.
    pub(super) reporter: (&'static str, &'a str),
    pub(super) instance: &'a str,
    pub(super) action: &'a str,
    pub(super) reason: &'a str,
    pub(super) message: (&'static str, &'a str),
}

impl Told<'_> {
    /// Bytes of a word.
    const WORD: usize = 128;
    const SENTENCE: usize = 1024;

    /// What a Kubernetes server refuses: an event stands in the namespace of its object, or in one for those that have none; and one
    /// that says when it happened says who tells it and what was done, too.
    pub(super) fn check(&self) -> Vec<FieldError> {
        let about = self.about.namespace.as_str();
        let belongs = match (self.at.is_some(), about) {
            _ if self.namespace.is_empty() => true,
            (false, "") => self.namespace == "default",
            (true, "") => matches!(self.namespace, "default" | "kube-system"),
            (false, about) => about == self.namespace,
            (true, _) => true,
        };
        let astray = (!belongs).then(|| {
            let path = "involvedObject.namespace".to_owned();
            FieldError::invalid(path, about, "does not match event.namespace")
        });
        let mut errors: Vec<FieldError> = astray.into_iter().collect();
        if self.at.is_none() {
            return errors;
        }
        let (path, reporter) = self.reporter;
        for (path, word) in [
            (path, reporter),
            ("reportingInstance", self.instance),
            ("action", self.action),
            ("reason", self.reason),
        ] {
            if word.is_empty() {
                errors.push(FieldError::required(path.into(), ""));
            }
        }
        if !reporter.is_empty() {
            errors.extend(check_key(path, reporter));
        }
        for (path, text, most) in [
            ("reportingInstance", self.instance, Self::WORD),
            ("action", self.action, Self::WORD),
            ("reason", self.reason, Self::WORD),
            (self.message.0, self.message.1, Self::SENTENCE),
        ] {
            if text.len() > most {
                let why = format!("can have at most {most} characters");
                errors.push(FieldError::invalid(path.into(), "", &why));
            }
        }
        errors
    }
}
