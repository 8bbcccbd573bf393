//! Our store.

use std::time::Instant;

use bytes::Bytes;
use keel_control::api::Revision;
use keel_control::store::{Change, Key, Store, StoreConfig};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::measure::{Delays, Figures, Load, closed, data, late, open};
use crate::{BORNE, GENTLE, RATE, WRITE_P99};

const RESOURCE: &str = "routers.edge.example.com";

fn key(number: usize) -> Key {
    Key {
        resource: RESOURCE.into(),
        name: format!("node-{number:04}"),
    }
}

async fn put(store: &Store, number: usize, data: Vec<u8>) {
    let data = Bytes::from(data);
    let decide = move |_: Option<&_>, _| (Change::Put(data), ());
    store.write(key(number), decide).await.unwrap();
}

/// Follows as a watch does, and notes how late each event comes.
async fn follow(store: Store, since: Instant, delays: Delays) {
    let mut hub = store.revision();
    let mut cursor: Revision = store.current();
    loop {
        let events = store.events_since(cursor, 500).await.unwrap();
        for event in &events {
            delays.add(late(&event.object, since));
            cursor = event.revision;
        }
        if events.is_empty() && hub.changed().await.is_err() {
            return;
        }
    }
}

pub(crate) async fn measure(folder: &TempDir, load: &Load, figures: &mut Figures) {
    let since = Instant::now();
    let store = Store::open(&folder.path().join("store.db"), StoreConfig::default())
        .await
        .unwrap();
    for number in 0..load.objects {
        put(&store, number, data(load.bytes, since, Instant::now())).await;
    }

    let mut rate = f64::NAN;
    for (updates, watch, rate_wanted) in [
        (WRITE_P99, "3. watch p99 ms at 2,000/s", RATE),
        (
            "5. write p99 ms at 500/s",
            "6. watch p99 ms at 500/s",
            GENTLE,
        ),
    ] {
        let (answers, heard) = (Delays::default(), Delays::default());
        let mut watchers = JoinSet::new();
        for _ in 0..load.watchers {
            watchers.spawn(follow(store.clone(), since, heard.clone()));
        }
        let bytes = load.bytes;
        let borne = open(load, rate_wanted, &answers, |number, due| {
            let store = store.clone();
            async move { put(&store, number, data(bytes, since, due)).await }
        })
        .await;
        if rate_wanted == RATE {
            rate = borne;
        }
        watchers.shutdown().await;
        figures.add(updates, "keel", answers.share(0.99));
        figures.add(watch, "keel", heard.share(0.99));
        let expected = answers.count() * load.watchers;
        eprintln!("  keel: {} of {expected} events heard", heard.count());
    }
    figures.add(BORNE, "keel", rate);

    let (writing, bytes) = (store.clone(), load.bytes);
    let most = closed(load, move |number| {
        let store = writing.clone();
        async move { put(&store, number, data(bytes, since, Instant::now())).await }
    })
    .await;
    figures.add("4. updates/s at most", "keel", most);

    let began = Instant::now();
    const LISTS: u32 = 50;
    for _ in 0..LISTS {
        assert_eq!(store.list(RESOURCE).await.unwrap().0.len(), load.objects);
    }
    figures.add(
        "7. list of all, ms",
        "keel",
        began.elapsed().as_secs_f64() * 1e3 / f64::from(LISTS),
    );
    store.close().await;
}
