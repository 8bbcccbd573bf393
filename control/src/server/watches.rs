//! What the watches share: how many one identity may have, and the state that they begin with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use keel_certs::Identity;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::store_status;
use crate::api::{Revision, Status};
use crate::store::{Object, Store};

/// Watches that one identity may have open: far more than a node or a user needs, far fewer than would hurt the others.
pub(super) const MAX_WATCHES: usize = 200;

/// All objects of a resource as of a revision, if somebody still has them.
type State = (Revision, Weak<Vec<Object>>);

/// All watches of a server.
#[derive(Debug, Default)]
pub(super) struct Watches {
    open: Mutex<HashMap<Identity, usize>>,
    count: Gauge,
    refused: Counter,
    /// The last state of each resource that a watch began with, for as long as one still sends it. The lock is held while it is
    /// read, so that watchers who come back together read it once.
    last: tokio::sync::Mutex<HashMap<&'static str, State>>,
}

impl Watches {
    /// No watches yet; `count` tells how many there are, `refused` how many more there might have been.
    pub(super) fn counted(count: Gauge, refused: Counter) -> Self {
        Self {
            count,
            refused,
            ..Self::default()
        }
    }

    /// Counts one more watch of `identity` for as long as the guard lives.
    ///
    /// # Errors
    /// `TooManyRequests` if it has as many as it may have.
    pub(super) fn admit(self: &Arc<Self>, identity: &Identity) -> Result<Admitted, Status> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(identity.clone()).or_default();
        if *count >= MAX_WATCHES {
            self.refused.inc();
            return Err(Status::too_many(format!(
                "{identity} has {MAX_WATCHES} watches open: end some of them, or share one"
            )));
        }
        *count += 1;
        self.count.inc();
        Ok(Admitted {
            watches: self.clone(),
            identity: identity.clone(),
        })
    }

    /// The current state of a resource, shared with every other watch that begins with it, and its revision.
    pub(super) async fn state(
        &self,
        store: &Store,
        resource: &'static str,
    ) -> Result<(Arc<Vec<Object>>, Revision), Status> {
        let mut last = self.last.lock().await;
        let known = last
            .get(resource)
            .and_then(|(revision, objects)| Some((*revision, objects.upgrade()?)));
        if let Some((revision, objects)) = known {
            // Another APIServer's writes count too.
            let committed = store.committed().await;
            if revision >= committed.map_err(|error| store_status(&error))? {
                return Ok((objects, revision));
            }
        }
        let (objects, revision) = store
            .list(resource)
            .await
            .map_err(|error| store_status(&error))?;
        let objects = Arc::new(objects);
        last.insert(resource, (revision, Arc::downgrade(&objects)));
        Ok((objects, revision))
    }
}

/// One counted watch.
#[derive(Debug)]
pub(super) struct Admitted {
    watches: Arc<Watches>,
    identity: Identity,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.watches.count.dec();
        let mut open = self
            .watches
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gauge_goes_with_the_guards_and_a_refusal_leaves_it() {
        let (gauge, refused) = (Gauge::default(), Counter::default());
        let watches = Arc::new(Watches::counted(gauge.clone(), refused.clone()));
        let identity: Identity = "spiffe://t/node/a".parse().unwrap();
        let admitted: Vec<_> = (0..MAX_WATCHES)
            .map(|_| watches.admit(&identity).unwrap())
            .collect();
        assert_eq!(refused.get(), 0);
        assert!(watches.admit(&identity).is_err());
        assert_eq!(refused.get(), 1);
        assert_eq!(gauge.get(), i64::try_from(MAX_WATCHES).unwrap());
        drop(admitted);
        assert_eq!(gauge.get(), 0);
    }
}
