//! PostgreSQL: one database, several APIServers.
//!
//! Every batch locks the one row of `meta` before it looks at anything and holds it until its commit, so commits come in the order
//! of their numbers, no number is missing below one that can be seen, and whoever sees the row's number sees everything up to it.
//! What others have committed meanwhile is taken in under the same lock, before the batch's own events.

mod follow;
mod listen;
mod open;
pub(super) mod read;
mod tokens;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Error};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use super::age::Old;
use super::database::{Batch, Failed, News, Objects, column, count, is_away, states};
use super::events::{self, Bounds};
use super::statements::Cells;
use super::writer::unix_seconds;
use super::{Event, Key};
use crate::api::Revision;
use follow::{go_on, lock, look, since};
use listen::Listener;

pub(super) use open::open;

/// How long the database may take to answer. One that is gone without a word must not hold the writer for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// The channel on which commits are told.
const CHANNEL: &str = "keel";

/// The writer's connection.
pub(super) struct Database {
    options: PgConnectOptions,
    /// `None` after a failure; it is made anew for the next use.
    connection: Option<PgConnection>,
    /// The connection is a new one, and nothing is known yet about what became of the database while there was none: it may have
    /// been restored from a backup. As at every opening, numbers go on with the clock's.
    regained: bool,
    listener: Listener,
    /// Whether the database answered last time, so that its going and coming are logged once.
    reachable: watch::Sender<bool>,
}

/// Gives up on a database that does not answer.
pub(super) async fn timely<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(silence()))
}

fn silence() -> Error {
    Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        "the database does not answer",
    ))
}

impl Database {
    pub(super) async fn apply<F>(
        &mut self,
        published: Revision,
        keys: BTreeSet<Key>,
        decide: F,
    ) -> Result<(Option<News>, Batch), Failed>
    where
        F: FnOnce(Objects, Revision) -> Batch + Send,
    {
        let mut connection = self.take().await?;
        let outcome = apply(&mut connection, self.regained, published, keys, decide).await;
        self.regained &= outcome.is_err();
        self.settle(connection, outcome)
    }

    pub(super) fn reachable(&self) -> watch::Receiver<bool> {
        self.reachable.subscribe()
    }

    /// Whose the database is; this trust domain's if it was nobody's.
    pub(super) async fn claim(&mut self, domain: &str) -> Result<String, Failed> {
        let mut connection = self.take().await?;
        let work =
            sqlx::query_scalar("UPDATE meta SET domain = COALESCE(domain, $1) RETURNING domain")
                .bind(domain)
                .fetch_one(&mut connection);
        let outcome = timely(work).await.map_err(Failed::Undone);
        self.settle(connection, outcome)
    }

    /// Waits until there is something to look at. Cancel safe.
    pub(super) async fn told(&mut self, published: Revision) {
        let reachable = *self.reachable.borrow();
        self.listener.told(published, reachable).await;
    }

    pub(super) async fn news(
        &mut self,
        published: Revision,
        compacted: Revision,
    ) -> Result<Option<News>, Error> {
        let mut connection = self.take().await?;
        let outcome = timely(look(&mut connection, self.regained, published, compacted)).await;
        self.regained &= outcome.is_err();
        match self.settle(connection, outcome.map_err(Failed::Undone)) {
            Ok(news) => Ok(news),
            Err(Failed::Undone(error) | Failed::Unknown(error)) => Err(error),
            Err(Failed::Full) => Ok(None),
        }
    }

    pub(super) async fn old_events(
        &mut self,
        keep: u64,
        old: Old,
        before: i64,
    ) -> Result<Option<Revision>, Failed> {
        let mut connection = self.take().await?;
        let work = sqlx::query_scalar::<_, Option<i64>>(
            "SELECT MAX(revision) FROM (SELECT revision, at FROM event WHERE revision <= \
             (SELECT revision FROM event ORDER BY revision DESC OFFSET $1 LIMIT 1) ORDER BY revision LIMIT $2) AS first \
             WHERE revision <= $3 OR (revision <= $4 AND at < $5)",
        )
        .bind(count(keep))
        .bind(Bounds::STEP.events)
        .bind(column(old.upto))
        .bind(column(old.found))
        .bind(before)
        .fetch_one(&mut connection);
        let outcome = timely(work).await.map_err(Failed::Undone);
        let upto = self.settle(connection, outcome)?;
        Ok(upto.map(|upto| Revision(upto.unsigned_abs())))
    }

    pub(super) async fn forget(&mut self, upto: Revision) -> Result<bool, Failed> {
        let mut connection = self.take().await?;
        let outcome = forget(&mut connection, upto).await;
        self.settle(connection, outcome)
    }

    pub(super) async fn close(self) -> Result<(), Error> {
        self.listener.close().await;
        match self.connection {
            Some(connection) => timely(connection.close()).await,
            None => Ok(()),
        }
    }

    /// Takes the connection, for [`settle`](Self::settle) to put it back if all went well: one that failed in the middle of
    /// something is of no use.
    async fn take(&mut self) -> Result<PgConnection, Error> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        match open::connect(&self.options).await {
            Ok(connection) => {
                self.regained = true;
                Ok(connection)
            }
            Err(error) => {
                self.lost(&error);
                Err(error)
            }
        }
    }

    fn settle<T>(
        &mut self,
        connection: PgConnection,
        outcome: Result<T, Failed>,
    ) -> Result<T, Failed> {
        match &outcome {
            Ok(_) => {
                if !self.reachable.send_replace(true) {
                    info!("the database is back");
                }
                self.connection = Some(connection);
            }
            Err(Failed::Undone(error) | Failed::Unknown(error)) => self.lost(error),
            Err(Failed::Full) => {}
        }
        outcome
    }

    fn lost(&mut self, error: &Error) {
        // What else the database says itself is about one request.
        let away = error.as_database_error().is_none() || is_away(error);
        if away && self.reachable.send_replace(false) {
            warn!(%error, "THE DATABASE IS AWAY: nothing is read or written until it is back");
        }
    }
}

async fn apply<F>(
    connection: &mut PgConnection,
    regained: bool,
    published: Revision,
    keys: BTreeSet<Key>,
    decide: F,
) -> Result<(Option<News>, Batch), Failed>
where
    F: FnOnce(Objects, Revision) -> Batch + Send,
{
    let (transaction, news, batch, moved) = timely(async {
        let mut transaction = connection.begin().await?;
        let (found, compacted) = lock(&mut transaction).await?;
        // Lower than what was published: the database is a restored backup.
        let moved = regained || found < published;
        let revision = match moved {
            true => go_on(&mut transaction, found, published).await?,
            false => found,
        };
        let news = match revision == published {
            true => None,
            false => Some(since(&mut transaction, published, revision, compacted).await?),
        };
        let objects = current(&mut transaction, keys).await?;
        let batch = decide(objects, revision.next());
        if let Some(last) = batch.events.last() {
            insert(&mut transaction, &batch, last.revision).await?;
        }
        Ok((transaction, news, batch, moved))
    })
    .await?;
    if batch.events.is_empty() && !moved {
        timely(transaction.rollback()).await?;
    } else {
        timely(transaction.commit())
            .await
            .map_err(Failed::Unknown)?;
    }
    Ok((news, batch))
}

async fn current(connection: &mut PgConnection, keys: BTreeSet<Key>) -> Result<Objects, Error> {
    let (resources, names): (Vec<&str>, Vec<&str>) = keys
        .iter()
        .map(|key| (key.resource.as_ref(), key.name.as_str()))
        .unzip();
    let rows = sqlx::query(
        "SELECT resource, name, revision, data FROM object \
         JOIN UNNEST($1::TEXT[], $2::TEXT[]) AS wanted (resource, name) USING (resource, name)",
    )
    .bind(resources)
    .bind(names)
    .fetch_all(connection)
    .await?;
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

async fn insert(connection: &mut PgConnection, batch: &Batch, last: Revision) -> Result<(), Error> {
    // Arrays, so that a batch of any size is the same few statements, prepared once.
    let columns = |event: &Arc<Event>| (column(event.revision), event.kind.column());
    let (revisions, kinds): (Vec<i64>, Vec<i64>) = batch.events.iter().map(columns).unzip();
    let (resources, names): (Vec<&str>, Vec<&str>) =
        batch.events.iter().map(|event| name(event)).unzip();
    let (objects, previous): (Vec<&[u8]>, Vec<Option<&[u8]>>) = batch
        .events
        .iter()
        .map(|event| (&event.object[..], event.previous.as_deref()))
        .unzip();
    sqlx::query(
        "INSERT INTO event (revision, at, kind, resource, name, object, previous) \
         SELECT revision, $7, kind, resource, name, object, previous FROM UNNEST \
         ($1::BIGINT[], $2::BIGINT[], $3::TEXT[], $4::TEXT[], $5::BYTEA[], $6::BYTEA[]) \
         AS event (revision, kind, resource, name, object, previous)",
    )
    .bind(revisions)
    .bind(kinds)
    .bind(resources)
    .bind(names)
    .bind(objects)
    .bind(previous)
    .bind(unix_seconds())
    .execute(&mut *connection)
    .await?;

    let (gone, there) = states(&batch.events);
    if !there.is_empty() {
        let (resources, names): (Vec<&str>, Vec<&str>) =
            there.iter().map(|event| name(event)).unzip();
        let (revisions, data): (Vec<i64>, Vec<&[u8]>) = there
            .iter()
            .map(|event| (column(event.revision), &event.object[..]))
            .unzip();
        sqlx::query(
            "INSERT INTO object (resource, name, revision, data) \
             SELECT * FROM UNNEST ($1::TEXT[], $2::TEXT[], $3::BIGINT[], $4::BYTEA[]) \
             ON CONFLICT (resource, name) DO UPDATE SET revision = excluded.revision, data = excluded.data",
        )
        .bind(resources)
        .bind(names)
        .bind(revisions)
        .bind(data)
        .execute(&mut *connection)
        .await?;
    }
    if !gone.is_empty() {
        let (resources, names): (Vec<&str>, Vec<&str>) =
            gone.iter().map(|event| name(event)).unzip();
        sqlx::query(
            "DELETE FROM object USING UNNEST ($1::TEXT[], $2::TEXT[]) AS gone (resource, name) \
             WHERE object.resource = gone.resource AND object.name = gone.name",
        )
        .bind(resources)
        .bind(names)
        .execute(&mut *connection)
        .await?;
    }
    for (low, high) in &batch.gaps {
        sqlx::query("INSERT INTO gap (low, high) VALUES ($1, $2) ON CONFLICT (low) DO UPDATE SET high = excluded.high")
            .bind(column(*low))
            .bind(column(*high))
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("UPDATE meta SET revision = $1")
        .bind(column(last))
        .execute(&mut *connection)
        .await?;
    notify(connection, last).await
}

fn name(event: &Event) -> (&str, &str) {
    (event.key.resource.as_ref(), event.key.name.as_str())
}

/// Tells the other APIServers, at the commit, that there is something up to this revision.
async fn notify(connection: &mut PgConnection, revision: Revision) -> Result<(), Error> {
    sqlx::query("SELECT pg_notify($1, $2)")
        .bind(CHANNEL)
        .bind(revision.to_string())
        .execute(connection)
        .await
        .map(drop)
}

async fn forget(connection: &mut PgConnection, upto: Revision) -> Result<bool, Failed> {
    let (transaction, more) = timely(async {
        let mut transaction = connection.begin().await?;
        // The one row comes first, as everywhere, so that nobody waits for each other.
        for sql in [
            "UPDATE meta SET compacted = GREATEST(compacted, $1)",
            "DELETE FROM gap WHERE high <= $1",
        ] {
            sqlx::query(sql)
                .bind(column(upto))
                .execute(&mut *transaction)
                .await?;
        }
        let (_, more) = events::forget(&mut *transaction, upto).await?;
        Ok((transaction, more))
    })
    .await?;
    timely(transaction.commit())
        .await
        .map_err(Failed::Unknown)?;
    Ok(more)
}
