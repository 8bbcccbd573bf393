//! Opening: schema, and the same rules for revisions as a file has.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Error};

use super::super::database::column;
use super::super::open::{OpenError, State};
use super::super::statements::{Cells, all};
use super::follow::{go_on, lock};
use super::listen::Listener;
use super::{Database, timely};
use crate::api::Revision;

/// Held while the tables are made, so that of several APIServers that start at once one makes them (`keel` in ASCII).
const MAKING: i64 = 0x6b65_656c;

/// The version of the schema.
const SCHEMA: i64 = 1;
/// Names are compared byte by byte, as SQLite does it.
const CREATE: &str = r#"
CREATE SCHEMA IF NOT EXISTS keel;
CREATE TABLE meta (
    one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one), version BIGINT NOT NULL,
    revision BIGINT NOT NULL, compacted BIGINT NOT NULL
);
CREATE TABLE object (
    resource TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL, revision BIGINT NOT NULL, data BYTEA NOT NULL,
    PRIMARY KEY (resource, name)
);
CREATE TABLE event (
    revision BIGINT PRIMARY KEY, at BIGINT NOT NULL, kind BIGINT NOT NULL,
    resource TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL, object BYTEA NOT NULL, previous BYTEA
);
CREATE TABLE gap (low BIGINT PRIMARY KEY, high BIGINT NOT NULL);
CREATE TABLE token (
    id TEXT PRIMARY KEY, secret_hash BYTEA NOT NULL, scope TEXT NOT NULL,
    created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, uses BIGINT NOT NULL, revoked BOOLEAN NOT NULL
);
CREATE TABLE token_use (
    token TEXT NOT NULL REFERENCES token (id) ON DELETE CASCADE, key_hash BYTEA NOT NULL,
    used_at BIGINT NOT NULL, result BYTEA, PRIMARY KEY (token, key_hash)
);
"#;

/// Opens the database. Gives back its name for people, too.
pub(in crate::store) async fn open(
    url: &str,
) -> Result<(String, Database, PgPool, State), OpenError> {
    let options = PgConnectOptions::from_str(url).map_err(|source| OpenError::Url { source })?;
    let store = place(&options);
    let options = options.application_name("keel").options([
        ("search_path", "keel"),
        // An APIServer that was stopped in the middle of a batch must not hold the others up for longer than they wait.
        ("idle_in_transaction_session_timeout", "5s"),
        ("lock_timeout", "10s"),
        ("statement_timeout", "60s"),
    ]);
    let failed = |source| OpenError::Database {
        store: store.clone(),
        source,
    };
    let mut connection = connect(&options).await.map_err(failed)?;
    match timely(prepare(&mut connection)).await.map_err(failed)? {
        Found::Store(state) => {
            let readers = PgPoolOptions::new()
                .max_connections(4)
                .idle_timeout(Duration::from_secs(60))
                .acquire_timeout(Duration::from_secs(5))
                .connect_lazy_with(options.clone());
            let database = Database {
                listener: Listener::start(options.clone()),
                options,
                connection: Some(connection),
                regained: false,
                reachable: true,
            };
            Ok((store, database, readers, state))
        }
        Found::Foreign => Err(OpenError::Foreign {
            store: format!("the schema \"keel\" of {store}"),
        }),
        Found::Newer(found) => Err(OpenError::Newer {
            store,
            found,
            known: SCHEMA,
        }),
    }
}

/// Makes the writer's connection: a commit that is answered is on the disk. Said to each session, because what the server, the
/// database or the role has by default comes with each; what an administrator has made stricter stays so.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    const DURABLE: &str = "SELECT set_config('synchronous_commit', \
         COALESCE(NULLIF(current_setting('synchronous_commit'), 'off'), 'on'), false)";
    timely(async {
        let mut connection = PgConnection::connect_with(options).await?;
        sqlx::raw_sql(DURABLE).execute(&mut connection).await?;
        Ok(connection)
    })
    .await
}

/// The URL without the password and the options.
fn place(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => options.get_host().to_owned(),
    };
    let user = options.get_username();
    let database = options.get_database().unwrap_or(user);
    format!("postgres://{user}@{host}:{}/{database}", options.get_port())
}

/// What is in the database.
enum Found {
    Store(State),
    Foreign,
    Newer(i64),
}

async fn prepare(connection: &mut PgConnection) -> Result<Found, Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(MAKING)
        .execute(&mut *transaction)
        .await?;
    let tables: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM pg_catalog.pg_tables WHERE schemaname = 'keel'")
            .fetch_one(&mut *transaction)
            .await?;
    let ours: bool = sqlx::query_scalar("SELECT to_regclass('keel.meta') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await?;
    let fresh = tables == 0;
    if fresh {
        let base = column(Revision::at(SystemTime::now()));
        sqlx::raw_sql(CREATE).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO meta (version, revision, compacted) VALUES ($1, $2, $2)")
            .bind(SCHEMA)
            .bind(base)
            .execute(&mut *transaction)
            .await?;
    } else if !ours {
        return Ok(Found::Foreign);
    }
    let version: i64 = sqlx::query_scalar("SELECT version FROM meta")
        .fetch_one(&mut *transaction)
        .await?;
    if version > SCHEMA {
        return Ok(Found::Newer(version));
    }
    let (durable, _) = lock(&mut transaction).await?;
    let revision = match fresh {
        true => durable,
        false => go_on(&mut transaction, durable, durable).await?,
    };
    let (_, compacted) = lock(&mut transaction).await?;
    let gaps = sqlx::query("SELECT low, high FROM gap ORDER BY low")
        .fetch_all(&mut *transaction)
        .await?;
    let state = State {
        revision,
        compacted,
        gaps: all(&gaps, Cells::gap)?,
    };
    transaction.commit().await?;
    Ok(Found::Store(state))
}
