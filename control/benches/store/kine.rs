//! kine's idea of a store, which k3s runs on: one table that is log and state in one; every write is a row and a transaction of its
//! own; a list finds the last row of every name; one poller, woken by writes, tells the watchers.
//!
//! Written from that description. One connection writes, behind a lock, so that no writer waits in SQLite's own busy loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnection, SqlitePool, SqlitePoolOptions};
use sqlx::{Connection, Row};
use tempfile::TempDir;
use tokio::sync::{Mutex, Notify, broadcast};
use tokio::task::JoinSet;

use crate::GENTLE;
use crate::bare::connect;
use crate::measure::{Delays, Figures, Load, closed, data, late, open};

const SCHEMA: &str = "
CREATE TABLE kine (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created INTEGER, deleted INTEGER,
    create_revision INTEGER, prev_revision INTEGER, lease INTEGER, value BLOB, old_value BLOB
);
CREATE INDEX kine_name ON kine (name);
CREATE INDEX kine_name_id ON kine (name, id);
CREATE INDEX kine_id_deleted ON kine (id, deleted);
CREATE INDEX kine_prev_revision ON kine (prev_revision);
CREATE UNIQUE INDEX kine_name_prev_revision ON kine (name, prev_revision);
";

/// The last row of a name.
const LAST: &str =
    "SELECT id, create_revision, value FROM kine WHERE name = $1 ORDER BY id DESC LIMIT 1";
const INSERT: &str = "INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value, old_value) \
     VALUES ($1, $2, 0, $3, $4, 0, $5, $6)";
/// The last rows of all names below a prefix, with the store's revision.
const LIST: &str = "SELECT (SELECT MAX(id) FROM kine) AS revision, kine.* FROM kine JOIN \
     (SELECT MAX(id) AS id FROM kine WHERE name LIKE $1 GROUP BY name) AS last ON last.id = kine.id \
     WHERE kine.deleted = 0 ORDER BY kine.name";
const AFTER: &str = "SELECT id, value FROM kine WHERE id > $1 ORDER BY id LIMIT 500";
/// How often the poller looks unasked.
const POLL: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Kine {
    writer: Arc<Mutex<SqliteConnection>>,
    readers: SqlitePool,
    wake: Arc<Notify>,
}

impl Kine {
    async fn put(&self, number: usize, data: Vec<u8>) {
        let name = format!("/registry/edge.example.com/routers/node-{number:04}");
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let last = sqlx::query(LAST)
            .bind(&name)
            .fetch_optional(&mut *transaction)
            .await
            .unwrap();
        let (id, created, old): (i64, i64, Option<Vec<u8>>) = match last {
            Some(row) => (row.get(0), row.get(1), row.get(2)),
            None => (0, 0, None),
        };
        sqlx::query(INSERT)
            .bind(&name)
            .bind(i64::from(id == 0))
            .bind(created)
            .bind(id)
            .bind(data)
            .bind(old)
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        self.wake.notify_one();
    }

    async fn last(&self) -> i64 {
        sqlx::query_scalar("SELECT COALESCE(MAX(id), 0) FROM kine")
            .fetch_one(&self.readers)
            .await
            .unwrap()
    }

    async fn poll(self, mut after: i64, tell: broadcast::Sender<Arc<Vec<u8>>>) {
        loop {
            let rows = sqlx::query(AFTER)
                .bind(after)
                .fetch_all(&self.readers)
                .await
                .unwrap();
            for row in &rows {
                after = row.get(0);
                // Nobody may be listening.
                let _ = tell.send(Arc::new(row.get(1)));
            }
            if rows.is_empty() {
                // Either way it looks again.
                let _ = tokio::time::timeout(POLL, self.wake.notified()).await;
            }
        }
    }
}

pub(crate) async fn measure(folder: &TempDir, load: &Load, figures: &mut Figures) {
    let since = Instant::now();
    let connection = connect(folder, SCHEMA).await;
    let kine = Kine {
        writer: Arc::new(Mutex::new(connection)),
        readers: SqlitePoolOptions::new()
            .max_connections(4)
            .connect(folder.path().join("store.db").to_str().unwrap())
            .await
            .unwrap(),
        wake: Arc::default(),
    };
    for number in 0..load.objects {
        kine.put(number, data(load.bytes, since, Instant::now()))
            .await;
    }

    let (answers, heard) = (Delays::default(), Delays::default());
    let (tell, _) = broadcast::channel::<Arc<Vec<u8>>>(10_000);
    let mut tasks = JoinSet::new();
    for _ in 0..load.watchers {
        let (mut told, heard) = (tell.subscribe(), heard.clone());
        tasks.spawn(async move {
            while let Ok(value) = told.recv().await {
                heard.add(late(&value, since));
            }
        });
    }
    tasks.spawn(kine.clone().poll(kine.last().await, tell));
    let bytes = load.bytes;
    open(load, GENTLE, &answers, |number, due| {
        let kine = kine.clone();
        async move { kine.put(number, data(bytes, since, due)).await }
    })
    .await;
    figures.add(
        "5. write p99 ms at 500/s",
        "kine's idea",
        answers.share(0.99),
    );
    figures.add("6. watch p99 ms at 500/s", "kine's idea", heard.share(0.99));
    tasks.shutdown().await;

    let writing = kine.clone();
    let most = closed(load, move |number| {
        let kine = writing.clone();
        async move { kine.put(number, data(bytes, since, Instant::now())).await }
    })
    .await;
    figures.add("4. updates/s at most", "kine's idea", most);

    let began = Instant::now();
    const LISTS: u32 = 10;
    for _ in 0..LISTS {
        let rows = sqlx::query(LIST)
            .bind("/registry/edge.example.com/routers/%")
            .fetch_all(&kine.readers)
            .await
            .unwrap();
        assert_eq!(rows.len(), load.objects);
    }
    figures.add(
        "7. list of all, ms",
        "kine's idea",
        began.elapsed().as_secs_f64() * 1e3 / f64::from(LISTS),
    );
    kine.readers.close().await;
}
