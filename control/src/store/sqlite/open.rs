//! Opening: revision rules over a stop, quarantine of a corrupt file.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Connection, Error};
use tokio::sync::watch;
use tracing::{error, warn};

use super::super::database::{Failed, GAPS, column};
use super::super::open::{OpenError, State};
use super::super::seal::is_damage;
use super::super::statements::{Cells, all};
use super::ballast::Ballast;
use super::log::Log;
use super::schema::{APPLICATION, SCHEMA, Schema, create, schema, seal, seal_tokens};
use super::{CACHE, DURABLE, Database, Trouble, check, mend, options, options_of_ours, trouble};
use crate::api::Revision;

/// Why a file could not be opened, before the path is known to the error.
enum Failure {
    Corrupt(String),
    Error(OpenError),
}

/// Opens the file, or sets it aside and makes a new one if it is corrupt. `ballast` bytes are held back beside it.
pub(in crate::store) async fn open(
    path: &Path,
    ballast: u64,
    damaged: &Counter,
) -> Result<(Database, SqlitePool, State), OpenError> {
    let held = match hold(path).await {
        Err(OpenError::File { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
            Ballast::give_up(path);
            hold(path).await?
        }
        held => held?,
    };
    let opened = match attempt(path, damaged).await {
        Err(Failure::Error(OpenError::Database { source, .. }))
            if trouble(&source) == Trouble::Full =>
        {
            // Opening writes a little: this is what the ballast is for.
            warn!(store = %path.display(), "the disk is full: the ballast is given up to open the store");
            Ballast::give_up(path);
            attempt(path, damaged).await
        }
        outcome => outcome,
    };
    let (connection, state, events) = match opened {
        Ok(opened) => opened,
        Err(Failure::Error(error)) => return Err(error),
        Err(Failure::Corrupt(why)) => {
            let aside = quarantine(path)?;
            error!(
                store = %path.display(), aside = %aside.display(), %why,
                "THE STORE IS CORRUPT: it was set aside and a new, empty one takes its place; what only this node knew is lost"
            );
            match attempt(path, damaged).await {
                Ok(opened) => opened,
                Err(Failure::Error(error)) => return Err(error),
                Err(Failure::Corrupt(why)) => {
                    return Err(OpenError::Database {
                        store: path.display().to_string(),
                        source: Error::Protocol(why),
                    });
                }
            }
        }
    };
    let readers = SqlitePoolOptions::new()
        // Reads are short; each connection costs a thread and a page cache, so idle ones go.
        .max_connections(4)
        .idle_timeout(Duration::from_secs(60))
        .connect_lazy_with(options_of_ours(path).pragma("query_only", "ON"));
    let database = Database {
        path: path.into(),
        connection: Some(connection),
        verify: false,
        sound: watch::Sender::new(true),
        next: state.revision.next(),
        events,
        ballast: Ballast::hold(path, ballast),
        log: Log::new(),
        damaged: damaged.clone(),
        _held: held,
    };
    Ok((database, readers, state))
}

/// How long another handle on the file gets to close it.
const CLOSING: Duration = Duration::from_secs(2);

/// Keeps every other store away from the file for as long as the answer lives: two would give out the same numbers, and neither
/// would tell its watchers what the other one writes. The lock is that of a file beside it, which stays: closing any descriptor of
/// the store's own would give up SQLite's.
async fn hold(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::File {
        store: path.display().to_string(),
        source,
    };
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push("-lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.with_file_name(name))
        .map_err(failed)?;
    let until = tokio::time::Instant::now() + CLOSING;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::Held {
                    store: path.display().to_string(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

/// Opens the file; also says how many events there are.
async fn attempt(
    path: &Path,
    damaged: &Counter,
) -> Result<(SqliteConnection, State, u64), Failure> {
    create_private(path).map_err(|source| {
        Failure::Error(OpenError::File {
            store: path.display().to_string(),
            source,
        })
    })?;
    let mut connection = SqliteConnection::connect_with(&options(path))
        .await
        .map_err(|error| failure(path, error))?;
    match prepare(path, &mut connection, damaged).await {
        Ok((state, events)) => Ok((connection, state, events)),
        Err(error) => {
            // Awaited, because the file may be moved next.
            if let Err(error) = connection.close().await {
                warn!(%error, "the store that could not be used did not close cleanly");
            }
            Err(error)
        }
    }
}

/// Makes the file for us alone; SQLite gives its log and index files the same mode.
///
/// It is closed again before SQLite opens it: whoever closes any descriptor of a file gives up all locks that the process has on
/// it (POSIX), and another program that finds none takes itself for the last one and deletes the log.
/// <https://sqlite.org/howtocorrupt.html>, section 2.2.
fn create_private(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    drop(file);
    Ok(())
}

async fn prepare(
    path: &Path,
    connection: &mut SqliteConnection,
    damaged: &Counter,
) -> Result<(State, u64), Failure> {
    let version: i64 = number(path, connection, "PRAGMA user_version").await?;
    let application: i64 = number(path, connection, "PRAGMA application_id").await?;
    let tables: i64 = number(path, connection, "SELECT COUNT(*) FROM sqlite_master").await?;
    match (version, application) {
        (0, 0) if tables == 0 => {}
        (1..=SCHEMA, APPLICATION) => {}
        (found, APPLICATION) if found > SCHEMA => {
            return Err(Failure::Error(OpenError::Newer {
                store: path.display().to_string(),
                found,
                known: SCHEMA,
            }));
        }
        _ => {
            return Err(Failure::Error(OpenError::Foreign {
                store: path.display().to_string(),
            }));
        }
    }
    // Only now, when the file is known to be ours.
    sqlx::raw_sql(DURABLE)
        .execute(&mut *connection)
        .await
        .map_err(|error| failure(path, error))?;
    // A constant of this program: pragmas take no parameters.
    sqlx::query(AssertSqlSafe(format!("PRAGMA cache_size = {CACHE}")))
        .execute(&mut *connection)
        .await
        .map_err(|error| failure(path, error))?;
    if version == 0 {
        create(connection)
            .await
            .map_err(|error| failure(path, error))?;
    }
    match schema(connection)
        .await
        .map_err(|error| failure(path, error))?
    {
        Schema::Ours => {}
        Schema::More(table) => {
            return Err(Failure::Error(OpenError::Table {
                store: path.display().to_string(),
                table,
            }));
        }
        Schema::Broken => {
            return Err(Failure::Corrupt(
                "its tables are not as they were made".into(),
            ));
        }
    }
    check(connection)
        .await
        .map_err(|error| failure(path, error))?
        .map_err(Failure::Corrupt)?;
    if version == 1 {
        seal(connection)
            .await
            .map_err(|error| failure(path, error))?;
    }
    if (1..3).contains(&version) {
        seal_tokens(connection)
            .await
            .map_err(|error| failure(path, error))?;
    }
    if mend::is_needed(connection)
        .await
        .map_err(|error| failure(path, error))?
    {
        mended(connection, damaged)
            .await
            .map_err(|error| failure(path, error))?;
    }
    resume(connection, version == 0)
        .await
        .map_err(|error| failure(path, error))
}

async fn number(
    path: &Path,
    connection: &mut SqliteConnection,
    sql: &'static str,
) -> Result<i64, Failure> {
    sqlx::query_scalar(sql)
        .fetch_one(connection)
        .await
        .map_err(|error| failure(path, error))
}

/// Mends what is damaged. The history begins with the next number; the clock's, which the opening goes on with, is above it.
async fn mended(connection: &mut SqliteConnection, damaged: &Counter) -> Result<(), Error> {
    let revision: i64 = sqlx::query_scalar(
        "SELECT MAX((SELECT value FROM meta WHERE key = 'revision'), COALESCE((SELECT MAX(revision) FROM event), 0))",
    )
    .fetch_one(&mut *connection)
    .await?;
    let next = Revision(revision.unsigned_abs()).next();
    match mend::everything(connection, next, damaged).await {
        Ok(false) => Ok(()),
        Ok(true) => {
            // What is damaged would be found again, and nothing before it tells what an object was.
            sqlx::query("DELETE FROM event WHERE revision <= ?1")
                .bind(column(next))
                .execute(&mut *connection)
                .await
                .map(drop)
        }
        Err(Failed::Undone(error) | Failed::Unknown(error)) => Err(error),
        Err(Failed::Full) => Err(Error::Protocol("the disk is full".into())),
    }
}

/// Reads where the store stands and goes on with the clock's number.
///
/// What the file does not know may have happened all the same: the file may be a restored backup, its last commits may be lost
/// with a disk that lies about `fsync`. Numbers come from the clock, so those that were given out since are behind it, and with
/// every opening beginning there none is given out twice. The numbers that are skipped are a gap: a cursor inside has seen what was
/// lost, one at its beginning has not.
async fn resume(connection: &mut SqliteConnection, fresh: bool) -> Result<(State, u64), Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let meta = |key: &'static str| {
        sqlx::query_scalar::<_, i64>("SELECT value FROM meta WHERE key = ?1").bind(key)
    };
    let durable: i64 = meta("revision").fetch_one(&mut *transaction).await?;
    let compacted: i64 = meta("compacted").fetch_one(&mut *transaction).await?;
    let newest: Option<i64> = sqlx::query_scalar("SELECT MAX(revision) FROM event")
        .fetch_one(&mut *transaction)
        .await?;
    let durable = Revision(durable.max(newest.unwrap_or(0)).unsigned_abs());
    let mut compacted = Revision(compacted.unsigned_abs());
    let mut revision = durable;
    if !fresh {
        revision = durable.next().max(Revision::at(SystemTime::now()));
        sqlx::query("INSERT OR REPLACE INTO gap (low, high) VALUES (?1, ?2)")
            .bind(column(durable))
            .bind(column(revision))
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE meta SET value = ?1 WHERE key = 'revision'")
            .bind(column(revision))
            .execute(&mut *transaction)
            .await?;
    }
    let older: Option<i64> =
        sqlx::query_scalar("SELECT high FROM gap ORDER BY low DESC LIMIT 1 OFFSET ?1")
            .bind(GAPS)
            .fetch_optional(&mut *transaction)
            .await?;
    if let Some(high) = older {
        compacted = compacted.max(Revision(high.unsigned_abs()));
        for forget in [
            "DELETE FROM event WHERE revision <= ?1",
            "DELETE FROM gap WHERE high <= ?1",
            "UPDATE meta SET value = ?1 WHERE key = 'compacted'",
        ] {
            sqlx::query(forget)
                .bind(column(compacted))
                .execute(&mut *transaction)
                .await?;
        }
    }
    let events: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM event")
        .fetch_one(&mut *transaction)
        .await?;
    let gaps = sqlx::query("SELECT low, high FROM gap ORDER BY low")
        .fetch_all(&mut *transaction)
        .await?;
    let gaps = all(&gaps, Cells::gap)?;
    transaction.commit().await?;
    let state = State {
        revision,
        compacted,
        gaps,
        domain: None,
    };
    Ok((state, events.unsigned_abs()))
}

fn failure(path: &Path, error: Error) -> Failure {
    let code = error
        .as_database_error()
        .and_then(|error| error.code().map(Cow::into_owned));
    match (trouble(&error), code.as_deref()) {
        (Trouble::Corrupt, _) => Failure::Corrupt(error.to_string()),
        // Tables or rows of ours are missing: a file that was cut and still passes as a database.
        (_, Some("1")) => Failure::Corrupt(error.to_string()),
        _ if is_damage(&error) => Failure::Corrupt(error.to_string()),
        _ if matches!(error, Error::RowNotFound) => {
            Failure::Corrupt("rows of the table meta are missing".into())
        }
        _ => Failure::Error(OpenError::Database {
            store: path.display().to_string(),
            source: error,
        }),
    }
}

/// Moves the file and its log aside. Nothing is deleted: it may hold what only this node knew.
fn quarantine(path: &Path) -> Result<PathBuf, OpenError> {
    let suffix = format!(".corrupt-{}", Revision::at(SystemTime::now()));
    let beside = |extra: &str, suffix: &str| {
        let mut name = OsString::from(path);
        name.push(extra);
        name.push(suffix);
        PathBuf::from(name)
    };
    for extra in ["-wal", "-shm", ""] {
        match std::fs::rename(beside(extra, ""), beside(&suffix, extra)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::File {
                    store: path.display().to_string(),
                    source: error,
                });
            }
            _ => {}
        }
    }
    Ok(beside(&suffix, ""))
}
