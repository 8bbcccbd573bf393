//! Bare SQLite: what our store's statements cost when nothing is around them.

use std::time::Instant;

use keel_control::store::StoreConfig;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, QueryBuilder, Sqlite};
use tempfile::TempDir;

use crate::measure::{Figures, Load, data};

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
    let mut connection = connect(folder, SCHEMA).await;
    let batch = StoreConfig::default().batch;
    let since = Instant::now();
    let (mut revision, mut number) = (0_i64, 0);
    let began = Instant::now();
    while began.elapsed() < load.time {
        let rows: Vec<(i64, String, Vec<u8>)> = (0..batch)
            .map(|_| {
                revision += 1;
                number = (number + 1) % load.objects;
                let name = format!("node-{number:04}");
                (revision, name, data(load.bytes, since, Instant::now()))
            })
            .collect();
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
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
    let rate = revision as f64 / began.elapsed().as_secs_f64();
    figures.add("4. updates/s at most", "bare SQLite", rate);
    connection.close().await.unwrap();
}
