//! Writes snapshots: when the directory, an address or the identity's origin changes, and not for what only ticks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::discovery::Known;
use crate::listener::MappingState;
use crate::snapshot::{Origin, Snapshot, SnapshotFiles};

/// Changes are gathered for this long before they are written: a storm of them costs one write.
const GATHER: Duration = Duration::from_millis(500);

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
        Snapshot {
            revision: 0,
            origin: self.origin.borrow_and_update().clone(),
            addresses: states
                .iter()
                .map(|state| (state.target.clone(), state.address))
                .collect(),
            routers: self.known.borrow().routers.values().cloned().collect(),
        }
    }
}

/// Writes a snapshot at every change until `stop`, and a last one then if something is unwritten.
pub(crate) async fn keep(mut files: SnapshotFiles, mut sources: Sources, stop: CancellationToken) {
    let mut failing = false;
    let mut whole = sources.known.borrow().synced;
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
            () = sleep(GATHER) => {}
        }
        // An incomplete state never takes the place of a whole one.
        if !whole {
            continue;
        }
        let snapshot = sources.snapshot();
        let written = tokio::task::spawn_blocking(move || {
            let outcome = files.write(snapshot);
            (files, outcome)
        });
        let Ok((back, outcome)) = written.await else {
            return;
        };
        files = back;
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
