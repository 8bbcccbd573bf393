//! Reading from PostgreSQL. Where numbers and rows belong together they come in one statement, which is one snapshot.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::postgres::PgPool;
use sqlx::{Error, Row};

use super::super::database::Part;
use super::super::events::{self, Bounds};
use super::super::statements::Cells;
use super::super::{Event, Object, lookup};
use super::follow::meta;
use crate::api::Revision;

pub(in crate::store) async fn revision(pool: &PgPool) -> Result<Revision, Error> {
    let row = sqlx::query("SELECT revision FROM meta").fetch_one(pool);
    row.await?.revision(0)
}

pub(in crate::store) async fn list(
    pool: &PgPool,
    resource: &str,
) -> Result<(Vec<Object>, Revision), Error> {
    let mut rows = sqlx::query(
        "SELECT meta.revision, object.name, object.revision, object.data FROM meta \
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
        if row.try_get::<Option<i64>, _>(2)?.is_some() {
            objects.push(row.object(2, resource, &row.text(1)?)?);
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
    let objects = lookup::part(&mut *transaction, resource, at, name, max).await?;
    transaction.rollback().await?;
    Ok(Part {
        objects,
        current,
        compacted,
    })
}

/// The events, and up to where events were forgotten: read after them, because the mark is raised before they are deleted.
pub(in crate::store) async fn events(
    pool: &PgPool,
    after: Revision,
    upto: Revision,
    bounds: Bounds,
) -> Result<(Vec<Arc<Event>>, Revision), Error> {
    let connection = &mut *pool.acquire().await?;
    let events = events::read(connection, after, upto, bounds).await?;
    let row = sqlx::query("SELECT compacted FROM meta")
        .fetch_one(connection)
        .await?;
    Ok((events, row.revision(0)?))
}
