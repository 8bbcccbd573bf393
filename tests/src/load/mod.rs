//! Many connections at once that carry known bytes both ways, and an exact account of what became of each.

mod server;
mod stream;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use server::Server;
pub use stream::End;
use stream::{Judge, Manner};

use crate::lab::Host;
use crate::wait;

/// From one connect to the next: a crowd that comes in one instant tests the accept queue and nothing else.
const RAMP: Duration = Duration::from_millis(1);

/// What is to be carried.
#[derive(Debug, Clone)]
pub struct Load {
    /// Connections at once.
    pub flows: usize,
    /// Bytes each way on each; `None` is until [`Running::finish`].
    pub length: Option<u64>,
    /// Bytes of one write; a multiple of 8.
    pub block: u32,
    /// From one write to the next; zero is as fast as it goes.
    pub pause: Duration,
    /// After this time a connection that has not ended hangs.
    pub bound: Duration,
    /// What the bytes follow from.
    pub seed: u64,
    /// The connections only receive, until [`Running::finish`].
    pub mute: bool,
}

/// What became of one connection.
#[derive(Debug, Clone)]
pub struct Seen {
    /// How what came back ended.
    pub end: End,
    /// When it ended, from the start of the load.
    pub at: Duration,
    /// Pauses of 100 ms and more between two arrivals: when each began, from the start of the load, and how long it was.
    pub pauses: Vec<(Duration, Duration)>,
}

/// A load that runs, on a thread of its own.
#[derive(Debug)]
pub struct Running {
    state: Arc<State>,
    enough: CancellationToken,
    thread: Option<JoinHandle<Vec<Seen>>>,
    flows: usize,
    began: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that came back, on each connection.
    arrived: Vec<AtomicU64>,
    sent: AtomicU64,
    connected: AtomicUsize,
    ended: AtomicUsize,
}

/// What became of all connections of a load.
#[derive(Debug, Clone)]
pub struct Report {
    /// Each connection.
    pub flows: Vec<Seen>,
    /// Bytes that came back, right ones only.
    pub arrived: u64,
    /// Bytes that were sent.
    pub sent: u64,
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

impl Load {
    /// So many connections, each with a block of 4 KiB every 50 ms both ways until it is finished: 80 kB/s.
    #[must_use]
    pub const fn steady(flows: usize, seed: u64) -> Self {
        Self {
            flows,
            length: None,
            block: 4096,
            pause: Duration::from_millis(50),
            bound: Duration::from_secs(900),
            seed,
            mute: false,
        }
    }

    /// So many connections that carry `length` bytes each way as fast as it goes.
    #[must_use]
    pub const fn bulk(flows: usize, length: u64, seed: u64) -> Self {
        Self {
            flows,
            length: Some(length),
            block: 16 << 10,
            pause: Duration::ZERO,
            bound: Duration::from_secs(900),
            seed,
            mute: false,
        }
    }

    /// Starts it from `host` with the [`Server`] behind `server`.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn start(&self, host: &Host, server: SocketAddr) -> anyhow::Result<Running> {
        anyhow::ensure!(
            self.block.is_multiple_of(8) && self.length.unwrap_or(0).is_multiple_of(8),
            "blocks and lengths are multiples of 8"
        );
        anyhow::ensure!(
            !self.mute || self.length.is_none(),
            "who sends nothing reaches no length"
        );
        let state = Arc::new(State {
            arrived: (0..self.flows).map(|_| AtomicU64::new(0)).collect(),
            ..State::default()
        });
        let (enough, began) = (CancellationToken::new(), Instant::now());
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn({
            let (load, host) = (self.clone(), host.clone());
            let (state, enough) = (Arc::clone(&state), enough.clone());
            move || match (host.enter(), runtime()) {
                (Ok(()), Ok(runtime)) => {
                    runtime.block_on(load.carry(server, began, &state, &enough))
                }
                (entered, runtime) => {
                    eprintln!("no load from {}: {entered:?} {runtime:?}", host.netns());
                    Vec::new()
                }
            }
        })?;
        Ok(Running {
            state,
            enough,
            thread: Some(thread),
            flows: self.flows,
            began,
        })
    }

    async fn carry(
        &self,
        server: SocketAddr,
        began: Instant,
        state: &Arc<State>,
        enough: &CancellationToken,
    ) -> Vec<Seen> {
        let mut flows = JoinSet::new();
        for index in 0..self.flows {
            let number = index as u64;
            let manner = Manner {
                seed: self.seed ^ number.wrapping_mul(0xD605_BBB5_8C8A_BC65),
                block: self.block,
                pause: u32::try_from(self.pause.as_micros()).unwrap_or(u32::MAX),
                length: self.length.unwrap_or(0),
            };
            let (state, enough) = (Arc::clone(state), enough.clone());
            let (times, mute) = ((began, began + self.bound), self.mute);
            flows.spawn(async move {
                tokio::time::sleep(RAMP * number as u32).await;
                let place = (&*state, &state.arrived[index]);
                let (end, pauses) = flow(server, (manner, mute), times, place, &enough).await;
                state.ended.fetch_add(1, Ordering::AcqRel);
                Seen {
                    end,
                    at: began.elapsed(),
                    pauses,
                }
            });
        }
        flows.join_all().await
    }
}

async fn flow(
    server: SocketAddr,
    (manner, mute): (Manner, bool),
    (began, deadline): (Instant, Instant),
    (state, arrived): (&State, &AtomicU64),
    enough: &CancellationToken,
) -> (End, Vec<(Duration, Duration)>) {
    let connected = tokio::time::timeout_at(deadline.into(), TcpStream::connect(server)).await;
    let mut stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(_)) => return (End::Reset, Vec::new()),
        Err(_) => return (End::Hung, Vec::new()),
    };
    let _unset = stream.set_nodelay(true);
    if manner.write(&mut stream).await.is_err() {
        return (End::Reset, Vec::new());
    }
    state.connected.fetch_add(1, Ordering::AcqRel);
    let (from, to) = stream.into_split();
    let mut judge = Judge::new(manner.answer(), (began, deadline), arrived);
    let mut writing = Box::pin(async {
        if mute {
            enough.cancelled().await;
        }
        manner.send(to, enough, &state.sent).await
    });
    let mut written = None;
    let end = {
        let mut reading = Box::pin(judge.read(from));
        loop {
            tokio::select! {
                end = &mut reading => break end,
                done = &mut writing, if written.is_none() => written = Some(done),
            }
        }
    };
    // The far end cannot have read what has not been sent: its end came too early.
    let end = written.map_or_else(
        || {
            if end == End::Exact {
                End::CleanCut
            } else {
                end
            }
        },
        |written| end.with(&written),
    );
    (end, judge.pauses)
}

impl Running {
    /// How long it runs.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Bytes that came back until now.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.each().iter().sum()
    }

    /// The same of each connection.
    fn each(&self) -> Vec<u64> {
        let all = self.state.arrived.iter();
        all.map(|flow| flow.load(Ordering::Relaxed)).collect()
    }

    /// Connections that have ended, in whatever way.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.state.ended.load(Ordering::Acquire)
    }

    /// Waits until so many more bytes have come back, and says how long it took.
    ///
    /// # Errors
    /// If they do not within `bound`.
    pub fn moves(&self, bytes: u64, bound: Duration) -> anyhow::Result<Duration> {
        let (began, target) = (Instant::now(), self.arrived() + bytes);
        wait::until_some(&format!("{bytes} bytes more come back"), bound, || {
            if self.arrived() >= target {
                return Ok(());
            }
            let missing = target - self.arrived();
            Err(format!(
                "{missing} are missing, {} flows of {} ended",
                self.ended(),
                self.flows
            ))
        })?;
        Ok(began.elapsed())
    }

    /// Waits until something more has come back on every single connection, and says how long the last one took.
    ///
    /// # Errors
    /// If it has not within `bound`.
    pub fn all_move(&self, bound: Duration) -> anyhow::Result<Duration> {
        let (began, before) = (Instant::now(), self.each());
        wait::until_some("every connection carries", bound, || {
            let now = self.each().into_iter().zip(&before);
            let still: Vec<usize> = now
                .enumerate()
                .filter(|(_, (now, before))| now == *before)
                .map(|(index, _)| index)
                .collect();
            if still.is_empty() {
                return Ok(());
            }
            let first = &still[..still.len().min(8)];
            Err(format!(
                "{} of {} stand still: {first:?}, {} ended",
                still.len(),
                self.flows,
                self.ended()
            ))
        })?;
        Ok(began.elapsed())
    }

    /// Bytes a second that come back while `span` passes.
    #[must_use]
    pub fn rate(&self, span: Duration) -> f64 {
        let (began, before) = (Instant::now(), self.arrived());
        wait::pause(span);
        (self.arrived() - before) as f64 / began.elapsed().as_secs_f64()
    }

    /// Lets every connection send its end, and waits until all are over.
    ///
    /// # Errors
    /// If the load could not run.
    pub fn finish(mut self) -> anyhow::Result<Report> {
        if let Some(thread) = self.thread.take() {
            self.enough.cancel();
            let flows = thread
                .join()
                .map_err(|_| anyhow::anyhow!("the load panicked"))?;
            anyhow::ensure!(flows.len() == self.flows, "the load did not run");
            return Ok(Report {
                flows,
                arrived: self.arrived(),
                sent: self.state.sent.load(Ordering::Relaxed),
            });
        }
        anyhow::bail!("finished twice")
    }

    /// Waits for a load with a length to end by itself.
    ///
    /// # Errors
    /// If the load could not run.
    pub fn complete(self) -> anyhow::Result<Report> {
        // Bounded by the load's own bound.
        while self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            wait::pause(Duration::from_millis(20));
        }
        self.finish()
    }
}

impl Report {
    /// How many connections ended so.
    #[must_use]
    pub fn count(&self, end: End) -> usize {
        self.flows.iter().filter(|flow| flow.end == end).count()
    }

    /// Every connection carried every byte and ended cleanly.
    ///
    /// # Errors
    /// How the others ended.
    pub fn exact(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.count(End::Exact) == self.flows.len(), "{self}");
        Ok(())
    }

    /// Every connection carried exact bytes to its end or to a reset.
    ///
    /// # Errors
    /// How the others ended.
    pub fn honest(&self) -> anyhow::Result<()> {
        let honest = self.count(End::Exact) + self.count(End::Reset);
        anyhow::ensure!(honest == self.flows.len(), "{self}");
        Ok(())
    }

    /// The pause that this part of all pauses of 100 ms and more do not exceed (0.99: the 99th percentile); 1.0 is the
    /// longest.
    #[must_use]
    pub fn stall(&self, part: f64) -> Duration {
        let pauses = self.flows.iter().flat_map(|flow| &flow.pauses);
        percentile(pauses.map(|(_, pause)| *pause).collect(), part)
    }

    /// The same of the longest pause that each connection had after each of these times, which are from the start of the load
    /// and in order: among all pauses those that harm nobody hide a few that are far too long. A pause belongs to the last
    /// time before its end.
    #[must_use]
    pub fn stall_after(&self, times: &[Duration], part: f64) -> Duration {
        let mut longest = Vec::new();
        for flow in &self.flows {
            let mut after = vec![None; times.len()];
            for &(began, pause) in &flow.pauses {
                let before = times.partition_point(|time| *time < began + pause);
                if let Some(one) = before.checked_sub(1).and_then(|index| after.get_mut(index)) {
                    *one = (*one).max(Some(pause));
                }
            }
            longest.extend(after.into_iter().flatten());
        }
        percentile(longest, part)
    }
}

fn percentile(mut pauses: Vec<Duration>, part: f64) -> Duration {
    pauses.sort_unstable();
    let place = (pauses.len() as f64 * part).ceil() as usize;
    pauses
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let odd = self.flows.iter().filter(|flow| flow.end != End::Exact);
        let mut odd: Vec<_> = odd
            .map(|flow| format!("{:?} at {:.1?}", flow.end, flow.at))
            .collect();
        let count = odd.len();
        odd.truncate(8);
        write!(
            f,
            "{} flows, {count} not exact {odd:?}; {} bytes came back of {} sent out; pauses: p50 {:.0?}, p99 {:.0?}, longest {:.0?}",
            self.flows.len(),
            self.arrived,
            self.sent,
            self.stall(0.5),
            self.stall(0.99),
            self.stall(1.0)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_pauses_the_longest_after_each_time_counts() {
        let millis = Duration::from_millis;
        // A hundred short pauses on each connection, and one that is far too long after the second time.
        let flow = |long| {
            let mut pauses: Vec<_> = (0..100).map(|n| (millis(n * 200), millis(150))).collect();
            pauses.push((millis(11_990), millis(long)));
            Seen {
                end: End::Exact,
                at: millis(30_000),
                pauses,
            }
        };
        let report = Report {
            flows: vec![flow(500), flow(9000)],
            arrived: 0,
            sent: 0,
        };
        let times = [millis(5000), millis(12_000)];
        assert_eq!(report.stall(0.99), millis(150), "hidden by the others");
        assert_eq!(report.stall_after(&times, 0.99), millis(9000));
        assert_eq!(report.stall_after(&times, 0.5), millis(150));
        assert_eq!(report.stall_after(&[], 0.99), Duration::ZERO);
    }
}
