//! The three ways from client to server: direct, through the fabric, through a fabric whose router dies meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keel_fabric::consumer::Target;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::app::{App, Words};
use crate::script::{Case, Record, Step};
use crate::world::{Consumer, RunningProvider, RunningRouter, World, publication, target};

/// Longer than any case takes on a busy machine, pauses of its script not counted.
const LONG: Duration = Duration::from_secs(10);
/// No case may hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What both applications saw.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) client: Record,
    pub(crate) server: Option<Record>,
    /// `slow` for a case that took long; the third way, which waits for its router, is not timed.
    pub(crate) timing: &'static str,
    /// What the client measured, sorted.
    pub(crate) times: Vec<Duration>,
}

/// The times themselves are never the same.
impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        let of = |seen: &Self| (seen.client.clone(), seen.server.clone(), seen.timing);
        of(self) == of(other)
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.client)?;
        if let Some(server) = &self.server {
            write!(f, " | {server}")?;
        }
        f.write_str(self.timing)
    }
}

/// Where a case of the third way waits for the death of its router.
#[derive(Debug, Default, Clone)]
pub(crate) struct Mark(Option<Arc<Seat>>);

#[derive(Debug)]
struct Seat {
    reached: AtomicBool,
    all: Arc<Semaphore>,
    phase: watch::Receiver<Phase>,
    go_on: Phase,
}

/// The router of the third way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Here,
    Away,
    Back,
}

impl Mark {
    /// Whether this is a way on which legs are cut, and times say nothing.
    pub(crate) fn cuts(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) async fn reached(&self) {
        let Some(seat) = &self.0 else { return };
        if !seat.reached.swap(true, Ordering::Relaxed) {
            seat.all.add_permits(1);
        }
        let mut phase = seat.phase.clone();
        // The sender goes only when the test is over.
        let _ = phase.wait_for(|phase| *phase >= seat.go_on).await;
    }

    fn was_reached(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|seat| seat.reached.load(Ordering::Relaxed))
    }
}

/// Plays both scripts.
async fn play(
    case: &Case,
    client: impl Future<Output = Option<TcpStream>>,
    listener: Option<TcpListener>,
    mark: Mark,
) -> Seen {
    let words = Arc::new(Words::default());
    let client = async {
        let Some(socket) = client.await else {
            let mut refused = Record::default();
            refused.add("refused");
            return (refused, Duration::ZERO, None);
        };
        let mut app = App::new(0, socket, Arc::clone(&words), mark.clone());
        let played = tokio::time::timeout(PATIENCE, app.play(&case.client)).await;
        if played.is_err() {
            app.record.add("HANGS");
        }
        (app.record.clone(), app.paused, Some(app))
    };
    let server = async {
        let (listener, script) = (listener?, case.server.as_ref()?);
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let Ok(Ok((socket, _))) = accepted else {
            let mut record = Record::default();
            record.add("NO CONNECTION");
            return Some((record, Duration::ZERO, None));
        };
        let mut app = App::new(1, socket, Arc::clone(&words), mark.clone());
        let played = tokio::time::timeout(PATIENCE, app.play(script)).await;
        if played.is_err() {
            app.record.add("HANGS");
        }
        Some((app.record.clone(), app.paused, Some(app)))
    };
    let began = Instant::now();
    let ((client, client_paused, near), server) = tokio::join!(client, server);
    let (server, server_paused, far) = match server {
        Some((record, paused, far)) => (Some(record), paused, far),
        None => (None, Duration::ZERO, None),
    };
    let slow = began.elapsed() > LONG + client_paused + server_paused && !mark.cuts();
    let mut seen = Seen {
        client,
        server,
        timing: if slow { " SLOW" } else { "" },
        times: near.as_ref().map_or(Vec::new(), |app| app.times.clone()),
    };
    drop((near, far));
    if !mark.was_reached() {
        seen.client.add("WAS NOT CUT");
    }
    seen
}

/// The one difference that is allowed: a proxy cannot refuse, so a refused connection is one that is reset before its
/// first byte (as a failed write, if there is one).
fn refusal(case: &Case, seen: Seen) -> Seen {
    let reset = seen.client.has("0:e3b0c442 reset") || seen.client.has("broke");
    if case.server.is_some() || !reset {
        return seen;
    }
    let mut refused = Record::default();
    refused.add("refused");
    Seen {
        client: refused,
        ..seen
    }
}

async fn listen(case: &Case) -> (SocketAddr, Option<TcpListener>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    urgent_inline(&listener);
    let addr = listener.local_addr().unwrap();
    (addr, case.server.is_some().then_some(listener))
}

/// Before there is a connection, which has it from its listener: nobody is woken for an urgent byte alone that comes before
/// the option is set.
fn urgent_inline<S: AsFd>(socket: &S) {
    SockRef::from(socket).set_out_of_band_inline(true).unwrap();
}

async fn connect(addr: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    urgent_inline(&socket);
    socket.connect(addr).await.ok()
}

/// Client to server over loopback, `at_once` cases beside each other.
pub(crate) async fn direct(cases: &[Case], at_once: usize) -> Vec<Seen> {
    let at_once = Arc::new(Semaphore::new(at_once));
    let mut running = JoinSet::new();
    for (index, case) in cases.iter().cloned().enumerate() {
        let at_once = Arc::clone(&at_once);
        running.spawn(async move {
            let _turn = at_once.acquire().await;
            let (addr, listener) = listen(&case).await;
            let seen = play(&case, connect(addr), listener, Mark::default()).await;
            (index, seen)
        });
    }
    in_order(running).await
}

/// A router, a provider with one service for each case, and a consumer.
pub(crate) struct Through {
    world: World,
    router: RunningRouter,
    _provider: RunningProvider,
    consumer: Arc<Consumer>,
    /// Target and listener of each case.
    ends: Vec<(Target, Option<TcpListener>)>,
}

impl Through {
    pub(crate) async fn new(cases: &[Case]) -> Self {
        let mut world = World::new();
        let mut router = world.router_to_kill("r").await;
        let live = world.fabric.pod("b", "default", "p");
        let (mut list, mut ends) = (Vec::new(), Vec::new());
        for (index, case) in cases.iter().enumerate() {
            let (addr, listener) = listen(case).await;
            let service = format!("case-{index}.default");
            let at = target(&service, 80, live.identity().subject, &router);
            list.push(publication(&service, 80, addr));
            ends.push((at, listener));
        }
        let mut provider = world.provider(&live, &[&router], list);
        if !cases.is_empty() {
            provider.published().await;
        }
        router
            .shows(|view| view.services.len() == cases.len())
            .await;
        let consumer = Arc::new(world.consumer());
        Self {
            world,
            router,
            _provider: provider,
            consumer,
            ends,
        }
    }

    /// Plays the cases, `at_once` of them beside each other.
    pub(crate) async fn play(mut self, cases: &[Case], at_once: usize) -> Vec<Seen> {
        let marks = vec![Mark::default(); cases.len()];
        let running = self.start(cases, at_once, marks);
        let seen = in_order(running).await;
        self.world.kill().await;
        seen
    }

    /// Plays all cases at once. The router is killed when each has come to its mark; one half of the cases goes on
    /// before it is back.
    pub(crate) async fn play_cut(mut self, cases: &[Case]) -> Vec<Seen> {
        let all = Arc::new(Semaphore::new(0));
        let (phase, watched) = watch::channel(Phase::Here);
        let marks = (0..cases.len())
            .map(|index| {
                Mark(Some(Arc::new(Seat {
                    reached: AtomicBool::new(false),
                    all: Arc::clone(&all),
                    phase: watched.clone(),
                    go_on: if index % 2 == 0 {
                        Phase::Away
                    } else {
                        Phase::Back
                    },
                })))
            })
            .collect();
        let running = self.start(cases, cases.len(), marks);
        // A case that does not come to its mark says so itself.
        let everybody = u32::try_from(cases.len()).unwrap();
        let came = tokio::time::timeout(PATIENCE / 2, all.acquire_many(everybody)).await;
        self.world.kill().await;
        phase.send_replace(Phase::Away);
        let addr = self.router.addr;
        let _again = self.world.router_at("r", addr.into());
        phase.send_replace(Phase::Back);
        drop(came);
        in_order(running).await
    }

    fn start(
        &mut self,
        cases: &[Case],
        at_once: usize,
        marks: Vec<Mark>,
    ) -> JoinSet<(usize, Seen)> {
        let at_once = Arc::new(Semaphore::new(at_once));
        let mut running = JoinSet::new();
        let ends = std::mem::take(&mut self.ends);
        let each = cases.iter().cloned().zip(ends).zip(marks).enumerate();
        for (index, ((case, (target, listener)), mark)) in each {
            let at_once = Arc::clone(&at_once);
            let consumer = Arc::clone(&self.consumer);
            running.spawn(async move {
                let _turn = at_once.acquire().await;
                let mut flow = JoinSet::new();
                let client = async { Some(consumer.connect(&mut flow, &target).await) };
                let mut seen = play(&case, client, listener, mark).await;
                match tokio::time::timeout(PATIENCE, flow.join_next()).await {
                    Ok(Some(Ok(Err(error)))) if case.server.is_some() && error.elsewhere() => {
                        seen.client.add(format!("NOT OPENED: {error}"));
                    }
                    Ok(_) => {}
                    Err(_) => seen.client.add("ITS FLOW STAYS"),
                }
                (index, refusal(&case, seen))
            });
        }
        running
    }
}

async fn in_order(mut running: JoinSet<(usize, Seen)>) -> Vec<Seen> {
    let mut seen = BTreeMap::new();
    while let Some(done) = running.join_next().await {
        let (index, case) = done.unwrap();
        seen.insert(index, case);
    }
    seen.into_values().collect()
}

/// Whether the case is one whose times are looked at; those run alone.
pub(crate) fn is_timed(case: &Case) -> bool {
    let timed = |step: &Step| matches!(step, Step::Ping(..) | Step::Banner(_));
    case.client
        .iter()
        .chain(case.server.iter().flatten())
        .any(timed)
}

/// Waits for the end of a whole matrix, but not for ever.
pub(crate) async fn whole<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(4 * PATIENCE, what)
        .await
        .expect("the matrix came to no end")
}
