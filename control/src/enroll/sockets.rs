//! The node's two Unix sockets.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use keel_certs::DataDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Enrolment;
use crate::http::{Body, Caller, Remote};

/// Connections that one socket serves at a time. For one more, the oldest that has not asked for anything has to go; if all have,
/// it waits.
const MAX_CONNECTIONS: usize = 64;
/// Of these, connections of one process: a workload needs one or two, and one that forgets to close them leaves others theirs.
const MAX_OF_PROCESS: usize = MAX_CONNECTIONS / 2;
/// How long a peer may take for a request's header.
const HEADER: Duration = Duration::from_secs(10);
/// How long a connection may last: each is good for a few requests.
const CONNECTION: Duration = Duration::from_secs(60);
/// Pause after a failed accept (no file descriptors left, for one).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Members of this group, if there is one, may use `workload.sock`.
const GROUP: &str = "keel";

/// `admin.sock` and `workload.sock` of a data directory, bound. The files go when this is dropped.
#[derive(Debug)]
pub struct LocalSockets {
    admin: Door,
    workload: Door,
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the socket {path:?}: {source}")]
pub struct BindSocketError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Debug)]
struct Door {
    listener: UnixListener,
    _file: SocketFile,
}

/// Removes the socket's file at the end.
#[derive(Debug)]
struct SocketFile(PathBuf);

type Serve =
    dyn Fn(http::Request<Body>, Caller) -> BoxFuture<'static, http::Response<Body>> + Send + Sync;

impl LocalSockets {
    /// Opens both sockets. The directory must be locked by the caller ([`DataDir::open`]): files that are there are left-overs.
    ///
    /// # Errors
    /// [`BindSocketError`] with the path (Unix allows about 100 bytes for it).
    pub fn bind(data: &DataDir) -> Result<Self, BindSocketError> {
        let admin = Door::open(data.admin_sock(), 0o600)?;
        let workload = Door::open(data.workload_sock(), 0o660)?;
        if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP) {
            give_to_group(data.path(), &data.workload_sock(), group.gid);
        }
        Ok(Self { admin, workload })
    }

    /// Answers until `stop`. Connections that are open then are ended.
    pub async fn run(self, enrolment: Enrolment, stop: CancellationToken) {
        let for_admins = enrolment.clone();
        let admin: Arc<Serve> =
            Arc::new(move |request, caller| for_admins.handle_admin(request, caller));
        let workload: Arc<Serve> =
            Arc::new(move |request, caller| enrolment.handle_workload(request, caller));
        tokio::join!(
            self.admin.run(admin, &stop),
            self.workload.run(workload, &stop)
        );
    }
}

impl Door {
    fn open(path: PathBuf, mode: u32) -> Result<Self, BindSocketError> {
        let open = || {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
            Ok(listener)
        };
        match open() {
            Ok(listener) => Ok(Self {
                listener,
                _file: SocketFile(path),
            }),
            Err(source) => Err(BindSocketError { path, source }),
        }
    }

    async fn run(self, serve: Arc<Serve>, stop: &CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (processes, silent) = (Processes::default(), Silent::default());
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let Some(of_process) = processes.admit(&stream) else {
                            continue;
                        };
                        if places.available_permits() == 0 {
                            silent.make_room();
                        }
                        let place = places.clone().acquire_owned();
                        let Some(place) = stop.run_until_cancelled(place).await else {
                            break;
                        };
                        let (serve, asker) = (serve.clone(), silent.enter());
                        connections.spawn(async move {
                            let _places = (place, of_process);
                            let out = asker.out.clone();
                            out.run_until_cancelled(connection(stream, &*serve, asker)).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept on a local socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }
}

/// How many connections each process has.
#[derive(Clone, Debug, Default)]
struct Processes(Arc<Mutex<HashMap<i32, usize>>>);

/// A connection's place among those of its process; none where the process cannot be told from others.
#[derive(Debug)]
struct OfProcess(Option<(i32, Processes)>);

impl Processes {
    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<i32, usize>> {
        // Nothing is left half changed here, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for the connection, unless its process has too many.
    fn admit(&self, stream: &UnixStream) -> Option<OfProcess> {
        // Across process namespaces it is 0 for all.
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let Some(process) = process.filter(|process| *process > 0) else {
            return Some(OfProcess(None));
        };
        let mut counts = self.counts();
        let count = counts.entry(process).or_default();
        if *count >= MAX_OF_PROCESS {
            tracing::debug!(
                process,
                "too many connections of one process: one more was turned away"
            );
            return None;
        }
        *count += 1;
        Some(OfProcess(Some((process, self.clone()))))
    }
}

impl Drop for OfProcess {
    fn drop(&mut self) {
        if let Some((process, processes)) = &self.0 {
            let mut counts = processes.counts();
            match counts.get_mut(process) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    counts.remove(process);
                }
            }
        }
    }
}

/// Connections that have not asked for anything yet, by age. Who asks is served; who only takes a place gives way.
#[derive(Clone, Debug, Default)]
struct Silent(Arc<Mutex<BTreeMap<u64, CancellationToken>>>);

/// One of them, until it asks or ends.
#[derive(Debug)]
struct Asker {
    number: u64,
    out: CancellationToken,
    all: Silent,
}

impl Silent {
    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        // Nothing is left half changed here, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> Asker {
        let out = CancellationToken::new();
        let mut all = self.all();
        let number = all.last_key_value().map_or(0, |(last, _)| last + 1);
        all.insert(number, out.clone());
        Asker {
            number,
            out,
            all: self.clone(),
        }
    }

    /// Ends the oldest one.
    fn make_room(&self) {
        if let Some((_, out)) = self.all().pop_first() {
            tracing::debug!(
                "all places of a local socket are taken: a connection that asks nothing gives way"
            );
            out.cancel();
        }
    }
}

impl Asker {
    /// It asks for something.
    fn asks(&self) {
        self.all.all().remove(&self.number);
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.asks();
    }
}

async fn connection(stream: UnixStream, serve: &Serve, asker: Asker) {
    let credentials = match stream.peer_cred() {
        Ok(credentials) => credentials,
        Err(error) => return tracing::warn!(%error, "a local peer without credentials"),
    };
    let remote = Remote::Unix {
        uid: credentials.uid(),
        gid: credentials.gid(),
        pid: credentials.pid(),
    };
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        asker.asks();
        let answer = serve(
            request.map(|body| body.map_err(Into::into).boxed_unsync()),
            Caller {
                identity: None,
                remote,
            },
        );
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%remote, %error, "local connection ended"),
        Err(_) => tracing::debug!(%remote, "local connection took too long"),
    }
}

/// Opens the way to `workload.sock` for a group, if this process may: the socket, and passing through (not listing) the
/// directory. A directory that is not as this program makes them is somebody's choice and stays as it is.
pub(super) fn give_to_group(directory: &Path, socket: &Path, group: nix::unistd::Gid) {
    let give = |path: &Path| nix::unistd::chown(path, None, Some(group)).map_err(io::Error::from);
    let given = give(socket).and_then(|()| {
        let now = std::fs::metadata(directory)?;
        let is_ours = now.uid() == nix::unistd::geteuid().as_raw() && now.mode() & 0o7777 == 0o700;
        if !is_ours {
            return Ok(());
        }
        give(directory)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o710))
    });
    if let Err(error) = given {
        tracing::debug!(%error, "workload.sock stays the owner's: it cannot be given to the group {GROUP}");
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A file that stays is removed by the next bind.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_nothing_gives_way_the_oldest_first() {
        let silent = Silent::default();
        let [asks, waits, gone, last] = [0; 4].map(|_| silent.enter());
        asks.asks();
        drop(gone);
        silent.make_room();
        assert!(waits.out.is_cancelled());
        assert!(!asks.out.is_cancelled() && !last.out.is_cancelled());
        silent.make_room();
        silent.make_room();
        assert!(last.out.is_cancelled() && !asks.out.is_cancelled());
    }

    #[tokio::test]
    async fn a_process_takes_no_more_than_its_part_of_the_places() {
        let processes = Processes::default();
        let (one, _other) = UnixStream::pair().unwrap();
        let mut places: Vec<_> = (0..MAX_OF_PROCESS)
            .map(|_| processes.admit(&one).unwrap())
            .collect();
        assert!(processes.admit(&one).is_none());
        drop(places.pop());
        places.push(processes.admit(&one).unwrap());
        drop(places);
        assert!(processes.counts().is_empty());
    }
}
