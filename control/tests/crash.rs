//! `kill -9` in a write loop: every write that was answered is there afterwards.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keel_control::api::Revision;
use keel_control::store::{Change, Key, Store, StoreConfig};
use tokio::task::JoinSet;

/// Set in the child: the store to write to.
const STORE: &str = "KEEL_TEST_CRASH_STORE";
const NAME: &str = "acknowledged_writes_survive_kill_9";
const ROUNDS: u64 = 6;

#[test]
fn acknowledged_writes_survive_kill_9() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match std::env::var_os(STORE) {
        Some(path) => runtime.block_on(write_for_ever(Path::new(&path))),
        None => runtime.block_on(kill_and_look()),
    }
}

/// The child: eight writers, one line for each answer.
async fn write_for_ever(path: &Path) {
    let store = Store::open(path, StoreConfig::default()).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let store = store.clone();
        writers.spawn(async move {
            for count in 0_u64.. {
                let key = Key {
                    resource: "things".into(),
                    name: format!("{writer}"),
                };
                let data = Bytes::from(format!("{count}"));
                let decide = move |_: Option<&_>, revision| (Change::Put(data), revision);
                let revision: Revision = store.write(key, decide).await.unwrap();
                // One write call a line, so that a line is whole or not there.
                std::io::stdout()
                    .write_all(format!("ack {writer} {count} {revision}\n").as_bytes())
                    .unwrap();
            }
        });
    }
    while writers.join_next().await.is_some() {}
}

async fn kill_and_look() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let mut seen: BTreeMap<u64, (String, String)> = BTreeMap::new();
    let mut start = None;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(STORE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut killed = false;
        let mut until = None;
        // Reads on after the kill: what is in the pipe was acknowledged too.
        for line in lines.by_ref() {
            let line = line.unwrap();
            let Some(rest) = line.split("ack ").nth(1) else {
                continue;
            };
            let parts: Vec<&str> = rest.split(' ').collect();
            let &[writer, count, revision] = parts.as_slice() else {
                continue;
            };
            let before = seen.insert(
                revision.parse().unwrap(),
                (writer.to_owned(), count.to_owned()),
            );
            assert_eq!(before, None, "revision {revision} was given out twice");
            let until = *until
                .get_or_insert_with(|| Instant::now() + Duration::from_millis(60 + 37 * round));
            if !killed && Instant::now() >= until {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "the child ended by itself");

        let store = Store::open(
            &path,
            StoreConfig {
                ring: 1,
                ..StoreConfig::default()
            },
        )
        .await
        .unwrap();
        let mut cursor = *start.get_or_insert_with(|| store.compacted());
        let mut found = BTreeMap::new();
        loop {
            let page = store.events_since(cursor, 500).await.unwrap();
            let Some(last) = page.last() else { break };
            cursor = last.revision;
            for event in page {
                let data = String::from_utf8(event.object.to_vec()).unwrap();
                found.insert(event.revision.0, (event.key.name.clone(), data));
            }
        }
        for (revision, write) in &seen {
            assert_eq!(
                found.get(revision),
                Some(write),
                "revision {revision} was acknowledged and is gone"
            );
        }
        let highest = seen.keys().next_back().copied().unwrap_or_default();
        assert!(
            store.current().0 > highest,
            "numbers that were given out are not given out again"
        );
        store.close().await;
    }
    assert!(seen.len() > 100, "only {} writes", seen.len());
}
