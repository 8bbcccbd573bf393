//! Writes snapshots: at the start for the addresses, then when the directory, an address or the identity's origin changes, and
//! not for what only ticks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::discovery::Known;
use crate::listener::MappingState;
use crate::snapshot::{Origin, Snapshot, SnapshotFiles};

/// The least pause between two writes. The first change is written at once, because a process may be killed at any time; a
/// storm of changes is gathered.
const PAUSE: Duration = Duration::from_millis(50);

/// The pause is at least this many times what the write took: a slow disk is left alone most of the time.
const PAUSE_BY_WRITE: u32 = 10;

/// What snapshots are made of.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// What is reachable: a change here is worth a snapshot.
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    /// The Routers that go into it.
    pub(crate) known: watch::Receiver<Known>,
    /// The addresses.
    pub(crate) states: watch::Receiver<Arc<Vec<MappingState>>>,
    /// Where the identity came from.
    pub(crate) origin: watch::Receiver<Option<Origin>>,
}

impl Sources {
    fn snapshot(&mut self) -> Snapshot {
        self.directory.borrow_and_update();
        let states = self.states.borrow_and_update().clone();
        let known = self.known.borrow().clone();
        Snapshot {
            revision: 0,
            origin: self.origin.borrow_and_update().clone(),
            addresses: states
                .iter()
                .map(|state| (state.target.clone(), state.address))
                .collect(),
            routers: known.routers.values().cloned().collect(),
            whole: known.synced,
        }
    }
}

/// Writes a snapshot at every change until `stop`, and a last one then if something is unwritten. As long as the state is
/// incomplete, only its addresses take the place of those in `before`, the whole one that is on disk.
pub(crate) async fn keep(
    mut files: SnapshotFiles,
    mut sources: Sources,
    mut before: Option<Snapshot>,
    stop: CancellationToken,
) {
    let mut failing = false;
    let mut next = Instant::now();
    let mut whole = sources.known.borrow().synced;
    // Names resolve to the addresses from the start on.
    sources.states.mark_changed();
    loop {
        let stopping = tokio::select! {
            biased;
            Ok(_) = sources.known.wait_for(|known| known.synced), if !whole => {
                whole = true;
                false
            }
            Ok(()) = sources.directory.changed() => false,
            Ok(()) = sources.states.changed() => false,
            Ok(()) = sources.origin.changed() => false,
            () = stop.cancelled() => true,
            else => true,
        };
        if stopping {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep_until(next) => {}
        }
        let mut snapshot = sources.snapshot();
        before = before.filter(|_| !whole);
        if let Some(before) = &mut before {
            if before.addresses == snapshot.addresses {
                continue;
            }
            before.addresses = snapshot.addresses;
            snapshot = before.clone();
        }
        let start = Instant::now();
        let written = tokio::task::spawn_blocking(move || {
            let outcome = files.write(snapshot);
            (files, outcome)
        });
        let Ok((back, outcome)) = written.await else {
            return;
        };
        files = back;
        next = Instant::now() + PAUSE.max(start.elapsed() * PAUSE_BY_WRITE);
        match outcome {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                tracing::warn!(%error, "the snapshot cannot be written; a restart without the APIServer will know less");
                failing = true;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use keel_control::api::Router;
    use tokio::task::JoinSet;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::directory::tests::{router, serving};

    /// The writers of what snapshots are made of, and the task that keeps them.
    struct Running {
        directory: watch::Sender<Arc<Directory>>,
        known: watch::Sender<Known>,
        states: watch::Sender<Arc<Vec<MappingState>>>,
        origin: watch::Sender<Option<Origin>>,
        task: JoinSet<()>,
    }

    fn start(dir: &Path) -> Running {
        start_until(dir, CancellationToken::new())
    }

    fn start_until(dir: &Path, stop: CancellationToken) -> Running {
        let (directory, known, states, origin) = (
            watch::Sender::default(),
            watch::Sender::default(),
            watch::Sender::new(Arc::new(vec![at("127.0.66.1")])),
            watch::Sender::new(None),
        );
        let sources = Sources {
            directory: directory.subscribe(),
            known: known.subscribe(),
            states: states.subscribe(),
            origin: origin.subscribe(),
        };
        let mut task = JoinSet::new();
        let (files, before, _) = SnapshotFiles::open(dir);
        task.spawn(keep(files, sources, before, stop));
        Running {
            directory,
            known,
            states,
            origin,
            task,
        }
    }

    fn at(address: &str) -> MappingState {
        MappingState {
            target: "mysql.default".parse().unwrap(),
            address: address.parse().unwrap(),
            ports: BTreeMap::new(),
        }
    }

    impl Running {
        fn identified(&self) {
            self.origin.send_replace(Some(Origin {
                node: "a".parse().unwrap(),
                apiserver: "198.51.100.2:7443".to_owned(),
            }));
        }

        fn serving(&self, node: &str) {
            let new = router(
                node,
                serving("east", &["b:7000"], "mysql", 3306, &["/node/b"]),
            );
            self.known.send_modify(|known| {
                known.synced = true;
                Arc::make_mut(&mut known.routers).insert(node.to_owned(), Arc::new(new));
            });
            let known = self.known.borrow().clone();
            let routers = known.routers.values().map(|router| &**router);
            let now = Directory::build(&"a".parse().unwrap(), routers);
            self.directory.send_replace(Arc::new(now));
        }
    }

    /// Waits in virtual time until the newest snapshot is as wanted, and says how long that took.
    async fn until(dir: &Path, wanted: impl Fn(&Snapshot) -> bool) -> Duration {
        let start = Instant::now();
        let look = async {
            while !SnapshotFiles::open(dir).1.as_ref().is_some_and(&wanted) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(60), look).await.unwrap();
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_new_is_on_disk_before_anybody_can_pull_the_plug() {
        let dir = tempfile::tempdir().unwrap();
        let running = start(dir.path());
        running.identified();
        let took = until(dir.path(), |new| new.origin.is_some() && !new.whole).await;
        assert!(took < PAUSE, "the way to the APIServer: {took:?}");
        running.serving("b");
        let took = until(dir.path(), |new| new.whole && new.routers.len() == 1).await;
        assert!(took < PAUSE * 3, "the first providers: {took:?}");
        for number in 0..200 {
            running.serving(&format!("n{number}"));
            sleep(Duration::from_millis(1)).await;
        }
        until(dir.path(), |new| new.routers.len() == 201).await;
        let revision = SnapshotFiles::open(dir.path()).1.unwrap().revision;
        assert!(revision < 20, "a storm was written {revision} times");
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_snapshot_stays_until_there_is_another_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let whole = Snapshot {
            routers: vec![Arc::new(Router::named("a"))],
            whole: true,
            ..Snapshot::default()
        };
        SnapshotFiles::open(dir.path()).0.write(whole).unwrap();
        let running = start(dir.path());
        let is_at = |snapshot: &Snapshot, address: &str| {
            let states = snapshot.addresses.values().map(ToString::to_string);
            states.eq([address.to_owned()])
        };
        until(dir.path(), |new| is_at(new, "127.0.66.1")).await;
        running.identified();
        sleep(PAUSE * 10).await;
        let newest = || SnapshotFiles::open(dir.path()).1.unwrap();
        assert_eq!((newest().revision, newest().origin), (2, None));
        running
            .states
            .send_replace(Arc::new(vec![at("127.0.66.2")]));
        until(dir.path(), |new| is_at(new, "127.0.66.2")).await;
        assert!(newest().whole && newest().routers.len() == 1);
        running.serving("b");
        let both = |new: &Snapshot| new.whole && new.origin.is_some() && is_at(new, "127.0.66.2");
        until(dir.path(), both).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_right_after_the_start_keeps_the_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let mut running = start_until(dir.path(), stop);
        running.task.join_next().await.unwrap().unwrap();
        assert_eq!(
            SnapshotFiles::open(dir.path()).1.unwrap().addresses.len(),
            1
        );
    }
}
