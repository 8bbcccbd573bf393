//! Reading from SQLite.

use futures_util::TryStreamExt;
use sqlx::Error;
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use super::super::database::Part;
use super::super::statements::Cells;
use super::super::{Object, lookup};
use crate::api::Revision;

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
        sqlx::query("SELECT name, revision, data FROM object WHERE resource = $1 ORDER BY name")
            .bind(resource)
            .fetch(&mut *transaction);
    while let Some(row) = rows.try_next().await? {
        objects.push(row.object(1, resource, &row.text(0)?)?);
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
    let objects = lookup::part(&mut *transaction, resource, at, name, max).await?;
    transaction.rollback().await?;
    Ok(Part {
        objects,
        current,
        compacted,
    })
}

async fn meta(connection: &mut SqliteConnection, key: &'static str) -> Result<Revision, Error> {
    sqlx::query("SELECT value FROM meta WHERE key = $1")
        .bind(key)
        .fetch_one(connection)
        .await?
        .revision(0)
}
