//! The mark on a Router that it may be old, and who sets it where nobody pulls: a node behind NAT pushes what it is, and has to be
//! missed when it no longer does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use keel_certs::NodeName;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tracing::debug;

use super::Peer;
use super::peer::due;
use super::plan::source;
use crate::api::{Condition, Revision, Router, RouterStatus, SYNCED, Time};
use crate::client::{Client, ClientError, WatchEvent, WatchFrom};

/// How long until a mark that could not be written is tried again.
pub(super) const MARK_AGAIN: Duration = Duration::from_secs(10);

pub(super) fn is_marked(status: &RouterStatus) -> bool {
    status.conditions.iter().any(|one| one.kind == SYNCED)
}

pub(super) fn mark(node: &NodeName, heard: SystemTime) -> Condition {
    Condition {
        kind: SYNCED.to_owned(),
        status: "False".to_owned(),
        reason: "PeerNotHeard".to_owned(),
        message: format!(
            "{node} was not heard here since {}: this is what it was then",
            Time::from(heard).as_str()
        ),
        last_transition_time: Some(Time::from(SystemTime::now())),
        ..Condition::default()
    }
}

/// Follows the Routers held here, and marks those whose nodes are silent. Those of peers are left to who pulls them; a mark goes when
/// its node pushes a newer status, which has none.
#[derive(Clone)]
pub(super) struct Pushed {
    pub(super) own: NodeName,
    pub(super) local: Client,
    pub(super) peers: watch::Receiver<Arc<Vec<Peer>>>,
    pub(super) stale_after: Duration,
    /// Told of every node whose Router is here no longer.
    pub(super) lost: broadcast::Sender<NodeName>,
}

/// What is known of a node that has said something.
struct Heard {
    source: Revision,
    at: SystemTime,
    /// When it is looked at; never if that was done.
    look: Option<Instant>,
}

impl Pushed {
    /// Works for ever.
    pub(super) async fn run(self) {
        let mut events = self.local.watch_routers(WatchFrom::Snapshot);
        let mut nodes = HashMap::new();
        loop {
            let next = nodes.values().filter_map(|heard: &Heard| heard.look).min();
            tokio::select! {
                Some(event) = events.next() => self.event(event, &mut nodes),
                () = due(next) => self.look(&mut nodes).await,
            }
        }
    }

    fn event(&self, event: WatchEvent, nodes: &mut HashMap<NodeName, Heard>) {
        match event {
            WatchEvent::Snapshot { routers, .. } => {
                // What a peer's task has written since may be gone already.
                for peer in self.peers.borrow().iter() {
                    if !routers
                        .iter()
                        .any(|router| router.name() == peer.node.as_ref())
                    {
                        self.tell(peer.node.clone());
                    }
                }
                let mut before = std::mem::take(nodes);
                for router in routers {
                    let node = router.name().parse::<NodeName>().ok();
                    nodes.extend(node.and_then(|node| before.remove_entry(&node)));
                    self.note(&router, nodes);
                }
            }
            WatchEvent::Applied(router) => self.note(&router, nodes),
            WatchEvent::Deleted(node) => {
                nodes.remove(&node);
                self.tell(node);
            }
            WatchEvent::Interrupted(_) | WatchEvent::Synced(_) => {}
        }
    }

    /// Whoever pulls from it brings it back. Without peers nobody listens.
    fn tell(&self, node: NodeName) {
        let _ = self.lost.send(node);
    }

    fn note(&self, router: &Router, nodes: &mut HashMap<NodeName, Heard>) {
        let Ok(node) = router.name().parse::<NodeName>() else {
            return;
        };
        let Some((status, source)) = router
            .status
            .as_ref()
            .and_then(|status| Some((status, source(status)?)))
        else {
            return;
        };
        let known = nodes.get(&node).is_some_and(|heard| heard.source == source);
        if node == self.own || known {
            return;
        }
        let heard = Heard {
            source,
            at: SystemTime::now(),
            // One that was marked before this process began.
            look: (!is_marked(status)).then(|| Instant::now() + self.stale_after),
        };
        nodes.insert(node, heard);
    }

    async fn look(&self, nodes: &mut HashMap<NodeName, Heard>) {
        let now = Instant::now();
        for (node, heard) in nodes {
            if heard.look.is_none_or(|look| look > now) {
                continue;
            }
            heard.look = if self.peers.borrow().iter().any(|peer| peer.node == *node) {
                Some(now + self.stale_after)
            } else {
                match self.mark(node, heard).await {
                    Ok(()) => None,
                    Err(error) => {
                        debug!(%node, %error, "the Router could not be marked, trying again");
                        Some(now + MARK_AGAIN)
                    }
                }
            };
        }
    }

    async fn mark(&self, node: &NodeName, heard: &Heard) -> Result<(), ClientError> {
        let router = match self.local.get_router(node).await {
            Err(error) if error.is_not_found() => return Ok(()),
            found => found?,
        };
        // Of a newer one an event is on its way.
        if let Some(mut status) = router.status
            && source(&status) == Some(heard.source)
            && !is_marked(&status)
        {
            status.conditions.push(mark(node, heard.at));
            self.local.apply_status(node, &status).await?;
        }
        Ok(())
    }
}
