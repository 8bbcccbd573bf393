//! What a value consists of by its schema, and what comes of two values: compared, merged, pruned. Pure.
//!
//! Objects consist of their fields, lists of `x-kubernetes-list-type` `map` and `set` of their items; everything else is one piece.
//! Where the schema says nothing, objects consist of their fields and lists are one piece.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::fields::{Element, Fields, Node};
use crate::api::schema;

/// What a value consists of.
enum View<'v, 's> {
    /// One piece.
    Piece,
    Object(Vec<Part<'v, 's>>),
    List(Vec<Part<'v, 's>>),
}

/// A part of a value.
struct Part<'v, 's> {
    element: Element,
    value: &'v Value,
    schema: Option<&'s Value>,
    /// Whether the schema names it: then it is there as long as it has content, else for itself.
    is_declared: bool,
}

/// What became of one value in another: each field of both is in at most one of the sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) added: Fields,
    pub(super) modified: Fields,
    pub(super) removed: Fields,
}

fn view<'v, 's>(value: &'v Value, schema: Option<&'s Value>) -> View<'v, 's> {
    let described = schema.and_then(Value::as_object);
    let word = |key: &str| described?.get(key)?.as_str();
    match value {
        Value::Object(_) if word("x-kubernetes-map-type") == Some("atomic") => View::Piece,
        Value::Object(fields) => View::Object(
            fields
                .iter()
                .map(|(name, value)| {
                    let (schema, is_declared) = declared(described, name);
                    Part {
                        element: Element::Field(name.clone()),
                        value,
                        schema,
                        is_declared,
                    }
                })
                .collect(),
        ),
        Value::Array(items) => {
            let item_schema = described.and_then(|schema| schema.get("items"));
            let element: &dyn Fn(&Value) -> Option<Element> = match word("x-kubernetes-list-type") {
                Some("map") => &|item: &Value| key(item, described?),
                Some("set") => &|item: &Value| {
                    (!item.is_object() && !item.is_array())
                        .then(|| Element::Value(item.to_string()))
                },
                _ => return View::Piece,
            };
            let mut parts: Vec<Part<'v, 's>> = Vec::with_capacity(items.len());
            let mut seen = BTreeSet::new();
            for value in items {
                // Items without a key, or two of one key, are nobody's in particular: such a list is one piece.
                let Some(element) = element(value).filter(|element| seen.insert(element.clone()))
                else {
                    return View::Piece;
                };
                parts.push(Part {
                    element,
                    value,
                    schema: item_schema,
                    is_declared: false,
                });
            }
            View::List(parts)
        }
        _ => View::Piece,
    }
}

/// The schema of a field, and whether it is named there.
fn declared<'s>(
    described: Option<&'s Map<String, Value>>,
    name: &str,
) -> (Option<&'s Value>, bool) {
    let is_declared = described
        .and_then(|schema| schema.get("properties"))
        .is_some_and(|declared| declared.get(name).is_some());
    let field = described.and_then(|schema| schema::field(schema, name));
    (field, is_declared)
}

/// The key of an item: its key fields, those that are absent as their defaults.
fn key(item: &Value, schema: &Map<String, Value>) -> Option<Element> {
    let item = item.as_object()?;
    let mut keys = Map::new();
    for name in schema.get("x-kubernetes-list-map-keys")?.as_array()? {
        let name = name.as_str()?;
        let default = || {
            let items = schema.get("items")?;
            items.get("properties")?.get(name)?.get("default")
        };
        keys.insert(name.to_owned(), item.get(name).or_else(default)?.clone());
    }
    Some(Element::Key(Value::Object(keys).to_string()))
}

/// Two items of one key, or one without, in a list that must not have them: where.
pub(super) fn ambiguous(value: &Value, schema: Option<&Value>, path: &str) -> Option<String> {
    match (view(value, schema), value, schema) {
        (View::Object(parts) | View::List(parts), ..) => parts.iter().find_map(|part| {
            ambiguous(part.value, part.schema, &format!("{path}{}", part.element))
        }),
        (View::Piece, Value::Array(_), Some(schema)) => {
            let kind = schema.get("x-kubernetes-list-type")?.as_str()?;
            matches!(kind, "map" | "set").then(|| path.to_owned())
        }
        (View::Piece, ..) => None,
    }
}

/// The fields that the value consists of.
pub(super) fn fields(value: &Value, schema: &Value) -> Fields {
    node(value, Some(schema), true).below
}

fn node(value: &Value, schema: Option<&Value>, is_declared: bool) -> Node {
    let (parts, is_object) = match view(value, schema) {
        View::Piece => return Node::leaf(),
        View::Object(parts) => (parts, true),
        View::List(parts) => (parts, false),
    };
    let mut whole = Node {
        member: !is_declared || (is_object && parts.is_empty()),
        below: Fields::default(),
    };
    for part in parts {
        let inner = node(part.value, part.schema, part.is_declared);
        whole.below.insert(part.element, inner);
    }
    whole
}

/// What became of the old value in the new one.
pub(super) fn compare(old: &Value, new: &Value, schema: &Value) -> Changes {
    let [added, modified, removed] = changed(old, new, Some(schema), true);
    Changes {
        added: added.below,
        modified: modified.below,
        removed: removed.below,
    }
}

/// As [`compare`] of two objects that have this one field, or none.
pub(super) fn compare_field(
    name: &str,
    old: Option<&Value>,
    new: Option<&Value>,
    schema: &Value,
) -> Changes {
    let (schema, is_declared) = declared(schema.as_object(), name);
    let nodes = match (old, new) {
        (Some(old), Some(new)) => changed(old, new, schema, is_declared),
        (old, new) => {
            let all = |value| node(value, schema, is_declared);
            let [added, removed] = [new, old].map(|value| value.map(all).unwrap_or_default());
            [added, Node::default(), removed]
        }
    };
    let [added, modified, removed] = nodes.map(|node| {
        let mut fields = Fields::default();
        fields.insert(Element::Field(name.to_owned()), node);
        fields
    });
    Changes {
        added,
        modified,
        removed,
    }
}

/// Added, modified, removed.
fn changed(old: &Value, new: &Value, schema: Option<&Value>, is_declared: bool) -> [Node; 3] {
    // Most of what is compared is equal, and that is found out without taking it apart.
    if old == new {
        return Default::default();
    }
    let (old_parts, new_parts) = match (view(old, schema), view(new, schema)) {
        (View::Object(old), View::Object(new)) | (View::List(old), View::List(new)) => (old, new),
        (View::Piece, View::Piece) => {
            return [Node::default(), Node::leaf(), Node::default()];
        }
        _ => {
            let added = node(new, schema, is_declared);
            return [added, Node::default(), node(old, schema, is_declared)];
        }
    };
    let mut all = [Node::default(), Node::default(), Node::default()];
    let mut before: BTreeMap<Element, Part<'_, '_>> = old_parts
        .into_iter()
        .map(|part| (part.element.clone(), part))
        .collect();
    for part in new_parts {
        let nodes = match before.remove(&part.element) {
            Some(old) => changed(old.value, part.value, part.schema, part.is_declared),
            None => [
                node(part.value, part.schema, part.is_declared),
                Node::default(),
                Node::default(),
            ],
        };
        for (whole, node) in all.iter_mut().zip(nodes) {
            whole.below.insert(part.element.clone(), node);
        }
    }
    for (element, part) in before {
        let gone = node(part.value, part.schema, part.is_declared);
        all[2].below.insert(element, gone);
    }
    all
}

/// The live value with everything that the configuration says.
pub(super) fn merge(live: &Value, config: &Value, schema: Option<&Value>) -> Value {
    let mut merged = live.clone();
    match (view(live, schema), view(config, schema), &mut merged) {
        (View::Object(_), View::Object(parts), Value::Object(fields)) => {
            for part in parts {
                let Element::Field(name) = part.element else {
                    continue;
                };
                let value = match fields.get(&name) {
                    Some(live) => merge(live, part.value, part.schema),
                    None => part.value.clone(),
                };
                fields.insert(name, value);
            }
            merged
        }
        (View::List(live), View::List(parts), Value::Array(_)) => {
            Value::Array(merge_items(live, &parts))
        }
        _ => config.clone(),
    }
}

/// The items of the configuration in its order, and those that only the live list has where they stood between the others.
fn merge_items(live: Vec<Part<'_, '_>>, parts: &[Part<'_, '_>]) -> Vec<Value> {
    let wanted: BTreeSet<&Element> = parts.iter().map(|part| &part.element).collect();
    let held: BTreeMap<&Element, &Value> = live
        .iter()
        .map(|part| (&part.element, part.value))
        .collect();
    let take = |part: &Part<'_, '_>| match held.get(&part.element) {
        Some(held) => merge(held, part.value, part.schema),
        None => part.value.clone(),
    };
    // Items of both, in the order in which they will be.
    let mut shared = parts
        .iter()
        .map(|part| &part.element)
        .filter(|element| held.contains_key(element))
        .peekable();
    let (mut left, mut right) = (live.iter().peekable(), parts.iter().peekable());
    let mut items = Vec::with_capacity(live.len() + parts.len());
    loop {
        match (left.peek(), right.peek()) {
            (Some(one), _) if !wanted.contains(&one.element) => {
                items.push(one.value.clone());
                left.next();
            }
            (Some(one), Some(other)) if one.element == other.element => {
                items.push(take(other));
                shared.next();
                left.next();
                right.next();
            }
            // It comes where the configuration has it.
            (Some(one), _) if shared.peek() != Some(&&one.element) => {
                left.next();
            }
            (_, Some(other)) => {
                items.push(take(other));
                shared.next_if_eq(&&other.element);
                right.next();
            }
            // Not reached: what both have is taken with the configuration's.
            (Some(_), None) => {
                left.next();
            }
            (None, None) => return items,
        }
    }
}

/// Takes out of the value what is in `last` and not in `kept`; objects and lists that this leaves empty go too.
pub(super) fn prune(value: &mut Value, schema: Option<&Value>, last: &Fields, kept: &Fields) {
    let elements: Vec<(Element, Option<&Value>, bool)> = match view(value, schema) {
        View::Piece => return,
        View::Object(parts) | View::List(parts) => parts
            .into_iter()
            .map(|part| {
                let is_piece = matches!(view(part.value, part.schema), View::Piece);
                (part.element, part.schema, is_piece)
            })
            .collect(),
    };
    // Whether the part at this place stays.
    let stays = |element: &Element, schema: Option<&Value>, is_piece: bool, part: &mut Value| {
        let Some(node) = last.get(element) else {
            return true;
        };
        let owned = kept.get(element);
        // An item is there for itself: who owns only something in it does not keep it, for it would lose its key.
        let is_item = !matches!(element, Element::Field(_));
        let is_kept = owned.is_some_and(|node| node.member || !is_item);
        if is_piece || (is_item && !is_kept) {
            return is_kept;
        }
        let nobody = Fields::default();
        let below = owned.map_or(&nobody, |node| &node.below);
        prune(part, schema, &node.below, below);
        let is_empty = match part {
            Value::Object(fields) => fields.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        owned.is_some() || !is_empty
    };
    match value {
        Value::Object(fields) => {
            for (element, schema, is_piece) in &elements {
                let Element::Field(name) = element else {
                    continue;
                };
                if let Some(part) = fields.get_mut(name)
                    && !stays(element, *schema, *is_piece, part)
                {
                    fields.remove(name);
                }
            }
        }
        Value::Array(items) => {
            let mut at = elements.iter();
            items.retain_mut(|part| match at.next() {
                Some((element, schema, is_piece)) => stays(element, *schema, *is_piece, part),
                None => true,
            });
        }
        _ => {}
    }
}
