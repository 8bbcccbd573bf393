//! Events, a part at a time, in the same words for both databases.
//!
//! A part is bounded in bytes too: an event may have two objects of a megabyte and more.

use std::sync::Arc;

use sqlx::Error;

use super::Event;
use super::database::column;
use super::statements::{Cells, Statements, Value, all};
use crate::api::Revision;

/// How large a part is at most; it always has one event, if there is any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) events: i64,
    /// Of objects. The event that reaches it is the last.
    pub(super) bytes: i64,
}

impl Bounds {
    pub(super) const NONE: Self = Self {
        events: i64::MAX,
        bytes: i64::MAX,
    };

    /// What one step of a compaction deletes: so little that writers wait for less than 50 ms. Freeing the pages of a few large
    /// objects takes as long as those of many small ones: 8 to 24 ms in a SQLite file, with objects of 500 bytes to 1 MiB, on two
    /// busy cores.
    pub(super) const STEP: Self = Self {
        events: 1000,
        bytes: 8 << 20,
    };
}

/// The last event of the part that begins after $1, up to $2, bounded by the numbers $3 and $4. Neither database reads an object to
/// tell its length.
macro_rules! last_of_part {
    () => {
        "SELECT MAX(revision) FROM \
         (SELECT revision, SUM(bytes) OVER (ORDER BY revision) - bytes AS before FROM \
         (SELECT revision, COALESCE(LENGTH(object), 0) + COALESCE(LENGTH(previous), 0) AS bytes FROM event \
         WHERE revision > $1 AND revision <= $2 ORDER BY revision LIMIT $3) AS sized) AS summed WHERE before < $4"
    };
}

const SELECT: &str = concat!(
    "SELECT revision, kind, resource, name, object, previous FROM event WHERE revision > $1 AND revision <= (",
    last_of_part!(),
    ") ORDER BY revision"
);

const DELETE: &str = concat!(
    "DELETE FROM event WHERE revision <= (",
    last_of_part!(),
    ")"
);

/// The first events after `after` up to `upto`.
pub(super) async fn read(
    connection: &mut impl Statements,
    after: Revision,
    upto: Revision,
    bounds: Bounds,
) -> Result<Vec<Arc<Event>>, Error> {
    let values = [column(after), column(upto), bounds.events, bounds.bytes].map(Value::Number);
    shared(&connection.rows(SELECT, &values).await?)
}

/// Deletes the first events up to `upto`: how many, and whether there are more.
pub(super) async fn forget(
    connection: &mut impl Statements,
    upto: Revision,
) -> Result<(u64, bool), Error> {
    let Bounds { events, bytes } = Bounds::STEP;
    let values = [i64::MIN, column(upto), events, bytes].map(Value::Number);
    let deleted = connection.run(DELETE, &values).await?;
    let upto = [Value::Number(column(upto))];
    let more = connection
        .row("SELECT 1 FROM event WHERE revision <= $1 LIMIT 1", &upto)
        .await?;
    Ok((deleted, deleted > 0 && more.is_some()))
}

/// Reads `revision, kind, resource, name, object, previous` from all rows.
pub(super) fn shared<R: Cells>(rows: &[R]) -> Result<Vec<Arc<Event>>, Error> {
    all(rows, |row| row.event().map(Arc::new))
}
