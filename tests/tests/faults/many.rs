//! Many connections of one client, more than those it meets can take, and others beside them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::lab::Host;
use keel_tests::need;
use keel_tests::process::Process;
use keel_tests::wait::{self, SOON};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream as Connection;
use tokio_util::sync::CancellationToken;

/// How soon a new connection carries once the others have gone.
pub(crate) fn recovered() -> Duration {
    Duration::from_secs(if need::long() { 1 } else { 3 })
}

/// What each connection of a crowd does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Habit {
    /// Says this, and nothing more.
    Silent(&'static [u8]),
    /// Asks for a file, and reads a little of it now and then.
    ReadsSlowly,
}

impl Habit {
    fn count(self) -> usize {
        match (self, need::long()) {
            (Self::Silent(_), true) => 10_000,
            (Self::Silent(_), false) => 600,
            (Self::ReadsSlowly, true) => 5_000,
            (Self::ReadsSlowly, false) => 1_000,
        }
    }

    async fn live(self, mut connection: Connection) -> std::io::Result<()> {
        match self {
            Self::Silent(word) => {
                connection.write_all(word).await?;
                std::future::pending().await
            }
            Self::ReadsSlowly => {
                connection.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
                let mut little = [0; 4096];
                while connection.read(&mut little).await? > 0 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok(())
            }
        }
    }
}

/// Connections that one client makes and keeps.
pub(crate) struct Crowd {
    stop: CancellationToken,
    connected: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Comes from `host`; returns once nobody else gets in.
    pub(crate) fn at(
        host: &Host,
        address: SocketAddr,
        habit: Habit,
        process: &Process,
    ) -> anyhow::Result<Self> {
        let count = habit.count();
        let (stop, connected) = (CancellationToken::new(), Arc::<AtomicUsize>::default());
        let thread = std::thread::Builder::new()
            .name("crowd".to_owned())
            .spawn({
                let (host, stop, connected) = (host.clone(), stop.clone(), Arc::clone(&connected));
                move || match (host.enter(), runtime()) {
                    (Ok(()), Ok(runtime)) => {
                        let crowd = crowd(address, habit, count, &connected);
                        runtime.block_on(stop.run_until_cancelled(crowd));
                    }
                    failed => eprintln!("no crowd: {failed:?}"),
                }
            })?;
        let crowd = Self {
            stop,
            connected,
            thread: Some(thread),
        };
        let mut before = (0, 0);
        wait::until_some("as many come in as can", SOON, || {
            wait::pause(Duration::from_millis(200));
            let now = (
                crowd.connected.load(Ordering::Relaxed),
                process.open_files().map_err(|error| error.to_string())?,
            );
            if now == before && now.0 >= 100 {
                return Ok(());
            }
            before = now;
            Err(format!("{} connected, {} files open", now.0, now.1))
        })?;
        println!("{} of {count} connected, {} files open", before.0, before.1);
        Ok(crowd)
    }
}

/// All go at once.
impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

async fn crowd(address: SocketAddr, habit: Habit, count: usize, connected: &AtomicUsize) {
    let mut all = tokio::task::JoinSet::new();
    let came = Arc::new(tokio::sync::Semaphore::new(0));
    for _ in 0..count {
        let came = Arc::clone(&came);
        all.spawn(async move {
            let connection = Connection::connect(address).await;
            came.add_permits(1);
            habit.live(connection?).await
        });
        // Not so many at once that the kernel takes it for a flood of SYNs.
        tokio::task::yield_now().await;
    }
    while let Ok(one) = came.acquire().await {
        one.forget();
        connected.fetch_add(1, Ordering::Relaxed);
    }
}

/// Says a word on a connection to an echo, and hears it.
pub(crate) fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"still there")?;
    stream.read_exact(&mut [0; 11])
}

/// A connection that carries.
pub(crate) fn connect(
    host: &Host,
    address: SocketAddr,
    bound: Duration,
) -> anyhow::Result<TcpStream> {
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&address, bound)?;
        echo(&mut stream)?;
        Ok::<_, std::io::Error>(stream)
    };
    host.run(connect)?.context("connect and echo")
}

/// Waits until a new connection carries, and says how long it took.
pub(crate) fn recovers(host: &Host, address: SocketAddr) -> anyhow::Result<()> {
    let began = Instant::now();
    wait::until_some("a new connection carries", recovered(), || {
        let short = Duration::from_millis(500);
        connect(host, address, short).map_err(|error| format!("{error:#}"))
    })?;
    println!("recovered in {:.1?}", began.elapsed());
    Ok(())
}
