//! Reading from PostgreSQL. Where numbers and rows belong together they come in one statement, which is one snapshot.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::postgres::PgPool;
use sqlx::{Error, Row};

use super::super::database::{
    COUNT_BEHIND, Cells, Part, SELECT_CHANGED, SELECT_EVENTS, SELECT_OBJECT, SELECT_UNCHANGED, all,
    column, events as decoded, merge,
};
use super::super::{Event, Key, Object};
use super::follow::meta;
use crate::api::Revision;

pub(in crate::store) async fn get(pool: &PgPool, key: &Key) -> Result<Option<Object>, Error> {
    let row = sqlx::query(SELECT_OBJECT)
        .bind(key.resource.as_ref())
        .bind(key.name.as_str())
        .fetch_optional(pool)
        .await?;
    row.map(|row| row.object(0)).transpose()
}

pub(in crate::store) async fn revision(pool: &PgPool) -> Result<Revision, Error> {
    let row = sqlx::query("SELECT revision FROM meta").fetch_one(pool);
    row.await?.revision(0)
}

pub(in crate::store) async fn list(
    pool: &PgPool,
    resource: &str,
) -> Result<(Vec<Object>, Revision), Error> {
    let mut rows = sqlx::query(
        "SELECT meta.revision, object.revision, object.data FROM meta \
         LEFT JOIN object ON object.resource = $1 ORDER BY object.name",
    )
    .bind(resource)
    .fetch(pool);
    let mut revision = None;
    let mut objects = Vec::new();
    // Row by row: all of them would be the list once more.
    while let Some(row) = rows.try_next().await? {
        revision = Some(row.revision(0)?);
        // The one row of a list without objects.
        if row.try_get::<Option<i64>, _>(1)?.is_some() {
            objects.push(row.object(1)?);
        }
    }
    Ok((objects, revision.ok_or(Error::RowNotFound)?))
}

pub(in crate::store) async fn part(
    pool: &PgPool,
    resource: &str,
    at: Option<Revision>,
    name: &str,
    max: i64,
) -> Result<Part, Error> {
    let mut transaction = pool
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let (current, compacted) =
        meta(&mut transaction, "SELECT revision, compacted FROM meta").await?;
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
    pool: &PgPool,
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

/// The events, and up to where events were forgotten: read after them, because the mark is raised before they are deleted.
pub(in crate::store) async fn events(
    pool: &PgPool,
    after: Revision,
    upto: Revision,
    max: i64,
) -> Result<(Vec<Arc<Event>>, Revision), Error> {
    let rows = sqlx::query(SELECT_EVENTS)
        .bind(column(after))
        .bind(column(upto))
        .bind(max)
        .fetch_all(pool)
        .await?;
    let row = sqlx::query("SELECT compacted FROM meta")
        .fetch_one(pool)
        .await?;
    Ok((decoded(&rows)?, row.revision(0)?))
}
