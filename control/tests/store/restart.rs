//! What the store makes of the file, or of the database, that it finds.

use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use keel_control::store::{EventsError, OpenError, Store, StoreConfig};
use tempfile::TempDir;

use super::both::on_both;
use super::place::Place;
use super::{RESOURCE, put};

on_both! {
    an_opening_leaves_a_gap_that_no_cursor_may_lie_in,
    the_gaps_of_many_openings_are_bounded,
    what_is_newer_is_left_alone,
}

fn now() -> u64 {
    u64::try_from(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap()
}

async fn open(folder: &TempDir, config: StoreConfig) -> Store {
    Store::open(&folder.path().join("store.db"), config)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_new_store_counts_from_the_clock_and_is_private() {
    let folder = TempDir::new().unwrap();
    let before = now();
    let store = open(&folder, StoreConfig::default()).await;
    let base = store.current();
    assert!((before..=now()).contains(&base.0), "{base}");
    assert_eq!(store.compacted(), base);
    put(&store, "a", "1").await;
    for name in ["store.db", "store.db-wal"] {
        let mode = std::fs::metadata(folder.path().join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    store.close().await;
}

async fn an_opening_leaves_a_gap_that_no_cursor_may_lie_in(place: Place) {
    let store = place.open(StoreConfig::default()).await;
    let start = store.current();
    let last = put(&store, "a", "1").await;
    store.close().await;
    // As after a clock that was set back: the file's numbers are ahead of it.
    let ahead = last.0 + 1_000_000;
    place.sql(&place.set_revision(ahead)).await;
    let before = now();
    let store = place.open(StoreConfig::default()).await;
    assert_eq!(store.current().0, ahead + 1, "never back");
    store.close().await;
    place
        .sql(&format!("{}; DELETE FROM gap", place.set_revision(last.0)))
        .await;

    let store = place.open(StoreConfig::default()).await;
    let base = store.current();
    assert!((before..=now()).contains(&base.0), "{last} -> {base}");
    assert_eq!(
        store.events_since(start, 10).await.unwrap().len(),
        1,
        "what is durable can be resumed"
    );
    assert_eq!(store.events_since(last, 10).await.unwrap().len(), 0);
    assert!(base > last.next(), "{last} -> {base}");
    assert!(matches!(
        store.events_since(last.next(), 10).await,
        Err(EventsError::Compacted { .. })
    ));
    let next = put(&store, "a", "2").await;
    assert_eq!(next, base.next());
    assert_eq!(
        store.events_since(last, 10).await.unwrap()[0].revision,
        next
    );
    store.close().await;
}

#[tokio::test]
async fn a_restored_backup_gives_no_number_out_twice() {
    // Moved to the old file's place, and written over the old file.
    for moved in [true, false] {
        let folder = TempDir::new().unwrap();
        let store = open(&folder, StoreConfig::default()).await;
        let start = store.current();
        let last = put(&store, "a", "1").await;
        store.close().await;
        let (path, backup) = (folder.path().join("store.db"), folder.path().join("backup"));
        std::fs::copy(&path, &backup).unwrap();
        let store = open(&folder, StoreConfig::default()).await;
        let mut lost = vec![store.current(), put(&store, "b", "2").await];
        store.close().await;
        let store = open(&folder, StoreConfig::default()).await;
        lost.push(put(&store, "c", "3").await);
        store.close().await;
        if moved {
            std::fs::rename(&backup, &path).unwrap();
        } else {
            std::fs::copy(&backup, &path).unwrap();
        }

        let store = open(&folder, StoreConfig::default()).await;
        assert_eq!(store.list(RESOURCE).await.unwrap().0.len(), 1);
        assert!(lost.iter().all(|lost| store.current() > *lost), "{lost:?}");
        for cursor in lost {
            let events = store.events_since(cursor, 10).await;
            assert!(
                matches!(events, Err(EventsError::Compacted { .. })),
                "{cursor}"
            );
        }
        // What the backup knows, it can tell.
        assert_eq!(store.events_since(start, 10).await.unwrap().len(), 1);
        assert!(store.events_since(last, 10).await.unwrap().is_empty());
        store.close().await;
    }
}

async fn the_gaps_of_many_openings_are_bounded(place: Place) {
    let store = place.open(StoreConfig::default()).await;
    let first = put(&store, "a", "1").await;
    store.close().await;
    let rows: Vec<String> = (1..=150)
        .map(|at| format!("({}, {})", first.0 + 2 * at, first.0 + 2 * at + 2))
        .collect();
    place
        .sql(&format!(
            "INSERT INTO gap (low, high) VALUES {}; {}",
            rows.join(", "),
            place.set_revision(first.0 + 302)
        ))
        .await;
    let store = place.open(StoreConfig::default()).await;
    assert!(store.compacted() > first);
    assert!(matches!(
        store.events_since(first, 10).await,
        Err(EventsError::Compacted { .. })
    ));
    assert!(
        store
            .events_since(store.current(), 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(store.list(RESOURCE).await.unwrap().0.len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_corrupt_store_is_set_aside_and_a_new_one_begins() {
    for cut in [false, true] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("store.db");
        let store = open(&folder, StoreConfig::default()).await;
        let old = put(&store, "a", "1").await;
        store.close().await;
        let mut bytes = std::fs::read(&path).unwrap();
        match cut {
            true => bytes.truncate(5000),
            false => bytes[100..6000].fill(0xa5),
        }
        std::fs::write(&path, &bytes).unwrap();

        let store = open(&folder, StoreConfig::default()).await;
        assert!(store.current() > old && store.compacted() == store.current());
        assert!(store.list(RESOURCE).await.unwrap().0.is_empty());
        assert!(matches!(
            store.events_since(old, 10).await,
            Err(EventsError::Compacted { .. })
        ));
        let aside: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("store.db.corrupt-"))
            .collect();
        assert_eq!(aside.len(), 1, "{aside:?}");
        assert_eq!(
            std::fs::read(folder.path().join(&aside[0])).unwrap(),
            bytes,
            "nothing is thrown away"
        );
        store.close().await;
    }
}

async fn what_is_newer_is_left_alone(place: Place) {
    place.open(StoreConfig::default()).await.close().await;
    place.sql(place.newer()).await;
    let error = place.try_open(StoreConfig::default()).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found: 99, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let place = Place::Sqlite(folder);
    place.sql("CREATE TABLE songs (title TEXT)").await;
    let error = place.try_open(StoreConfig::default()).await.unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");

    let folder = TempDir::new().unwrap();
    let error = Store::open(&folder.path().join("none/store.db"), StoreConfig::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, OpenError::File { .. }) && error.to_string().contains("none/store.db"),
        "{error}"
    );

    let Some(place) = Place::postgres().await else {
        return;
    };
    place
        .sql("CREATE SCHEMA keel; CREATE TABLE keel.songs (title TEXT)")
        .await;
    let error = place.try_open(StoreConfig::default()).await.unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}
