//! What is new in the database, by whomever; and numbers that go on with the clock.

use std::time::SystemTime;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error};

use super::super::Gap;
use super::super::database::{GAPS, News, column};
use super::super::events::{self, Bounds};
use super::super::statements::{Cells, all};
use super::notify;
use crate::api::Revision;

/// Locks what a batch, an opening and a compaction have in common: the last revision, and up to where events are forgotten.
pub(super) async fn lock(connection: &mut PgConnection) -> Result<(Revision, Revision), Error> {
    meta(
        connection,
        "SELECT revision, compacted FROM meta FOR UPDATE",
    )
    .await
}

pub(super) async fn meta(
    connection: &mut PgConnection,
    sql: &'static str,
) -> Result<(Revision, Revision), Error> {
    let row = sqlx::query(sql).fetch_one(connection).await?;
    Ok((row.revision(0)?, row.revision(1)?))
}

/// Goes on with the clock's number, as every opening does: see there. The caller holds the lock. Gives back the number.
pub(super) async fn go_on(
    connection: &mut PgConnection,
    durable: Revision,
    published: Revision,
) -> Result<Revision, Error> {
    let clock = Revision::at(SystemTime::now());
    let revision = durable.next().max(published.next()).max(clock);
    sqlx::query("INSERT INTO gap (low, high) VALUES ($1, $2) ON CONFLICT (low) DO UPDATE SET high = excluded.high")
        .bind(column(durable))
        .bind(column(revision))
        .execute(&mut *connection)
        .await?;
    sqlx::query("UPDATE meta SET revision = $1")
        .bind(column(revision))
        .execute(&mut *connection)
        .await?;
    let older =
        sqlx::query_scalar::<_, i64>("SELECT high FROM gap ORDER BY low DESC LIMIT 1 OFFSET $1")
            .bind(GAPS)
            .fetch_optional(&mut *connection)
            .await?;
    if let Some(high) = older {
        for sql in [
            "UPDATE meta SET compacted = GREATEST(compacted, $1)",
            "DELETE FROM event WHERE revision <= $1",
            "DELETE FROM gap WHERE high <= $1",
        ] {
            sqlx::query(sql)
                .bind(high)
                .execute(&mut *connection)
                .await?;
        }
    }
    notify(connection, revision).await?;
    Ok(revision)
}

/// What is new since `published`, if anything.
pub(super) async fn look(
    connection: &mut PgConnection,
    regained: bool,
    published: Revision,
    compacted: Revision,
) -> Result<Option<News>, Error> {
    const META: &str = "SELECT revision, compacted FROM meta";
    let (mut revision, forgotten) = meta(connection, META).await?;
    if !regained && (revision, forgotten) == (published, compacted) {
        return Ok(None);
    }
    if regained || revision < published {
        let mut transaction = connection.begin().await?;
        let (found, _) = lock(&mut transaction).await?;
        revision = match regained || found < published {
            true => go_on(&mut transaction, found, published).await?,
            false => found,
        };
        transaction.commit().await?;
    }
    let mut news = since(connection, published, revision, forgotten).await?;
    // Somebody may have forgotten events between the statements; the mark is raised before they are deleted.
    let (_, forgotten) = meta(connection, META).await?;
    if forgotten > news.compacted {
        news.compacted = forgotten;
        news.reach(published);
    }
    Ok(Some(news))
}

/// What is there after `published` up to `revision`.
pub(super) async fn since(
    connection: &mut PgConnection,
    published: Revision,
    revision: Revision,
    compacted: Revision,
) -> Result<News, Error> {
    let gaps: Vec<Gap> = all(
        &sqlx::query("SELECT low, high FROM gap WHERE high > $1")
            .bind(column(published))
            .fetch_all(&mut *connection)
            .await?,
        Cells::gap,
    )?;
    // What was published is of a history that the database does not know any more.
    let lost = gaps
        .iter()
        .filter(|(low, high)| *low < published && published < *high)
        .map(|(_, high)| *high)
        .max();
    let after = lost.unwrap_or(published);
    let (events, more) = events::last(connection, after, revision, Bounds::CATCH_UP).await?;
    let floor = match events.first().filter(|_| more) {
        Some(first) => Some(Revision(first.revision.0 - 1)),
        None => lost,
    };
    let mut news = News {
        events,
        floor,
        gaps,
        revision,
        compacted,
    };
    news.reach(published);
    Ok(news)
}

impl News {
    /// Begins the events where they are complete, if some since `published` are forgotten.
    fn reach(&mut self, published: Revision) {
        if self.compacted > published {
            let floor = self
                .floor
                .map_or(self.compacted, |floor| floor.max(self.compacted));
            self.events.retain(|event| event.revision > floor);
            self.floor = Some(floor);
        }
    }
}
