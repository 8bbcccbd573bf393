//! The control side of a running sidecar: finds the identity, follows the APIServer, keeps the identity fresh.

use std::sync::Arc;

use keel_control::client::{Client, ClientConfig, WatchFrom};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::NotReady;
use crate::directory::Directory;
use crate::discovery::{Discovery, Known};
use crate::error::RunError;
use crate::identity::{Found, Lookup, keep_fresh};
use crate::metrics::SidecarMetrics;
use crate::snapshot::{Origin, Snapshot};
use crate::spec::ServiceRef;

/// The control side: finds the identity, then follows the APIServer and keeps the identity fresh.
pub(crate) struct Following {
    pub(crate) lookup: Lookup,
    pub(crate) identity: watch::Sender<Option<Found>>,
    pub(crate) origin: watch::Sender<Option<Origin>>,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) directory: watch::Sender<Arc<Directory>>,
    pub(crate) known: watch::Sender<Known>,
    pub(crate) metrics: Arc<SidecarMetrics>,
    /// What is mapped.
    pub(crate) mapped: Vec<ServiceRef>,
    pub(crate) waiting: (NotReady, NotReady),
}

impl Following {
    /// Runs until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let found = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            found = self.lookup.run() => found?,
        };
        let (identified, synced) = self.waiting;
        drop(identified);
        self.identity.send_replace(Some(found.clone()));
        self.origin.send_replace(Some(Origin {
            node: found.node.clone(),
            apiserver: found.apiserver.to_string(),
        }));
        let config = ClientConfig {
            server: found.apiserver.clone(),
            expect: found.node.clone(),
            live: found.live.clone(),
        };
        let mut client = Client::new(config)?;
        // One that was named is where it was said to be.
        if !self.lookup.names_apiserver() {
            let (lookup, node) = (Arc::new(self.lookup), found.node.clone());
            client = client.found_by(Box::new(move || {
                let (lookup, node) = (Arc::clone(&lookup), node.clone());
                Box::pin(async move { lookup.told_by_socket(&node).await })
            }));
        }
        let mut known = self.known.subscribe();
        let routers = self
            .snapshot
            .filter(|snapshot| snapshot.whole)
            .map(|snapshot| snapshot.routers);
        let discovery = Discovery::new(
            found.node.clone(),
            self.mapped,
            routers,
            self.directory,
            self.known,
            self.metrics,
        );
        let ready = async {
            // An error means that discovery has ended, which the stop did.
            let _ = known.wait_for(|known| known.synced).await;
            drop(synced);
        };
        tokio::join!(
            discovery.run(client.watch_routers(WatchFrom::Snapshot), stop.clone()),
            keep_fresh(found, client, stop.clone()),
            ready
        );
        Ok(())
    }
}
