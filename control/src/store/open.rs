//! Opening a store, and why that may fail.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use super::age::Age;
use super::database::{Database, Readers};
use super::writer::Compaction;
use super::{Gap, Inner, QUEUE, Ring, Shared, Store, StoreConfig, Writer, postgres, sqlite};
use crate::api::Revision;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its folder cannot be used.
    #[error(
        "the store {store} cannot be created or opened: check that the folder exists and is writable"
    )]
    File {
        /// Path of the store.
        store: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The URL has an option that no connection has, and that would be passed over in silence.
    #[error(
        "the URL of the store has the option {option:?}, which does not exist; there are {known}"
    )]
    Option {
        /// Its name.
        option: String,
        /// Those that exist.
        known: &'static str,
    },
    /// The database said no.
    #[error("the store {store} cannot be opened: {why}{remedy}")]
    Refused {
        /// URL of the store.
        store: String,
        /// What the database said.
        why: String,
        /// What to do about it; empty, or begins with a colon.
        remedy: String,
    },
    /// The URL is none that PostgreSQL has.
    #[error(
        "this is not an URL of a PostgreSQL database, which are written postgres://USER:PASSWORD@HOST:PORT/DATABASE"
    )]
    Url {
        /// What is wrong with it.
        #[source]
        source: sqlx::Error,
    },
    /// Another process works with the file.
    #[error(
        "another process has the store {store} open: stop it, or give each node a store of its own; several share one with --store postgres://…"
    )]
    Held {
        /// Path of the store.
        store: String,
    },
    /// It is a database, but not a store.
    #[error("{store} is a database of another program: move it away, or name another store")]
    Foreign {
        /// Path or URL of the store.
        store: String,
    },
    /// Somebody made a table in it.
    #[error(
        "the store {store} has a table of somebody else, {table}: drop it, and keep such things elsewhere"
    )]
    Table {
        /// Path of the store.
        store: String,
        /// The table.
        table: String,
    },
    /// A newer version wrote the store.
    #[error(
        "the store {store} has schema version {found}, this version knows up to {known}: run the version that wrote it"
    )]
    Newer {
        /// Path or URL of the store.
        store: String,
        /// The version found.
        found: i64,
        /// The last version that this program knows.
        known: i64,
    },
    /// The database failed, and not because it is corrupt.
    #[error("the store {store} cannot be opened")]
    Database {
        /// Path or URL of the store.
        store: String,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
}

/// What an opened database says about itself.
pub(super) struct State {
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    pub(super) gaps: Vec<Gap>,
    /// The trust domain whose it is.
    pub(super) domain: Option<String>,
}

impl Store {
    /// Opens the store in the SQLite file at `path`; makes a new one if there is no file.
    ///
    /// A new store counts from the current Unix time in milliseconds, so that its numbers are above those of any store that was
    /// there before it. A file that SQLite finds corrupt is set aside (`<name>.corrupt-<time>`) with a loud error, and a new store
    /// takes its place. A single row that is not what was written is restored from its last event, or set aside in the table
    /// `damaged`; it is looked for now and at every read. Every opening goes on with the clock's number, so that a restored
    /// backup gives no number out again that was in use after it was made; whoever watched then is told to begin anew. The file is
    /// readable by its owner only.
    ///
    /// # Errors
    /// An [`OpenError`] that says what to do. One is that another process has the store open; who opens it right behind another one
    /// that is closing it waits for that.
    pub async fn open(path: &Path, config: StoreConfig) -> Result<Self, OpenError> {
        let (database, readers, state) =
            sqlite::open(path, config.ballast, &config.damaged).await?;
        let reachable = database.sound();
        Ok(Self::start(
            path.display().to_string(),
            Database::Sqlite(database),
            Readers::Sqlite(readers),
            state,
            reachable,
            config,
        ))
    }

    /// Opens the store in the PostgreSQL database at `url`; makes a new one (in the schema `keel`) if there is none.
    ///
    /// Several APIServers may have it open: each sees what the others write, in the order of the revisions. Numbers begin and go on
    /// as those of [`Store::open`] do. If the database goes away, reads and writes fail until it is back; a write that was being
    /// committed then fails with [`StoreError::Unknown`](super::StoreError::Unknown).
    ///
    /// TLS is what the URL's `sslmode` says; `verify-full` with `sslrootcert` is what a network that is not yours needs.
    ///
    /// # Errors
    /// An [`OpenError`] that says what to do; also if the database cannot be reached now.
    pub async fn connect(url: &str, config: StoreConfig) -> Result<Self, OpenError> {
        let (place, database, readers, state) = postgres::open(url).await?;
        let reachable = database.reachable();
        Ok(Self::start(
            place,
            Database::Postgres(Box::new(database)),
            Readers::Postgres(readers),
            state,
            reachable,
            config,
        ))
    }

    fn start(
        place: String,
        database: Database,
        readers: Readers,
        state: State,
        reachable: watch::Receiver<bool>,
        config: StoreConfig,
    ) -> Self {
        info!(store = place, revision = %state.revision, "store open");
        let shared = Arc::new(Shared {
            ring: RwLock::new(Ring::new(state.revision, config.ring, config.ring_bytes)),
            revision: watch::Sender::new(state.revision),
            compacted: AtomicU64::new(state.compacted.0),
            gaps: RwLock::new(state.gaps),
        });
        let (jobs, received) = mpsc::channel(QUEUE);
        let age = Age::new(config.keep_for, state.revision);
        let writer = Writer {
            database,
            config,
            shared: Arc::clone(&shared),
            jobs: received,
            company: false,
            behind: false,
            full: false,
            compaction: Compaction::default(),
            age,
        };
        let mut task = JoinSet::new();
        task.spawn(writer.run());
        let inner = Inner {
            place,
            trust_domain: state.domain,
            reachable,
            jobs,
            shared,
            readers,
            task: Mutex::new(task),
        };
        Self {
            inner: Arc::new(inner),
        }
    }
}
