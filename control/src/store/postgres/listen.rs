//! Hearing that others have written: `LISTEN`, and a look every now and then in case that a word was lost.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tracing::debug;

use super::CHANNEL;
use crate::api::Revision;

/// How often the database is looked at unasked; also how long a listener that lost its connection waits.
const POLL: Duration = Duration::from_secs(1);

pub(super) struct Listener {
    /// The highest revision that was told.
    told: watch::Receiver<Revision>,
    poll: Interval,
    task: JoinSet<()>,
}

impl Listener {
    pub(super) fn start(options: PgConnectOptions) -> Self {
        let (tell, told) = watch::channel(Revision(0));
        let mut task = JoinSet::new();
        task.spawn(listen(options, tell));
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { told, poll, task }
    }

    /// Waits until a revision above `published` was told (unless the database is away, when there is no hurry) or it is time to
    /// look. Cancel safe.
    pub(super) async fn told(&mut self, published: Revision, reachable: bool) {
        tokio::select! {
            _ = self.poll.tick() => {}
            // An error means that the listener is gone, which it is only when the store is closed.
            Ok(_) = self.told.wait_for(|told| *told > published), if reachable => {}
        }
    }

    pub(super) async fn close(mut self) {
        self.task.shutdown().await;
    }
}

async fn listen(options: PgConnectOptions, tell: watch::Sender<Revision>) {
    // A listener takes a connection of a pool for itself, and another one when that is lost.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(options);
    loop {
        if let Err(error) = hear(&pool, &tell).await {
            debug!(%error, "what others write is not told: it is looked for");
        }
        sleep(POLL).await;
    }
}

async fn hear(pool: &sqlx::PgPool, tell: &watch::Sender<Revision>) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // `None`: the connection was lost and made anew. What was told meanwhile is found by looking.
        if let Some(word) = listener.try_recv().await?
            && let Ok(revision) = word.payload().parse::<Revision>()
        {
            tell.send_if_modified(|told| {
                let higher = revision > *told;
                *told = revision.max(*told);
                higher
            });
        }
    }
}
