//! SQLite: one file, one writer.

mod ballast;
mod file;
mod log;
mod mend;
mod open;
pub(super) mod read;
mod schema;
mod tokens;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Error, QueryBuilder, Sqlite};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::age::Old;
use super::database::{Batch, Failed, News, Objects, column, count, states};
use super::events::{self, Bounds, Room};
use super::seal::{Place, Seal};
use super::statements::{Cells, all};
use super::writer::unix_seconds;
use super::{Event, Key};
use crate::api::Revision;
use ballast::Ballast;
use file::{check, checkpoint, free_pages};
use log::Log;

pub(super) use open::open;

/// The writer's connection and what it counts.
pub(super) struct Database {
    path: PathBuf,
    /// `None` after a failure: what SQLite still believes then is not to be trusted, and sqlx loses count of its transactions when
    /// SQLite ends one by itself. It is opened anew for the next use.
    connection: Option<SqliteConnection>,
    /// The disk failed: what is there is looked at before it is built upon.
    verify: bool,
    /// Whether it does not have to be.
    sound: watch::Sender<bool>,
    /// The number that the next change gets. Goes on after a failed commit, which may turn out to be durable.
    next: Revision,
    /// Events in the database.
    events: u64,
    ballast: Ballast,
    log: Log,
    damaged: Counter,
    /// Keeps other stores away from the file.
    _held: std::fs::File,
}

/// What a failure of SQLite means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Full,
    Disk,
    Corrupt,
    Other,
}

/// SQLite's result codes: <https://sqlite.org/rescode.html>.
fn trouble(error: &Error) -> Trouble {
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<u32>().ok());
    match code {
        // SQLITE_IOERR_SHMSIZE: the index of the log could not grow.
        Some(4874) => Trouble::Full,
        Some(code) => match code & 0xff {
            13 => Trouble::Full,
            10 => Trouble::Disk,
            // SQLITE_CORRUPT and SQLITE_NOTADB; the bits above say more precisely where.
            11 | 26 => Trouble::Corrupt,
            _ => Trouble::Other,
        },
        None => Trouble::Other,
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    // Nothing here touches the file, so a connection is had (and can be closed properly) whatever the file is.
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
}

/// For a file that is known to be ours: SQLite reads the schema before it sets the size of the cache.
fn options_of_ours(path: &Path) -> SqliteConnectOptions {
    options(path).pragma("cache_size", CACHE)
}

/// What each connection keeps of the file: 512 KiB (SQLite counts kibibytes below zero). The inner pages of every table fit there, the
/// rest is in the system's cache anyway, and an edge node has up to five connections.
const CACHE: &str = "-512";

/// Said to every connection that writes, when the file is known to be ours. The log is moved by [`log`].
const DURABLE: &str =
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0";

/// How often a store whose disk has failed is looked at, if nobody writes.
const LOOK: Duration = Duration::from_secs(1);

impl Database {
    /// Whether nothing failed that was not looked at since, followed.
    pub(super) fn sound(&self) -> watch::Receiver<bool> {
        self.sound.subscribe()
    }

    /// Nobody else writes; but a disk that failed is to be looked at, although nobody asks. Cancel safe.
    pub(super) async fn told(&self) {
        if !self.verify {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LOOK).await;
    }

    pub(super) async fn apply<F>(&mut self, keys: BTreeSet<Key>, decide: F) -> Result<Batch, Failed>
    where
        F: FnOnce(Objects, Revision) -> Batch + Send,
    {
        let outcome = self.try_apply(keys, decide).await;
        self.settle(outcome).await
    }

    async fn try_apply<F>(&mut self, keys: BTreeSet<Key>, decide: F) -> Result<Batch, Failed>
    where
        F: FnOnce(Objects, Revision) -> Batch + Send,
    {
        let next = self.next;
        // Reading before the transaction is safe: nobody else writes.
        let objects = current(self.ready().await?, keys).await?;
        let batch = decide(objects, next);
        if let Some(last) = batch.events.last() {
            self.next = last.revision.next();
            insert(self.ready().await?, &batch, last.revision).await?;
            self.events += batch.events.len() as u64;
            self.log
                .wrote(batch.events.iter().map(|event| size(event)).sum());
        }
        Ok(batch)
    }

    pub(super) async fn news(
        &mut self,
        published: Revision,
        compacted: Revision,
    ) -> Result<News, Error> {
        let connection = self.connected().await?;
        let events = events::read(connection, published, Revision::MAX, Bounds::NONE).await?;
        let gaps = sqlx::query("SELECT low, high FROM gap WHERE high > $1")
            .bind(column(published))
            .fetch_all(connection)
            .await?;
        self.events += events.len() as u64;
        Ok(News {
            revision: events.last().map_or(published, |event| event.revision),
            events,
            floor: None,
            gaps: all(&gaps, Cells::gap)?,
            compacted,
        })
    }

    pub(super) async fn old_events(
        &mut self,
        keep: u64,
        old: Old,
        before: i64,
    ) -> Result<Option<Revision>, Failed> {
        if self.events <= keep {
            return Ok(None);
        }
        let rows = count(self.events - keep).min(Bounds::STEP.events);
        let upto = sqlx::query_scalar::<_, Option<i64>>(
            "SELECT MAX(revision) FROM (SELECT revision, at FROM event ORDER BY revision LIMIT $1) \
             WHERE revision <= $2 OR (revision <= $3 AND at < $4)",
        )
        .bind(rows)
        .bind(column(old.upto))
        .bind(column(old.found))
        .bind(before)
        .fetch_one(self.connected().await?)
        .await?;
        Ok(upto.map(|upto| Revision(upto.unsigned_abs())))
    }

    /// The history has a share of the disk; on a full one, half of it goes at each look.
    pub(super) async fn surplus(&mut self) -> Result<Option<Revision>, Failed> {
        let file = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        let room = self.ballast.room_for(file);
        if matches!(room, Room::Bytes(bytes) if file <= bytes) {
            return Ok(None);
        }
        Ok(events::surplus(self.connected().await?, room).await?)
    }

    /// Also on a full disk: what is given up for this makes the room.
    pub(super) async fn forget(&mut self, upto: Revision) -> Result<bool, Failed> {
        let outcome = self.try_forget(upto).await;
        self.settle(outcome).await
    }

    async fn try_forget(&mut self, upto: Revision) -> Result<bool, Failed> {
        let connection = self.connected().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for sql in [
            "UPDATE meta SET value = $1 WHERE key = 'compacted'",
            "DELETE FROM gap WHERE high <= $1",
        ] {
            sqlx::query(sql)
                .bind(column(upto))
                .execute(&mut *transaction)
                .await?;
        }
        let (deleted, more) = events::forget(&mut *transaction, upto).await?;
        transaction.commit().await.map_err(Failed::Unknown)?;
        self.events = self.events.saturating_sub(deleted);
        // How much that is in the log, only SQLite knows.
        self.log.wrote(usize::MAX);
        Ok(more)
    }

    /// Looks at every row, mends what can be mended, and sets aside what cannot: see [`mend`]. `None` if all is well.
    pub(super) async fn mend(&mut self) -> Result<Option<News>, Failed> {
        let revision = self.next;
        let damaged = self.damaged.clone();
        let outcome = match self.ready().await {
            Ok(connection) => mend::everything(connection, revision, &damaged).await,
            Err(failed) => Err(failed),
        };
        let mended = self.settle(outcome).await?;
        if !mended {
            return Ok(None);
        }
        self.next = revision.next();
        Ok(Some(News {
            events: Vec::new(),
            floor: Some(revision),
            gaps: Vec::new(),
            revision,
            compacted: revision,
        }))
    }

    /// Sees to the log, when nobody waits for a write.
    pub(super) async fn tidy(&mut self) {
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        let short = !self.ballast.is_held();
        if let Err(error) = self.log.tidy(&self.path, connection, short).await {
            warn!(%error, "the store's log cannot be moved into it");
            // Nothing waits for an answer: what follows from it is all that matters.
            let _ = self.settle::<()>(Err(Failed::Undone(error))).await;
        }
    }

    /// Closes the file. Closing the last connection checkpoints and removes the log; awaited, because a dropped connection closes
    /// in the background, and the file must not be moved meanwhile.
    pub(super) async fn close(mut self) -> Result<(), Error> {
        self.log.rest().await;
        match self.connection {
            Some(connection) => connection.close().await,
            None => Ok(()),
        }
    }

    /// The connection, if there is room for a write.
    async fn ready(&mut self) -> Result<&mut SqliteConnection, Failed> {
        if !self.ballast.is_held() {
            let pages = free_pages(self.connected().await?).await?;
            if !self.ballast.has_room(log::size(&self.path), pages) {
                return Err(Failed::Full);
            }
        }
        Ok(self.connected().await?)
    }

    async fn connected(&mut self) -> Result<&mut SqliteConnection, Error> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection =
                    SqliteConnection::connect_with(&options_of_ours(&self.path)).await?;
                if let Err(error) = reopened(&mut connection, self.verify).await {
                    close(connection).await;
                    return Err(error);
                }
                if std::mem::take(&mut self.verify) {
                    self.sound.send_replace(true);
                    info!(store = %self.path.display(), "the store was opened again and is sound");
                }
                connection
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// What the failure of a statement that is a transaction of its own means.
    fn statement(error: Error) -> Failed {
        match trouble(&error) {
            Trouble::Disk => Failed::Unknown(error),
            _ => Failed::Undone(error),
        }
    }

    /// Draws the consequences of a failure.
    async fn settle<T>(&mut self, outcome: Result<T, Failed>) -> Result<T, Failed> {
        let failed = match outcome {
            Ok(done) => return Ok(done),
            Err(failed) => failed,
        };
        let trouble = match &failed {
            Failed::Full => return Err(failed),
            Failed::Undone(error) | Failed::Unknown(error) => trouble(error),
        };
        if let Some(connection) = self.connection.take() {
            close(connection).await;
        }
        self.log.rest().await;
        match trouble {
            Trouble::Full => {
                self.ballast.release();
                self.empty_log().await;
                return Err(Failed::Full);
            }
            Trouble::Disk | Trouble::Corrupt => {
                error!(
                    store = %self.path.display(), error = ?failed,
                    "THE DISK FAILED under the store: nothing is acknowledged until it was opened again and found sound"
                );
                self.verify = true;
                self.sound.send_replace(false);
            }
            Trouble::Other => {}
        }
        Err(failed)
    }

    /// Moves the log into the file, so that it takes no room of its own.
    async fn empty_log(&mut self) {
        let done = match self.connected().await {
            Ok(connection) => checkpoint(connection).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            warn!(%error, "the store's log could not be emptied");
        }
    }
}

fn seal(event: &Event, place: Place) -> Seal<'_> {
    Seal {
        place,
        revision: event.revision,
        resource: &event.key.resource,
        name: &event.key.name,
    }
}

/// Bytes that an event brings into the file: it holds the object and the one before, and the object is there once more.
fn size(event: &Event) -> usize {
    2 * event.object.len() + event.previous.as_ref().map_or(0, bytes::Bytes::len)
}

async fn close(connection: SqliteConnection) {
    if let Err(error) = connection.close().await {
        warn!(%error, "a connection to the store did not close cleanly");
    }
}

/// Makes a connection the writer's; with `verify`, of a store whose disk has failed.
async fn reopened(connection: &mut SqliteConnection, verify: bool) -> Result<(), Error> {
    sqlx::raw_sql(DURABLE).execute(&mut *connection).await?;
    if !verify {
        return Ok(());
    }
    check(connection).await?.map_err(Error::Protocol)?;
    // What the log holds may never have reached the disk, though it can be read: written to the file and synced, it has.
    checkpoint(connection).await
}

async fn current(connection: &mut SqliteConnection, keys: BTreeSet<Key>) -> Result<Objects, Error> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT resource, name, revision, data FROM object WHERE (resource, name) IN (",
    );
    query.push_values(keys, |mut row, key| {
        row.push_bind(key.resource.into_owned()).push_bind(key.name);
    });
    query.push(")");
    let rows = query.build().fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let key = Key {
                resource: row.text(0)?.into(),
                name: row.text(1)?,
            };
            let object = row.object(2, &key.resource, &key.name)?;
            Ok((key, object))
        })
        .collect()
}

async fn insert(
    connection: &mut SqliteConnection,
    batch: &Batch,
    last: Revision,
) -> Result<(), Failed> {
    let now = unix_seconds();
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO event (revision, at, kind, resource, name, object, previous) ",
    );
    query.push_values(&batch.events, |mut row, event| {
        row.push_bind(column(event.revision))
            .push_bind(now)
            .push_bind(event.kind.column());
        row.push_bind(event.key.resource.clone().into_owned())
            .push_bind(event.key.name.clone());
        let place = Place::Event(event.kind, event.previous.is_some());
        row.push_bind(seal(event, place).put(&event.object));
        let previous = event.previous.as_ref();
        row.push_bind(previous.map(|object| seal(event, Place::Previous).put(object)));
    });
    query.build().execute(&mut *transaction).await?;

    let (gone, there) = states(&batch.events);
    if !there.is_empty() {
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO object (resource, name, revision, data) ");
        query.push_values(there, |mut row, event| {
            row.push_bind(event.key.resource.clone().into_owned())
                .push_bind(event.key.name.clone());
            row.push_bind(column(event.revision))
                .push_bind(seal(event, Place::Object).put(&event.object));
        });
        query.push(" ON CONFLICT (resource, name) DO UPDATE SET revision = excluded.revision, data = excluded.data");
        query.build().execute(&mut *transaction).await?;
    }
    if !gone.is_empty() {
        let mut query =
            QueryBuilder::<Sqlite>::new("DELETE FROM object WHERE (resource, name) IN (");
        query.push_values(gone, |mut row, event| {
            row.push_bind(event.key.resource.clone().into_owned())
                .push_bind(event.key.name.clone());
        });
        query.push(")");
        query.build().execute(&mut *transaction).await?;
    }
    for (low, high) in &batch.gaps {
        sqlx::query("INSERT OR REPLACE INTO gap (low, high) VALUES ($1, $2)")
            .bind(column(*low))
            .bind(column(*high))
            .execute(&mut *transaction)
            .await?;
    }
    sqlx::query("UPDATE meta SET value = $1 WHERE key = 'revision'")
        .bind(column(last))
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await.map_err(Failed::Unknown)
}
