//! Bare SQLite: what our store's statements cost when nothing is around them; with SQLite's own care of its log.

use std::time::{Duration, Instant};

use keel_control::store::StoreConfig;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, QueryBuilder, Sqlite};
use tempfile::TempDir;

use crate::measure::{Delays, Figures, Load, data};
use crate::{API_P99, WRITE_P99};

pub(crate) async fn connect(folder: &TempDir, schema: &'static str) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("store.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(schema)
        .execute(&mut connection)
        .await
        .unwrap();
    connection
}

const SCHEMA: &str = "
CREATE TABLE object (resource TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (resource, name));
CREATE TABLE event (revision INTEGER PRIMARY KEY, object BLOB NOT NULL, previous BLOB);
";

/// Full batches, one after the other: an event and an object for each write.
pub(crate) async fn measure(folder: &TempDir, load: &Load, figures: &mut Figures) {
    let mut bare = Bare::open(folder).await;
    let batch = StoreConfig::default().batch;
    let began = Instant::now();
    while began.elapsed() < load.time {
        bare.write(batch, load).await;
    }
    let rate = bare.revision as f64 / began.elapsed().as_secs_f64();
    figures.add("4. updates/s at most", "bare SQLite", rate);
    bare.connection.close().await.unwrap();
}

/// Batches as our store makes them when so many writes come per second.
pub(crate) async fn paced(folder: &TempDir, load: &Load, rate: u32, figures: &mut Figures) {
    let mut bare = Bare::open(folder).await;
    for _ in 0..load.objects.div_ceil(64) {
        bare.write(64, load).await;
    }
    let StoreConfig { batch, linger, .. } = StoreConfig::default();
    let delays = Delays::default();
    let began = Instant::now();
    let mut done = 0;
    while began.elapsed() < load.time {
        tokio::time::sleep(linger).await;
        let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as usize;
        let batch = batch.min(due - done);
        bare.write(batch, load).await;
        for number in done..done + batch {
            let due = Duration::from_secs_f64(number as f64 / f64::from(rate));
            delays.add(began.elapsed().saturating_sub(due));
        }
        done += batch;
    }
    for what in [WRITE_P99, API_P99] {
        figures.add(what, "bare SQLite", delays.share(0.99));
    }
    bare.connection.close().await.unwrap();
}

struct Bare {
    connection: SqliteConnection,
    revision: i64,
    since: Instant,
}

impl Bare {
    async fn open(folder: &TempDir) -> Self {
        Self {
            connection: connect(folder, SCHEMA).await,
            revision: 0,
            since: Instant::now(),
        }
    }

    async fn write(&mut self, batch: usize, load: &Load) {
        if batch == 0 {
            return;
        }
        let rows: Vec<(i64, String, Vec<u8>)> = (0..batch)
            .map(|_| {
                self.revision += 1;
                let number = usize::try_from(self.revision).unwrap() % load.objects;
                let data = data(load.bytes, self.since, Instant::now());
                (self.revision, format!("node-{number:04}"), data)
            })
            .collect();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO event (revision, object, previous) ");
        query.push_values(&rows, |mut row, (revision, _, data)| {
            row.push_bind(revision).push_bind(data).push_bind(data);
        });
        query.build().execute(&mut *transaction).await.unwrap();
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO object (resource, name, revision, data) ");
        query.push_values(&rows, |mut row, (revision, name, data)| {
            row.push_bind("routers.edge.example.com")
                .push_bind(name)
                .push_bind(revision)
                .push_bind(data);
        });
        query.push(" ON CONFLICT (resource, name) DO UPDATE SET revision = excluded.revision, data = excluded.data");
        query.build().execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }
}
