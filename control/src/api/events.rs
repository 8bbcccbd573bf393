//! Events in the words of `events.k8s.io`, in which newer clients tell them. They are kept as those of the core group.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::core::{EventSource, ObjectReference, REFERENCE, SERIES, SOURCE, Told};
use super::kind::{About, Column, Scope, Typed, Words};
use super::meta::{ObjectMeta, Time};
use super::protobuf::{Content, Field, METADATA};
use super::validate::FieldError;

/// Something that happened to an object; the same as an event of `v1`, in other words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    /// Version of the schema of this object: `events.k8s.io/v1`.
    pub api_version: String,
    /// Kind of the object: `Event`.
    pub kind: String,
    /// Name, labels and bookkeeping.
    pub metadata: ObjectMeta,
    /// The object that it happened to.
    pub regarding: ObjectReference,
    /// One word for programs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// `Normal` or `Warning`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub severity: String,
    /// When it happened first, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "micro-time"))]
    pub event_time: Option<Time>,
    /// How often and when it happened, if more than once.
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
    pub reporting_controller: String,
    /// Which one of its instances.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reporting_instance: String,
    /// Who tells it, in older clients' words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deprecated_source: Option<EventSource>,
    /// When it happened first, in older clients' words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub deprecated_first_timestamp: Option<Time>,
    /// When it happened last, in older clients' words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub deprecated_last_timestamp: Option<Time>,
    /// How often it happened, in older clients' words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deprecated_count: Option<i32>,
}

impl Typed for Event {
    const ABOUT: About = About {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        resource: "events.events.k8s.io",
        short_names: &["ev"],
        scope: Scope::Namespaced,
        words: Some(&Words {
            kept: super::core::Event::ABOUT.resource,
            fields: &[
                ("regarding", "involvedObject"),
                ("note", "message"),
                ("reportingController", "reportingComponent"),
                ("deprecatedSource", "source"),
                ("deprecatedFirstTimestamp", "firstTimestamp"),
                ("deprecatedLastTimestamp", "lastTimestamp"),
                ("deprecatedCount", "count"),
            ],
        }),
        fields: &[
            "reason",
            "regarding.apiVersion",
            "regarding.fieldPath",
            "regarding.kind",
            "regarding.name",
            "regarding.namespace",
            "regarding.resourceVersion",
            "regarding.uid",
            "reportingController",
            "type",
        ],
        protobuf: Some(&[
            METADATA,
            Field(2, "eventTime", Content::MicroTime),
            Field(3, "series", Content::Message(SERIES)),
            Field(4, "reportingController", Content::Text),
            Field(5, "reportingInstance", Content::Text),
            Field(6, "action", Content::Text),
            Field(7, "reason", Content::Text),
            Field(8, "regarding", Content::Message(REFERENCE)),
            Field(9, "related", Content::Message(REFERENCE)),
            Field(10, "note", Content::Text),
            Field(11, "type", Content::Text),
            Field(12, "deprecatedSource", Content::Message(SOURCE)),
            Field(13, "deprecatedFirstTimestamp", Content::Time),
            Field(14, "deprecatedLastTimestamp", Content::Time),
            Field(15, "deprecatedCount", Content::Number),
        ]),
        columns: &[
            Column::new("Name", "string", ".metadata.name", "Name of the event.").wide(),
            Column::new(
                "Last Seen",
                "date",
                ".series.lastObservedTime|.deprecatedLastTimestamp|.eventTime",
                "When it happened last.",
            ),
            Column::new("Type", "string", ".type", "Normal or Warning."),
            Column::new("Reason", "string", ".reason", "One word for programs."),
            Column::new(
                "Kind",
                "string",
                ".regarding.kind",
                "Kind of the object that it happened to.",
            ),
            Column::new(
                "Object",
                "string",
                ".regarding.name",
                "Name of the object that it happened to.",
            ),
            Column::new("Message", "string", ".note", "A sentence for people."),
        ],
        ..About::PLAIN
    };

    fn check(&self) -> Vec<FieldError> {
        let told = Told {
            namespace: self.metadata.namespace.as_deref().unwrap_or_default(),
            about: &self.regarding,
            at: self.event_time.as_ref(),
            reporter: ("reportingController", &self.reporting_controller),
            instance: &self.reporting_instance,
            action: &self.action,
            reason: &self.reason,
            message: ("note", &self.note),
        };
        told.check()
    }

    /// Who tells an event in these words says when it happened, in no older way.
    fn check_new(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.event_time.is_none() {
            errors.push(FieldError::required("eventTime".into(), ""));
        }
        if !matches!(self.severity.as_str(), "Normal" | "Warning") {
            let why = format!("has invalid value: {}", self.severity);
            errors.push(FieldError::invalid("type".into(), "", &why));
        }
        for (path, given) in [
            (
                "deprecatedFirstTimestamp",
                self.deprecated_first_timestamp.is_some(),
            ),
            (
                "deprecatedLastTimestamp",
                self.deprecated_last_timestamp.is_some(),
            ),
            (
                "deprecatedCount",
                self.deprecated_count.is_some_and(|count| count != 0),
            ),
            (
                "deprecatedSource",
                self.deprecated_source
                    .as_ref()
                    .is_some_and(|source| *source != EventSource::default()),
            ),
        ] {
            if given {
                errors.push(FieldError::invalid(path.into(), "", "needs to be unset"));
            }
        }
        errors
    }
}
