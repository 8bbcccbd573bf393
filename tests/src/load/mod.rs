//! Many connections at once that carry known bytes both ways, and an exact account of what became of each.

mod report;
mod server;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use report::{Report, Seen};
use server::Heard;
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

/// A load that runs, on a thread of its own.
#[derive(Debug)]
pub struct Running {
    state: Arc<State>,
    enough: CancellationToken,
    thread: Option<JoinHandle<Vec<Seen>>>,
    flows: usize,
    began: Instant,
}

#[derive(Debug)]
struct State {
    flows: Vec<Flow>,
    sent: AtomicU64,
    connected: AtomicUsize,
    ended: AtomicUsize,
}

/// One connection.
#[derive(Debug)]
struct Flow {
    /// Bytes that came back.
    back: AtomicU64,
    /// What the server has; none of a connection that only receives.
    heard: Option<Arc<Heard>>,
}

impl Flow {
    /// Bytes that have arrived in the direction that is behind.
    fn arrived(&self) -> u64 {
        let back = self.back.load(Ordering::Relaxed);
        let there = self.heard.as_ref();
        there.map_or(back, |heard| {
            back.min(heard.arrived.load(Ordering::Relaxed))
        })
    }
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

    /// Starts it from `host` with the server that is behind `address`.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn start(
        &self,
        host: &Host,
        address: SocketAddr,
        server: &Server,
    ) -> anyhow::Result<Running> {
        anyhow::ensure!(
            self.block.is_multiple_of(8) && self.length.unwrap_or(0).is_multiple_of(8),
            "blocks and lengths are multiples of 8"
        );
        anyhow::ensure!(
            !self.mute || self.length.is_none(),
            "who sends nothing reaches no length"
        );
        let (enough, began) = (CancellationToken::new(), Instant::now());
        let flow = |index| Flow {
            back: AtomicU64::new(0),
            heard: (!self.mute).then(|| server.expect(self.manner(index).seed, began)),
        };
        let state = Arc::new(State {
            flows: (0..self.flows).map(flow).collect(),
            sent: AtomicU64::new(0),
            connected: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
        });
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn({
            let (load, host) = (self.clone(), host.clone());
            let (state, enough) = (Arc::clone(&state), enough.clone());
            move || match (host.enter(), runtime()) {
                (Ok(()), Ok(runtime)) => {
                    runtime.block_on(load.carry(address, began, &state, &enough))
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

    /// How one of its connections sends.
    fn manner(&self, index: usize) -> Manner {
        Manner {
            seed: self.seed ^ (index as u64).wrapping_mul(0xD605_BBB5_8C8A_BC65),
            block: self.block,
            pause: u32::try_from(self.pause.as_micros()).unwrap_or(u32::MAX),
            length: self.length.unwrap_or(0),
        }
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
            let manner = self.manner(index);
            let (state, enough) = (Arc::clone(state), enough.clone());
            let (times, mute) = ((began, began + self.bound), self.mute);
            flows.spawn(async move {
                tokio::time::sleep(RAMP * index as u32).await;
                let place = (&*state, &state.flows[index].back);
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

    /// Bytes that have arrived until now, of each connection in the direction that is behind.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.each().iter().sum()
    }

    /// The same of each connection.
    fn each(&self) -> Vec<u64> {
        self.state.flows.iter().map(Flow::arrived).collect()
    }

    /// Connections that have ended, in whatever way.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.state.ended.load(Ordering::Acquire)
    }

    /// Waits until so many more bytes have arrived in both directions, and says how long it took.
    ///
    /// # Errors
    /// If they do not within `bound`.
    pub fn moves(&self, bytes: u64, bound: Duration) -> anyhow::Result<Duration> {
        let (began, target) = (Instant::now(), self.arrived() + bytes);
        wait::until_some(
            &format!("{bytes} bytes more arrive both ways"),
            bound,
            || {
                if self.arrived() >= target {
                    return Ok(());
                }
                let missing = target - self.arrived();
                Err(format!(
                    "{missing} are missing, {} flows of {} ended",
                    self.ended(),
                    self.flows
                ))
            },
        )?;
        Ok(began.elapsed())
    }

    /// Waits until something more has arrived on every single connection, both ways, and says how long the last one took.
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

    /// Bytes a second that arrive both ways while `span` passes.
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
            let mut flows = thread
                .join()
                .map_err(|_| anyhow::anyhow!("the load panicked"))?;
            anyhow::ensure!(flows.len() == self.flows, "the load did not run");
            let soon = Instant::now() + wait::SOON;
            for (seen, flow) in flows.iter_mut().zip(&self.state.flows) {
                let Some(heard) = &flow.heard else { continue };
                // Of what was cut the server may hear much later.
                while seen.end == End::Exact && heard.over.get().is_none() && Instant::now() < soon
                {
                    wait::pause(Duration::from_millis(5));
                }
                let (end, pauses) = heard.over.get().cloned().unwrap_or((End::Hung, Vec::new()));
                seen.pauses.extend(pauses);
                seen.pauses.sort_unstable();
                if seen.end == End::Exact {
                    seen.end = end;
                }
            }
            let back = |flow: &Flow| flow.back.load(Ordering::Relaxed);
            return Ok(Report {
                flows,
                arrived: self.state.flows.iter().map(back).sum(),
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
