//! SQL that both databases understand, on a connection of either. Parameters are written `$1`, which SQLite takes as well.

use std::sync::Arc;

use bytes::Bytes;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Error, Row};

use super::{Event, EventKind, Gap, Key, Object};
use crate::api::Revision;

/// A parameter of a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Bytes(&'a [u8]),
    Flag(bool),
    Number(i64),
    Text(&'a str),
}

/// A connection to either database.
pub(super) trait Statements: Send {
    type Row: Cells + Send + Sync;

    /// What a statement finds.
    fn rows(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<Self::Row>, Error>> + Send;

    /// The first row that a statement finds.
    fn row(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Option<Self::Row>, Error>> + Send;

    /// How many rows a statement changes.
    fn run(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<u64, Error>> + Send;
}

/// A row of either database.
pub(super) trait Cells {
    fn number(&self, at: usize) -> Result<i64, Error>;
    fn flag(&self, at: usize) -> Result<bool, Error>;
    fn text(&self, at: usize) -> Result<String, Error>;
    fn bytes(&self, at: usize) -> Result<Option<Bytes>, Error>;

    fn revision(&self, at: usize) -> Result<Revision, Error> {
        Ok(Revision(self.number(at)?.unsigned_abs()))
    }

    /// Reads `revision, data` from the columns at `first`.
    fn object(&self, first: usize) -> Result<Object, Error> {
        Ok(Object {
            revision: self.revision(first)?,
            data: self.bytes(first + 1)?.unwrap_or_default(),
        })
    }

    /// Reads `name, data`.
    fn named(&self) -> Result<(String, Bytes), Error> {
        Ok((self.text(0)?, self.bytes(1)?.unwrap_or_default()))
    }

    /// Reads a row of [`SELECT_EVENTS`](super::lookup::SELECT_EVENTS).
    fn event(&self) -> Result<Event, Error> {
        Ok(Event {
            revision: self.revision(0)?,
            kind: EventKind::from_column(self.number(1)?),
            key: Key {
                resource: self.text(2)?.into(),
                name: self.text(3)?,
            },
            object: self.bytes(4)?.unwrap_or_default(),
            previous: self.bytes(5)?,
        })
    }

    /// Reads `low, high`.
    fn gap(&self) -> Result<Gap, Error> {
        Ok((self.revision(0)?, self.revision(1)?))
    }
}

macro_rules! statements {
    ($connection:ty, $row:ty) => {
        impl Statements for $connection {
            type Row = $row;

            async fn rows(
                &mut self,
                sql: &'static str,
                values: &[Value<'_>],
            ) -> Result<Vec<$row>, Error> {
                bound!(sql, values).fetch_all(self).await
            }

            async fn row(
                &mut self,
                sql: &'static str,
                values: &[Value<'_>],
            ) -> Result<Option<$row>, Error> {
                bound!(sql, values).fetch_optional(self).await
            }

            async fn run(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<u64, Error> {
                let done = bound!(sql, values).execute(self).await?;
                Ok(done.rows_affected())
            }
        }

        impl Cells for $row {
            fn number(&self, at: usize) -> Result<i64, Error> {
                self.try_get(at)
            }

            fn flag(&self, at: usize) -> Result<bool, Error> {
                self.try_get(at)
            }

            fn text(&self, at: usize) -> Result<String, Error> {
                self.try_get(at)
            }

            fn bytes(&self, at: usize) -> Result<Option<Bytes>, Error> {
                let bytes: Option<Vec<u8>> = self.try_get(at)?;
                Ok(bytes.map(Bytes::from))
            }
        }
    };
}

/// A query with its parameters.
macro_rules! bound {
    ($sql:expr, $values:expr) => {{
        let mut query = sqlx::query($sql);
        for value in $values {
            query = match *value {
                Value::Bytes(bytes) => query.bind(bytes.to_vec()),
                Value::Flag(flag) => query.bind(flag),
                Value::Number(number) => query.bind(number),
                Value::Text(text) => query.bind(text.to_owned()),
            };
        }
        query
    }};
}

statements!(SqliteConnection, SqliteRow);
statements!(PgConnection, PgRow);

/// Reads all rows with `read`.
pub(super) fn all<R, T>(
    rows: &[R],
    read: impl Fn(&R) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    rows.iter().map(read).collect()
}

/// Events, shared as everybody wants them.
pub(super) fn events<R: Cells>(rows: &[R]) -> Result<Vec<Arc<Event>>, Error> {
    all(rows, |row| row.event().map(Arc::new))
}
