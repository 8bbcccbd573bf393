//! Properties of ownership, on the schema of Router: it has objects, maps, sets, keyed lists and lists of one piece.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::kind;

fn routers() -> &'static Kind {
    kind::find("edge.example.com", "v1", "routers").unwrap()
}

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

fn empty() -> Map<String, Value> {
    map(json!({
        "apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "a"}, "spec": {},
    }))
}

fn writer(manager: &str) -> Writer {
    Writer {
        manager: manager.into(),
        status: false,
        at: "2026-01-01T00:00:00Z".into(),
    }
}

fn applied(
    held: &Map<String, Value>,
    manager: &str,
    config: &Value,
    force: bool,
) -> Result<Map<String, Value>, Status> {
    apply(
        routers(),
        held,
        config.as_object().unwrap(),
        &writer(manager),
        force,
    )
}

fn causes(status: &Status) -> Vec<String> {
    let details = status.details.as_ref().unwrap();
    details
        .causes
        .iter()
        .map(|cause| cause.field.clone())
        .collect()
}

#[test]
fn what_an_applier_says_no_more_goes_unless_another_owns_it() {
    let a =
        json!({"metadata": {"labels": {"x": "1", "y": "1"}}, "spec": {"frps": {"bindPort": 1}}});
    let b = json!({"metadata": {"labels": {"x": "1"}}});
    let held = applied(&empty(), "a", &a, false).unwrap();
    let held = applied(&held, "b", &b, false).unwrap();
    let less = applied(&held, "a", &json!({}), false).unwrap();
    assert_eq!(
        less["metadata"]["labels"],
        json!({"x": "1"}),
        "both owned x"
    );
    assert_eq!(less.get("spec"), None, "an emptied object goes");
    let nothing = applied(&less, "b", &json!({}), false).unwrap();
    assert_eq!(nothing["metadata"].get("labels"), None);
    assert_eq!(nothing["metadata"].get("managedFields"), None);
}

#[test]
fn conflicts_are_worded_as_kubernetes_does() {
    let mut held = empty();
    held["spec"] = json!({"frps": {"bindPort": 1, "dashboardPort": 2}});
    track(
        routers(),
        &Map::new(),
        &mut held,
        None,
        &writer("kubectl-client-side-apply"),
    );
    let one = json!({"spec": {"frps": {"bindPort": 5}}});
    let refused = applied(&held, "me", &one, false).unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using edge.example.com/v1: .spec.frps.bindPort"
    );
    assert_eq!(refused.code, 409);
    let details = refused.details.unwrap();
    assert_eq!(details.causes[0].reason, "FieldManagerConflict");
    assert_eq!(
        details.causes[0].message,
        "conflict with \"kubectl-client-side-apply\" using edge.example.com/v1"
    );
    let two = json!({"spec": {"frps": {"bindPort": 5, "dashboardPort": 6}}});
    let refused = applied(&held, "me", &two, false).unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using edge.example.com/v1:\n\
         - .spec.frps.bindPort\n- .spec.frps.dashboardPort"
    );
    let forced = applied(&held, "me", &two, true).unwrap();
    assert_eq!(forced["spec"], two["spec"]);
    let managers = &forced["metadata"]["managedFields"];
    assert_eq!(managers.as_array().unwrap().len(), 1, "{managers}");
    assert_eq!(managers[0]["manager"], "me");
}

#[test]
fn items_are_known_by_their_keys_with_defaults() {
    let service = |more: Value| {
        let mut service = json!({"name": "mysql", "port": 3306});
        service.as_object_mut().unwrap().extend(map(more));
        json!({"spec": {"advertisedServices": [service]}})
    };
    let held = applied(&empty(), "a", &service(json!({"weight": 5})), false).unwrap();
    let fields = held["metadata"]["managedFields"][0]["fieldsV1"].to_string();
    assert!(
        fields.contains(
            r#"k:{\"name\":\"mysql\",\"namespace\":\"default\",\"port\":3306,\"protocol\":\"TCP\"}"#
        ),
        "{fields}"
    );
    // The same item, though it names its namespace.
    let other = service(json!({"namespace": "default", "priority": 2}));
    let both = applied(&held, "b", &other, false).unwrap();
    let services = both["spec"]["advertisedServices"].as_array().unwrap();
    assert_eq!(services.len(), 1);
    assert_eq!(
        (&services[0]["weight"], &services[0]["priority"]),
        (&json!(5), &json!(2))
    );
    let refused = applied(&both, "b", &service(json!({"weight": 6})), false).unwrap_err();
    assert_eq!(
        causes(&refused),
        [
            r#".spec.advertisedServices[name="mysql",namespace="default",port=3306,protocol="TCP"].weight"#
        ]
    );
    // An owner keeps its item alive; what the other said of it goes.
    let left = applied(&both, "a", &json!({}), false).unwrap();
    let services = left["spec"]["advertisedServices"].as_array().unwrap();
    assert_eq!((services.len(), services[0].get("weight")), (1, None));
    let twice = json!({"spec": {"advertisedServices": [{"name": "x", "port": 1}, {"name": "x", "port": 1}]}});
    let refused = applied(&empty(), "a", &twice, false).unwrap_err();
    assert!(
        refused.message.contains(".spec.advertisedServices"),
        "{refused}"
    );
}

#[test]
fn an_item_goes_with_its_last_owner() {
    let service = |more: Value| {
        let mut service = map(json!({"name": "m", "port": 1}));
        service.extend(map(more));
        json!({"spec": {"advertisedServices": [service]}})
    };
    let held = applied(&empty(), "a", &service(json!({})), false).unwrap();
    let mut written = held.clone();
    written["spec"] = service(json!({"weight": 1}))["spec"].clone();
    track(routers(), &held, &mut written, None, &writer("b"));
    // Who changed something in it does not own it, as in Kubernetes: nothing without a key is left of it.
    let left = applied(&written, "a", &json!({}), false).unwrap();
    assert_eq!(left["spec"], json!({"advertisedServices": []}));
    assert_eq!(left["metadata"].get("managedFields"), None);
}

#[test]
fn an_object_of_before_belongs_to_whoever_was_before() {
    let mut held = empty();
    held["metadata"]["resourceVersion"] = "1".into();
    held["spec"] = json!({"frps": {"bindPort": 1}});
    let mut written = held.clone();
    written["spec"] = json!({"frps": {"bindPort": 2}});
    track(routers(), &held, &mut written, None, &writer("u"));
    assert_eq!(written["metadata"].get("managedFields"), None);
    let config = json!({"spec": {"frps": {"bindPort": 3}}});
    let refused = applied(&written, "a", &config, false).unwrap_err();
    assert!(
        refused.message.contains("\"before-first-apply\""),
        "{refused}"
    );
}

#[test]
fn the_oldest_of_many_updaters_are_one() {
    let mut held = empty();
    track(routers(), &Map::new(), &mut held, None, &writer("first"));
    for index in 0..20 {
        let mut next = held.clone();
        next["metadata"]["labels"][format!("l{index}")] = "1".into();
        let who = Writer {
            at: format!("2026-01-01T00:00:{index:02}Z"),
            ..writer(&format!("u{index}"))
        };
        let before = if index == 0 { Map::new() } else { held };
        track(routers(), &before, &mut next, None, &who);
        held = next;
    }
    let managers: Vec<&str> = held["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["manager"].as_str().unwrap())
        .collect();
    assert_eq!(managers.len(), 10);
    assert!(managers.contains(&"ancient-changes") && managers.contains(&"u19"));
    let owned = managed(&held).all();
    assert!(owned.paths().contains(&".metadata.labels.l0".to_owned()));
}

#[test]
fn owners_can_be_rearranged_and_forgotten_by_who_writes_them() {
    let config = json!({"spec": {"frps": {"bindPort": 1}}});
    let held = applied(&empty(), "a", &config, false).unwrap();
    let mut entries = held["metadata"]["managedFields"].clone();
    entries[0]["manager"] = "b".into();
    let mut next = held.clone();
    track(routers(), &held, &mut next, Some(&entries), &writer("u"));
    assert_eq!(next["metadata"]["managedFields"][0]["manager"], "b");
    let mut nobody = held.clone();
    track(
        routers(),
        &held,
        &mut nobody,
        Some(&json!([{}])),
        &writer("u"),
    );
    assert_eq!(nobody["metadata"].get("managedFields"), None);
    let mut odd = held.clone();
    track(
        routers(),
        &held,
        &mut odd,
        Some(&json!([{"manager": 5}])),
        &writer("u"),
    );
    assert_eq!(odd, held, "what cannot be read is ignored");
}

/// What somebody may say about a Router.
fn config() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map("[ab]", "[12]", 0..3);
    let finalizers = prop::collection::btree_set("x/[yz]", 0..3);
    let ports = prop::collection::btree_map(
        prop::sample::select(vec!["bindPort", "dashboardPort", "kcpBindPort"]),
        1..3_u16,
        0..3,
    );
    let addresses = prop::collection::vec("[mn]:1", 0..3);
    let more = prop::collection::btree_map(
        prop::sample::select(vec!["weight", "priority"]),
        1..3_u16,
        0..3,
    );
    let services = prop::collection::btree_map("[mn]", more, 0..3);
    (labels, finalizers, ports, addresses, services).prop_map(said)
}

/// Labels, finalizers, ports, addresses, and services with more about them.
type Said = (
    BTreeMap<String, String>,
    BTreeSet<String>,
    BTreeMap<&'static str, u16>,
    Vec<String>,
    BTreeMap<String, BTreeMap<&'static str, u16>>,
);

fn said((labels, finalizers, ports, addresses, services): Said) -> Value {
    let services: Vec<Value> = services
        .into_iter()
        .map(|(name, more)| {
            let mut service = json!({"name": name, "port": 1});
            for (key, value) in more {
                service[key] = value.into();
            }
            service
        })
        .collect();
    let mut said = json!({});
    let mut say = |pointer: [&str; 2], value: Value, is_empty: bool| {
        if !is_empty {
            said[pointer[0]][pointer[1]] = value;
        }
    };
    say(["metadata", "labels"], json!(labels), labels.is_empty());
    say(
        ["metadata", "finalizers"],
        json!(finalizers),
        finalizers.is_empty(),
    );
    say(["spec", "frps"], json!(ports), ports.is_empty());
    say(
        ["spec", "addresses"],
        json!(addresses),
        addresses.is_empty(),
    );
    say(
        ["spec", "advertisedServices"],
        json!(services),
        services.is_empty(),
    );
    said
}

#[derive(Clone, Debug)]
enum Step {
    Apply(&'static str, Value, bool),
    Replace(&'static str, Value),
}

fn step() -> impl Strategy<Value = Step> {
    let who = || prop::sample::select(vec!["a", "b", "c"]);
    prop_oneof![
        4 => (who(), config(), any::<bool>()).prop_map(|(who, config, force)| Step::Apply(who, config, force)),
        1 => (who(), config()).prop_map(|(who, config)| Step::Replace(who, config)),
    ]
}

/// Everything that the object says.
fn says(object: &Map<String, Value>) -> Fields {
    let mut object = object.clone();
    // An empty spec stands in every object and is nobody's.
    object.retain(|field, value| field != "spec" || *value != json!({}));
    walk::fields(&writer("").part(&object), routers().schema())
}

fn play(steps: &[Step]) -> Map<String, Value> {
    let mut held = empty();
    // A first owner, so that owners are noted from the beginning.
    track(routers(), &Map::new(), &mut held, None, &writer("first"));
    for step in steps {
        let next = match step {
            Step::Apply(who, config, force) => applied(&held, who, config, *force),
            Step::Replace(who, config) => {
                let mut next = empty();
                next["metadata"]["managedFields"] = held["metadata"]
                    .get("managedFields")
                    .cloned()
                    .unwrap_or_default();
                put(
                    &mut next,
                    writer("").part(config.as_object().unwrap()),
                    false,
                );
                track(routers(), &held, &mut next, None, &writer(who));
                Ok(next)
            }
        };
        held = next.unwrap_or(held);
    }
    held
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn applying_again_changes_nothing(steps in prop::collection::vec(step(), 0..6), config in config(), force in any::<bool>()) {
        let held = play(&steps);
        if let Ok(once) = applied(&held, "a", &config, force) {
            prop_assert_eq!(applied(&once, "a", &config, false), Ok(once));
        }
    }

    /// As long as everybody applies, an object is what its owners say.
    #[test]
    fn what_nobody_owns_is_gone(steps in prop::collection::vec(step(), 0..8)) {
        let steps: Vec<Step> = steps.into_iter().filter(|step| matches!(step, Step::Apply(..))).collect();
        let held = play(&steps);
        let mut unowned = says(&held);
        unowned.remove(&managed(&held).all());
        prop_assert!(unowned.is_empty(), "{:?} in {}", unowned.paths(), Value::Object(held));
    }

    #[test]
    fn without_force_nobody_loses_a_value(steps in prop::collection::vec(step(), 0..6), config in config()) {
        let held = play(&steps);
        let schema = routers().schema();
        let other = |manager: &str| manager != "a";
        match applied(&held, "a", &config, false) {
            Ok(next) => {
                let changes = walk::compare(&writer("").part(&held), &writer("").part(&next), schema);
                for entry in managed(&held).iter().filter(|entry| other(&entry.owner.manager)) {
                    prop_assert!(entry.fields.intersection(&changes.modified).is_empty());
                    // What goes with an item goes for who changed something in it, not for who said it.
                    if entry.owner.operation == Operation::Apply {
                        prop_assert!(entry.fields.intersection(&changes.removed).is_empty());
                    }
                }
            }
            Err(status) => {
                prop_assert_eq!(status.code, 409);
                let owned: BTreeSet<String> = managed(&held).iter().flat_map(|entry| entry.fields.paths()).collect();
                let named = causes(&status);
                prop_assert!(!named.is_empty() && named.iter().all(|path| owned.contains(path)));
                // By force it happens, and the configuration is what the object says.
                let forced = applied(&held, "a", &config, true).unwrap();
                let mut missing = says(&map(config));
                missing.remove(&says(&forced));
                prop_assert!(missing.is_empty());
            }
        }
    }

    #[test]
    fn a_field_is_compared_as_in_its_object(old in prop::option::of(config()), new in prop::option::of(config())) {
        let spec = |config: &Option<Value>| config.as_ref().and_then(|config| config.get("spec")).cloned();
        let (old, new) = (spec(&old), spec(&new));
        let whole = |spec: &Option<Value>| spec.as_ref().map_or(json!({}), |spec| json!({"spec": spec}));
        prop_assert_eq!(
            walk::compare_field("spec", old.as_ref(), new.as_ref(), routers().schema()),
            walk::compare(&whole(&old), &whole(&new), routers().schema())
        );
    }

    #[test]
    fn owners_are_written_and_read_back(steps in prop::collection::vec(step(), 0..8)) {
        let entries = managed(&play(&steps));
        let encoded = entries.encode();
        let again = Entries::decode(&encoded).unwrap();
        prop_assert_eq!(again.encode(), encoded);
        prop_assert_eq!(again.all(), entries.all());
    }

    #[test]
    fn what_is_no_set_of_fields_is_refused(text in "[fkvi.]{0,2}:?[a-z0-9{}\":]{0,8}") {
        if let Some(fields) = Fields::decode(&json!({text: {}})) {
            prop_assert_eq!(Fields::decode(&fields.encode()), Some(fields));
        }
    }
}
