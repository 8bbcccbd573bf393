//! A herd: every client of a server loses it at once, and comes back to the next one.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use keel_certs::LiveIdentity;
use keel_certs::fixture::Fabric;
use keel_control::client::{WatchEvent, WatchFrom, WatchStream};
use keel_control::http::read;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::fan::{ROUTERS, change, client, fill, name, quantile, row};
use crate::server::{NODE, Server};

/// Routers that each of them watches.
const OBJECTS: usize = 100;
/// Clients of one pod: an identity may have so many watches.
const SHARE: usize = 100;
/// How long the one that asks all the time is measured in peace.
const CALM: Duration = Duration::from_secs(5);
/// Pause between two of its questions, and between two changes.
const PAUSE: Duration = Duration::from_millis(5);
const CHANGES: Duration = Duration::from_secs(1);
/// What counts as the peace of one who asks at least, in ms: below it a single switch of processes decides.
const FLOOR: f64 = 5.0;
/// How long all of this may take.
const LATE: Duration = Duration::from_secs(120);

/// Set in the process of the one that asks: the folder with its identity, and where the server is.
const FOLDER: &str = "KEEL_BENCH_ASKS";
const SERVER: &str = "KEEL_BENCH_ASKED";

pub(crate) fn is_asking() -> bool {
    std::env::var_os(FOLDER).is_some()
}

/// Asks for one Router again and again until it is killed; says how many microseconds each answer took.
pub(crate) async fn ask_for_ever() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let server: std::net::SocketAddr = std::env::var(SERVER).unwrap().parse().unwrap();
    let live = LiveIdentity::load(&folder).unwrap();
    let client = client(server, live);
    let request = || {
        let path = format!("{ROUTERS}/{}", name(1));
        http::Request::get(path).body(bytes::Bytes::new()).unwrap()
    };
    loop {
        let began = Instant::now();
        // Without a server there is nothing to measure.
        if let Ok(answer) = client.request(request()).await
            && answer.status() == 200
            && read(answer.into_body(), 1 << 20).await.is_ok()
        {
            println!("{}", began.elapsed().as_micros());
        }
        sleep(PAUSE).await;
    }
}

/// The one that asks, in a process of its own: it is no part of the herd, whose work is not the server's.
struct Asking {
    child: Child,
    times: Arc<Mutex<Vec<Duration>>>,
}

impl Asking {
    fn start(folder: &Path, server: &Server) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(FOLDER, folder)
            .env(SERVER, server.address.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let times = Arc::<Mutex<Vec<Duration>>>::default();
        let into = Arc::clone(&times);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let took = Duration::from_micros(line.parse().unwrap());
                into.lock().unwrap().push(took);
            }
        });
        Self { child, times }
    }

    /// The 99th percentile since it was last asked for, in ms.
    fn p99(&self) -> f64 {
        let mut times = std::mem::take(&mut *self.times.lock().unwrap());
        quantile(&mut times, 0.99).as_secs_f64() * 1e3
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Whether all figures are below what they must be below.
pub(crate) async fn measure(herd: usize) -> bool {
    let fabric = Fabric::new();
    let folder = TempDir::new().unwrap();
    fabric.node(NODE).save(folder.path()).unwrap();
    let server = Server::start(folder.path());
    let admin = client(server.address, fabric.fabric_admin("root"));
    fill(&admin, OBJECTS).await;

    let lists = Arc::new(AtomicUsize::new(0));
    // No change is one of the second server's yet.
    let (first_change, changed) = watch::channel(u64::MAX);
    let mut watches = JoinSet::new();
    for number in 0..herd {
        let pod = fabric.pod(NODE, "default", &format!("pod-{}", number / SHARE));
        let events = client(server.address, pod).watch_routers(WatchFrom::Snapshot);
        watches.spawn(follow(events, Arc::clone(&lists), changed.clone()));
        // In small groups: what is measured is how they come back.
        if number % 50 == 49 {
            until(&lists, number + 1).await;
        }
    }
    until(&lists, herd).await;
    let identity = TempDir::new().unwrap();
    fabric.fabric_admin("asks").save(identity.path()).unwrap();
    let asking = Asking::start(identity.path(), &server);
    sleep(CALM).await;
    let (calm, memory) = (asking.p99(), server.memory());

    let killed = Instant::now();
    drop(server);
    let server = Server::start(folder.path());
    let started = killed.elapsed();
    let admin = client(server.address, fabric.fabric_admin("root"));
    first_change.send_replace(change(&admin, 0, 1).await);
    let changing = async {
        for count in 2.. {
            sleep(CHANGES).await;
            change(&admin, 0, count).await;
        }
    };
    let mut times: Vec<Duration> = Vec::new();
    let back = async {
        while let Some(at) = watches.join_next().await {
            times.push(at.unwrap() - killed);
        }
    };
    tokio::select! {
        _ = timeout(LATE, back) => {}
        () = changing => unreachable!("it changes for ever"),
    }
    let storm = asking.p99();

    println!(
        "{herd} clients with a connection and a watch each; the server was killed, and was back after {started:.1?}\n"
    );
    println!("| measured | value | must be below |");
    println!("|---|---|---|");
    let missing = herd - times.len();
    let mut held = row("watches that did not come back", missing as f64, Some(1.0));
    for (what, share) in [("half", 0.5), ("99 %", 0.99), ("all", 1.0)] {
        // Of none there is no time.
        if missing < herd {
            let at = quantile(&mut times, share).as_secs_f64();
            held &= row(&format!("{what} have the next change, s"), at, Some(60.0));
        }
    }
    let lists = lists.load(Ordering::Relaxed) - herd;
    held &= row("lists that were read again", lists as f64, Some(3.0));
    for (when, memory) in [("before", memory), ("after it", server.memory())] {
        let what = format!("memory of the server {when}, MiB");
        held &= row(&what, memory / 1024.0, Some(1024.0));
    }
    let what = format!("p99 of one who asks meanwhile, ms (in peace {calm:.1})");
    held & row(&what, storm, Some(2.0 * calm.max(FLOOR)))
}

async fn until(count: &AtomicUsize, wanted: usize) {
    while count.load(Ordering::Relaxed) < wanted {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Follows until there is something of the second server; when that came.
async fn follow(
    mut events: WatchStream,
    lists: Arc<AtomicUsize>,
    first: watch::Receiver<u64>,
) -> Instant {
    loop {
        match events.next().await.unwrap() {
            WatchEvent::Snapshot { .. } => _ = lists.fetch_add(1, Ordering::Relaxed),
            WatchEvent::Applied(router) => {
                let revision = router.metadata.resource_version.unwrap().0;
                if revision >= *first.borrow() {
                    return Instant::now();
                }
            }
            _ => {}
        }
    }
}
