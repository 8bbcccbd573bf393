//! SQL that both databases understand, on a connection of either. Parameters are written `$1`, which SQLite takes as well.

use bytes::Bytes;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Error, Row};

use super::seal::{Place, Seal};
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

    /// Whether rows have checksums of ours, because the database has none.
    const SEALED: bool;

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

    /// The object in the column, if it is what was written.
    fn sealed(&self, at: usize, seal: Seal<'_>) -> Result<Option<Bytes>, Error>;

    /// Reads `revision, data` from the columns at `first`, of the object of this name.
    fn object(&self, first: usize, resource: &str, name: &str) -> Result<Object, Error> {
        let revision = self.revision(first)?;
        let seal = Seal {
            place: Place::Object,
            revision,
            resource,
            name,
        };
        Ok(Object {
            revision,
            data: self.sealed(first + 1, seal)?.unwrap_or_default(),
        })
    }

    /// Reads `name, revision, data`.
    fn named(&self, resource: &str, place: Place) -> Result<(String, Bytes), Error> {
        let name = self.text(0)?;
        let seal = Seal {
            place,
            revision: self.revision(1)?,
            resource,
            name: &name,
        };
        let data = self.sealed(2, seal)?.unwrap_or_default();
        Ok((name, data))
    }

    /// Reads `revision, kind, resource, name, object, previous`.
    fn event(&self) -> Result<Event, Error> {
        let (resource, name) = (self.text(2)?, self.text(3)?);
        let kind = EventKind::from_column(self.number(1)?);
        let revision = self.revision(0)?;
        let seal = |place| Seal {
            place,
            revision,
            resource: &resource,
            name: &name,
        };
        let previous = self.sealed(5, seal(Place::Previous))?;
        let place = Place::Event(kind, previous.is_some());
        let object = self.sealed(4, seal(place))?.unwrap_or_default();
        Ok(Event {
            revision,
            kind,
            key: Key {
                resource: resource.into(),
                name,
            },
            object,
            previous,
        })
    }

    /// Reads `low, high`.
    fn gap(&self) -> Result<Gap, Error> {
        Ok((self.revision(0)?, self.revision(1)?))
    }
}

macro_rules! statements {
    ($connection:ty, $row:ty, $sealed:literal) => {
        impl Statements for $connection {
            type Row = $row;
            const SEALED: bool = $sealed;

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

            fn sealed(&self, at: usize, seal: Seal<'_>) -> Result<Option<Bytes>, Error> {
                match self.bytes(at)? {
                    Some(bytes) if $sealed => seal.open(bytes).map(Some),
                    bytes => Ok(bytes),
                }
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

statements!(SqliteConnection, SqliteRow, true);
statements!(PgConnection, PgRow, false);

/// Reads all rows with `read`.
pub(super) fn all<R, T>(
    rows: &[R],
    read: impl Fn(&R) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    rows.iter().map(read).collect()
}
