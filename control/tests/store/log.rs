//! The log beside a SQLite file: moved into the file while writes go on.

use std::sync::Arc;

use bytes::Bytes;
use keel_control::store::{Change, Store, StoreConfig};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{RESOURCE, key};

const OBJECTS: usize = 64;
const ROUNDS: usize = 60;
const BYTES: usize = 8 << 10;

#[tokio::test]
async fn the_log_begins_anew_under_writes_that_never_pause() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let store = Store::open(&path, StoreConfig::default()).await.unwrap();
    let start = store.current();
    let store = Arc::new(store);
    let mut writers = JoinSet::new();
    for number in 0..OBJECTS {
        let store = store.clone();
        writers.spawn(async move {
            for _ in 0..ROUNDS {
                let data = Bytes::from(vec![b'x'; BYTES]);
                let decide = move |_: Option<&_>, _| (Change::Put(data), ());
                store.write(key(&number.to_string()), decide).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    // An event has the object and the one before, and the object is there once more.
    let written = 3 * BYTES * OBJECTS * ROUNDS;
    let log = std::fs::metadata(folder.path().join("store.db-wal")).unwrap();
    let log = usize::try_from(log.len()).unwrap();
    eprintln!("{} KiB written, {} KiB of log", written >> 10, log >> 10);
    assert!(log < written / 3, "{log} bytes of log");
    store.close().await;
    let store = Store::open(&path, StoreConfig::default()).await.unwrap();
    assert_eq!(store.list(RESOURCE).await.unwrap().0.len(), OBJECTS);
    let events = store.events_since(start, usize::MAX).await.unwrap();
    assert_eq!(events.len(), OBJECTS * ROUNDS);
    store.close().await;
}
