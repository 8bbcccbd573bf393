//! `metadata.managedFields`: who owns which fields, as Kubernetes writes it.

use serde_json::{Value, json};

use super::fields::Fields;

/// Owners that wrote without applying, at most; those before them are counted as one.
const MAX_UPDATERS: usize = 10;
/// The name of that one.
const ANCIENT: &str = "ancient-changes";

/// How an owner writes. Their order is the order of the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    /// It says everything that it wants to own, each time.
    Apply,
    /// It owns what it changed.
    Update,
}

/// An owner of fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub(super) operation: Operation,
    pub(super) manager: String,
    pub(super) api_version: String,
    /// `status`, or empty.
    pub(super) subresource: String,
}

/// What an owner owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) owner: Owner,
    /// When that changed last.
    pub(super) at: String,
    pub(super) fields: Fields,
}

/// Everything that is owned. No two entries are of one owner, none is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries(Vec<Entry>);

/// Whether the client asks to forget all owners: a single empty entry.
pub(super) fn is_reset(value: &Value) -> bool {
    value == &json!([{}])
}

impl Entries {
    /// Reads `metadata.managedFields`; `None` if some of it is something else.
    pub(super) fn decode(value: &Value) -> Option<Self> {
        let mut all = Self::default();
        for entry in value.as_array()? {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            if text("manager").is_empty() || text("fieldsType") != "FieldsV1" {
                return None;
            }
            let owner = Owner {
                operation,
                manager: text("manager").to_owned(),
                api_version: text("apiVersion").to_owned(),
                subresource: text("subresource").to_owned(),
            };
            let mut fields = Fields::decode(entry.get("fieldsV1")?)?;
            if let Some(there) = all.get(&owner) {
                fields.add(there);
            }
            all.set(owner, text("time"), fields);
        }
        Some(all)
    }

    /// The entries in Kubernetes' order.
    pub(super) fn encode(&self) -> Value {
        let mut entries: Vec<&Entry> = self.0.iter().collect();
        entries.sort_by_key(|entry| (entry.owner.operation, &entry.at, &entry.owner));
        entries.into_iter().map(encode).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter()
    }

    /// What the owner owns.
    pub(super) fn get(&self, owner: &Owner) -> Option<&Fields> {
        let entry = self.0.iter().find(|entry| entry.owner == *owner);
        entry.map(|entry| &entry.fields)
    }

    /// Makes the owner own this and nothing else.
    pub(super) fn set(&mut self, owner: Owner, at: &str, fields: Fields) {
        self.0.retain(|entry| entry.owner != owner);
        if !fields.is_empty() {
            self.0.push(Entry {
                owner,
                at: at.to_owned(),
                fields,
            });
        }
    }

    /// Takes these fields from everybody but the owner.
    pub(super) fn take_from_others(&mut self, owner: &Owner, fields: &Fields) {
        for entry in &mut self.0 {
            if entry.owner != *owner {
                entry.fields.remove(fields);
            }
        }
        self.0.retain(|entry| !entry.fields.is_empty());
    }

    /// Everything that anybody owns.
    pub(super) fn all(&self) -> Fields {
        let mut all = Fields::default();
        for entry in &self.0 {
            all.add(&entry.fields);
        }
        all
    }

    /// Counts the oldest of too many updaters as one.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<&Entry> = self
            .0
            .iter()
            .filter(|entry| entry.owner.operation == Operation::Update)
            .collect();
        if updaters.len() <= MAX_UPDATERS {
            return;
        }
        updaters.sort_by_key(|entry| (entry.owner.manager != ANCIENT, &entry.at, &entry.owner));
        let old: Vec<Entry> = updaters[..=updaters.len() - MAX_UPDATERS]
            .iter()
            .map(|entry| (*entry).clone())
            .collect();
        let Some(last) = old.last().cloned() else {
            return;
        };
        let mut fields = Fields::default();
        for entry in &old {
            fields.add(&entry.fields);
        }
        self.0.retain(|entry| !old.contains(entry));
        let owner = Owner {
            manager: ANCIENT.into(),
            subresource: String::new(),
            ..last.owner
        };
        self.set(owner, &last.at, fields);
    }
}

fn encode(entry: &Entry) -> Value {
    let operation = match entry.owner.operation {
        Operation::Apply => "Apply",
        Operation::Update => "Update",
    };
    let mut encoded = json!({
        "manager": entry.owner.manager,
        "operation": operation,
        "apiVersion": entry.owner.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": entry.fields.encode(),
    });
    for (key, text) in [
        ("time", &entry.at),
        ("subresource", &entry.owner.subresource),
    ] {
        if !text.is_empty() {
            encoded[key] = text.as_str().into();
        }
    }
    encoded
}
