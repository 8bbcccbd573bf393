//! Strategic merge patches, which kubectl sends for the kinds that it knows by type: merge patches that know which lists are sets, and
//! that carry orders, in keys with a dollar in front.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// How the items of a list are told apart, where a patch is merged into it. All other lists are replaced.
#[derive(Clone, Copy)]
enum Items {
    /// By this field.
    By(&'static str),
    /// They are texts.
    Whole,
}

/// The lists that are merged, as Kubernetes' types say it of theirs.
const MERGED: [(&str, Items); 3] = [
    ("metadata.finalizers", Items::Whole),
    ("metadata.ownerReferences", Items::By("uid")),
    ("status.conditions", Items::By("type")),
];

/// Items of a list that is merged, or of an order about one: each is compared with all.
const MAX_ITEMS: usize = 1000;
/// Longer than the path of any list that is merged.
const MAX_PATH: usize = 64;

const DELETE_ITEMS: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";
const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";

/// Applies the patch. Both sides are no deeper than a body may be, so recursion is safe and the result is no deeper.
///
/// # Errors
/// Which order is none.
pub(super) fn merge(
    held: &mut Map<String, Value>,
    patch: Map<String, Value>,
) -> Result<(), String> {
    fields("", held, patch)
}

fn fields(
    at: &str,
    held: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<(), String> {
    match order(&mut patch)? {
        Order::Delete => {
            held.clear();
            return Ok(());
        }
        Order::Merge => {}
        Order::Replace => {
            *held = patch;
            return Ok(());
        }
    }
    if let Some(retained) = patch.remove(RETAIN) {
        retain(held, &patch, retained)?;
    }
    let mut orders = Vec::new();
    for (name, value) in patch {
        let path = below(at, &name);
        if let Some(list) = name.strip_prefix(DELETE_ITEMS) {
            let gone = items(&name, value)?;
            if let Some(Value::Array(held)) = held.get_mut(list) {
                held.retain(|item| !gone.contains(item));
            }
        } else if let Some(list) = name.strip_prefix(ORDER) {
            // When everything is there that it speaks of.
            orders.push((list.to_owned(), items(&name, value)?));
        } else if name.starts_with('$') {
            return Err(unknown(&name));
        } else {
            field(&path, &name, held, value)?;
        }
    }
    for (name, order) in orders {
        let by = merged(&below(at, &name));
        if let (Some(by), Some(Value::Array(held))) = (by, held.get_mut(&name)) {
            let place = |item: &Value| order.iter().position(|one| by.same(one, item));
            // Those that the patch does not know of come last, as they stood.
            held.sort_by_cached_key(|item| place(item).unwrap_or(usize::MAX));
        }
    }
    Ok(())
}

/// Keeps what the order names, of which the patch must not say more.
fn retain(
    held: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    order: Value,
) -> Result<(), String> {
    const WRONG: &str = "invalid patch format of retainKeys";
    let Value::Array(retained) = order else {
        return Err(WRONG.to_owned());
    };
    few(RETAIN, retained.len())?;
    let retained: BTreeSet<&str> = retained.iter().filter_map(Value::as_str).collect();
    let mut set = patch
        .iter()
        .filter(|(name, value)| !value.is_null() && !name.starts_with('$'));
    if set.any(|(name, _)| !retained.contains(name.as_str())) {
        return Err(WRONG.to_owned());
    }
    held.retain(|name, _| retained.contains(name.as_str()));
    Ok(())
}

/// The path of a field, or one that no list has.
fn below(at: &str, name: &str) -> String {
    if at.len() + name.len() > MAX_PATH {
        return ".".to_owned();
    }
    match at {
        "" => name.to_owned(),
        at => format!("{at}.{name}"),
    }
}

fn field(
    path: &str,
    name: &str,
    held: &mut Map<String, Value>,
    patch: Value,
) -> Result<(), String> {
    match (patch, merged(path)) {
        (Value::Null, _) => {
            held.remove(name);
        }
        (Value::Object(patch), _) => {
            let below = held
                .entry(name)
                .or_insert_with(|| Value::Object(Map::new()));
            if !below.is_object() {
                *below = Value::Object(Map::new());
            }
            if let Value::Object(below) = below {
                fields(path, below, patch)?;
            }
        }
        (Value::Array(patch), Some(by)) => {
            let below = held.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            if !below.is_array() {
                *below = Value::Array(Vec::new());
            }
            if let Value::Array(below) = below {
                list(path, by, below, patch)?;
            }
        }
        (patch, _) => {
            held.insert(name.to_owned(), patch);
        }
    }
    Ok(())
}

/// Merges items into a list: each into the one that it means, the others behind it.
fn list(path: &str, by: Items, held: &mut Vec<Value>, patch: Vec<Value>) -> Result<(), String> {
    few(path, held.len() + patch.len())?;
    let mut ordered = Vec::new();
    for mut item in patch {
        let order = item.as_object_mut().map_or(Ok(Order::Merge), order)?;
        if let (Items::By(key), Value::Object(item)) = (by, &item)
            && order != Order::Replace
            && !item.contains_key(key)
        {
            return Err(no_key(item, key));
        }
        ordered.push((order, item));
    }
    // Said by an item that says nothing else, wherever it stands.
    if ordered.iter().any(|(order, _)| *order == Order::Replace) {
        held.clear();
    }
    for (order, item) in ordered {
        let known = held.iter().position(|held| by.same(held, &item));
        match (order, known, item) {
            (Order::Delete, Some(known), _) => {
                held.remove(known);
            }
            (Order::Merge, Some(known), Value::Object(item)) => {
                if let Some(Value::Object(held)) = held.get_mut(known) {
                    fields(path, held, item)?;
                }
            }
            (Order::Merge, None, item) => held.push(item),
            (Order::Delete, None, _) | (Order::Merge, Some(_), _) | (Order::Replace, ..) => {}
        }
    }
    Ok(())
}

/// What an object of a patch says of the one that it is merged into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Delete,
    Merge,
    Replace,
}

fn order(patch: &mut Map<String, Value>) -> Result<Order, String> {
    match patch.remove(PATCH) {
        None => Ok(Order::Merge),
        Some(Value::String(order)) if order == "delete" => Ok(Order::Delete),
        Some(Value::String(order)) if order == "merge" => Ok(Order::Merge),
        Some(Value::String(order)) if order == "replace" => Ok(Order::Replace),
        Some(order) => Err(unknown(&format!("{PATCH}: {order}"))),
    }
}

fn merged(path: &str) -> Option<Items> {
    let found = MERGED.iter().find(|(list, _)| *list == path);
    found.map(|(_, items)| *items)
}

impl Items {
    fn same(self, one: &Value, other: &Value) -> bool {
        match self {
            Self::By(field) => one.get(field).is_some() && one.get(field) == other.get(field),
            Self::Whole => one == other,
        }
    }
}

fn items(order: &str, value: Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(items) => few(order, items.len()).map(|()| items),
        _ => Err(format!("{order} must be a list")),
    }
}

fn few(what: &str, count: usize) -> Result<(), String> {
    match count > MAX_ITEMS {
        true => Err(format!(
            "{what:.100} would have {count} items, and {MAX_ITEMS} are merged at most"
        )),
        false => Ok(()),
    }
}

/// An item that may be any of a list, as Kubernetes says it: with the item as Go prints it.
fn no_key(item: &Map<String, Value>, key: &str) -> String {
    let fields = item.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name}:{text}"),
        value => format!("{name}:{value}"),
    });
    let fields = fields.collect::<Vec<_>>().join(" ");
    format!("map: map[{fields:.200}] does not contain declared merge key: {key}")
}

fn unknown(order: &str) -> String {
    format!("there is no order {order:.100}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn merged(held: &Value, patch: &Value) -> Value {
        let mut held = held.as_object().unwrap().clone();
        merge(&mut held, patch.as_object().unwrap().clone()).unwrap();
        held.into()
    }

    #[test]
    fn lists_that_are_sets_are_merged_and_others_replaced() {
        let held = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}, "spec": {"finalizers": ["k"]}});
        let patch = json!({"metadata": {"finalizers": ["b", "c"], "labels": {"x": null, "z": "3"}}, "spec": {"finalizers": ["l"]}});
        let after = json!({"metadata": {"finalizers": ["a", "b", "c"], "labels": {"y": "2", "z": "3"}}, "spec": {"finalizers": ["l"]}});
        assert_eq!(merged(&held, &patch), after);

        // As kubectl writes it when a finalizer goes.
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["b"]}});
        let after = merged(&held, &patch);
        assert_eq!(after["metadata"]["finalizers"], json!(["b"]));
        let patch =
            json!({"metadata": {"finalizers": ["c"], "$setElementOrder/finalizers": ["c", "b"]}});
        let after = merged(&held, &patch);
        assert_eq!(after["metadata"]["finalizers"], json!(["c", "b", "a"]));
    }

    #[test]
    fn items_are_told_apart_by_their_key() {
        let one = json!({"uid": "1", "name": "one", "kind": "K"});
        let two = json!({"uid": "2", "name": "two", "kind": "K"});
        let held = json!({"metadata": {"ownerReferences": [one, two]}});
        let owners = |patch: Value| {
            let patch = json!({"metadata": {"ownerReferences": patch}});
            merged(&held, &patch)["metadata"]["ownerReferences"].clone()
        };
        let new = json!({"uid": "1", "name": "new", "kind": "K"});
        assert_eq!(
            owners(json!([{"uid": "1", "name": "new"}])),
            json!([new, two])
        );
        assert_eq!(
            owners(json!([{"uid": "1", "$patch": "delete"}])),
            json!([two])
        );
        assert_eq!(owners(json!([new, {"$patch": "replace"}])), json!([new]));
    }

    #[test]
    fn orders_are_followed_or_refused() {
        let held = json!({"metadata": {"labels": {"x": "1", "y": "2"}, "annotations": {"a": "b"}}});
        let patch = json!({"metadata": {"labels": {"$patch": "replace", "z": "3"}, "annotations": {"$patch": "delete"}}});
        let after = json!({"metadata": {"labels": {"z": "3"}, "annotations": {}}});
        assert_eq!(merged(&held, &patch), after);
        let patch = json!({"metadata": {"labels": {"$retainKeys": ["y", "z"], "z": "3"}}});
        let after = merged(&held, &patch);
        assert_eq!(after["metadata"]["labels"], json!({"y": "2", "z": "3"}));
        for wrong in [
            json!({"$patch": "shuffle"}),
            json!({"$patch": 1}),
            json!({"$reverse/finalizers": []}),
            json!({"$setElementOrder/finalizers": "a"}),
            json!({"metadata": {"labels": {"$x": "1"}}}),
            json!({"metadata": {"finalizers": vec!["a"; MAX_ITEMS + 1]}}),
            json!({"metadata": {"$setElementOrder/finalizers": vec!["a"; MAX_ITEMS + 1]}}),
        ] {
            let patch = wrong.as_object().unwrap().clone();
            assert!(merge(&mut Map::new(), patch).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_that_are_missing_are_told_as_kubernetes_does() {
        let held = json!({"metadata": {"labels": {"x": "1", "y": "2"}}});
        let labels = |patch: Value| {
            let patch = json!({"metadata": {"labels": patch}});
            let mut held = held.as_object().unwrap().clone();
            merge(&mut held, patch.as_object().unwrap().clone())
        };
        let wrong = Err("invalid patch format of retainKeys".to_owned());
        assert_eq!(labels(json!({"$retainKeys": ["x"], "y": "3"})), wrong);
        assert_eq!(labels(json!({"$retainKeys": "x"})), wrong);
        let fine = json!({"$retainKeys": ["x"], "y": null, "$setElementOrder/z": []});
        assert_eq!(labels(fine), Ok(()));

        let owners = |patch: Value| {
            let patch = json!({"metadata": {"ownerReferences": [patch]}});
            merge(&mut Map::new(), patch.as_object().unwrap().clone())
        };
        let wrong = "map: map[kind:K name:one] does not contain declared merge key: uid";
        for patch in [
            json!({"name": "one", "kind": "K"}),
            json!({"name": "one", "kind": "K", "$patch": "delete"}),
        ] {
            assert_eq!(owners(patch), Err(wrong.to_owned()));
        }
        assert_eq!(owners(json!({"$patch": "replace"})), Ok(()));
    }
}
