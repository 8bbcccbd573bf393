//! Follows the Routers of the APIServer and keeps the directory. The last good state stays while the APIServer is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use keel_certs::NodeName;
use keel_control::api::Router;
use keel_control::client::WatchEvent;
use keel_fabric::wire::Protocol;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::directory::{Directory, gained};
use crate::metrics::SidecarMetrics;
use crate::spec::ServiceRef;

/// Events that are taken together before the directory is built anew.
const BATCH: usize = 256;

/// Between two lines that say that the APIServer is away.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// For how long Routers stay in use that a fresh list no longer has, if most of what is mapped would go with them: an APIServer
/// that comes back empty is filled again by its peers, and nothing that works needs to stop meanwhile.
const HOLD: Duration = Duration::from_secs(60);

/// What discovery knows: the Routers as they came, and whether they are complete.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// All Routers.
    pub routers: Arc<BTreeMap<String, Arc<Router>>>,
    /// True once a whole state was seen, from the APIServer or from a snapshot.
    pub synced: bool,
}

/// Routers that a fresh list lacked and that stay in use for a while.
#[derive(Debug)]
struct Held {
    routers: BTreeMap<String, Arc<Router>>,
    until: Instant,
}

/// The writer of the directory.
#[derive(Debug)]
pub struct Discovery {
    own: NodeName,
    mapped: Vec<ServiceRef>,
    routers: BTreeMap<String, Arc<Router>>,
    held: Option<Held>,
    directory: watch::Sender<Arc<Directory>>,
    known: watch::Sender<Known>,
    metrics: Arc<SidecarMetrics>,
    connected: bool,
    /// When it was last said that the APIServer is away.
    away: Option<Instant>,
}

impl Discovery {
    /// Starts from `routers` of a snapshot, if there is one, as seen from the node `own`, for a sidecar that maps `mapped`.
    pub fn new(
        own: NodeName,
        mapped: Vec<ServiceRef>,
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
            mapped,
            routers,
            held: None,
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
                () = due(self.held.as_ref()) => {
                    self.held = None;
                    tracing::warn!(routers = self.routers.len(), "what the APIServer no longer has is given up");
                    self.publish(false);
                    continue;
                }
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
                let routers = routers
                    .into_iter()
                    .map(|router| (router.name().to_owned(), Arc::new(router)))
                    .collect();
                self.replace(routers);
                true
            }
            WatchEvent::Applied(router) => {
                self.let_go(router.name());
                self.routers
                    .insert(router.name().to_owned(), Arc::new(router));
                false
            }
            WatchEvent::Deleted(node) => {
                self.let_go(node.as_ref());
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

    /// Takes a fresh list for what is there; what it lacks is held if too much would go at once.
    fn replace(&mut self, fresh: BTreeMap<String, Arc<Router>>) {
        let mut lacking = self.in_use();
        lacking.retain(|name, _| !fresh.contains_key(name));
        let before = self.directory.borrow().clone();
        let after = Directory::build(&self.own, fresh.values().map(|router| &**router));
        let until = self.held.take().map(|held| held.until);
        if !lacking.is_empty() && most_is_lost(&before, &after, &self.mapped) {
            if until.is_none() {
                tracing::warn!(
                    routers = fresh.len(),
                    lacking = lacking.len(),
                    "the APIServer has lost most of what was known; it stays in use for {HOLD:?}"
                );
            }
            self.held = Some(Held {
                routers: lacking,
                // A list that is read again does not prolong it.
                until: until.unwrap_or_else(|| Instant::now() + HOLD),
            });
        }
        self.routers = fresh;
    }

    /// The APIServer has said something about this Router itself.
    fn let_go(&mut self, router: &str) {
        if let Some(held) = &mut self.held {
            held.routers.remove(router);
            if held.routers.is_empty() {
                self.held = None;
            }
        }
    }

    fn in_use(&self) -> BTreeMap<String, Arc<Router>> {
        let mut all = self.routers.clone();
        if let Some(held) = &self.held {
            all.extend(held.routers.clone());
        }
        all
    }

    fn publish(&mut self, synced: bool) {
        let routers = self.in_use();
        let now = Directory::build(&self.own, routers.values().map(|router| &**router));
        self.metrics
            .routers
            .set(i64::try_from(routers.len()).unwrap_or(i64::MAX));
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
            known.routers = Arc::new(routers);
        });
    }
}

/// Returns when what is held is to be given up; never without it.
async fn due(held: Option<&Held>) {
    match held {
        Some(held) => sleep_until(held.until).await,
        None => std::future::pending().await,
    }
}

/// Whether more than half of the services that are `mapped` and were provided are provided no longer; likewise of the routers,
/// which is what a sidecar that only publishes depends on.
fn most_is_lost(before: &Directory, after: &Directory, mapped: &[ServiceRef]) -> bool {
    let provided = |directory: &Directory, target: &ServiceRef| {
        [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .any(|protocol| !directory.ports(target, protocol).is_empty())
    };
    let services = mapped.iter().filter(|target| provided(before, target));
    let services = most(services.map(|target| !provided(after, target)));
    let routers = before.routers().keys();
    services || most(routers.map(|node| !after.routers().contains_key(node)))
}

/// Whether more than half are true.
fn most(all: impl Iterator<Item = bool>) -> bool {
    let (mut yes, mut no) = (0_usize, 0);
    all.for_each(|one| if one { yes += 1 } else { no += 1 });
    yes > no
}

#[cfg(test)]
mod tests;
