//! Bits that flip in the file of the store: what is read is what was written, or it is not there, and then loudly.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use keel_control::api::Revision;
use keel_control::store::{ConsumeError, EventsError, Store, StoreConfig, TokenRecord};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;

use super::place::{long, set_aside};
use super::tokens::record;
use super::{RESOURCE, key, put};

fn config() -> StoreConfig {
    StoreConfig {
        linger: Duration::ZERO,
        // Reads come from the file, and nothing else is beside it.
        ring: 1,
        ballast: 0,
        ..StoreConfig::default()
    }
}

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// The objects that can be had, and whether the events after `start` can.
async fn look(path: &Path, start: Revision, what: &str) -> Option<(BTreeMap<String, Bytes>, bool)> {
    // One that is not opened tells so.
    let store = Store::open(path, config()).await.ok()?;
    let page = store.page(RESOURCE, None, "", 100).await.unwrap();
    let objects: BTreeMap<String, Bytes> = page.objects.into_iter().collect();
    let (list, _) = store.list(RESOURCE).await.unwrap();
    assert!(list.iter().map(|object| &object.data).eq(objects.values()));
    for name in NAMES {
        let found = store.get(&key(name)).await.unwrap();
        assert_eq!(
            found.map(|object| object.data).as_ref(),
            objects.get(name),
            "{what}: {name}"
        );
    }
    let events = match store.events_since(start, 100).await {
        Ok(events) => {
            let data = events.iter().map(|event| event.object.clone());
            let previous = events.iter().filter_map(|event| event.previous.clone());
            assert!(data.chain(previous).all(|data| data == TEXT), "{what}");
            assert_eq!(events.len(), 2 * NAMES.len(), "{what}");
            true
        }
        Err(EventsError::Compacted { .. }) => false,
        Err(error) => panic!("{what}: {error}"),
    };
    store.close().await;
    Some((objects, events))
}

const TEXT: &str =
    "The quick brown fox jumps over the lazy dog, and over everything else that lies in its way.";

#[tokio::test]
async fn no_bit_that_flips_is_served() {
    let seed = rand::rng().next_u64();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let store = Store::open(&path, config()).await.unwrap();
    let start = store.current();
    for name in NAMES.iter().chain(&NAMES) {
        put(&store, name, TEXT).await;
    }
    store.close().await;
    let sound = fs::read(&path).unwrap();
    let whole: BTreeMap<String, Bytes> = NAMES
        .iter()
        .map(|name| ((*name).to_owned(), Bytes::from_static(TEXT.as_bytes())))
        .collect();
    assert_eq!(
        look(&path, start, "sound").await,
        Some((whole.clone(), true))
    );

    // Where something is: most of a small file is empty.
    let used: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
    let mut seen = [0; 3];
    for case in 0..if long() { 20_000 } else { 400 } {
        let at = used[random.random_range(0..used.len())];
        let bit = random.random_range(0..8);
        let what = format!("case {case}, byte {at} bit {bit}");
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << bit;
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("store.db");
        fs::write(&path, &damaged).unwrap();
        let Some((objects, _)) = look(&path, start, &what).await else {
            seen[0] += 1;
            continue;
        };
        let aside = set_aside(folder.path()) > 0;
        let (missing, wrong): (Vec<_>, Vec<_>) = whole
            .keys()
            .filter(|name| objects.get(*name) != whole.get(*name))
            .partition(|name| !objects.contains_key(*name));
        assert!(wrong.is_empty(), "{what}: {wrong:?}");
        assert_eq!(objects.len() + missing.len(), NAMES.len(), "{what}");
        // All of them, because the whole file is of no use, or none.
        assert!(
            missing.is_empty() || aside || missing.len() == NAMES.len(),
            "{what}: {missing:?}"
        );
        seen[if aside { 1 } else { 2 }] += 1;
    }
    eprintln!(
        "not opened {}, set aside {}, sound or mended {}",
        seen[0], seen[1], seen[2]
    );
    assert!(seen[2] > 0, "{seen:?}");
}

/// Runs SQL on the file, as a disk that does what it wants.
async fn spoil(path: &Path, sql: &str) {
    let options = SqliteConnectOptions::new().filename(path);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

async fn aside(path: &Path) -> i64 {
    let options = SqliteConnectOptions::new().filename(path);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM damaged WHERE name = 'a'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    count
}

const FLIP: &str =
    "UPDATE object SET data = CAST(replace(data, 'one', 'onf') AS BLOB) WHERE name = 'a'";

async fn data(store: &Store, name: &str) -> Option<Bytes> {
    let object = store.get(&key(name)).await.unwrap();
    object.map(|object| object.data)
}

#[tokio::test]
async fn a_damaged_object_comes_back_from_its_last_event() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let config = config();
    let store = Store::open(&path, config.clone()).await.unwrap();
    put(&store, "a", "one").await;
    let last = put(&store, "b", "two").await;
    spoil(&path, FLIP).await;
    assert_eq!(config.damaged.get(), 0);
    assert_eq!(data(&store, "a").await.unwrap(), "one");
    assert_eq!(aside(&path).await, 1);
    assert_eq!(config.damaged.get(), 1);
    // Whoever watches lists anew.
    let gone = store.events_since(last, 1).await;
    assert!(
        matches!(gone, Err(EventsError::Compacted { .. })),
        "{gone:?}"
    );
    let now = store.current();
    assert_eq!(store.events_since(now, 1).await.unwrap().len(), 0);
    // Found by a write, which is of another object too, as well as by a read.
    put(&store, "a", "one").await;
    spoil(&path, FLIP).await;
    put(&store, "a", "two").await;
    put(&store, "b", "three").await;
    assert_eq!(data(&store, "a").await.unwrap(), "two");
    assert_eq!(data(&store, "b").await.unwrap(), "three");
    assert!(store.current() > now);
    store.close().await;
}

#[tokio::test]
async fn a_damaged_event_is_mended_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let config = config();
    let store = Store::open(&path, config.clone()).await.unwrap();
    put(&store, "a", "one").await;
    put(&store, "b", "two").await;
    store.close().await;
    spoil(
        &path,
        "UPDATE event SET object = x'00' WHERE revision = (SELECT MIN(revision) FROM event)",
    )
    .await;
    for _ in 0..2 {
        let store = Store::open(&path, config.clone()).await.unwrap();
        assert_eq!(config.damaged.get(), 1);
        store.close().await;
    }
    // The history that began then tells again what an object was.
    let store = Store::open(&path, config.clone()).await.unwrap();
    put(&store, "a", "one").await;
    store.close().await;
    spoil(&path, FLIP).await;
    let store = Store::open(&path, config.clone()).await.unwrap();
    assert_eq!(data(&store, "a").await.unwrap(), "one");
    assert_eq!(config.damaged.get(), 2);
    store.close().await;
}

#[tokio::test]
async fn a_damaged_object_that_no_event_knows_is_set_aside_and_the_others_go_on() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let store = Store::open(&path, config()).await.unwrap();
    put(&store, "a", "one").await;
    let last = put(&store, "b", "two").await;
    store.compact(last).await.unwrap();
    store.close().await;
    spoil(&path, FLIP).await;
    // Found by the opening.
    let config = config();
    let store = Store::open(&path, config.clone()).await.unwrap();
    assert_eq!(config.damaged.get(), 1);
    assert_eq!(data(&store, "a").await, None);
    assert_eq!(data(&store, "b").await.unwrap(), "two");
    assert_eq!(aside(&path).await, 1);
    let gone = store.events_since(last, 1).await;
    assert!(
        matches!(gone, Err(EventsError::Compacted { .. })),
        "{gone:?}"
    );
    put(&store, "a", "one").await;
    let kept = put(&store, "b", "three").await;
    store.compact(kept).await.unwrap();
    // Found by a list.
    spoil(&path, FLIP).await;
    assert_eq!(store.list(RESOURCE).await.unwrap().0.len(), 1);
    assert_eq!(
        store
            .page(RESOURCE, None, "", 9)
            .await
            .unwrap()
            .objects
            .len(),
        1
    );
    assert_eq!(aside(&path).await, 2);
    store.close().await;
}

#[tokio::test]
async fn a_damaged_event_begins_history_anew() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let store = Store::open(&path, config()).await.unwrap();
    let first = put(&store, "a", "one").await;
    put(&store, "a", "two").await;
    put(&store, "a", "three").await;
    spoil(&path, "UPDATE event SET kind = 1 WHERE object LIKE 'two%'").await;
    let gone = store.events_since(first, 9).await;
    assert!(
        matches!(gone, Err(EventsError::Compacted { .. })),
        "{gone:?}"
    );
    assert_eq!(data(&store, "a").await.unwrap(), "three");
    let now = store.current();
    put(&store, "a", "four").await;
    assert_eq!(store.events_since(now, 9).await.unwrap().len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_token_whose_bits_flip_is_no_token() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let store = Store::open(&path, config()).await.unwrap();
    let tokens: Vec<TokenRecord> = (0..6)
        .map(|_| record(2, Duration::from_secs(600)))
        .collect();
    for token in &tokens {
        store.create_token(token.clone()).await.unwrap();
    }
    store.revoke_token(&tokens[5].id).await.unwrap();
    let flips = [
        "scope = replace(scope, '\"b\"', '\"c\"')",
        "expires_at = expires_at + 65536",
        "uses = uses + 64",
        "created_at = created_at - 1",
        "secret_hash = CAST('x' || substr(secret_hash, 2) AS BLOB)",
        "revoked = FALSE",
    ];
    for (token, flip) in tokens.iter().zip(flips) {
        spoil(
            &path,
            &format!("UPDATE token SET {flip} WHERE id = '{}'", token.id),
        )
        .await;
    }
    assert_eq!(store.tokens().await.unwrap(), []);
    for token in &tokens {
        let used = store.consume_token(&token.id, token.secret_hash, [1; 32], SystemTime::now());
        assert!(matches!(used.await, Err(ConsumeError::Unknown)));
        assert!(!store.revoke_token(&token.id).await.unwrap());
    }
    store.close().await;
}

#[tokio::test]
async fn tokens_without_checksums_get_them() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let store = Store::open(&path, config()).await.unwrap();
    let (token, revoked) = (
        record(2, Duration::from_secs(600)),
        record(1, Duration::from_secs(600)),
    );
    for one in [&token, &revoked] {
        store.create_token(one.clone()).await.unwrap();
    }
    assert!(store.revoke_token(&revoked.id).await.unwrap());
    let kept = store.tokens().await.unwrap();
    store.close().await;
    // As the version before wrote it.
    spoil(
        &path,
        "UPDATE token SET secret_hash = substr(secret_hash, 1, 32); PRAGMA user_version = 2",
    )
    .await;
    for _ in 0..2 {
        let store = Store::open(&path, config()).await.unwrap();
        assert_eq!(store.tokens().await.unwrap(), kept);
        store.close().await;
    }
    let store = Store::open(&path, config()).await.unwrap();
    let used = store.consume_token(&token.id, token.secret_hash, [1; 32], SystemTime::now());
    assert_eq!(used.await.unwrap().scope, token.scope);
    let used = store.consume_token(&revoked.id, revoked.secret_hash, [1; 32], SystemTime::now());
    assert!(matches!(used.await, Err(ConsumeError::Revoked)));
    store.close().await;
}

#[tokio::test]
async fn a_store_without_checksums_gets_them() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let store = Store::open(&path, config()).await.unwrap();
    put(&store, "a", "one").await;
    let last = put(&store, "b", "two").await;
    store.close().await;
    // As the version before wrote it.
    let older = "UPDATE object SET data = substr(data, 1, length(data) - 8); \
                 UPDATE event SET object = substr(object, 1, length(object) - 8); PRAGMA user_version = 1";
    spoil(&path, older).await;
    let store = Store::open(&path, config()).await.unwrap();
    assert_eq!(data(&store, "a").await.unwrap(), "one");
    assert_eq!(data(&store, "b").await.unwrap(), "two");
    assert!(store.events_since(last, 9).await.unwrap().is_empty());
    put(&store, "b", "three").await;
    store.close().await;
    let store = Store::open(&path, config()).await.unwrap();
    assert_eq!(store.list(RESOURCE).await.unwrap().0.len(), 2);
    store.close().await;
}
