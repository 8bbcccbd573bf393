//! Opening: schema, and the same rules for revisions as a file has.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Error};
use tokio::sync::watch;

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
    revision BIGINT NOT NULL, compacted BIGINT NOT NULL, domain TEXT
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

/// The options that the URL of a connection may have. Of several words for the same, the others are taken too.
const OPTIONS: &str = "sslmode, sslrootcert, sslcert, sslkey, host, hostaddr, port, dbname, user, password, application_name, options, \
     statement-cache-capacity";

/// Refuses options that do not exist: a connection whose `sslmode` is mistyped would be one in clear.
fn check_options(url: &str) -> Result<(), OpenError> {
    const ALSO: [&str; 6] = [
        "ssl-mode",
        "ssl-root-cert",
        "ssl-ca",
        "ssl-cert",
        "ssl-key",
        "options[",
    ];
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let name = percent_decode_str(name).decode_utf8_lossy();
        let is_setting = name.starts_with("options[") && name.ends_with(']');
        if !is_setting && !OPTIONS.split(", ").any(|known| known == name) && !ALSO.contains(&&*name)
        {
            return Err(OpenError::Option {
                option: name.chars().take(40).collect(),
                known: OPTIONS,
            });
        }
    }
    Ok(())
}

/// What the database said, and what to do about it.
fn refused(store: &str, options: &PgConnectOptions, source: Error) -> OpenError {
    let store = store.to_owned();
    let Some(said) = source.as_database_error() else {
        return OpenError::Database { store, source };
    };
    let user = options.get_username();
    let database = options.get_database().unwrap_or(user);
    // https://www.postgresql.org/docs/current/errcodes-appendix.html
    let remedy = match said.code().as_deref() {
        Some("28P01" | "28000") => format!(
            ": give the password of {user} in the URL (KEEL_STORE keeps it out of the list of processes) or in the file that PGPASSFILE names"
        ),
        Some("3D000") => format!(": make it with `createdb {database}`, or name another one"),
        Some("42501") => format!(
            ": let {user} make the schema there (`GRANT CREATE ON DATABASE {database} TO {user}`), or make it (`CREATE SCHEMA keel AUTHORIZATION {user}`)"
        ),
        Some("53300") => ": raise max_connections there; a node takes up to 7".to_owned(),
        _ => String::new(),
    };
    OpenError::Refused {
        store,
        why: said.message().to_owned(),
        remedy,
    }
}

/// Opens the database. Gives back its name for people, too.
pub(in crate::store) async fn open(
    url: &str,
) -> Result<(String, Database, PgPool, State), OpenError> {
    let options = PgConnectOptions::from_str(url).map_err(|source| OpenError::Url { source })?;
    check_options(url)?;
    let store = place(&options);
    let options = options.application_name("keel").options([
        ("search_path", "keel"),
        // An APIServer that was stopped in the middle of a batch must not hold the others up for longer than they wait.
        ("idle_in_transaction_session_timeout", "5s"),
        ("lock_timeout", "10s"),
        ("statement_timeout", "60s"),
    ]);
    let failed = |source| refused(&store, &options, source);
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
                reachable: watch::Sender::new(true),
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
    let knows_domains: bool = sqlx::query_scalar(
        "SELECT COUNT(*) > 0 FROM information_schema.columns \
         WHERE table_schema = 'keel' AND table_name = 'meta' AND column_name = 'domain'",
    )
    .fetch_one(&mut *transaction)
    .await?;
    if !knows_domains {
        // Of the first version, which leaves it alone.
        sqlx::raw_sql("ALTER TABLE meta ADD COLUMN domain TEXT")
            .execute(&mut *transaction)
            .await?;
    }
    let domain = sqlx::query_scalar("SELECT domain FROM meta")
        .fetch_one(&mut *transaction)
        .await?;
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
        domain,
    };
    transaction.commit().await?;
    Ok(Found::Store(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_does_not_exist_is_refused() {
        for url in [
            "postgres://h/d",
            "postgres://u:p%3F@h:1/d?sslmode=verify-full&sslrootcert=/a%26b&host=%2Ftmp",
            "postgres://h/d?options[geqo]=off&ssl-ca=x&options%5Bx%5D=1&",
        ] {
            check_options(url).unwrap();
        }
        for (url, name) in [
            ("postgres://h/d?sslmod=verify-full", "sslmod"),
            ("postgres://h/d?sslmode=disable&SSLMODE=require", "SSLMODE"),
            ("postgres://h/d?x", "x"),
        ] {
            match check_options(url) {
                Err(OpenError::Option { option, .. }) => assert_eq!(option, name),
                other => panic!("{url}: {other:?}"),
            }
        }
    }
}
