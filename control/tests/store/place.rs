//! Where a store under test is kept.

use std::path::Path;
use std::sync::Arc;

use keel_control::store::{OpenError, Store, StoreConfig};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;

use super::server::{self, Server};

pub(crate) enum Place {
    /// A folder for the file.
    Sqlite(TempDir),
    /// A database of its own.
    Postgres { server: Arc<Server>, name: String },
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(TempDir::new().unwrap())
    }

    /// A new database; `None` if there is no PostgreSQL here, which was said.
    pub(crate) async fn postgres() -> Option<Self> {
        let server = server::shared()?;
        Some(Self::on(&server).await)
    }

    pub(crate) async fn on(server: &Arc<Server>) -> Self {
        Self::Postgres {
            server: Arc::clone(server),
            name: server.create().await,
        }
    }

    /// Path or URL.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => folder.path().join("store.db").display().to_string(),
            Self::Postgres { server, name } => server.url(name),
        }
    }

    pub(crate) async fn try_open(&self, config: StoreConfig) -> Result<Store, OpenError> {
        open(&self.url(), config).await
    }

    pub(crate) async fn open(&self, config: StoreConfig) -> Store {
        self.try_open(config).await.unwrap()
    }

    /// Changes the database behind the store's back.
    pub(crate) async fn sql(&self, sql: &str) {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::Sqlite(folder) => {
                let options = SqliteConnectOptions::new()
                    .filename(folder.path().join("store.db"))
                    .create_if_missing(true);
                let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
                sql.execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::Postgres { server, name } => {
                let mut connection = PgConnection::connect(&server.url(name)).await.unwrap();
                sqlx::raw_sql("SET search_path TO keel")
                    .execute(&mut connection)
                    .await
                    .unwrap();
                sql.execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    pub(crate) fn set_revision(&self, revision: u64) -> String {
        match self {
            Self::Sqlite(_) => format!("UPDATE meta SET value = {revision} WHERE key = 'revision'"),
            Self::Postgres { .. } => format!("UPDATE meta SET revision = {revision}"),
        }
    }

    /// What makes it a store of a later version.
    pub(crate) fn newer(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "PRAGMA user_version = 99",
            Self::Postgres { .. } => "UPDATE meta SET version = 99",
        }
    }
}

/// Opens the store at a path or URL.
pub(crate) async fn open(url: &str, config: StoreConfig) -> Result<Store, OpenError> {
    match url.starts_with("postgres:") {
        true => Store::connect(url, config).await,
        false => Store::open(url.as_ref(), config).await,
    }
}

/// How many stores were set aside in this folder.
pub(crate) fn set_aside(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("store.db.corrupt-"))
        .count()
}

/// Whether the long form of the tests runs (`KEEL_LONG=1`): the numbers that are promised.
pub(crate) fn long() -> bool {
    std::env::var_os("KEEL_LONG").is_some_and(|value| !value.is_empty() && value != "0")
}
