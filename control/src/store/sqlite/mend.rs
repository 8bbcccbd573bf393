//! Rows whose checksum does not fit.
//!
//! The last event of an object holds what its row should: from there it is restored. What no event knows any more is set aside, in
//! the table `damaged`, and the object is gone. Either way the history begins anew, so that whoever watches lists anew and sees what
//! is there; and so does a history of which an event is damaged.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use prometheus_client::metrics::counter::Counter;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Error};
use tracing::error;

use super::super::database::{Failed, column};
use super::super::seal::{Place, is_damage};
use super::super::statements::{Cells, Statements};
use super::super::writer::unix_seconds;
use super::super::{Event, EventKind, Key};
use super::seal;
use crate::api::Revision;

/// Rows that are kept of those that were set aside.
const KEPT: i64 = 1000;

const FIRST_EVENT: &str =
    "SELECT revision, kind, resource, name, object, previous FROM event ORDER BY revision LIMIT 1";

const ASIDE: &str = "CREATE TABLE IF NOT EXISTS damaged \
     (at INTEGER NOT NULL, resource, name, revision, data)";

/// Whether an object's row is damaged, or cannot be found by its name, or the history does not begin where it did. Events that are
/// damaged elsewhere are found when they are read; one whose number became lower than all others would never be.
pub(super) async fn is_needed(connection: &mut SqliteConnection) -> Result<bool, Error> {
    // Of the index, quick_check says nothing.
    let verdict: String = sqlx::query_scalar("PRAGMA integrity_check('object')")
        .fetch_one(&mut *connection)
        .await?;
    let first = connection.row(FIRST_EVENT, &[]).await?;
    let first = first.map(|row| row.event()).transpose();
    Ok(verdict != "ok" || first.is_err() || !damaged(connection).await?.is_empty())
}

/// Mends objects and events; the history begins anew with this revision. Whether anything was damaged; `count` tells how many rows.
pub(super) async fn everything(
    connection: &mut SqliteConnection,
    revision: Revision,
    count: &Counter,
) -> Result<bool, Failed> {
    let (last, sound) = history(connection).await?;
    if sound && !is_needed(connection).await? {
        return Ok(false);
    }
    let last = if sound { last } else { HashMap::new() };
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut rows = objects(&mut transaction, last).await?;
    if !sound {
        rows += 1;
        error!("EVENTS OF THE STORE ARE DAMAGED: the history of all objects begins anew");
    }
    sqlx::query("UPDATE meta SET value = $1 WHERE key IN ('revision', 'compacted')")
        .bind(column(revision))
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await.map_err(Failed::Unknown)?;
    count.inc_by(rows);
    Ok(true)
}

/// The rows of objects that are not what was written, and what they are called, as far as that can be read.
async fn damaged(connection: &mut SqliteConnection) -> Result<Vec<(i64, String)>, Error> {
    let mut found = Vec::new();
    let mut rows =
        sqlx::query("SELECT rowid, resource, name, revision, data FROM object").fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let (resource, name) = (row.text(1), row.text(2));
        let read = match (&resource, &name) {
            (Ok(resource), Ok(name)) => row.object(3, resource, name).is_ok(),
            _ => false,
        };
        if !read {
            let shown = |text: Result<String, Error>| text.unwrap_or_else(|_| "?".into());
            found.push((
                row.number(0)?,
                format!("{}/{}", shown(resource), shown(name)),
            ));
        }
    }
    Ok(found)
}

/// The last event of every object, and whether all events are sound.
async fn history(connection: &mut SqliteConnection) -> Result<(HashMap<Key, Event>, bool), Error> {
    let mut last = HashMap::new();
    let mut rows = sqlx::query(
        "SELECT revision, kind, resource, name, object, previous FROM event ORDER BY revision",
    )
    .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        match row.event() {
            Ok(event) => last.insert(event.key.clone(), event),
            Err(error) if is_damage(&error) => return Ok((HashMap::new(), false)),
            Err(error) => return Err(error),
        };
    }
    Ok((last, true))
}

/// Sets aside what is damaged, then brings back what the last events know and the table does not. How many were set aside.
async fn objects(
    connection: &mut SqliteConnection,
    last: HashMap<Key, Event>,
) -> Result<u64, Error> {
    // A name that changed is not where its index has it.
    sqlx::raw_sql("REINDEX object")
        .execute(&mut *connection)
        .await?;
    sqlx::query(ASIDE).execute(&mut *connection).await?;
    let damaged = damaged(connection).await?;
    let count = damaged.len() as u64;
    for (row, what) in damaged {
        error!(
            object = what,
            row,
            "A ROW OF THE STORE IS DAMAGED: it was set aside in the table `damaged`, and is lost unless it is restored next"
        );
        sqlx::query("INSERT INTO damaged SELECT $1, resource, name, revision, data FROM object WHERE rowid = $2")
            .bind(unix_seconds())
            .bind(row)
            .execute(&mut *connection)
            .await?;
        sqlx::query("DELETE FROM object WHERE rowid = $1")
            .bind(row)
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("DELETE FROM damaged WHERE rowid <= (SELECT MAX(rowid) FROM damaged) - $1")
        .bind(KEPT)
        .execute(&mut *connection)
        .await?;
    for event in last.into_values() {
        if event.kind == EventKind::Deleted {
            continue;
        }
        let restored = sqlx::query(
            "INSERT INTO object (resource, name, revision, data) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (resource, name) DO NOTHING",
        )
        .bind(event.key.resource.as_ref())
        .bind(event.key.name.as_str())
        .bind(column(event.revision))
        .bind(seal(&event, Place::Object).put(&event.object))
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if restored > 0 {
            error!(resource = %event.key.resource, name = event.key.name, "the object is restored from its last event");
        }
    }
    Ok(count)
}
