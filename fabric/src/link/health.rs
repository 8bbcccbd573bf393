//! Whether the router at the other end of a link still answers, known long before QUIC gives the connection up.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ending::Ending;
use super::worn::Worn;
use crate::quic::Connection;
use crate::silence::{Silence, TICK, patience};

/// How often one that is suspected is looked at: its flows leave it as long as it is.
const DOUBT_TICK: Duration = Duration::from_millis(50);
/// How often one that says nothing is looked at.
const IDLE_TICK: Duration = Duration::from_millis(500);
/// Pause between two attempts at another connection.
const AGAIN: Duration = Duration::from_secs(1);
/// After a suspicion that was wrong the next one takes twice as long, at most this often in a row: a router that is only
/// slow must not get all its flows anew again and again.
const STRIKES: u32 = 3;
/// After this time without a suspicion it is as before.
const FORGIVEN: Duration = Duration::from_secs(60);

/// Why a link's router is dialled afresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It does not answer.
    Suspected,
    /// It has nothing to carry after a crowd.
    Worn,
    /// A certificate of the connection ends before long.
    Ending,
}

/// Dials the link's router afresh; the new link takes the place of the old one, which is closed then.
pub(super) type Renew = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is thought of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    /// The network has changed, and nothing was acknowledged since. Other links are no better.
    Doubted,
    /// Nothing was acknowledged for too long.
    Silent,
}

/// A link's watch.
#[derive(Debug)]
pub(super) struct Health {
    standing: watch::Receiver<Standing>,
    doubt: Arc<Notify>,
    /// Aborted when the link is dropped. The lock only makes the handle shareable.
    _task: std::sync::Mutex<JoinSet<()>>,
}

impl Health {
    pub(super) fn start(
        connection: Connection,
        (ending, retired): (Ending, CancellationToken),
        renew: impl Fn(Reason) -> Renew + Send + 'static,
    ) -> Self {
        let (state, standing) = watch::channel(Standing::Good);
        let doubt = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        let life = (ending, retired);
        task.spawn(observe(connection, life, state, Arc::clone(&doubt), renew));
        Self {
            standing,
            doubt,
            _task: std::sync::Mutex::new(task),
        }
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Suspects the link until something that is sent from now on is acknowledged.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }
}

async fn observe(
    connection: Connection,
    (mut ending, retired): (Ending, CancellationToken),
    state: watch::Sender<Standing>,
    doubt: Arc<Notify>,
    renew: impl Fn(Reason) -> Renew,
) {
    let mut silence = Silence::new(connection.traffic(), Instant::now());
    let mut busy = true;
    let mut renewing: Option<Renew> = None;
    let mut renew_at = Instant::now();
    let (mut strikes, mut struck) = (0, Instant::now());
    let mut worn = Worn::default();
    let mut told = false;
    loop {
        if !told && retired.is_cancelled() {
            // Whoever follows the standing looks at the link again.
            told = true;
            state.send_modify(|_| {});
        }
        let standing = *state.borrow();
        let suspected = standing != Standing::Good;
        if suspected && renewing.is_none() && renew_at <= Instant::now() {
            renewing = Some(renew(Reason::Suspected));
            renew_at = Instant::now() + AGAIN;
        }
        let tick = match (suspected, busy) {
            (true, _) => DOUBT_TICK,
            (false, true) => TICK,
            (false, false) => IDLE_TICK,
        };
        tokio::select! {
            _ = connection.closed() => return,
            () = doubt.notified() => {
                silence = Silence::new(connection.traffic(), Instant::now());
                state.send_replace(Standing::Doubted);
                continue;
            }
            () = running(&mut renewing) => {
                renewing = None;
                continue;
            }
            () = tokio::time::sleep(tick) => {}
        }
        let (heard, quiet) = silence.look(connection.traffic(), Instant::now());
        busy = heard || !quiet.is_zero();
        if struck.elapsed() > FORGIVEN {
            strikes = 0;
        }
        if heard && suspected {
            tracing::info!(remote = %connection.remote_address(), "the router answers again");
            renewing = None;
            if standing == Standing::Silent {
                strikes = STRIKES.min(strikes + 1);
                struck = Instant::now();
            }
            state.send_replace(Standing::Good);
        } else if standing != Standing::Silent
            && quiet >= patience(connection.rtt()) * (1 << strikes)
        {
            tracing::info!(remote = %connection.remote_address(), silent_ms = quiet.as_millis(), "the router does not answer; looking for another way");
            state.send_replace(Standing::Silent);
        } else if standing == Standing::Good {
            let is_worn = worn.look(connection.streams(), Instant::now());
            // Else another one is coming, or there.
            if renewing.is_none() && !told {
                if is_worn {
                    renewing = Some(renew(Reason::Worn));
                } else if ending.look(SystemTime::now()) {
                    renewing = Some(renew(Reason::Ending));
                }
            }
        }
    }
}

async fn running(renewing: &mut Option<Renew>) {
    match renewing {
        Some(renewing) => renewing.await,
        None => std::future::pending().await,
    }
}
