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

    /// What others have written, and is taken into memory at once; of more, the last.
    pub(super) const CATCH_UP: Self = Self {
        events: 500,
        bytes: 8 << 20,
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

/// The same from the other end: the part that ends with $2.
const SELECT_LAST: &str = "SELECT revision, kind, resource, name, object, previous FROM event WHERE revision <= $2 AND revision >= (\
     SELECT MIN(revision) FROM \
     (SELECT revision, SUM(bytes) OVER (ORDER BY revision DESC) - bytes AS behind FROM \
     (SELECT revision, COALESCE(LENGTH(object), 0) + COALESCE(LENGTH(previous), 0) AS bytes FROM event \
     WHERE revision > $1 AND revision <= $2 ORDER BY revision DESC LIMIT $3) AS sized) AS summed WHERE behind < $4) ORDER BY revision";

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

/// Up to where events have to go for those behind them to have no more than $1 bytes; 0 if none has to.
const SURPLUS: &str = "SELECT COALESCE(MAX(revision), 0) FROM \
     (SELECT revision, SUM(bytes) OVER (ORDER BY revision DESC) AS behind FROM \
     (SELECT revision, COALESCE(LENGTH(object), 0) + COALESCE(LENGTH(previous), 0) AS bytes FROM event) AS sized) AS summed \
     WHERE behind > $1";
const SIZE: &str = "SELECT CAST(COALESCE(SUM(COALESCE(LENGTH(object), 0) + COALESCE(LENGTH(previous), 0)), 0) AS BIGINT) FROM event";

/// How much of the history may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// So many bytes of it.
    Bytes(u64),
    /// Half of what there is, and less if that frees less than twice so many bytes; all of it if there are not so many.
    Less(u64),
}

/// Up to where events have to go because there is no room for them, if any.
pub(super) async fn surplus(
    connection: &mut impl Statements,
    room: Room,
) -> Result<Option<Revision>, Error> {
    let bytes = match room {
        Room::Bytes(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
        Room::Less(needed) => {
            let size = connection.row(SIZE, &[]).await?;
            let size = size.map(|row| row.number(0)).transpose()?.unwrap_or(0);
            let needed = i64::try_from(needed).unwrap_or(i64::MAX);
            if size < needed {
                // It is not what is in the way.
                return Ok(None);
            }
            (size - needed.saturating_mul(2)).clamp(0, size / 2)
        }
    };
    let last = connection.row(SURPLUS, &[Value::Number(bytes)]).await?;
    let last = last.map(|row| row.revision(0)).transpose()?;
    Ok(last.filter(|revision| revision.0 > 0))
}

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

/// The last events after `after` up to `upto`, and whether there may be more before them.
pub(super) async fn last(
    connection: &mut impl Statements,
    after: Revision,
    upto: Revision,
    bounds: Bounds,
) -> Result<(Vec<Arc<Event>>, bool), Error> {
    let values = [column(after), column(upto), bounds.events, bounds.bytes].map(Value::Number);
    let events = shared(&connection.rows(SELECT_LAST, &values).await?)?;
    let bytes: usize = events.iter().map(|event| event.objects()).sum();
    let reached = |count: usize, bound: i64| i64::try_from(count).is_ok_and(|count| count >= bound);
    let more = reached(events.len(), bounds.events) || reached(bytes, bounds.bytes);
    Ok((events, more))
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
fn shared<R: Cells>(rows: &[R]) -> Result<Vec<Arc<Event>>, Error> {
    all(rows, |row| row.event().map(Arc::new))
}

#[cfg(test)]
mod tests {
    use sqlx::Connection;
    use sqlx::sqlite::SqliteConnection;

    use super::super::EventKind;
    use super::super::seal::{Place, Seal};
    use super::*;

    /// Events 1 to 9 of 1,000 bytes each.
    async fn history() -> SqliteConnection {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let create = "CREATE TABLE event (revision INTEGER PRIMARY KEY, kind, resource, name, object, previous)";
        connection.run(create, &[]).await.unwrap();
        for number in 1..10 {
            let seal = Seal {
                place: Place::Event(EventKind::Added, false),
                revision: Revision(number),
                resource: "things",
                name: "a",
            };
            let object = seal.put(&[b'x'; 992]);
            let values = [
                Value::Number(column(Revision(number))),
                Value::Number(EventKind::Added.column()),
                Value::Text("things"),
                Value::Text("a"),
                Value::Bytes(&object),
            ];
            let insert = "INSERT INTO event VALUES ($1, $2, $3, $4, $5, NULL)";
            connection.run(insert, &values).await.unwrap();
        }
        connection
    }

    #[tokio::test]
    async fn the_last_events_are_bounded_in_number_and_in_bytes() {
        let mut connection = history().await;
        for (after, upto, events, bytes, expected, more) in [
            (0, 9, 100, 1_000_000, 1..=9, false),
            (3, 7, 100, 1_000_000, 4..=7, false),
            (0, 9, 2, 1_000_000, 8..=9, true),
            (0, 8, 100, 2_500, 6..=8, true),
            // One that is larger than the bound is there nevertheless.
            (0, 9, 100, 1, 9..=9, true),
        ] {
            let bounds = Bounds { events, bytes };
            let part = last(&mut connection, Revision(after), Revision(upto), bounds).await;
            let (found, found_more) = part.unwrap();
            let found: Vec<u64> = found.iter().map(|event| event.revision.0).collect();
            assert_eq!(
                (found, found_more),
                (expected.collect(), more),
                "{bounds:?}"
            );
        }
        let none = last(&mut connection, Revision(9), Revision(9), Bounds::CATCH_UP);
        let (none, more) = none.await.unwrap();
        assert!(none.is_empty() && !more);
    }

    #[tokio::test]
    async fn what_is_too_much_are_the_first_ones() {
        let mut connection = history().await;
        for (room, expected) in [
            (Room::Bytes(9000), None),
            (Room::Bytes(8999), Some(1)),
            (Room::Bytes(2500), Some(7)),
            (Room::Bytes(0), Some(9)),
            (Room::Less(0), Some(5)),
            (Room::Less(3500), Some(7)),
            (Room::Less(4500), Some(9)),
            (Room::Less(9000), Some(9)),
            (Room::Less(9001), None),
        ] {
            let upto = surplus(&mut connection, room).await.unwrap();
            assert_eq!(upto, expected.map(Revision), "{room:?}");
        }
        connection.run("DELETE FROM event", &[]).await.unwrap();
        for room in [Room::Bytes(0), Room::Less(0), Room::Less(1)] {
            assert_eq!(surplus(&mut connection, room).await.unwrap(), None);
        }
    }
}
