//! What is looked up in the same words in both databases: an object, a part of a list.

use bytes::Bytes;
use sqlx::Error;

use super::database::column;
use super::seal::Place;
use super::statements::{Cells, Statements, Value, all};
use super::{Key, Object};
use crate::api::Revision;

/// One object.
const SELECT_OBJECT: &str = "SELECT revision, data FROM object WHERE resource = $1 AND name = $2";

/// Objects of the resource $1 behind the name $2 that are as they were at the revision $3, the first $4 of them.
const SELECT_UNCHANGED: &str = "SELECT name, revision, data FROM object \
     WHERE resource = $1 AND name > $2 AND revision <= $3 ORDER BY name LIMIT $4";

/// Objects of the resource $1 behind the name $2 that have changed since the revision $3 and were there then, as they were then:
/// the first change since knows what was before it.
const SELECT_CHANGED: &str = "SELECT event.name, event.revision, event.previous FROM event JOIN \
     (SELECT MIN(revision) AS revision FROM event WHERE resource = $1 AND name > $2 AND revision > $3 GROUP BY name) AS first \
     ON event.revision = first.revision WHERE event.previous IS NOT NULL ORDER BY event.name LIMIT $4";

/// How many objects [`SELECT_UNCHANGED`] and [`SELECT_CHANGED`] would find without an end.
const COUNT_BEHIND: &str = "SELECT (SELECT COUNT(*) FROM object WHERE resource = $1 AND name > $2 AND revision <= $3) + \
     (SELECT COUNT(*) FROM event JOIN \
     (SELECT MIN(revision) AS revision FROM event WHERE resource = $1 AND name > $2 AND revision > $3 GROUP BY name) AS first \
     ON event.revision = first.revision WHERE event.previous IS NOT NULL)";

/// The object, if there is one.
pub(super) async fn get(
    connection: &mut impl Statements,
    key: &Key,
) -> Result<Option<Object>, Error> {
    let values = [Value::Text(&key.resource), Value::Text(&key.name)];
    let row = connection.row(SELECT_OBJECT, &values).await?;
    row.map(|row| row.object(0, &key.resource, &key.name))
        .transpose()
}

/// The first `max` objects of the resource behind `name`, as they were at `at`. Within a transaction, which is one snapshot.
pub(super) async fn part(
    connection: &mut impl Statements,
    resource: &str,
    at: Revision,
    name: &str,
    max: i64,
) -> Result<Vec<(String, Bytes)>, Error> {
    let values = [
        Value::Text(resource),
        Value::Text(name),
        Value::Number(column(at)),
        Value::Number(max),
    ];
    let unchanged = connection.rows(SELECT_UNCHANGED, &values).await?;
    let mut objects = all(&unchanged, |row| row.named(resource, Place::Object))?;
    let changed = connection.rows(SELECT_CHANGED, &values).await?;
    objects.extend(all(&changed, |row| row.named(resource, Place::Previous))?);
    objects.sort_by(|(one, _), (other, _)| one.cmp(other));
    objects.truncate(usize::try_from(max).unwrap_or(usize::MAX));
    Ok(objects)
}

/// How many objects of the resource were behind `name` at `at`.
pub(super) async fn behind(
    connection: &mut impl Statements,
    resource: &str,
    at: Revision,
    name: &str,
) -> Result<i64, Error> {
    let values = [
        Value::Text(resource),
        Value::Text(name),
        Value::Number(column(at)),
    ];
    let row = connection.row(COUNT_BEHIND, &values).await?;
    row.ok_or(Error::RowNotFound)?.number(0)
}
