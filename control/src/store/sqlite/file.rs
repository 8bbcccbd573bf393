//! The file as a whole: its pages and its log.

use sqlx::Error;
use sqlx::sqlite::SqliteConnection;

use super::super::statements::Cells;

/// One page-by-page look; what it does not find, the first use of the page does. `Err` inside says what is wrong.
pub(super) async fn check(connection: &mut SqliteConnection) -> Result<Result<(), String>, Error> {
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(connection)
        .await?;
    Ok(if verdict == "ok" {
        Ok(())
    } else {
        Err(verdict)
    })
}

/// Bytes of the file that nothing is in.
pub(super) async fn free_pages(connection: &mut SqliteConnection) -> Result<u64, Error> {
    let bytes: i64 = sqlx::query_scalar(
        "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size",
    )
    .fetch_one(connection)
    .await?;
    Ok(bytes.unsigned_abs())
}

pub(super) async fn checkpoint(connection: &mut SqliteConnection) -> Result<(), Error> {
    let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .fetch_one(connection)
        .await?;
    match row.number(0)? {
        0 => Ok(()),
        _ => Err(Error::Protocol(
            "readers keep the log from being moved into the file".into(),
        )),
    }
}
