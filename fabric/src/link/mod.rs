//! Outbound connections to routers: one per node, made when first needed, shared by consumer and publisher.

mod control;
mod dial;
mod drain;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use keel_certs::{LiveIdentity, NodeName};
use tokio::time::Instant;

use crate::limits::LinkLimits;
use crate::metrics::FabricMetrics;
use crate::quic::{Connection, Endpoint, HostPort, Lost, RecvStream, SendStream};

pub(crate) use control::Control;
pub use control::PublishError;
pub use dial::LinkError;
pub(crate) use drain::{Drain, Rider};

/// The application protocol of connections to routers.
pub const ALPN: &[u8] = b"keel/1";

/// A router, by the node that it must prove to be, and where to find it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouterPeer {
    /// The node that the router's certificate must name.
    pub node: NodeName,
    /// Its addresses; all are tried, in this order, with a small head start for each.
    pub addresses: Vec<HostPort>,
}

/// The connections of this process to routers. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    live: LiveIdentity,
    limits: LinkLimits,
    metrics: Arc<FabricMetrics>,
    slots: Mutex<HashMap<NodeName, Arc<Slot>>>,
}

/// One node's connection. The lock is held while dialling, so that there is one attempt at a time.
#[derive(Default)]
struct Slot {
    state: tokio::sync::Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    link: Option<Link>,
    failed: Option<(Instant, LinkError)>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("endpoint", &self.inner.endpoint)
            .finish_non_exhaustive()
    }
}

impl Links {
    /// Dials from `endpoint` as `live`.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        live: LiveIdentity,
        limits: LinkLimits,
        metrics: Arc<FabricMetrics>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                endpoint,
                live,
                limits,
                metrics,
                slots: Mutex::default(),
            }),
        }
    }

    /// The connection to `router`; makes it if there is none that lives.
    ///
    /// Callers that come while an attempt runs wait for it and share its outcome. Cancel safe: if the caller that dials
    /// goes away, the next one dials.
    ///
    /// # Errors
    /// [`LinkError`] with what came of each address.
    pub async fn link(&self, router: &RouterPeer) -> Result<Link, LinkError> {
        let asked = Instant::now();
        let slot = self.slot(&router.node);
        let mut state = slot.state.lock().await;
        if let Some(link) = state.link.as_ref().filter(|link| link.is_alive()) {
            return Ok(link.clone());
        }
        if let Some((at, error)) = &state.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        state.link = None;
        match self.dial(router).await {
            Ok(link) => {
                state.failed = None;
                state.link = Some(link.clone());
                Ok(link)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The round trip to `router` if a connection to it lives now.
    #[must_use]
    pub fn rtt(&self, node: &NodeName) -> Option<std::time::Duration> {
        let slot = self.lock_slots().get(node).cloned()?;
        let state = slot.state.try_lock().ok()?;
        state
            .link
            .as_ref()
            .filter(|link| link.is_alive())
            .map(|link| link.connection().rtt())
    }

    /// Whether the connection to the router of `node` lives and the router has said that it stops.
    #[must_use]
    pub fn draining(&self, node: &NodeName) -> bool {
        let Some(slot) = self.lock_slots().get(node).cloned() else {
            return false;
        };
        let Ok(state) = slot.state.try_lock() else {
            // It is being dialled: what was there before is of no interest.
            return false;
        };
        let link = state.link.as_ref();
        link.is_some_and(|link| link.is_alive() && link.is_draining())
    }

    /// Closes every connection, telling the peers; waits until they have been told.
    pub async fn close(&self, reason: &str) {
        self.inner
            .endpoint
            .close(crate::wire::CloseCode::Done.to_wire(), reason.as_bytes());
        self.inner.endpoint.wait_idle().await;
    }

    fn slot(&self, node: &NodeName) -> Arc<Slot> {
        Arc::clone(self.lock_slots().entry(node.clone()).or_default())
    }

    fn lock_slots(&self) -> std::sync::MutexGuard<'_, HashMap<NodeName, Arc<Slot>>> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.inner
            .slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(&self, router: &RouterPeer) -> Result<Link, LinkError> {
        let inner = &self.inner;
        let connection = dial::dial(&inner.endpoint, &inner.live, router, &inner.limits).await?;
        let opened = tokio::time::timeout(inner.limits.answer_time, connection.open_bi()).await;
        let (send, recv) = match opened {
            Ok(Ok(streams)) => streams,
            Ok(Err(lost)) => {
                return Err(LinkError::Lost {
                    node: router.node.clone(),
                    lost,
                });
            }
            Err(_) => {
                return Err(LinkError::TimedOut {
                    node: router.node.clone(),
                });
            }
        };
        inner.metrics.links_connected.inc();
        tracing::debug!(router = %router.node, remote = %connection.remote_address(), "linked to router");
        let drain = Drain::default();
        let control = Control::start(
            connection.clone(),
            send,
            recv,
            inner.limits.answer_time,
            drain.clone(),
        );
        Ok(Link {
            inner: Arc::new(LinkInner {
                connection,
                control,
                drain,
                node: router.node.clone(),
            }),
        })
    }
}

/// A connection to a router whose node was verified. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    inner: Arc<LinkInner>,
}

#[derive(Debug)]
struct LinkInner {
    connection: Connection,
    control: Control,
    drain: Drain,
    node: NodeName,
}

impl Link {
    /// The router's node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.inner.node
    }

    /// Whether the connection lives, as far as known.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.inner.connection.close_reason().is_none()
    }

    /// Whether the router has said that it stops. It takes no flows any more; those that it carries should move.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.inner.drain.has_begun()
    }

    /// Waits until the router says that it stops; for ever if it never does, also if the connection is lost. Cancel safe.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.inner.drain.begun()
    }

    /// What is known of the router's stop, to be kept longer than the link.
    pub(crate) fn drain(&self) -> Drain {
        self.inner.drain.clone()
    }

    /// Counts a flow whose newest leg goes over this link: a router that stops waits for it.
    pub(crate) fn rider(&self) -> Rider {
        self.inner.drain.rider()
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    pub(crate) fn control(&self) -> &Control {
        &self.inner.control
    }

    /// Opens a stream for a leg. Cancel safe.
    pub(crate) async fn open_leg(&self) -> Result<(SendStream, RecvStream), Lost> {
        self.inner.connection.open_bi().await
    }
}
