//! Tests of the store.

mod model;
mod restart;
mod tokens;

use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::{Change, EventKind, EventsError, Key, Store, StoreConfig};
use crate::api::Revision;

const RESOURCE: &str = "things.example.com";

fn key(name: &str) -> Key {
    Key {
        resource: RESOURCE.into(),
        name: name.into(),
    }
}

async fn open(folder: &TempDir, config: StoreConfig) -> Store {
    Store::open(&folder.path().join("store.db"), config)
        .await
        .unwrap()
}

async fn put(store: &Store, name: &str, data: &'static str) -> Revision {
    store
        .write(key(name), move |_, revision| {
            (Change::Put(Bytes::from_static(data.as_bytes())), revision)
        })
        .await
        .unwrap()
}

async fn delete(store: &Store, name: &str) -> Option<Revision> {
    let decide = |current: Option<&super::Object>, revision| match current {
        Some(object) => (Change::Delete(object.data.clone()), Some(revision)),
        None => (Change::Keep, None),
    };
    store.write(key(name), decide).await.unwrap()
}

#[tokio::test]
async fn a_write_is_readable_when_it_is_answered() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder, StoreConfig::default()).await;
    let before = store.current();
    let revision = put(&store, "a", "1").await;
    assert!(revision > before);
    assert_eq!(store.current(), revision);
    let object = store.get(&key("a")).await.unwrap().unwrap();
    assert_eq!((object.revision, &object.data[..]), (revision, &b"1"[..]));
    assert_eq!(
        store.list(RESOURCE).await.unwrap(),
        (vec![object], revision)
    );
    let events = store.events_since(before, 10).await.unwrap();
    assert_eq!(
        (events.len(), events[0].kind, events[0].revision),
        (1, EventKind::Added, revision)
    );
    store.close().await;
    assert!(
        store
            .write(key("a"), |_, _| (Change::Keep, ()))
            .await
            .is_err(),
        "a closed store takes no writes"
    );
}

#[tokio::test]
async fn one_callers_conflict_does_not_abort_the_batch() {
    let folder = TempDir::new().unwrap();
    let config = StoreConfig {
        linger: Duration::from_millis(50),
        ..StoreConfig::default()
    };
    let store = open(&folder, config).await;
    let before = store.current();
    let only_new = |name: &'static str| {
        store.write(key(name), move |current, revision| match current {
            Some(_) => (Change::Keep, Err("exists")),
            None => (Change::Put(Bytes::from_static(b"x")), Ok(revision)),
        })
    };
    // One batch: the second and the third are about the same object, and the third must see the second.
    let (a, b, again, c) = tokio::join!(only_new("a"), only_new("b"), only_new("b"), only_new("c"));
    assert_eq!(again.unwrap(), Err("exists"));
    let given: Vec<u64> = [a, b, c]
        .into_iter()
        .map(|answer| answer.unwrap().unwrap().0)
        .collect();
    assert_eq!(
        given,
        [before.0 + 1, before.0 + 2, before.0 + 3],
        "a refused write uses no number"
    );
    store.close().await;
}

#[tokio::test]
async fn events_come_from_ring_and_database_alike() {
    let folder = TempDir::new().unwrap();
    let store = open(
        &folder,
        StoreConfig {
            ring: 2,
            ..StoreConfig::default()
        },
    )
    .await;
    let start = store.current();
    for (name, data) in [("a", "1"), ("a", "2"), ("b", "1"), ("a", "3")] {
        put(&store, name, data).await;
    }
    delete(&store, "a").await.unwrap();
    let all = store.events_since(start, 100).await.unwrap();
    let kinds: Vec<EventKind> = all.iter().map(|event| event.kind).collect();
    use EventKind::{Added, Deleted, Modified};
    assert_eq!(kinds, [Added, Modified, Added, Modified, Deleted]);
    assert_eq!(all[1].previous.as_deref(), Some(&b"1"[..]));
    for cut in 0..all.len() {
        let after = if cut == 0 {
            start
        } else {
            all[cut - 1].revision
        };
        assert_eq!(
            store.events_since(after, 100).await.unwrap(),
            all[cut..],
            "from {after}, whatever answers it"
        );
    }
    let ahead = store.current().next();
    assert!(matches!(
        store.events_since(ahead, 1).await,
        Err(EventsError::Ahead { .. })
    ));
    store.close().await;
}

#[tokio::test]
async fn compaction_forgets_events_and_keeps_objects() {
    let folder = TempDir::new().unwrap();
    let store = open(
        &folder,
        StoreConfig {
            ring: 1,
            ..StoreConfig::default()
        },
    )
    .await;
    let first = put(&store, "a", "1").await;
    let second = put(&store, "b", "2").await;
    let third = put(&store, "c", "3").await;
    store.compact(second).await.unwrap();
    assert!(
        matches!(store.events_since(first, 10).await, Err(EventsError::Compacted { oldest, .. }) if oldest == second)
    );
    assert_eq!(
        store.events_since(second, 10).await.unwrap()[0].revision,
        third
    );
    assert_eq!(store.list(RESOURCE).await.unwrap().0.len(), 3);
    store.close().await;
    let store = open(&folder, StoreConfig::default()).await;
    assert_eq!(store.compacted(), second, "what was forgotten stays so");
    store.close().await;
}

#[tokio::test]
async fn old_events_go_by_themselves_but_never_the_last_ones() {
    let folder = TempDir::new().unwrap();
    let config = StoreConfig {
        keep_events: 5,
        keep_for: Duration::ZERO,
        compact_every: Duration::from_millis(5),
        ring: 1,
        ..StoreConfig::default()
    };
    let store = open(&folder, config).await;
    let start = store.current();
    for _ in 0..20 {
        put(&store, "a", "x").await;
    }
    // Events count as old from the second after the one they were written in.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while store.compacted() == start {
        assert!(
            tokio::time::Instant::now() < deadline,
            "nothing was forgotten"
        );
        put(&store, "a", "x").await;
    }
    // Forgetting goes on meanwhile, so where the kept ones begin may move once more.
    let kept = loop {
        match store.events_since(store.compacted(), 100).await {
            Ok(kept) => break kept,
            Err(error) => assert!(matches!(error, EventsError::Compacted { .. }), "{error}"),
        }
    };
    assert!(kept.len() >= 5, "{} kept", kept.len());
    store.close().await;
}

#[tokio::test]
async fn a_decision_that_panics_takes_nobody_else_along() {
    let folder = TempDir::new().unwrap();
    let config = StoreConfig {
        linger: Duration::from_millis(50),
        ..StoreConfig::default()
    };
    let store = open(&folder, config).await;
    let bad = store.write(key("a"), |_, _| -> (Change, ()) {
        panic!("this panic belongs to the test")
    });
    let (bad, good) = tokio::join!(bad, put(&store, "b", "1"));
    assert!(matches!(bad, Err(super::StoreError::Panicked)), "{bad:?}");
    assert_eq!(store.current(), good);
    assert!(store.get(&key("a")).await.unwrap().is_none());
    assert!(store.is_open());
    assert!(put(&store, "a", "2").await > good);
    store.close().await;
    assert!(!store.is_open());
}

#[tokio::test]
async fn numbers_can_be_skipped_by_a_write() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder, StoreConfig::default()).await;
    let first = put(&store, "a", "1").await;
    let far = Revision(first.0 + 1_000_000);
    let write = |at| {
        store.write(key("a"), move |_, _| {
            (Change::PutAt(at, Bytes::from_static(b"2")), ())
        })
    };
    write(far).await.unwrap();
    assert_eq!(store.current(), far);
    let next = put(&store, "a", "3").await;
    assert_eq!(next, far.next());
    store.close().await;
    let store = open(&folder, StoreConfig::default()).await;
    for (cursor, events) in [(first, Some(2)), (first.next(), None), (far, Some(1))] {
        let found = store.events_since(cursor, 10).await;
        assert_eq!(found.ok().map(|found| found.len()), events, "{cursor}");
    }
    store.close().await;
}
