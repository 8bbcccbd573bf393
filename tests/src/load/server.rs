//! The server of a load: judges what it reads and answers in kind.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::report::Pause;
use super::stream::{End, Judge, Manner};
use crate::lab::Host;

/// Longer than any test: the client's side is the one with a bound.
const FOREVER: Duration = Duration::from_secs(3600);

/// Connections that wait to be accepted. With the usual 128, a crowd whose flows are opened in one instant, because their link was
/// only just made, waits a second for the kernel to try again.
const BACKLOG: u32 = 4096;

/// A server for [`super::Load`]. Dropping it ends its thread and resets its connections.
#[derive(Debug)]
pub struct Server {
    state: Arc<State>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    accepted: AtomicUsize,
    ends: Mutex<Vec<End>>,
    /// Connections that a load announced and that did not come yet, by the seed of their bytes.
    expected: Mutex<HashMap<u64, Arc<Heard>>>,
}

/// What the server has of one connection.
#[derive(Debug)]
pub(super) struct Heard {
    /// From when its times count.
    began: Instant,
    /// Bytes that arrived and were right.
    pub(super) arrived: AtomicU64,
    /// How what came ended, and the pauses before; once that is known.
    pub(super) over: OnceLock<(End, Vec<Pause>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Serves on loopback of `host`.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn on(host: &Host, port: u16) -> anyhow::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (state, stop) = (Arc::<State>::default(), CancellationToken::new());
        let runtime = super::runtime()?;
        let listener = host.run(|| {
            let _inside = runtime.enter();
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        })??;
        let thread = std::thread::Builder::new()
            .name("load server".to_owned())
            .spawn({
                let (state, stop) = (Arc::clone(&state), stop.clone());
                move || {
                    let serve = serve(listener, &state);
                    runtime.block_on(stop.run_until_cancelled(serve));
                }
            })?;
        Ok(Self {
            state,
            stop,
            thread: Some(thread),
        })
    }

    /// Connections that are open now. Those that sent nothing (a probe of the port) are none.
    #[must_use]
    pub fn open(&self) -> usize {
        self.state.accepted.load(Ordering::Acquire) - self.ends().len()
    }

    /// How each connection ended that is over.
    #[must_use]
    pub fn ends(&self) -> Vec<End> {
        lock(&self.state.ends).clone()
    }

    /// A connection will come whose bytes follow from `seed`; its times count from `began`.
    pub(super) fn expect(&self, seed: u64, began: Instant) -> Arc<Heard> {
        let heard = Arc::new(Heard::new(began));
        lock(&self.state.expected).insert(seed, Arc::clone(&heard));
        heard
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Heard {
    fn new(began: Instant) -> Self {
        Self {
            began,
            arrived: AtomicU64::new(0),
            over: OnceLock::new(),
        }
    }
}

async fn serve(listener: TcpListener, state: &Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(talk(stream, Arc::clone(state)));
                }
                // Too many files: those that are open end some time.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn talk(mut stream: TcpStream, state: Arc<State>) {
    let _unset = stream.set_nodelay(true);
    let Ok(manner) = Manner::read(&mut stream).await else {
        return;
    };
    state.accepted.fetch_add(1, Ordering::AcqRel);
    let heard = lock(&state.expected).remove(&manner.seed);
    let heard = heard.unwrap_or_else(|| Arc::new(Heard::new(Instant::now())));
    let (from, to) = stream.into_split();
    let (enough, sent) = (CancellationToken::new(), AtomicU64::new(0));
    let read = async {
        let times = (heard.began, Instant::now() + FOREVER);
        let mut judge = Judge::new(manner, times, &heard.arrived);
        let end = judge.read(from).await;
        let _first = heard.over.set((end, judge.pauses));
        // With a length of its own the answer goes on; else the client's end is ours.
        if manner.length == 0 || end != End::Exact {
            enough.cancel();
        }
        end
    };
    let (end, answered) = tokio::join!(read, manner.answer().send(to, &enough, &sent));
    let end = end.with(&answered);
    lock(&state.ends).push(end);
}
