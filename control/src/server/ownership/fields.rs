//! Sets of fields of an object, and how Kubernetes writes them (`FieldsV1`).

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// One step from a value into it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Element {
    /// The field of this name.
    Field(String),
    /// The item at this place.
    Index(usize),
    /// The item with these key fields: an object, encoded with its names in order.
    Key(String),
    /// The item that is this value, encoded.
    Value(String),
}

/// A set of fields, as the tree of the ways to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(BTreeMap<Element, Node>);

/// What of a value is in a set: the value itself, and fields below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) member: bool,
    pub(super) below: Fields,
}

impl Node {
    /// The value itself and nothing below it.
    pub(super) fn leaf() -> Self {
        Self {
            member: true,
            below: Fields::default(),
        }
    }

    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl Fields {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, element: &Element) -> Option<&Node> {
        self.0.get(element)
    }

    /// Adds what is in the node, which may be nothing.
    pub(super) fn insert(&mut self, element: Element, node: Node) {
        if !node.is_empty() {
            let there = self.0.entry(element).or_default();
            there.member |= node.member;
            there.below.add(&node.below);
        }
    }

    /// Adds everything that is in the other set.
    pub(super) fn add(&mut self, other: &Self) {
        for (element, node) in &other.0 {
            let there = self.0.entry(element.clone()).or_default();
            there.member |= node.member;
            there.below.add(&node.below);
        }
    }

    /// Takes out everything that is in the other set.
    pub(super) fn remove(&mut self, other: &Self) {
        for (element, node) in &other.0 {
            if let Some(there) = self.0.get_mut(element) {
                there.member &= !node.member;
                there.below.remove(&node.below);
                if there.is_empty() {
                    self.0.remove(element);
                }
            }
        }
    }

    /// What is in both sets.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for (element, node) in &self.0 {
            if let Some(others) = other.0.get(element) {
                let node = Node {
                    member: node.member && others.member,
                    below: node.below.intersection(&others.below),
                };
                both.insert(element.clone(), node);
            }
        }
        both
    }

    /// The members, as Kubernetes writes their paths: `.spec.list[name="a"].field`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, prefix: &str, paths: &mut Vec<String>) {
        for (element, node) in &self.0 {
            let path = format!("{prefix}{element}");
            if node.member {
                paths.push(path.clone());
            }
            node.below.collect(&path, paths);
        }
    }

    /// The set as `FieldsV1`.
    pub(super) fn encode(&self) -> Value {
        Value::Object(self.encoded())
    }

    fn encoded(&self) -> Map<String, Value> {
        let entry = |(element, node): (&Element, &Node)| {
            let mut below = node.below.encoded();
            // What has nothing below it is there for itself.
            if node.member && !below.is_empty() {
                below.insert(".".into(), Value::Object(Map::new()));
            }
            (element.encode(), Value::Object(below))
        };
        self.0.iter().map(entry).collect()
    }

    /// Reads `FieldsV1`; `None` if it is something else. A body is not deep, so recursion is safe.
    pub(super) fn decode(value: &Value) -> Option<Self> {
        let mut fields = Self::default();
        for (name, below) in value.as_object()? {
            if name == "." {
                continue;
            }
            let node = Node {
                member: below.as_object()?.is_empty() || below.get(".").is_some(),
                below: Self::decode(below)?,
            };
            fields.insert(Element::decode(name)?, node);
        }
        Some(fields)
    }
}

impl Element {
    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Index(index) => format!("i:{index}"),
            Self::Key(keys) => format!("k:{keys}"),
            Self::Value(value) => format!("v:{value}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        // Encoded again, so that equal values are equal texts.
        let value = |text: &str| serde_json::from_str::<Value>(text).ok();
        let (kind, rest) = text.split_once(':')?;
        Some(match kind {
            "f" => Self::Field(rest.to_owned()),
            "i" => Self::Index(rest.parse().ok()?),
            "k" => Self::Key(value(rest).filter(Value::is_object)?.to_string()),
            "v" => Self::Value(value(rest)?.to_string()),
            _ => return None,
        })
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Index(index) => write!(f, "[{index}]"),
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Key(keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<String> = keys
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                write!(f, "[{}]", keys.join(","))
            }
        }
    }
}
