//! The tables: making them, knowing them, and bringing those of earlier versions up to date.

use std::time::SystemTime;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection, Error};

use super::super::database::column;
use super::super::seal::{Place, Seal};
use super::super::statements::Cells;
use super::super::tokens;
use crate::api::Revision;

/// Marks the file as ours (`keel` in ASCII), so that no other program's database is taken for a store.
pub(super) const APPLICATION: i64 = 0x6b65_656c;
/// The version of the schema; from 2 on, objects have checksums behind them, from 3 on tokens too.
pub(super) const SCHEMA: i64 = 3;
const CREATE: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE object (
    resource TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (resource, name)
);
CREATE TABLE event (
    revision INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind INTEGER NOT NULL,
    resource TEXT NOT NULL, name TEXT NOT NULL, object BLOB NOT NULL, previous BLOB
);
CREATE TABLE gap (low INTEGER PRIMARY KEY, high INTEGER NOT NULL);
CREATE TABLE token (
    id TEXT PRIMARY KEY, secret_hash BLOB NOT NULL, scope TEXT NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, uses INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE token_use (
    token TEXT NOT NULL REFERENCES token (id) ON DELETE CASCADE, key_hash BLOB NOT NULL,
    used_at INTEGER NOT NULL, result BLOB, PRIMARY KEY (token, key_hash)
);
";

/// Makes the tables, in one transaction, so that a stop half-way leaves an empty file.
pub(super) async fn create(connection: &mut SqliteConnection) -> Result<(), Error> {
    let base = column(Revision::at(SystemTime::now()));
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(CREATE).execute(&mut *transaction).await?;
    sqlx::query("INSERT INTO meta (key, value) VALUES ('revision', ?1), ('compacted', ?1)")
        .bind(base)
        .execute(&mut *transaction)
        .await?;
    for (pragma, value) in [("user_version", SCHEMA), ("application_id", APPLICATION)] {
        // Pragmas take no parameters; both parts are constants of this file.
        sqlx::query(AssertSqlSafe(format!("PRAGMA {pragma} = {value}")))
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

/// What the tables are.
pub(super) enum Schema {
    Ours,
    /// There is one more.
    More(String),
    Broken,
}

/// Compares the tables with those that this version makes.
pub(super) async fn schema(connection: &mut SqliteConnection) -> Result<Schema, Error> {
    let made = SqliteConnectOptions::new().in_memory(true);
    let mut made = SqliteConnection::connect_with(&made).await?;
    sqlx::raw_sql(CREATE).execute(&mut made).await?;
    let expected = tables(&mut made).await?;
    made.close().await?;
    let mut found = tables(connection).await?;
    let more: Vec<_> = found
        .extract_if(.., |(name, _)| {
            !expected.iter().any(|(known, _)| known == name)
        })
        .collect();
    Ok(match more.into_iter().next() {
        _ if found != expected => Schema::Broken,
        Some((name, _)) => Schema::More(name),
        None => Schema::Ours,
    })
}

/// Name and text of each table, without SQLite's own (which `ANALYZE` makes) and the one for damaged rows.
async fn tables(connection: &mut SqliteConnection) -> Result<Vec<(String, String)>, Error> {
    sqlx::query_as(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name <> 'damaged' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
         ORDER BY name",
    )
    .fetch_all(connection)
    .await
}

/// Puts checksums behind objects that were written without. Their history is not worth it: it begins anew.
pub(super) async fn seal(connection: &mut SqliteConnection) -> Result<(), Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for sql in [
        "DELETE FROM event",
        "UPDATE meta SET value = (SELECT value FROM meta WHERE key = 'revision') WHERE key = 'compacted'",
    ] {
        sqlx::query(sql).execute(&mut *transaction).await?;
    }
    let mut after = i64::MIN;
    loop {
        let rows = sqlx::query(
            "SELECT rowid, resource, name, revision, data FROM object WHERE rowid > $1 ORDER BY rowid LIMIT 500",
        )
        .bind(after)
        .fetch_all(&mut *transaction)
        .await?;
        for row in &rows {
            after = row.number(0)?;
            let seal = Seal {
                place: Place::Object,
                revision: row.revision(3)?,
                resource: &row.text(1)?,
                name: &row.text(2)?,
            };
            sqlx::query("UPDATE object SET data = $1 WHERE rowid = $2")
                .bind(seal.put(&row.bytes(4)?.unwrap_or_default()))
                .bind(after)
                .execute(&mut *transaction)
                .await?;
        }
        if rows.is_empty() {
            break;
        }
    }
    sqlx::query("PRAGMA user_version = 2")
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

/// Puts checksums behind tokens that were written without.
pub(super) async fn seal_tokens(connection: &mut SqliteConnection) -> Result<(), Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    tokens::seal_all(&mut *transaction).await?;
    sqlx::query("PRAGMA user_version = 3")
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}
