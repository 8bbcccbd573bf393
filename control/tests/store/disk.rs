//! A disk that is full, and a disk that fails.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use keel_control::api::Revision;
use keel_control::store::{Change, EventsError, Store, StoreConfig, StoreError};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use super::need::skipped;
use super::place::long;
use super::{RESOURCE, key, put};

/// An object of which a small disk takes some.
const SMALL: usize = 3000;
/// Longer than anything takes that goes well.
const SOON: Duration = Duration::from_secs(30);

/// A small disk; unmounted in the end.
struct Disk(TempDir);

impl Disk {
    fn new(size: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skipped("root");
            return None;
        }
        let disk = Self(TempDir::new().unwrap());
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(disk.0.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            // Root of a container that may not mount.
            skipped("root");
            return None;
        }
        Some(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Fills what is left, but for so many bytes.
    fn fill(&self, leave: u64) {
        let disk = nix::sys::statvfs::statvfs(self.0.path()).unwrap();
        let free = disk.blocks_available() * disk.fragment_size();
        let filler = vec![1; usize::try_from(free.saturating_sub(leave)).unwrap()];
        let mut file = std::fs::OpenOptions::new();
        file.create(true).append(true);
        let mut file = file.open(self.path("filler")).unwrap();
        file.write_all(&filler).unwrap();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.unwrap().success() || std::thread::panicking());
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room_again() {
    let Some(disk) = Disk::new("2m") else { return };
    let config = StoreConfig {
        ballast: 128 << 10,
        ring: 1,
        ..StoreConfig::default()
    };
    let path = disk.path("store.db");
    let ballast = disk.path("store.db-ballast");
    let store = Store::open(&path, config.clone()).await.unwrap();
    let mut hub = store.revision();
    for cycle in 0..if long() { 10 } else { 3 } {
        assert_eq!(std::fs::metadata(&ballast).unwrap().len(), config.ballast);
        let start = store.current();
        disk.fill(100 << 10);
        let (mut acknowledged, error) = until_refused(&store, SMALL).await;
        assert!(error.to_string().contains("disk"), "{error}");
        // What the store has freed goes to somebody else, but for less than it needs to go on, whatever is free within it.
        disk.fill(100 << 10);
        assert!(!ballast.exists(), "the room that was held back is given up");
        // It stays so, and what was acknowledged can be read and watched.
        for _ in 0..10 {
            assert!(matches!(
                write(&store, 0, SMALL).await,
                Err(StoreError::Full)
            ));
        }
        assert!(store.is_open());
        assert_eq!(
            *hub.borrow_and_update(),
            acknowledged.last().copied().unwrap_or(start)
        );
        assert_eq!(
            revisions(&store, start).await,
            acknowledged,
            "cycle {cycle}"
        );
        store.get(&key("0")).await.unwrap();
        // Forgetting what is old works on a full disk.
        store.compact(start).await.unwrap();

        disk.make_room();
        acknowledged.push(put(&store, "room", "again").await);
        timeout(SOON, hub.changed()).await.unwrap().unwrap();
        assert_eq!(
            revisions(&store, start).await,
            acknowledged,
            "cycle {cycle}"
        );
        eprintln!("cycle {cycle}: {} writes", acknowledged.len());
    }
    store.close().await;
    let store = Store::open(&path, config).await.unwrap();
    assert!(store.get(&key("room")).await.unwrap().is_some());
    store.close().await;
    let options = SqliteConnectOptions::new().filename(&path);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let verdict: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(verdict, "ok");
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_history_that_fills_the_disk_makes_room() {
    const BYTES: usize = 30_000;
    let Some(disk) = Disk::new("32m") else { return };
    let path = disk.path("store.db");
    let config = || StoreConfig {
        compact_every: Duration::from_millis(200),
        ..StoreConfig::default()
    };
    let mut store = Store::open(&path, config()).await.unwrap();
    for cycle in 0..4 {
        let before = store.compacted();
        let (acknowledged, _) = until_refused(&store, BYTES).await;
        eprintln!("cycle {cycle}: {} writes", acknowledged.len());
        // A file that is nearly full again after a few writes would be of no use.
        assert!(acknowledged.len() > 60, "cycle {cycle}");
        if cycle == 1 {
            store.close().await;
            store = Store::open(&path, config()).await.unwrap();
            // What the start could hold back is given up first.
            until_refused(&store, BYTES).await;
        }
        // Nobody deletes anything: the older half of the history goes, and whoever watched from there lists anew.
        let again = async {
            while write(&store, 0, BYTES).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, again).await.unwrap();
        let old = store.events_since(before, usize::MAX).await;
        assert!(matches!(old, Err(EventsError::Compacted { .. })), "{cycle}");
    }
    store.close().await;
}

#[tokio::test]
async fn a_store_opens_on_a_full_disk() {
    let Some(disk) = Disk::new("2m") else { return };
    let config = StoreConfig {
        ballast: 128 << 10,
        ..StoreConfig::default()
    };
    let path = disk.path("store.db");
    let store = Store::open(&path, config.clone()).await.unwrap();
    put(&store, "a", "1").await;
    store.close().await;
    disk.fill(0);
    let store = Store::open(&path, config).await.unwrap();
    assert!(store.get(&key("a")).await.unwrap().is_some());
    // Opening may have left room of what was held back.
    until_refused(&store, SMALL).await;
    disk.make_room();
    put(&store, "a", "2").await;
    store.close().await;
}

/// Writes until the disk is full; what was acknowledged, and the refusal.
async fn until_refused(store: &Store, bytes: usize) -> (Vec<Revision>, StoreError) {
    let mut acknowledged = Vec::new();
    let error = loop {
        match write(store, acknowledged.len(), bytes).await {
            Ok(revision) => acknowledged.push(revision),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 1000, "the disk does not fill");
    };
    assert!(matches!(error, StoreError::Full), "{error:?}");
    (acknowledged, error)
}

async fn revisions(store: &Store, start: Revision) -> Vec<Revision> {
    let events = store.events_since(start, usize::MAX).await.unwrap();
    events.iter().map(|event| event.revision).collect()
}

async fn write(store: &Store, number: usize, bytes: usize) -> Result<Revision, StoreError> {
    let data = Bytes::from(vec![b'x'; bytes]);
    let decide = move |_: Option<&_>, revision| (Change::Put(data), revision);
    store.write(key(&(number % 8).to_string()), decide).await
}

/// Set in the child: the store to write to.
const STORE: &str = "KEEL_TEST_FAILING_STORE";
const NAME: &str = "disk::a_disk_that_fails_to_sync_is_believed_again_when_it_was_looked_at";

/// The child: writes, tells what became of each write, and ends well when writes succeed again after failures.
async fn write_through_failures(path: &Path) {
    let store = Store::open(path, StoreConfig::default()).await.unwrap();
    let start = store.current();
    let mut reachable = store.reachable();
    let (mut failures, mut after) = (0, 0);
    let deadline = Instant::now() + SOON;
    for count in 0_u64.. {
        assert!(
            Instant::now() < deadline,
            "{failures} failures, {after} writes behind them"
        );
        let data = Bytes::from(count.to_string());
        let decide = move |_: Option<&_>, revision: Revision| (Change::Put(data), revision);
        let line = match store.write(key("a"), decide).await {
            Ok(revision) => {
                after += u32::from(failures > 0);
                format!("ack {count} {revision}\n")
            }
            Err(error) => {
                failures += 1;
                // It may have been looked at since.
                assert!(reachable.has_changed().unwrap(), "nobody was told");
                reachable.mark_unchanged();
                // What was acknowledged can be read all the while.
                store.get(&key("a")).await.unwrap();
                format!("error {error:?}\n")
            }
        };
        std::io::stdout().write_all(line.as_bytes()).unwrap();
        if after == 20 {
            assert!(*reachable.borrow(), "nobody was told that it works again");
            let watched = revisions(&store, start).await;
            let watched = watched
                .iter()
                .map(|revision| format!("watched {revision}\n"));
            let watched: String = watched.collect();
            std::io::stdout().write_all(watched.as_bytes()).unwrap();
            return store.close().await;
        }
    }
}

#[tokio::test]
async fn a_disk_that_fails_to_sync_is_believed_again_when_it_was_looked_at() {
    if let Some(path) = std::env::var_os(STORE) {
        return write_through_failures(Path::new(&path)).await;
    }
    let strace = Command::new("strace").arg("-V").output();
    if !strace.is_ok_and(|output| output.status.success()) {
        return skipped("strace");
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let store = Store::open(&path, StoreConfig::default()).await.unwrap();
    let start = store.current();
    store.close().await;
    // Counted for each thread: the writer's own syncs fail for a while.
    let child = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(folder.path().join("trace"))
        .args(["-e", "trace=fsync,fdatasync"])
        .args(["-e", "inject=fsync,fdatasync:error=EIO:when=12..16"])
        .arg(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(STORE, &path)
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    let mut acknowledged = Vec::new();
    let (mut failures, mut watched) = (Vec::new(), Vec::new());
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(ack) = line.split("ack ").nth(1) {
            let (count, revision) = ack.split_once(' ').unwrap();
            acknowledged.push((revision.parse().unwrap(), Bytes::from(count.to_owned())));
        } else if let Some(revision) = line.strip_prefix("watched ") {
            watched.push(revision.parse::<Revision>().unwrap());
        } else if line.contains("error ") {
            failures.push(line);
        }
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "{failures:?}");
    let trace = std::fs::read_to_string(folder.path().join("trace")).unwrap();
    assert!(trace.contains("(INJECTED)"), "nothing failed: {trace}");
    assert!(
        !failures.is_empty(),
        "a write was acknowledged that was not on the disk"
    );
    assert!(failures[0].contains("Unknown"), "{failures:?}");
    eprintln!(
        "{} acknowledged, {} failed",
        acknowledged.len(),
        failures.len()
    );

    let store = Store::open(&path, StoreConfig::default()).await.unwrap();
    let found: Vec<(Revision, Bytes)> = store
        .events_since(start, usize::MAX)
        .await
        .unwrap()
        .iter()
        .map(|event| (event.revision, event.object.clone()))
        .collect();
    let written: Vec<Revision> = found.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(
        watched, written,
        "watchers did not hear of all that is there"
    );
    for write in &acknowledged {
        assert!(
            found.contains(write),
            "{write:?} was acknowledged and is gone"
        );
    }
    assert!(!store.list(RESOURCE).await.unwrap().0.is_empty());
    store.close().await;
}
