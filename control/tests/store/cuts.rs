//! Power cuts: a log that ends anywhere, or holds anything. What is found is always what was committed up to some moment.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use keel_control::api::Revision;
use keel_control::store::{Change, EventKind, Object, Store, StoreConfig};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tempfile::TempDir;

use super::place::{long, set_aside};
use super::{RESOURCE, key};

/// One committed change: revision, name, data (none: it is gone).
type Commit = (Revision, String, Option<Bytes>);

fn config() -> StoreConfig {
    StoreConfig {
        linger: std::time::Duration::ZERO,
        // Reads come from the file, and nothing else is beside it.
        ring: 1,
        ballast: 0,
        ..StoreConfig::default()
    }
}

#[tokio::test]
async fn a_log_that_is_cut_or_damaged_leaves_a_prefix_of_the_commits() {
    let seed = rand::rng().next_u64();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    // The tables are in the file, the commits in the log.
    let store = Store::open(&path, config()).await.unwrap();
    let start = store.current();
    store.close().await;
    let store = Store::open(&path, config()).await.unwrap();
    let commits = commit_some(&store, &mut random).await;
    // As a power cut finds them.
    let file = fs::read(&path).unwrap();
    let log = fs::read(folder.path().join("store.db-wal")).unwrap();
    store.close().await;

    let cases = if long() { 10_000 } else { 300 };
    let mut found = std::collections::BTreeSet::new();
    for case in 0..cases {
        let mut damaged = log.clone();
        let what = damage(&mut damaged, &mut random);
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("store.db");
        fs::write(&path, &file).unwrap();
        fs::write(folder.path().join("store.db-wal"), &damaged).unwrap();
        let found_now = look(&path, start, &commits).await;
        let kept = found_now.unwrap_or_else(|error| panic!("case {case}, {what}: {error}"));
        found.insert(kept);
        assert_eq!(
            set_aside(folder.path()),
            0,
            "case {case}, {what}: set aside though the file is sound"
        );
    }
    eprintln!(
        "{cases} logs, {} different prefixes of {} commits",
        found.len(),
        commits.len()
    );
    assert!(found.len() > 5, "{found:?}");
}

async fn commit_some(store: &Store, random: &mut StdRng) -> Vec<Commit> {
    let mut commits = Vec::new();
    for count in 0..60 {
        let name = random.random_range(0..6).to_string();
        let delete = random.random_range(0..5) == 0;
        // Some need several pages.
        let data = Bytes::from(format!("{count} ").repeat(random.random_range(1..2000)));
        let wanted = data.clone();
        let decide = move |current: Option<&Object>, revision| match current {
            Some(object) if delete => (Change::Delete(object.data.clone()), (revision, true)),
            _ => (Change::Put(wanted), (revision, false)),
        };
        let (revision, gone) = store.write(key(&name), decide).await.unwrap();
        commits.push((revision, name, (!gone).then_some(data)));
    }
    commits
}

fn damage(log: &mut Vec<u8>, random: &mut StdRng) -> String {
    let at = random.random_range(0..log.len());
    match random.random_range(0..4) {
        0 => {
            log.truncate(at);
            format!("cut at {at}")
        }
        1 => {
            let bit = random.random_range(0..8);
            log[at] ^= 1 << bit;
            format!("bit {bit} of {at} flipped")
        }
        2 => {
            // A sector that was never written.
            let from = at / 512 * 512;
            let to = (from + 512).min(log.len());
            log[from..to].fill(0);
            format!("nothing from {from} to {to}")
        }
        _ => {
            let to = (at + random.random_range(1..5000)).min(log.len());
            random.fill_bytes(&mut log[at..to]);
            format!("noise from {at} to {to}")
        }
    }
}

/// How many commits are there, if they are the first ones.
async fn look(path: &Path, start: Revision, commits: &[Commit]) -> Result<usize, String> {
    let store = Store::open(path, config())
        .await
        .map_err(|error| format!("{error:?}"))?;
    let events = store
        .events_since(start, usize::MAX)
        .await
        .map_err(|error| format!("{error:?}"))?;
    let found: Vec<Commit> = events
        .iter()
        .map(|event| {
            let data = (event.kind != EventKind::Deleted).then(|| event.object.clone());
            (event.revision, event.key.name.clone(), data)
        })
        .collect();
    if found[..] != commits[..found.len().min(commits.len())] {
        return Err("events that are no prefix".to_owned());
    }
    let mut state = std::collections::BTreeMap::new();
    for (revision, name, data) in found.iter().cloned() {
        match data {
            Some(data) => state.insert(name, Object { revision, data }),
            None => state.remove(&name),
        };
    }
    let (objects, revision) = store
        .list(RESOURCE)
        .await
        .map_err(|error| format!("{error:?}"))?;
    if objects != state.into_values().collect::<Vec<_>>() {
        return Err("objects that are not what the events say".to_owned());
    }
    let highest = commits.last().map_or(start, |commit| commit.0);
    if revision <= highest {
        return Err(format!("{revision} could be given out again"));
    }
    store.close().await;
    Ok(found.len())
}
