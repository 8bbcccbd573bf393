//! The store against a model in memory: any history, any places to resume from.

use std::collections::BTreeMap;

use bytes::Bytes;
use keel_control::api::Revision;
use keel_control::store::{Change, EventKind, Object, Store, StoreConfig};
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::place::{Place, long};
use super::{RESOURCE, key};

#[derive(Clone, Debug)]
enum Step {
    Compact(usize),
    Delete(u8),
    Keep(u8),
    Put(u8, u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4_u8, any::<u8>()).prop_map(|(name, data)| Step::Put(name, data)),
        3 => (0..4_u8).prop_map(Step::Delete),
        2 => (0..4_u8).prop_map(Step::Keep),
        1 => (0..40_usize).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

/// What the store should hold: objects, and the history since the last compaction.
#[derive(Default)]
struct Model {
    objects: BTreeMap<String, (Revision, Bytes)>,
    history: Vec<(Revision, EventKind, String, Bytes, Option<Bytes>)>,
    compacted: Revision,
}

async fn write(store: &Store, model: &mut Model, name: u8, data: Option<Bytes>) {
    let name = name.to_string();
    let wanted = data.clone();
    let decide = move |current: Option<&Object>, revision| match (&wanted, current) {
        (Some(data), _) => (Change::Put(data.clone()), Some(revision)),
        (None, Some(object)) => (Change::Delete(object.data.clone()), Some(revision)),
        (None, None) => (Change::Keep, None),
    };
    let revision = store.write(key(&name), decide).await.unwrap();
    let previous = model.objects.get(&name).map(|(_, data)| data.clone());
    let (kind, object) = match (data, &previous) {
        (Some(data), Some(_)) => (EventKind::Modified, data),
        (Some(data), None) => (EventKind::Added, data),
        (None, Some(data)) => (EventKind::Deleted, data.clone()),
        (None, None) => return assert_eq!(revision, None),
    };
    let revision = revision.unwrap();
    match kind {
        EventKind::Deleted => model.objects.remove(&name),
        _ => model
            .objects
            .insert(name.clone(), (revision, object.clone())),
    };
    model.history.push((revision, kind, name, object, previous));
}

async fn compare(store: &Store, model: &Model) {
    let (objects, _) = store.list(RESOURCE).await.unwrap();
    let found: Vec<(Revision, Bytes)> = objects
        .into_iter()
        .map(|object| (object.revision, object.data))
        .collect();
    let expected: Vec<(Revision, Bytes)> = model.objects.values().cloned().collect();
    assert_eq!(found, expected);
    assert_eq!(store.compacted(), model.compacted);
    // Resume from everywhere that is still there; also in small pages.
    let starts = model
        .history
        .iter()
        .map(|event| event.0)
        .filter(|revision| *revision >= model.compacted);
    for start in starts.chain([model.compacted]) {
        let mut found = Vec::new();
        let mut cursor = start;
        loop {
            let page = store.events_since(cursor, 3).await.unwrap();
            let Some(last) = page.last() else { break };
            cursor = last.revision;
            found.extend(page.iter().map(|event| {
                (
                    event.revision,
                    event.kind,
                    event.key.name.clone(),
                    event.object.clone(),
                    event.previous.clone(),
                )
            }));
        }
        let expected: Vec<_> = model
            .history
            .iter()
            .filter(|event| event.0 > start)
            .cloned()
            .collect();
        assert_eq!(found, expected, "after {start}");
        compare_pages(store, model, start).await;
    }
}

/// Lists in pages are of the revision asked for, whatever came after it.
async fn compare_pages(store: &Store, model: &Model, at: Revision) {
    let mut expected: BTreeMap<&str, &Bytes> = BTreeMap::new();
    let now = model.objects.iter();
    expected.extend(now.map(|(name, (_, data))| (name.as_str(), data)));
    // Undone from the last: what a change found is what was there before it.
    for (_, _, name, _, previous) in model.history.iter().rev().take_while(|event| event.0 > at) {
        match previous {
            Some(data) => expected.insert(name, data),
            None => expected.remove(name.as_str()),
        };
    }
    let mut found: Vec<(String, Bytes)> = Vec::new();
    loop {
        let after = found.last().map_or("", |(name, _)| name.as_str());
        let behind = store.behind(RESOURCE, at, after).await.unwrap();
        assert_eq!(behind, expected.len() - found.len(), "at {at}");
        let page = store.page(RESOURCE, Some(at), after, 2).await.unwrap();
        assert_eq!(page.more, behind > 2, "at {at}");
        found.extend(page.objects);
        if !page.more {
            break;
        }
    }
    let found: Vec<(&str, &Bytes)> = found
        .iter()
        .map(|(name, data)| (name.as_str(), data))
        .collect();
    assert_eq!(found, Vec::from_iter(expected), "at {at}");
}

async fn run(place: &Place, steps: Vec<Step>) {
    // A ring of three, so that most resumes cross from the database into memory; no waiting for company.
    let config = StoreConfig {
        ring: 3,
        linger: std::time::Duration::ZERO,
        ..StoreConfig::default()
    };
    let mut store = place.open(config.clone()).await;
    let mut model = Model {
        compacted: store.current(),
        ..Model::default()
    };
    for step in steps {
        match step {
            Step::Put(name, data) => {
                write(&store, &mut model, name, Some(Bytes::from(vec![data]))).await
            }
            Step::Delete(name) => write(&store, &mut model, name, None).await,
            Step::Keep(name) => {
                let before = store.current();
                store
                    .write(key(&name.to_string()), |_, _| (Change::Keep, ()))
                    .await
                    .unwrap();
                assert_eq!(store.current(), before);
            }
            Step::Compact(index) => {
                if let Some(event) = model.history.get(index) {
                    store.compact(event.0).await.unwrap();
                    model.compacted = model.compacted.max(event.0);
                }
            }
            Step::Reopen => {
                let before = store.current();
                store.close().await;
                store = place.open(config.clone()).await;
                assert!(
                    store.current() > before,
                    "an opening begins with a new number"
                );
            }
        }
    }
    let revisions: Vec<Revision> = model.history.iter().map(|event| event.0).collect();
    assert!(
        revisions.is_sorted_by(|a, b| a < b),
        "ordered and unique: {revisions:?}"
    );
    compare(&store, &model).await;
    store.close().await;
}

/// Runs histories until one is not as the model says; that one is made as short as it goes and printed.
fn histories(runtime: &Runtime, cases: u32, place: impl Fn() -> Place) {
    let cases = if long() { 20 * cases } else { cases };
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&proptest::collection::vec(step(), 1..40), |steps| {
            runtime.block_on(run(&place(), steps));
            Ok(())
        })
        .unwrap();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn behaves_like_a_map_with_a_history_in_sqlite() {
    histories(&runtime(), 48, Place::sqlite);
}

#[test]
fn behaves_like_a_map_with_a_history_in_postgresql() {
    let runtime = runtime();
    let Some(server) = super::server::shared() else {
        return;
    };
    histories(&runtime, 16, || runtime.block_on(Place::on(&server)));
}
