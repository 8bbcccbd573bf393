//! Moving the log into the file beside the writes, not between them.
//!
//! SQLite does it by itself, within the commit that makes the log too long: that write then waits for a thousand pages and two
//! syncs. Here another connection moves most of it while writes go on. What has come meanwhile is little; the writer moves it
//! between two batches, and with that the log begins anew.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Error};
use tokio::task::JoinSet;
use tracing::debug;

use super::super::statements::Cells;
use super::{DURABLE, options_of_ours};

/// Pages of the log from which on it is moved: as many as SQLite has it, 4 MiB.
const PAGES: i64 = 1000;
/// Of a log that has to be short, because the disk has no room for a longer one: a quarter.
const SHORT: i64 = PAGES / 4;
/// Bytes that are written before the length of the log is asked for again.
const STEP: usize = 256 << 10;

/// How far the log is moved.
pub(super) struct Log {
    /// The connection that moves it, while it does.
    mover: JoinSet<Result<(), Error>>,
    /// Bytes that were written since the log was looked at.
    written: usize,
    /// Pages that could not be moved the last time, because a reader still needed them where they are.
    left: i64,
}

impl Log {
    pub(super) fn new() -> Self {
        Self {
            mover: JoinSet::new(),
            written: 0,
            left: 0,
        }
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes);
    }

    /// To be called between two batches, with the writer's connection; `short`: there is little room.
    ///
    /// # Errors
    /// What SQLite says; nothing is lost then, the log is only longer than it should be.
    pub(super) async fn tidy(
        &mut self,
        path: &Path,
        connection: &mut SqliteConnection,
        short: bool,
    ) -> Result<(), Error> {
        let pages = if short { SHORT } else { PAGES };
        if let Some(moved) = self.mover.try_join_next() {
            moved.map_err(|error| Error::Protocol(error.to_string()))??;
            self.left = run(connection, "PRAGMA wal_checkpoint(PASSIVE)").await?;
            debug!(left = self.left, "the log was moved into the store");
        } else if self.mover.is_empty() && self.written >= STEP {
            self.written = 0;
            if run(connection, "PRAGMA wal_checkpoint(NOOP)").await? >= self.left + pages {
                self.mover.spawn(move_most(options_of_ours(path)));
            }
        }
        Ok(())
    }

    /// Waits until only the writer and readers use the file.
    pub(super) async fn rest(&mut self) {
        while self.mover.join_next().await.is_some() {}
    }
}

/// Bytes of the log beside the store at `path`. They are written again when what they hold is moved.
pub(super) fn size(path: &Path) -> u64 {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(0, |log| log.len())
}

async fn move_most(options: SqliteConnectOptions) -> Result<(), Error> {
    let mut connection = SqliteConnection::connect_with(&options).await?;
    sqlx::raw_sql(DURABLE).execute(&mut connection).await?;
    let moved = run(&mut connection, "PRAGMA wal_checkpoint(PASSIVE)").await;
    connection.close().await?;
    moved.map(drop)
}

/// Runs a checkpoint of some kind; gives back the pages of the log that are not moved.
async fn run(connection: &mut SqliteConnection, sql: &'static str) -> Result<i64, Error> {
    let row = sqlx::query(sql).fetch_one(connection).await?;
    Ok(row.number(1)? - row.number(2)?)
}
