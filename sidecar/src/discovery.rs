//! Follows the Routers of the APIServer and keeps the directory. The last good state stays while the APIServer is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use keel_certs::NodeName;
use keel_control::api::Router;
use keel_control::client::WatchEvent;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::directory::{Directory, gained};
use crate::metrics::SidecarMetrics;

/// Events that are taken together before the directory is built anew.
const BATCH: usize = 256;

/// Between two lines that say that the APIServer is away.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// What discovery knows: the Routers as they came, and whether they are complete.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// All Routers.
    pub routers: Arc<BTreeMap<String, Arc<Router>>>,
    /// True once a whole state was seen, from the APIServer or from a snapshot.
    pub synced: bool,
}

/// The writer of the directory.
#[derive(Debug)]
pub struct Discovery {
    own: NodeName,
    routers: BTreeMap<String, Arc<Router>>,
    directory: watch::Sender<Arc<Directory>>,
    known: watch::Sender<Known>,
    metrics: Arc<SidecarMetrics>,
    connected: bool,
    /// When it was last said that the APIServer is away.
    away: Option<Instant>,
}

impl Discovery {
    /// Starts from `routers` of a snapshot, if there is one, as seen from the node `own`.
    pub fn new(
        own: NodeName,
        routers: Option<Vec<Arc<Router>>>,
        directory: watch::Sender<Arc<Directory>>,
        known: watch::Sender<Known>,
        metrics: Arc<SidecarMetrics>,
    ) -> Self {
        let synced = routers.is_some();
        let routers = routers
            .unwrap_or_default()
            .into_iter()
            .map(|router| (router.name().to_owned(), router))
            .collect();
        let mut discovery = Self {
            own,
            routers,
            directory,
            known,
            metrics,
            connected: false,
            away: None,
        };
        discovery.publish(synced);
        discovery
    }

    /// Follows `events` until `stop` or their end.
    pub async fn run(mut self, events: impl Stream<Item = WatchEvent>, stop: CancellationToken) {
        let mut events = std::pin::pin!(events);
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            let Some(event) = event else { return };
            let mut synced = self.apply(event);
            // What is there already is taken along: one new directory for a burst of changes.
            for _ in 0..BATCH {
                let Some(Some(event)) = events.next().now_or_never() else {
                    break;
                };
                synced |= self.apply(event);
            }
            self.publish(synced);
        }
    }

    /// Takes in one event; true if the state is whole from now on.
    fn apply(&mut self, event: WatchEvent) -> bool {
        let connected = !matches!(event, WatchEvent::Interrupted(_));
        let whole = match event {
            WatchEvent::Snapshot { routers, revision } => {
                tracing::debug!(%revision, routers = routers.len(), "read the state of the APIServer");
                self.routers = routers
                    .into_iter()
                    .map(|router| (router.name().to_owned(), Arc::new(router)))
                    .collect();
                true
            }
            WatchEvent::Applied(router) => {
                self.routers
                    .insert(router.name().to_owned(), Arc::new(router));
                false
            }
            WatchEvent::Deleted(node) => {
                self.routers.remove(node.as_ref());
                false
            }
            WatchEvent::Synced(_) => true,
            WatchEvent::Interrupted(error) => {
                // Also at the first try: somebody waits for the APIServer then and wants to know why.
                if self.away.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
                    tracing::warn!(%error, "the APIServer is away; what is known stays in use, and it is tried again");
                    self.away = Some(Instant::now());
                }
                false
            }
        };
        if connected {
            self.away = None;
        }
        if connected && !self.connected {
            tracing::info!(routers = self.routers.len(), "following the APIServer");
        }
        self.connected = connected;
        self.metrics.apiserver_connected.set(i64::from(connected));
        whole
    }

    fn publish(&mut self, synced: bool) {
        let now = Directory::build(&self.own, self.routers.values().map(|router| &**router));
        self.metrics
            .routers
            .set(i64::try_from(self.routers.len()).unwrap_or(i64::MAX));
        for new in gained(&self.directory.borrow(), &now) {
            tracing::warn!(
                service = %new.key.service, port = new.key.port, provider = %new.provider, besides = %new.besides,
                "a service gained a provider on another node"
            );
        }
        self.directory.send_if_modified(|old| {
            let changed = **old != now;
            if changed {
                *old = Arc::new(now);
            }
            changed
        });
        self.known.send_modify(|known| {
            known.synced |= synced;
            known.routers = Arc::new(self.routers.clone());
        });
    }
}

#[cfg(test)]
mod tests;
