//! What every store must do, whatever database it is in.

use std::time::Duration;

use bytes::Bytes;
use keel_control::api::Revision;
use keel_control::store::{Change, EventKind, EventsError, StoreConfig, StoreError};
use tokio::task::JoinSet;

use super::both::on_both;
use super::place::Place;
use super::{RESOURCE, delete, key, put};

on_both! {
    a_write_is_readable_when_it_is_answered,
    one_callers_conflict_does_not_abort_the_batch,
    events_come_from_ring_and_database_alike,
    events_are_read_in_parts_of_so_many_bytes,
    compaction_forgets_events_and_keeps_objects,
    old_events_go_by_themselves_but_never_the_last_ones,
    a_clock_that_is_set_makes_no_event_old,
    writes_go_on_while_events_are_forgotten,
    a_decision_that_panics_takes_nobody_else_along,
    numbers_can_be_skipped_by_a_write,
    a_list_in_pages_is_one_state,
}

async fn a_write_is_readable_when_it_is_answered(place: Place) {
    let store = place.open(StoreConfig::default()).await;
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

async fn one_callers_conflict_does_not_abort_the_batch(place: Place) {
    let config = StoreConfig {
        linger: Duration::from_millis(50),
        ..StoreConfig::default()
    };
    let store = place.open(config).await;
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

async fn events_come_from_ring_and_database_alike(place: Place) {
    let store = place
        .open(StoreConfig {
            ring: 2,
            ..StoreConfig::default()
        })
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

async fn events_are_read_in_parts_of_so_many_bytes(place: Place) {
    // From memory, and from the database.
    for ring in [100, 1] {
        let config = StoreConfig {
            ring,
            ..StoreConfig::default()
        };
        let store = place.open(config).await;
        let start = store.current();
        for (name, bytes) in [("a", 1000), ("a", 1500), ("b", 300), ("c", 1200)] {
            let data = Bytes::from(vec![b'x'; bytes]);
            let decide = |_: Option<&_>, _| (Change::Put(data), ());
            store.write(key(name), decide).await.unwrap();
        }
        // With what they were before, the parts end at 1000, 3500, 3800, 5000; in a database there may be a little more to each.
        for (bytes, max, found) in [
            (1, 9, 1),
            (950, 9, 1),
            (1050, 9, 2),
            (3450, 9, 2),
            (3550, 9, 3),
            (3750, 9, 3),
            (3850, 9, 4),
            (usize::MAX, 9, 4),
            (usize::MAX, 3, 3),
        ] {
            let events = store.events_within(start, max, bytes).await.unwrap();
            assert_eq!(events.len(), found, "{bytes} bytes, ring of {ring}");
        }
        for name in ["a", "b", "c"] {
            delete(&store, name).await.unwrap();
        }
        store.close().await;
    }
}

async fn compaction_forgets_events_and_keeps_objects(place: Place) {
    let store = place
        .open(StoreConfig {
            ring: 1,
            ..StoreConfig::default()
        })
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
    let store = place.open(StoreConfig::default()).await;
    assert_eq!(store.compacted(), second, "what was forgotten stays so");
    store.close().await;
}

async fn old_events_go_by_themselves_but_never_the_last_ones(place: Place) {
    let config = StoreConfig {
        keep_events: 5,
        keep_for: Duration::ZERO,
        compact_every: Duration::from_millis(5),
        ring: 1,
        ..StoreConfig::default()
    };
    let store = place.open(config).await;
    let start = store.current();
    for _ in 0..20 {
        put(&store, "a", "x").await;
    }
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

async fn a_clock_that_is_set_makes_no_event_old(place: Place) {
    let config = StoreConfig {
        keep_events: 1,
        compact_every: Duration::from_millis(5),
        ..StoreConfig::default()
    };
    let store = place.open(config.clone()).await;
    let start = store.current();
    for _ in 0..5 {
        put(&store, "a", "x").await;
    }
    place.sql("UPDATE event SET at = 0").await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        put(&store, "a", "x").await;
    }
    assert_eq!(store.compacted(), start);
    store.close().await;
    // Of what it did not see itself a process knows nothing else.
    let store = place.open(config).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while store.compacted() == start {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.close().await;
}

async fn writes_go_on_while_events_are_forgotten(place: Place) {
    let store = place.open(StoreConfig::default()).await;
    let base = store.current().0;
    let mut writers = JoinSet::new();
    for writer in 0..50 {
        let store = store.clone();
        writers.spawn(async move {
            for _ in 0..100 {
                put(&store, &writer.to_string(), "x").await;
            }
        });
    }
    writers.join_all().await;

    let upto = Revision(base + 3500);
    let compaction = store.compact(upto);
    tokio::pin!(compaction);
    let mut answered = 0;
    loop {
        tokio::select! {
            biased;
            done = &mut compaction => break done.unwrap(),
            _ = put(&store, "a", "1") => answered += 1,
        }
    }
    assert!(answered >= 2, "{answered} writes went between 3,500 events");
    assert_eq!(store.compacted(), upto);
    store.close().await;

    // What is old goes at one look, though in steps.
    let config = StoreConfig {
        keep_events: 1,
        keep_for: Duration::ZERO,
        compact_every: Duration::from_secs(3600),
        ..StoreConfig::default()
    };
    let store = place.open(config).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while store.compacted().0 < base + 5000 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{} were forgotten",
            store.compacted().0 - base
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.close().await;
}

async fn a_decision_that_panics_takes_nobody_else_along(place: Place) {
    let config = StoreConfig {
        linger: Duration::from_millis(50),
        ..StoreConfig::default()
    };
    let store = place.open(config).await;
    let bad = store.write(key("a"), |_, _| -> (Change, ()) {
        panic!("this panic belongs to the test")
    });
    let (bad, good) = tokio::join!(bad, put(&store, "b", "1"));
    assert!(matches!(bad, Err(StoreError::Panicked)), "{bad:?}");
    assert_eq!(store.current(), good);
    assert!(store.get(&key("a")).await.unwrap().is_none());
    assert!(store.is_open());
    assert!(put(&store, "a", "2").await > good);
    store.close().await;
    assert!(!store.is_open());
}

async fn numbers_can_be_skipped_by_a_write(place: Place) {
    let store = place.open(StoreConfig::default()).await;
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
    let store = place.open(StoreConfig::default()).await;
    for (cursor, events) in [(first, Some(2)), (first.next(), None), (far, Some(1))] {
        let found = store.events_since(cursor, 10).await;
        assert_eq!(found.ok().map(|found| found.len()), events, "{cursor}");
    }
    store.close().await;
}

async fn a_list_in_pages_is_one_state(place: Place) {
    let store = place.open(StoreConfig::default()).await;
    let start = store.current();
    for name in ["a", "b", "c", "d", "e"] {
        put(&store, name, "1").await;
    }
    put(&store, "b", "2").await;
    let first = store.page(RESOURCE, None, "", 2).await.unwrap();
    assert!(first.more);
    let at = first.revision;
    // Everything that can happen to an object happens between the pages.
    delete(&store, "c").await.unwrap();
    put(&store, "d", "2").await;
    put(&store, "d", "3").await;
    put(&store, "dd", "1").await;
    delete(&store, "e").await.unwrap();
    put(&store, "e", "4").await;
    let second = store.page(RESOURCE, Some(at), "b", 2).await.unwrap();
    let third = store.page(RESOURCE, Some(at), "d", 2).await.unwrap();
    assert!(second.more && !third.more);
    let pages = [first, second, third];
    let seen: Vec<(&str, &[u8])> = pages
        .iter()
        .flat_map(|page| &page.objects)
        .map(|(name, data)| (name.as_str(), &data[..]))
        .collect();
    let expected: [(&str, &[u8]); 5] = [
        ("a", b"1"),
        ("b", b"2"),
        ("c", b"1"),
        ("d", b"1"),
        ("e", b"1"),
    ];
    assert_eq!(seen, expected);
    for (name, behind) in [("", 5), ("b", 3), ("cc", 2), ("e", 0)] {
        let found = store.behind(RESOURCE, at, name).await.unwrap();
        assert_eq!(found, behind, "{name}");
    }
    let now = store.page(RESOURCE, None, "", 9).await.unwrap();
    let names: Vec<&str> = now.objects.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names, now.more), (vec!["a", "b", "d", "dd", "e"], false));
    assert!(
        store
            .page("others", None, "", 9)
            .await
            .unwrap()
            .objects
            .is_empty()
    );

    let ahead = store
        .page(RESOURCE, Some(store.current().next()), "", 2)
        .await;
    assert!(matches!(ahead, Err(EventsError::Ahead { .. })), "{ahead:?}");
    store.compact(at.next()).await.unwrap();
    for gone in [at, start] {
        let gone = store.page(RESOURCE, Some(gone), "b", 2).await;
        assert!(
            matches!(gone, Err(EventsError::Compacted { .. })),
            "{gone:?}"
        );
    }
    store.close().await;
}
