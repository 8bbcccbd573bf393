//! The application: connects again and again, and notes when and how that went.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use keel_tests::backends::pattern;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Between two connections.
const EVERY: Duration = Duration::from_millis(50);
/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// One that takes longer than this, or fails, was not served when it came.
const LATE: Duration = Duration::from_millis(500);

/// One connection.
#[derive(Debug)]
struct Attempt {
    began: Instant,
    took: Duration,
    /// Why it did not work.
    failed: Option<String>,
}

/// What an application saw.
#[derive(Debug, Default)]
pub(crate) struct Seen(Vec<Attempt>);

/// Times of connections that worked, in ms and in order.
pub(crate) struct Times(Vec<f64>);

impl Times {
    /// The time that this share of them did not exceed.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index of a short list"
    )]
    pub(crate) fn at(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        self.0.get(index).copied().unwrap_or(f64::NAN)
    }
}

impl Seen {
    pub(crate) fn all(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn failed(&self) -> usize {
        self.0.iter().filter(|one| one.failed.is_some()).count()
    }

    /// How the first one failed, if any did.
    pub(crate) fn first_failure(&self) -> Option<String> {
        let first = self.0.iter().find(|one| one.failed.is_some())?;
        let why = first.failed.as_deref()?;
        Some(format!("{why}, after {:.1?}", first.took))
    }

    pub(crate) fn times(&self) -> Times {
        let worked = self.0.iter().filter(|one| one.failed.is_none());
        let mut times: Vec<f64> = worked.map(|one| one.took.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        Times(times)
    }

    /// For how long after a move connections were not served when they came, on average.
    pub(crate) fn unserved(&self, moves: u32) -> Duration {
        let late = self
            .0
            .iter()
            .filter(|one| one.failed.is_some() || one.took > LATE)
            .count();
        EVERY * u32::try_from(late).unwrap_or(u32::MAX) / moves.max(1)
    }
}

/// An application that runs.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinSet<Seen>,
}

impl Running {
    /// Lets connections that are under way end, and gives all of them.
    pub(crate) async fn stop(mut self) -> Seen {
        self.stop.cancel();
        let seen = self.task.join_next().await;
        seen.and_then(Result::ok).unwrap_or_default()
    }
}

/// Starts an application that connects to `service`.
pub(crate) fn connect_on(service: SocketAddr) -> Running {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut open = JoinSet::new();
        let mut seen = Seen::default();
        loop {
            tokio::select! {
                biased;
                () = stopped.cancelled() => break,
                Some(ended) = open.join_next() => seen.0.extend(ended.ok()),
                _ = ticks.tick() => {
                    open.spawn(attempt(service));
                }
            }
        }
        while let Some(ended) = open.join_next().await {
            seen.0.extend(ended.ok());
        }
        seen.0.sort_by_key(|one| one.began);
        seen
    });
    Running { stop, task }
}

async fn attempt(service: SocketAddr) -> Attempt {
    let began = Instant::now();
    let failed = match timeout(PATIENCE, exchange(service)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(elapsed) => Some(elapsed.to_string()),
    };
    Attempt {
        began,
        took: began.elapsed(),
        failed,
    }
}

async fn exchange(service: SocketAddr) -> std::io::Result<()> {
    let sent = pattern(64);
    let mut stream = TcpStream::connect(service).await?;
    stream.write_all(&sent).await?;
    stream.shutdown().await?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await?;
    if back == sent {
        Ok(())
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}
