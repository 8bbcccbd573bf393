//! The kinds that the API serves: one readable table, from which paths, discovery, OpenAPI, tables, selectors and store keys derive.

use std::fmt;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::core::{Event, Namespace};
use super::events;
use super::frpserver::FrpServer;
use super::protobuf;
use super::review::{SelfSubjectAccessReview, SelfSubjectReview, SelfSubjectRulesReview};
use super::router::Router;
use super::schema;
use super::validate::FieldError;

/// Every kind, those of a group and version beside each other.
pub(crate) static KINDS: [Kind; 8] = [
    Kind::of::<Event>(),
    Kind::of::<Namespace>(),
    Kind::of::<SelfSubjectReview>(),
    Kind::of::<SelfSubjectAccessReview>(),
    Kind::of::<SelfSubjectRulesReview>(),
    Kind::of::<Router>(),
    Kind::of::<FrpServer>(),
    Kind::of::<events::Event>(),
];

/// A Rust type that is the schema of a kind.
pub(crate) trait Typed: DeserializeOwned + JsonSchema {
    /// Names, scope, columns and the like.
    const ABOUT: About;

    /// What is wrong with the object and no schema can say.
    fn check(&self) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is wrong with it beside that if it is to be made, though it could become so later.
    fn check_new(&self) -> Vec<FieldError> {
        Vec::new()
    }
}

/// What the API has to know of a kind beside its schema.
#[derive(Debug)]
pub(crate) struct About {
    /// API group; empty for Kubernetes' core group.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    /// As it is written in paths.
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    /// Plural and group, as messages and the store call it: `routers.edge.example.com`.
    pub(crate) resource: &'static str,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) scope: Scope,
    /// Whether there is a status subresource.
    pub(crate) has_status: bool,
    /// Whether objects are kept. Those that are not are answered when they are created.
    pub(crate) is_stored: bool,
    /// What names look like.
    pub(crate) names: Names,
    /// The phase that a new object's status has at once.
    pub(crate) phase: Option<&'static str>,
    /// The label that always is the object's name.
    pub(crate) name_label: Option<&'static str>,
    /// Columns of its Table, the first of them the name.
    pub(crate) columns: &'static [Column],
    /// Fields that selectors may name, beside `metadata.name` and `metadata.namespace`: `status.cluster`.
    pub(crate) fields: &'static [&'static str],
    /// Where those of them stand that are called otherwise in the object; several places with a bar between them.
    pub(crate) places: &'static [(&'static str, &'static str)],
    /// Fields that only who writes them is shown, as JSON pointers.
    pub(crate) secrets: &'static [&'static str],
    /// What else its objects are, if they are another kind's in other words.
    pub(crate) words: Option<&'static Words>,
    /// How it is written in Kubernetes' binary encoding, where clients insist on that.
    pub(crate) protobuf: Option<protobuf::Message>,
}

/// A kind's words for the objects of another one, which are kept as that one's.
#[derive(Debug)]
pub(crate) struct Words {
    /// The resource that is kept, of the same version.
    pub(crate) kept: &'static str,
    /// Fields, as they are called here and as they are kept.
    pub(crate) fields: &'static [(&'static str, &'static str)],
}

/// Where the objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Cluster,
    Namespaced,
}

/// What the names of a kind look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// A DNS label.
    Label,
    /// A node's name.
    Node,
    /// Dotted DNS labels.
    Subdomain,
}

/// A printer column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// `string`, `integer` or `date`.
    pub(crate) kind: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub(crate) priority: u8,
    /// Where the value stands, in Kubernetes' JSONPath as far as steps, `[*]` and `[?(@.name=="text")]` go; several places with a bar
    /// between them.
    pub(crate) path: &'static str,
    pub(crate) about: &'static str,
}

/// One kind, its type hidden.
pub(crate) struct Kind {
    pub(crate) about: About,
    schema: LazyLock<Value>,
    check: fn(&Value) -> Vec<FieldError>,
    check_new: fn(&Value) -> Vec<FieldError>,
}

impl About {
    /// A kind of nothing: cluster-scoped, kept, without a status. For what a kind does not say of itself.
    pub(crate) const PLAIN: Self = Self {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        resource: "",
        short_names: &[],
        categories: &[],
        scope: Scope::Cluster,
        has_status: false,
        is_stored: true,
        names: Names::Subdomain,
        phase: None,
        name_label: None,
        columns: &[],
        fields: &[],
        places: &[],
        secrets: &[],
        words: None,
        protobuf: None,
    };

    /// `edge.example.com/v1`, or `v1` in the core group.
    pub(crate) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Kind and group, as messages about wrong objects call it: `Router.edge.example.com`.
    pub(crate) fn kind_and_group(&self) -> String {
        match self.group {
            "" => self.kind.to_owned(),
            group => format!("{}.{group}", self.kind),
        }
    }

    /// Whether Kubernetes has it too, so that its clients know it by type.
    pub(crate) fn is_builtin(&self) -> bool {
        self.group.is_empty() || self.group.ends_with(".k8s.io")
    }

    /// The resource as which the store knows its objects.
    pub(crate) fn kept(&self) -> &'static str {
        self.words.map_or(self.resource, |words| words.kept)
    }

    /// Verbs on objects.
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        match self.is_stored {
            true => &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
            false => &["create"],
        }
    }

    /// Verbs on their status.
    pub(crate) const STATUS_VERBS: [&'static str; 3] = ["get", "patch", "update"];

    pub(crate) fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }
}

impl About {
    /// Puts a kept object into this kind's words.
    pub(crate) fn tell(&self, object: &mut Map<String, Value>) {
        if let Some(words) = self.words {
            let fields = words.fields.iter().map(|(here, kept)| (*kept, *here));
            reword(object, self, fields);
        }
    }
}

/// Makes an object one of this kind whose fields are called otherwise, also in what it says about who owns them.
fn reword<'a>(
    object: &mut Map<String, Value>,
    about: &About,
    fields: impl Iterator<Item = (&'a str, &'a str)> + Clone,
) {
    let version = about.api_version();
    let before = object.insert("apiVersion".into(), version.as_str().into());
    let managed = object
        .get_mut("metadata")
        .and_then(|meta| meta.get_mut("managedFields"));
    let entries = managed.and_then(Value::as_array_mut).into_iter().flatten();
    for entry in entries.filter_map(Value::as_object_mut) {
        if entry.get("apiVersion") != before.as_ref() {
            continue;
        }
        if let Some(owned) = entry.get_mut("fieldsV1").and_then(Value::as_object_mut) {
            for (from, to) in fields.clone() {
                rename(owned, &format!("f:{from}"), &format!("f:{to}"));
            }
        }
        entry.insert("apiVersion".into(), version.as_str().into());
    }
    for (from, to) in fields {
        rename(object, from, to);
    }
    object.insert("kind".into(), about.kind.into());
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

impl Kind {
    const fn of<T: Typed>() -> Self {
        Self {
            about: T::ABOUT,
            schema: LazyLock::new(schema::of::<T> as fn() -> Value),
            check: |object| read::<T>(object, T::check),
            check_new: |object| read::<T>(object, T::check_new),
        }
    }

    /// The kind as which its objects are kept: itself, or the one that it has other words for.
    pub(crate) fn kept(&'static self) -> &'static Self {
        let kept = self.about.kept();
        let mut all = KINDS.iter();
        all.find(|kind| kind.about.resource == kept).unwrap_or(self)
    }

    /// Puts an object into the words in which it is kept.
    pub(crate) fn keep(&'static self, object: &mut Map<String, Value>) {
        if let Some(words) = self.about.words {
            let fields = words.fields.iter().copied();
            reword(object, &self.kept().about, fields);
        }
    }

    /// The schema: structural, as Kubernetes wants it of a custom resource.
    pub(crate) fn schema(&self) -> &Value {
        &self.schema
    }

    /// Whether objects have a `spec`; those that do not carry their content beside `metadata`.
    pub(crate) fn has_spec(&self) -> bool {
        self.schema.pointer("/properties/spec").is_some()
    }

    /// What is wrong with an object that its schema allows.
    pub(super) fn check(&self, object: &Value) -> Vec<FieldError> {
        (self.check)(object)
    }

    /// What is wrong with such an object if it is to be made.
    pub(crate) fn check_new(&self, object: &Value) -> Vec<FieldError> {
        (self.check_new)(object)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.about.resource)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.about.resource == other.about.resource
    }
}

impl Eq for Kind {}

impl Column {
    /// A column that is always shown.
    pub(crate) const fn new(
        title: &'static str,
        kind: &'static str,
        path: &'static str,
        about: &'static str,
    ) -> Self {
        Self {
            title,
            kind,
            priority: 0,
            path,
            about,
        }
    }

    /// The same column, shown with `-o wide`.
    pub(crate) const fn wide(self) -> Self {
        Self {
            priority: 1,
            ..self
        }
    }
}

/// Reads the object as its type. The schema is made from the type, so this can only fail where the schema says less than the type does.
fn read<T: Typed>(object: &Value, check: fn(&T) -> Vec<FieldError>) -> Vec<FieldError> {
    match T::deserialize(object) {
        Ok(object) => check(&object),
        Err(error) => vec![FieldError::invalid(
            "spec".into(),
            "object",
            &error.to_string(),
        )],
    }
}

/// How a kind that is kept is called and where its objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindNames {
    /// API group; empty for Kubernetes' core group.
    pub group: &'static str,
    /// Version of the group.
    pub version: &'static str,
    /// `Router`.
    pub kind: &'static str,
    /// `routers`.
    pub plural: &'static str,
    /// `router`.
    pub singular: &'static str,
    /// `rt`.
    pub short: &'static [&'static str],
    /// Whether its objects are in namespaces.
    pub is_namespaced: bool,
}

impl KindNames {
    /// `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Path of its objects: of one namespace, or of all of them.
    #[must_use]
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        let place = match namespace.filter(|_| self.is_namespaced) {
            Some(namespace) => format!("namespaces/{namespace}/"),
            None => String::new(),
        };
        format!("/{root}/{}/{place}{}", self.api_version(), self.plural)
    }
}

/// The kinds that are kept, without those that are another one's in other words.
pub fn kept_kinds() -> impl Iterator<Item = KindNames> {
    let kept = KINDS.iter().map(|kind| &kind.about);
    let kept = kept.filter(|about| about.is_stored && about.words.is_none());
    kept.map(|about| KindNames {
        group: about.group,
        version: about.version,
        kind: about.kind,
        plural: about.plural,
        singular: about.singular,
        short: about.short_names,
        is_namespaced: about.is_namespaced(),
    })
}

/// The kind of that plural in a group and version.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| {
        let about = &kind.about;
        (about.group, about.version, about.plural) == (group, version, plural)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_says_what_clients_need() {
        let mut names = BTreeSet::new();
        for kind in &KINDS {
            let about = &kind.about;
            let resource = match about.group {
                "" => about.plural.to_owned(),
                group => format!("{}.{group}", about.plural),
            };
            assert_eq!(about.resource, resource);
            assert!(names.insert(resource), "twice: {}", about.resource);
            assert!(!about.kind.is_empty() && !about.singular.is_empty());
            let schema = kind.schema();
            for part in ["apiVersion", "kind", "metadata"] {
                let described = schema.pointer(&format!("/properties/{part}/description"));
                assert!(described.is_some(), "{}: {part}", about.kind);
            }
            assert_eq!(
                about.has_status,
                about.is_stored && schema.pointer("/properties/status").is_some(),
                "{}",
                about.kind
            );
            if about.is_stored {
                assert_eq!(about.columns[0].path, ".metadata.name", "{}", about.kind);
            }
            // Structural: no references, no unions.
            let text = schema.to_string();
            assert!(!text.contains("$ref") && !text.contains("anyOf"), "{text}");
            assert!(!text.contains("\"additionalProperties\":true"), "{text}");
        }
    }
}
