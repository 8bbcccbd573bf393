//! `kill -9` in a write loop: every write that was answered is there afterwards, once, and in its place.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keel_control::api::Revision;
use keel_control::store::{Change, Store, StoreConfig};
use tokio::task::JoinSet;

use super::key;
use super::place::{Place, long, open};

/// Set in the child: the store to write to.
const STORE: &str = "KEEL_TEST_CRASH_STORE";
const NAME: &str = "crash::acknowledged_writes_survive_kill_9_in_sqlite";

fn rounds() -> u64 {
    if long() { 1000 } else { 6 }
}

#[tokio::test]
async fn acknowledged_writes_survive_kill_9_in_sqlite() {
    match std::env::var(STORE) {
        Ok(url) => write_for_ever(&url).await,
        Err(_) => kill_and_look(&Place::sqlite(), 1).await,
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_kill_9_in_postgresql() {
    if let Some(place) = Place::postgres().await {
        kill_and_look(&place, 2).await;
    }
}

/// The child: eight writers, one line for each answer.
async fn write_for_ever(url: &str) {
    let store = open(url, StoreConfig::default()).await.unwrap();
    let child = std::process::id();
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let store = store.clone();
        writers.spawn(async move {
            for count in 0_u64.. {
                // Some objects are written by several, and by every child.
                let name = format!("{}", writer % 5);
                let data = format!("{child}.{writer}.{count}");
                let wanted = Bytes::from(data.clone());
                let decide = move |_: Option<&_>, revision| (Change::Put(wanted), revision);
                let revision: Revision = store.write(key(&name), decide).await.unwrap();
                // One write call a line, so that a line is whole or not there.
                std::io::stdout()
                    .write_all(format!("ack {name} {data} {revision}\n").as_bytes())
                    .unwrap();
            }
        });
    }
    while writers.join_next().await.is_some() {}
}

/// What was acknowledged: by revision, the object and its data.
type Acknowledged = BTreeMap<u64, (String, String)>;

/// What the events told so far.
#[derive(Default)]
struct History {
    cursor: Revision,
    objects: BTreeMap<String, Bytes>,
    events: u64,
}

impl History {
    /// Reads on and checks that every event follows from the one before it, and that what was acknowledged is among them.
    async fn read(&mut self, store: &Store, mut acknowledged: Acknowledged) {
        loop {
            let page = store.events_since(self.cursor, 500).await.unwrap();
            if page.is_empty() {
                break;
            }
            for event in page {
                assert!(event.revision > self.cursor, "in order and once");
                self.cursor = event.revision;
                self.events += 1;
                let name = event.key.name.clone();
                let before = self.objects.insert(name.clone(), event.object.clone());
                assert_eq!(before, event.previous, "no change of {name} was left out");
                if let Some(write) = acknowledged.remove(&event.revision.0) {
                    let data = String::from_utf8(event.object.to_vec()).unwrap();
                    assert_eq!(write, (name, data), "revision {}", event.revision);
                }
            }
        }
        assert!(
            acknowledged.is_empty(),
            "acknowledged and gone: {acknowledged:?}"
        );
        // Object and event are one: what is there is what the events say.
        let (objects, _) = store.list(super::RESOURCE).await.unwrap();
        let there: Vec<Bytes> = objects.into_iter().map(|object| object.data).collect();
        assert_eq!(there, self.objects.values().cloned().collect::<Vec<_>>());
    }
}

async fn kill_and_look(place: &Place, children: usize) {
    let url = place.url();
    let mut history: Option<History> = None;
    let mut acknowledged = 0;
    let rounds = rounds();
    for round in 0..rounds {
        let mut killed: Vec<_> = (0..children).map(|_| start(&url)).collect();
        let mut seen = Acknowledged::new();
        let mut threads = Vec::new();
        for (number, child) in killed.drain(..).enumerate() {
            // Not all at the same moment.
            let life = 40 + 37 * (round % 7) + 20 * u64::try_from(number).unwrap();
            let url = url.clone();
            threads.push(std::thread::spawn(move || {
                read_and_kill(child, Duration::from_millis(life), &url)
            }));
        }
        for thread in threads {
            for (revision, write) in thread.join().unwrap() {
                let before = seen.insert(revision, write);
                assert_eq!(before, None, "revision {revision} was given out twice");
            }
        }
        let config = StoreConfig {
            ring: 1,
            ..StoreConfig::default()
        };
        let store = place.open(config).await;
        let history = history.get_or_insert_with(|| History {
            cursor: store.compacted(),
            ..History::default()
        });
        let highest = seen.keys().next_back().copied().unwrap_or_default();
        acknowledged += seen.len();
        history.read(&store, seen).await;
        assert!(
            store.current().0 > highest,
            "numbers that were given out are not given out again"
        );
        store.close().await;
    }
    let events = history.map_or(0, |history| history.events);
    eprintln!("{rounds} rounds: {acknowledged} writes acknowledged, {events} found");
    assert!(acknowledged > 100, "only {acknowledged} writes");
}

fn start(url: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(STORE, url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A file of a store that is open is locked. Who closes a database in SQLite and finds no lock of another process, as
/// `sqlite3 … .backup` does, takes itself for the last one and deletes the log, and with it what was acknowledged.
fn is_held(url: &str, child: u32) -> bool {
    if url.starts_with("postgres:") {
        return true;
    }
    let inode = std::fs::metadata(url).unwrap().ino();
    let listed = || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        // `1: POSIX  ADVISORY  READ  <process> <device>:<inode> <first> <last>`
        locks.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(4) == Some(&child.to_string().as_str())
                && words
                    .get(5)
                    .is_some_and(|file| file.ends_with(&format!(":{inode}")))
        })
    };
    // The kernel tells the list page by page, and of one that changes meanwhile it may leave a line out.
    (0..20).any(|_| listed())
}

/// Reads what the child acknowledges and kills it when it has lived for so long behind the first.
fn read_and_kill(mut child: Child, life: Duration, url: &str) -> Acknowledged {
    let mut seen = Acknowledged::new();
    let mut killed = false;
    let mut until = None;
    // Reads on after the kill: what is in the pipe was acknowledged too.
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(rest) = line.split("ack ").nth(1) else {
            continue;
        };
        let parts: Vec<&str> = rest.split(' ').collect();
        let &[name, data, revision] = parts.as_slice() else {
            continue;
        };
        let write = (name.to_owned(), data.to_owned());
        let before = seen.insert(revision.parse().unwrap(), write);
        assert_eq!(before, None, "revision {revision} was given out twice");
        let until = *until.get_or_insert_with(|| Instant::now() + life);
        if !killed && Instant::now() >= until {
            assert!(is_held(url, child.id()), "no lock on {url}");
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself");
    seen
}
