//! Opening: schema, revision rules over a stop, quarantine of a corrupt file.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::read::column;
use super::{Inner, QUEUE, Ring, Shared, Store, StoreConfig, Writer};
use crate::api::Revision;

/// The version of the schema, kept in the file's `user_version`.
const SCHEMA: i64 = 1;
/// Marks the file as ours (`keel` in ASCII), so that no other program's database is taken for a store.
const APPLICATION: i64 = 0x6b65_656c;
/// Openings over which history is kept: each leaves a gap that every resumed watch is compared with.
const GAPS: i64 = 100;

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

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its folder cannot be used.
    #[error(
        "the store {path} cannot be created or opened: check that the folder exists and is writable"
    )]
    File {
        /// Path of the store.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is a database, but not a store.
    #[error("{path} is a database of another program: move it away, or name another store")]
    Foreign {
        /// Path of the file.
        path: PathBuf,
    },
    /// A newer version wrote the store.
    #[error(
        "the store {path} has schema version {found}, this version knows up to {SCHEMA}: run the version that wrote it"
    )]
    Newer {
        /// Path of the store.
        path: PathBuf,
        /// The version found.
        found: i64,
    },
    /// SQLite failed, and not because the file is corrupt.
    #[error("the store {path} cannot be opened")]
    Database {
        /// Path of the store.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: sqlx::Error,
    },
}

/// What an opened file says about itself.
struct State {
    revision: Revision,
    compacted: Revision,
    gaps: Vec<(Revision, Revision)>,
    events: u64,
}

/// Why a file could not be opened, before the path is known to the error.
enum Failure {
    Corrupt(String),
    Error(OpenError),
}

impl Store {
    /// Opens the store at `path`; makes a new one if there is no file.
    ///
    /// A new store counts from the current Unix time in milliseconds, so that its numbers are above those of any store that was
    /// there before it. A file that SQLite finds corrupt is set aside (`<name>.corrupt-<time>`) with a loud error, and a new store
    /// takes its place. Every opening goes on with the clock's number, so that a restored
    /// backup gives no number out again that was in use after it was made; whoever watched then is told to begin anew. The file is
    /// readable by its owner only.
    ///
    /// # Errors
    /// An [`OpenError`] that says what to do. Another process must not have the store open: the data directory's lock sees to that.
    pub async fn open(path: &Path, config: StoreConfig) -> Result<Self, OpenError> {
        let (connection, state) = match open(path).await {
            Ok(opened) => opened,
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::Corrupt(why)) => {
                let aside = quarantine(path)?;
                error!(
                    store = %path.display(), aside = %aside.display(), %why,
                    "THE STORE IS CORRUPT: it was set aside and a new, empty one takes its place; what only this node knew is lost"
                );
                match open(path).await {
                    Ok(opened) => opened,
                    Err(Failure::Error(error)) => return Err(error),
                    Err(Failure::Corrupt(why)) => {
                        let source = sqlx::Error::Protocol(why);
                        return Err(OpenError::Database {
                            path: path.into(),
                            source,
                        });
                    }
                }
            }
        };
        info!(store = %path.display(), revision = %state.revision, "store open");
        let readers = SqlitePoolOptions::new()
            // Reads are short; each connection costs a thread and a page cache, so idle ones go.
            .max_connections(4)
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(options(path).pragma("query_only", "ON"));
        let shared = Arc::new(Shared {
            ring: RwLock::new(Ring::new(state.revision, config.ring, config.ring_bytes)),
            revision: watch::Sender::new(state.revision),
            compacted: AtomicU64::new(state.compacted.0),
            gaps: RwLock::new(state.gaps),
        });
        let (jobs, received) = mpsc::channel(QUEUE);
        let writer = Writer {
            connection,
            config,
            shared: Arc::clone(&shared),
            jobs: received,
            next: state.revision.next(),
            events: state.events,
        };
        let mut task = JoinSet::new();
        task.spawn(writer.run());
        let inner = Inner {
            path: path.into(),
            jobs,
            shared,
            readers,
            task: Mutex::new(task),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    // Nothing here touches the file, so a connection is had (and can be closed properly) whatever the file is.
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
}

async fn open(path: &Path) -> Result<(SqliteConnection, State), Failure> {
    // SQLite gives its log and index files the mode of the database, so this one call keeps all three private.
    let created = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path);
    if let Err(source) = created {
        return Err(Failure::Error(OpenError::File {
            path: path.into(),
            source,
        }));
    }
    let mut connection = SqliteConnection::connect_with(&options(path))
        .await
        .map_err(|error| failure(path, error))?;
    match prepare(path, &mut connection).await {
        Ok(state) => Ok((connection, state)),
        Err(error) => {
            // Awaited, because the file may be moved next.
            if let Err(error) = connection.close().await {
                warn!(%error, "the store that could not be used did not close cleanly");
            }
            Err(error)
        }
    }
}

async fn prepare(path: &Path, connection: &mut SqliteConnection) -> Result<State, Failure> {
    let version: i64 = number(path, connection, "PRAGMA user_version").await?;
    let application: i64 = number(path, connection, "PRAGMA application_id").await?;
    let tables: i64 = number(path, connection, "SELECT COUNT(*) FROM sqlite_master").await?;
    match (version, application) {
        (0, 0) if tables == 0 => {}
        (SCHEMA, APPLICATION) => {}
        (found, APPLICATION) if found > SCHEMA => {
            return Err(Failure::Error(OpenError::Newer {
                path: path.into(),
                found,
            }));
        }
        _ => return Err(Failure::Error(OpenError::Foreign { path: path.into() })),
    }
    // Only now, when the file is known to be ours.
    let durable = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";
    sqlx::raw_sql(durable)
        .execute(&mut *connection)
        .await
        .map_err(|error| failure(path, error))?;
    if version == 0 {
        create(connection)
            .await
            .map_err(|error| failure(path, error))?;
    }
    // One page-by-page look; what it does not find, the first use of the page does.
    let check: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| failure(path, error))?;
    if check != "ok" {
        return Err(Failure::Corrupt(check));
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

/// Makes the tables, in one transaction, so that a stop half-way leaves an empty file.
async fn create(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
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

/// Reads where the store stands and goes on with the clock's number.
///
/// What the file does not know may have happened all the same: the file may be a restored backup, its last commits may be lost
/// with a disk that lies about `fsync`. Numbers come from the clock, so those that were given out since are behind it, and with
/// every opening beginning there none is given out twice. The numbers that are skipped are a gap: a cursor inside has seen what was
/// lost, one at its beginning has not.
async fn resume(connection: &mut SqliteConnection, fresh: bool) -> Result<State, sqlx::Error> {
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
    let gaps = gaps
        .iter()
        .map(|row| {
            let (low, high): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok((Revision(low.unsigned_abs()), Revision(high.unsigned_abs())))
        })
        .collect::<Result<_, sqlx::Error>>()?;
    transaction.commit().await?;
    Ok(State {
        revision,
        compacted,
        gaps,
        events: events.unsigned_abs(),
    })
}

fn failure(path: &Path, error: sqlx::Error) -> Failure {
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<u32>().ok());
    match code.map(|code| code & 0xff) {
        // SQLITE_CORRUPT and SQLITE_NOTADB; the bits above say more precisely where.
        Some(11 | 26) => Failure::Corrupt(error.to_string()),
        // Tables or rows of ours are missing: a file that was cut and still passes as a database.
        Some(1) => Failure::Corrupt(error.to_string()),
        _ if matches!(error, sqlx::Error::RowNotFound) => {
            Failure::Corrupt("rows of the table meta are missing".into())
        }
        _ => Failure::Error(OpenError::Database {
            path: path.into(),
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
                    path: path.into(),
                    source: error,
                });
            }
            _ => {}
        }
    }
    Ok(beside(&suffix, ""))
}
