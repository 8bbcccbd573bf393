//! Several APIServers on one database, and a database that goes away.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use keel_certs::{JoinToken, RootPin};
use keel_control::api::Revision;
use keel_control::store::{
    Change, ConsumeError, EventsError, OpenError, Store, StoreConfig, StoreError, TokenRecord,
    TokenScope,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::place::Place;
use super::server::Server;
use super::{RESOURCE, key, put};

/// Longer than anything takes that goes well.
const SOON: Duration = Duration::from_secs(30);

/// What an APIServer tells its watchers: revision, name, data.
type Seen = Vec<(u64, String, Bytes)>;

/// Follows the store as a watch does, until the revision.
async fn follow(store: &Store, mut cursor: Revision, until: Revision) -> Seen {
    let mut hub = store.revision();
    let mut seen = Seen::new();
    timeout(SOON, async {
        // The cursor may come from another APIServer that is a moment ahead.
        hub.wait_for(|revision| *revision >= cursor).await.unwrap();
        while cursor < until {
            hub.borrow_and_update();
            let events = store.events_since(cursor, 7).await.unwrap();
            if events.is_empty() {
                hub.changed().await.unwrap();
            }
            for event in events {
                cursor = event.revision;
                seen.push((cursor.0, event.key.name.clone(), event.object.clone()));
            }
        }
    })
    .await
    .unwrap();
    seen
}

#[tokio::test]
async fn what_another_has_committed_is_known_at_once() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let one = place.open(StoreConfig::default()).await;
    let other = place.open(StoreConfig::default()).await;
    for _ in 0..20 {
        let written = put(&one, "a", "1").await;
        // What is told may come later.
        assert!(other.committed().await.unwrap() >= written);
        assert!(other.list(RESOURCE).await.unwrap().1 >= written);
    }
    one.close().await;
    other.close().await;
}

#[tokio::test]
async fn all_see_the_writes_of_all_in_one_order() {
    const WRITES: u64 = 100;
    let Some(place) = Place::postgres().await else {
        return;
    };
    // Memory that holds little, so that both ways of reading are used.
    let config = StoreConfig {
        ring: 20,
        ..StoreConfig::default()
    };
    let stores = [
        place.open(config.clone()).await,
        place.open(config.clone()).await,
        place.open(config).await,
    ];
    let start = stores[2].current();
    let mut writers = JoinSet::new();
    for (number, store) in stores.iter().take(2).enumerate() {
        for writer in 0..4 {
            let store = store.clone();
            writers.spawn(async move {
                let mut acknowledged = Seen::new();
                for count in 0..WRITES {
                    // Half of the objects are written by both.
                    let name = match writer % 2 {
                        0 => format!("shared-{writer}"),
                        _ => format!("own-{number}-{writer}"),
                    };
                    let data = Bytes::from(format!("{number} {writer} {count}"));
                    let wanted = data.clone();
                    let revision: Revision = store
                        .write(key(&name), move |_, revision| {
                            (Change::Put(wanted), revision)
                        })
                        .await
                        .unwrap();
                    acknowledged.push((revision.0, name, data));
                }
                acknowledged
            });
        }
    }
    let end = Revision(start.0 + 8 * WRITES);
    let (mut acknowledged, one, two, three) = tokio::join!(
        writers.join_all(),
        follow(&stores[0], start, end),
        follow(&stores[1], start, end),
        follow(&stores[2], start, end)
    );
    let mut all: Seen = acknowledged.drain(..).flatten().collect();
    all.sort();
    let numbers: Vec<u64> = all.iter().map(|write| write.0).collect();
    let expected: Vec<u64> = (start.0 + 1..=end.0).collect();
    assert_eq!(numbers, expected, "each number once, none left out");
    assert!(one == all && two == all && three == all);
    let (objects, revision) = stores[0].list(RESOURCE).await.unwrap();
    assert_eq!((objects.len(), revision), (6, end));
    for store in &stores {
        store.close().await;
    }
}

#[tokio::test]
async fn a_precondition_is_decided_on_what_others_have_written() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let stores = [
        place.open(StoreConfig::default()).await,
        place.open(StoreConfig::default()).await,
    ];
    let mut counters = JoinSet::new();
    for store in stores.clone() {
        for _ in 0..4 {
            let store = store.clone();
            counters.spawn(async move {
                for _ in 0..25 {
                    store
                        .write(key("count"), |current, _| {
                            let count = current.map_or(0, |object| {
                                String::from_utf8_lossy(&object.data).parse().unwrap()
                            });
                            (Change::Put((count + 1_u64).to_string().into()), ())
                        })
                        .await
                        .unwrap();
                }
            });
        }
    }
    counters.join_all().await;
    for store in &stores {
        let object = store.get(&key("count")).await.unwrap().unwrap();
        assert_eq!(&object.data[..], b"200");
        store.close().await;
    }
}

#[tokio::test]
async fn a_write_that_nobody_told_of_is_found() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let store = place.open(StoreConfig::default()).await;
    let start = store.current();
    let next = start.next();
    place
        .sql(&format!(
            "BEGIN; UPDATE meta SET revision = {next}; INSERT INTO object VALUES ('{RESOURCE}', 'a', {next}, 'x'); \
             INSERT INTO event VALUES ({next}, 0, 0, '{RESOURCE}', 'a', 'x', NULL); COMMIT"
        ))
        .await;
    let seen = follow(&store, start, next).await;
    assert_eq!(seen, [(next.0, "a".to_owned(), Bytes::from_static(b"x"))]);
    store.close().await;
}

/// More than what is taken into memory at once, so that the first of them are read later.
#[tokio::test]
async fn large_writes_of_another_are_told_whole_and_in_order() {
    const WRITES: usize = 12;
    let Some(place) = Place::postgres().await else {
        return;
    };
    let stores = [
        place.open(StoreConfig::default()).await,
        place.open(StoreConfig::default()).await,
    ];
    let start = stores[1].current();
    // At once, so that they are one batch.
    let mut writes = JoinSet::new();
    for number in 0..WRITES {
        let store = stores[0].clone();
        let data = Bytes::from(vec![b'a' + number as u8; 1 << 20]);
        writes.spawn(async move {
            let decide = move |_: Option<&_>, revision: Revision| (Change::Put(data), revision);
            store.write(key(&number.to_string()), decide).await.unwrap()
        });
    }
    let last = writes.join_all().await.into_iter().max().unwrap();
    let seen = follow(&stores[1], start, last).await;
    assert_eq!(seen.len(), WRITES);
    for (revision, name, data) in seen {
        let first = b'a' + name.parse::<u8>().unwrap();
        assert!(
            data.len() == 1 << 20 && data[0] == first,
            "{revision} {name}"
        );
    }
    for store in &stores {
        store.close().await;
    }
}

#[tokio::test]
async fn what_one_forgets_the_others_do_not_tell() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let config = StoreConfig {
        ring: 1,
        ..StoreConfig::default()
    };
    let stores = [place.open(config.clone()).await, place.open(config).await];
    let start = stores[1].current();
    put(&stores[0], "a", "1").await;
    put(&stores[0], "b", "2").await;
    let last = put(&stores[0], "c", "3").await;
    follow(&stores[1], start, last).await;
    stores[0].compact(last).await.unwrap();
    // The other one has not been told yet, or has.
    let found = stores[1].events_since(start, 10).await;
    assert!(matches!(found, Err(EventsError::Compacted { oldest, .. }) if oldest == last));
    assert!(stores[1].events_since(last, 10).await.unwrap().is_empty());
    for store in &stores {
        store.close().await;
    }
}

#[tokio::test]
async fn a_token_is_used_once_wherever_it_is_presented() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let stores = [
        place.open(StoreConfig::default()).await,
        place.open(StoreConfig::default()).await,
    ];
    let pin: RootPin = "00".repeat(32).parse().unwrap();
    for _ in 0..20 {
        let token = JoinToken::generate(pin, "a.example.net:7443");
        let record = TokenRecord {
            id: token.id.clone(),
            secret_hash: token.secret_hash(),
            scope: TokenScope::Node { node: None },
            created_at: UNIX_EPOCH,
            expires_at: SystemTime::now() + Duration::from_secs(600),
            uses_left: 1,
            revoked: false,
        };
        stores[0].create_token(record).await.unwrap();
        let now = SystemTime::now();
        let (one, two) = tokio::join!(
            stores[0].consume_token(&token.id, token.secret_hash(), [1; 32], now),
            stores[1].consume_token(&token.id, token.secret_hash(), [2; 32], now)
        );
        let refused = match (one, two) {
            (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused, ConsumeError::UsedUp), "{refused}");
    }
    for store in &stores {
        store.close().await;
    }
}

#[tokio::test]
async fn a_backup_that_is_restored_under_a_running_store_reuses_no_number() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    // One that notices when it writes, one that notices by looking.
    let stores = [
        place.open(StoreConfig::default()).await,
        place.open(StoreConfig::default()).await,
    ];
    let start = stores[1].current();
    let kept = put(&stores[0], "a", "1").await;
    let lost = [
        put(&stores[0], "a", "2").await,
        put(&stores[0], "b", "3").await,
    ];
    follow(&stores[1], start, lost[1]).await;
    place
        .sql(&format!(
            "BEGIN; UPDATE meta SET revision = {kept}; DELETE FROM event WHERE revision > {kept}; \
             DELETE FROM object WHERE name = 'b'; \
             UPDATE object SET revision = {kept}, data = '1' WHERE name = 'a'; COMMIT"
        ))
        .await;
    let next = put(&stores[0], "c", "4").await;
    assert!(next > lost[1], "{next} after {lost:?}");
    for store in &stores {
        let mut hub = store.revision();
        let reached = hub.wait_for(|revision| *revision >= next);
        timeout(SOON, reached).await.unwrap().unwrap();
        for cursor in lost {
            let events = store.events_since(cursor, 10).await;
            assert!(
                matches!(events, Err(EventsError::Compacted { .. })),
                "{cursor}: {events:?}"
            );
        }
        let events = store.events_since(kept, 10).await.unwrap();
        assert_eq!((events.len(), events[0].revision), (1, next));
        store.close().await;
    }
}

#[tokio::test]
async fn a_database_that_crashes_loses_nothing_and_is_found_again() {
    let Some(server) = Server::start() else {
        return;
    };
    let server = std::sync::Arc::new(server);
    let place = Place::on(&server).await;
    let stores = [
        place.open(StoreConfig::default()).await,
        place.open(StoreConfig::default()).await,
    ];
    let start = stores[1].current();
    let mut acknowledged = Seen::new();
    let (mut failed, mut unknown) = (0, 0);
    for round in 0..3 {
        let mut writers = JoinSet::new();
        for writer in 0..4 {
            let store = stores[0].clone();
            writers.spawn(write_until_it_fails(store, format!("{round}-{writer}")));
        }
        let mut hub = stores[0].revision();
        let far = Revision(stores[0].current().0 + 50);
        let reached = hub.wait_for(|revision| *revision >= far);
        timeout(SOON, reached).await.unwrap().unwrap();
        server.crash();
        for (acks, error) in writers.join_all().await {
            acknowledged.extend(acks);
            match error {
                StoreError::Unknown { .. } => unknown += 1,
                StoreError::Away { .. } | StoreError::Database { .. } => failed += 1,
                other => panic!("{other}"),
            }
        }
        let read = stores[1].get(&key("a")).await;
        assert!(matches!(read, Err(StoreError::Away { .. })), "{read:?}");
        let mut reachable = stores[0].reachable();
        let away = reachable.wait_for(|reachable| !reachable);
        timeout(SOON, away).await.unwrap().unwrap();
        assert!(stores[0].is_open());
        server.up();
        // The same stores go on; how soon is the database's affair.
        let deadline = Instant::now() + SOON;
        while let Err(error) = stores[0]
            .write(key("probe"), |_, _| (Change::Keep, ()))
            .await
        {
            assert!(Instant::now() < deadline, "{error}");
        }
        let back = reachable.wait_for(|reachable| *reachable);
        timeout(SOON, back).await.unwrap().unwrap();
        let last = put(&stores[1], "probe", "x").await;
        acknowledged.push((last.0, "probe".to_owned(), Bytes::from_static(b"x")));
    }
    eprintln!(
        "{} acknowledged, {failed} failed, {unknown} unknown",
        acknowledged.len()
    );
    let last = stores[1].current();
    let seen = follow(&stores[0], start, last).await;
    assert_eq!(seen, follow(&stores[1], start, last).await);
    assert!(seen.is_sorted_by(|one, other| one.0 < other.0));
    for write in &acknowledged {
        assert!(
            seen.contains(write),
            "{write:?} was acknowledged and is gone"
        );
    }
    for store in &stores {
        store.close().await;
    }
}

#[tokio::test]
async fn every_session_commits_to_the_disk_whatever_the_database_has_by_default() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let store = place.open(StoreConfig::default()).await;
    place
        .sql(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$; \
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF current_setting('synchronous_commit') = 'off' THEN RAISE 'not on the disk'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER refuse BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
    put(&store, "a", "1").await;
    for _ in 0..2 {
        place
            .sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            .await;
        let deadline = Instant::now() + SOON;
        let write = || store.write(key("a"), |_, _| (Change::Put(Bytes::from_static(b"2")), ()));
        // The first may find out that the session is gone.
        while let Err(error) = write().await {
            let error = format!("{error:?}");
            assert!(!error.contains("not on the disk"), "{error}");
            assert!(Instant::now() < deadline, "{error}");
        }
    }
    store.close().await;
    // One that is opened now, too.
    let store = place.open(StoreConfig::default()).await;
    put(&store, "a", "3").await;
    store.close().await;
}

async fn write_until_it_fails(store: Store, name: String) -> (Seen, StoreError) {
    let mut acknowledged = Seen::new();
    loop {
        let data = Bytes::from(acknowledged.len().to_string());
        let wanted = data.clone();
        let decide = move |_: Option<&_>, revision: Revision| (Change::Put(wanted), revision);
        match store.write(key(&name), decide).await {
            Ok(revision) => acknowledged.push((revision.0, name.clone(), data)),
            Err(error) => return (acknowledged, error),
        }
    }
}

#[tokio::test]
async fn a_server_across_a_network_is_reached_by_tls() {
    let Some(server) = Server::start() else {
        return;
    };
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = server.file("server.crt", &made.cert.pem());
    let key = server.file("server.key", &made.signing_key.serialize_pem());
    let others = server.file("other.crt", &other.cert.pem());
    let port = server.listen_with_tls(&certificate, &key);
    let name = server.create().await;
    let url = |roots: &str| {
        format!(
            "postgres://keel:secret@localhost:{port}/{name}?sslmode=verify-full&sslrootcert={roots}"
        )
    };
    let store = Store::connect(&url(&certificate), StoreConfig::default())
        .await
        .unwrap();
    assert_eq!(
        store.place(),
        format!("postgres://keel@localhost:{port}/{name}")
    );
    put(&store, "a", "1").await;
    store.close().await;
    let refused = Store::connect(&url(&others), StoreConfig::default()).await;
    assert!(
        matches!(refused, Err(OpenError::Database { .. })),
        "{refused:?}"
    );
    let wrong = Store::connect("postgres://[", StoreConfig::default()).await;
    assert!(matches!(wrong, Err(OpenError::Url { .. })), "{wrong:?}");
}
