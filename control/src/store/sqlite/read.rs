//! Reading from SQLite.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::Error;
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use super::super::database::{
    COUNT_BEHIND, Cells, Part, SELECT_CHANGED, SELECT_EVENTS, SELECT_OBJECT, SELECT_UNCHANGED, all,
    column, merge,
};
use super::super::{Event, Key, Object, database};
use crate::api::Revision;

pub(in crate::store) async fn get(pool: &SqlitePool, key: &Key) -> Result<Option<Object>, Error> {
    let row = sqlx::query(SELECT_OBJECT)
        .bind(key.resource.as_ref())
        .bind(key.name.as_str())
        .fetch_optional(pool)
        .await?;
    row.map(|row| row.object(0)).transpose()
}

pub(in crate::store) async fn list(
    pool: &SqlitePool,
    resource: &str,
) -> Result<(Vec<Object>, Revision), Error> {
    // One transaction is one snapshot, so the number and the objects belong together.
    let mut transaction = pool.begin().await?;
    let revision = meta(&mut transaction, "revision").await?;
    let mut objects = Vec::new();
    // Row by row: a row is a copy, and all of them would be the list once more.
    let mut rows =
        sqlx::query("SELECT revision, data FROM object WHERE resource = $1 ORDER BY name")
            .bind(resource)
            .fetch(&mut *transaction);
    while let Some(row) = rows.try_next().await? {
        objects.push(row.object(0)?);
    }
    drop(rows);
    transaction.rollback().await?;
    Ok((objects, revision))
}

pub(in crate::store) async fn part(
    pool: &SqlitePool,
    resource: &str,
    at: Option<Revision>,
    name: &str,
    max: i64,
) -> Result<Part, Error> {
    let mut transaction = pool.begin().await?;
    let current = meta(&mut transaction, "revision").await?;
    let compacted = meta(&mut transaction, "compacted").await?;
    let at = at.unwrap_or(current);
    let mut lists = Vec::new();
    for sql in [SELECT_UNCHANGED, SELECT_CHANGED] {
        let rows = sqlx::query(sql)
            .bind(resource)
            .bind(name)
            .bind(column(at))
            .bind(max)
            .fetch_all(&mut *transaction)
            .await?;
        lists.push(all(&rows, Cells::named)?);
    }
    transaction.rollback().await?;
    let changed = lists.pop().unwrap_or_default();
    Ok(Part {
        objects: merge(lists.pop().unwrap_or_default(), changed, max),
        current,
        compacted,
    })
}

pub(in crate::store) async fn behind(
    pool: &SqlitePool,
    resource: &str,
    at: Revision,
    name: &str,
) -> Result<i64, Error> {
    let row = sqlx::query(COUNT_BEHIND)
        .bind(resource)
        .bind(name)
        .bind(column(at))
        .fetch_one(pool);
    row.await?.number(0)
}

pub(in crate::store) async fn events(
    pool: &SqlitePool,
    after: Revision,
    upto: Revision,
    max: i64,
) -> Result<Vec<Arc<Event>>, Error> {
    let rows = sqlx::query(SELECT_EVENTS)
        .bind(column(after))
        .bind(column(upto))
        .bind(max)
        .fetch_all(pool)
        .await?;
    database::events(&rows)
}

async fn meta(connection: &mut SqliteConnection, key: &'static str) -> Result<Revision, Error> {
    sqlx::query("SELECT value FROM meta WHERE key = $1")
        .bind(key)
        .fetch_one(connection)
        .await?
        .revision(0)
}
