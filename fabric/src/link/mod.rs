//! Outbound connections to routers: one per node, made when first needed, shared by consumer and publisher.

mod control;
mod dial;
mod drain;
mod ending;
mod health;
mod worn;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use keel_certs::{LiveIdentity, NodeName};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::limits::LinkLimits;
use crate::metrics::FabricMetrics;
use crate::quic::{Connection, Endpoint, HostPort, Lost, RecvStream, SendStream};
use crate::silence::patience;

pub(crate) use control::Control;
pub use control::PublishError;
pub use dial::LinkError;
pub(crate) use drain::{Drain, Rider};
use ending::Ending;
pub(crate) use health::Standing;
use health::{Health, Reason, Renew};

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
    slots: Mutex<HashMap<NodeName, Slot>>,
    /// Aborted with the links. The lock only makes the handle shareable.
    _following: Mutex<JoinSet<()>>,
}

/// One node's connection, and the attempt at one.
struct Slot {
    link: Option<Link>,
    /// One to a router that stops at an address where the node is no more: it carries what it has.
    left: Option<Link>,
    dialling: Attempt<Result<Link, LinkError>>,
    /// Tells the router which of its connections take each other's place: of two with the same number the newer one counts.
    instance: u64,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            link: None,
            left: None,
            dialling: Attempt::default(),
            instance: new_instance(),
        }
    }
}

fn new_instance() -> u64 {
    rand::random::<u64>() >> 2
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("endpoint", &self.inner.endpoint)
            .finish_non_exhaustive()
    }
}

impl Links {
    /// Dials from `endpoint` as `live`. Must be called inside its runtime.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        live: LiveIdentity,
        limits: LinkLimits,
        metrics: Arc<FabricMetrics>,
    ) -> Self {
        let inner = Arc::new_cyclic(|links| {
            let mut following = JoinSet::new();
            if let Some(changes) = endpoint.network_changes() {
                following.spawn(follow(changes, links.clone()));
            }
            Inner {
                endpoint,
                live,
                limits,
                metrics,
                slots: Mutex::default(),
                _following: Mutex::new(following),
            }
        });
        Self { inner }
    }

    /// The connection to `router`; makes it if there is none that lives and answers.
    ///
    /// A connection that does not answer any more may take very long to find out that the network is back, so another one
    /// is tried beside it. If that comes first, it takes the place of the old one, which is closed.
    ///
    /// Callers that come while an attempt runs share its outcome. Cancel safe: it ends with the last of them.
    ///
    /// # Errors
    /// [`LinkError`] with what came of each address.
    pub async fn link(&self, router: &RouterPeer) -> Result<Link, LinkError> {
        let dialling = {
            let mut slots = self.lock_slots();
            let slot = slots.entry(router.node.clone()).or_default();
            let old = slot.link.clone();
            let old = old.filter(|link| link.is_alive() && !link.is_left_for(router));
            if let Some(link) = old.as_ref().filter(|link| !link.is_suspected()) {
                return Ok(link.clone());
            }
            let (links, router, instance) = (self.clone(), router.clone(), slot.instance);
            slot.dialling
                .join(|| async move { links.replace(&router, old, instance).await })
        };
        dialling.await
    }

    /// Dials, beside `old` if that may only be slow; the connection that comes first is the one in use.
    async fn replace(
        &self,
        router: &RouterPeer,
        old: Option<Link>,
        instance: u64,
    ) -> Result<Link, LinkError> {
        let link = match &old {
            None => self.dial(router, instance).await?,
            Some(old) => tokio::select! {
                dialled = self.dial(router, instance) => dialled?,
                () = old.answers() => return Ok(old.clone()),
            },
        };
        let code = crate::wire::CloseCode::Replaced.to_wire();
        {
            let mut slots = self.lock_slots();
            let slot = slots.entry(router.node.clone()).or_default();
            let is_old = |held: &Link| {
                let old = old.as_ref();
                old.is_some_and(|old| Arc::ptr_eq(&held.inner, &old.inner))
            };
            // One that was made for another reason came first.
            let other = slot.link.clone();
            let stands = |held: &Link| held.is_alive() && !held.is_left_for(router);
            if let Some(other) = other.filter(|held| stands(held) && !is_old(held)) {
                link.connection().close(code, b"there is another one");
                return Ok(other);
            }
            let before = slot.link.replace(link.clone());
            if let Some(left) = before.filter(|held| held.is_alive() && !is_old(held)) {
                slot.left = Some(left);
            }
        }
        if let Some(old) = old {
            tracing::info!(router = %router.node, "another connection took the place of one that does not answer");
            old.connection().close(code, b"it does not answer");
        }
        Ok(link)
    }

    /// Dials a fresh connection beside one that is worn, or whose certificates end. What is opened from now on goes over the
    /// fresh one; flows leave the old one as far as they can, and it ends when nobody needs it.
    ///
    /// The old one is as good as ever, so it is used until the fresh one has had a word of the router.
    async fn refresh(&self, router: &RouterPeer, reason: Reason) -> Result<(), LinkError> {
        let old = |link: &Link| {
            !link.is_suspected()
                && !link.is_draining()
                && (reason == Reason::Ending || worn::is_worn(link.connection().streams()))
        };
        let Some(old) = self.held(&router.node).filter(old) else {
            return Ok(());
        };
        let instance = new_instance();
        let fresh = self.dial(router, instance).await?;
        let code = crate::wire::CloseCode::Replaced.to_wire();
        if reason == Reason::Ending && fresh.inner.ends <= old.inner.ends {
            tracing::debug!(router = %router.node, "the router has no newer certificate yet");
            fresh.connection().close(code, b"it ends no later");
            return Ok(());
        }
        self.greeted(&fresh).await?;
        {
            let mut slots = self.lock_slots();
            let slot = slots.entry(router.node.clone()).or_default();
            let stands = |link: &Link| Arc::ptr_eq(&link.inner, &old.inner);
            // If it is suspected by now, another one is being made for that.
            if old.is_suspected() || !slot.link.as_ref().is_some_and(stands) {
                fresh.connection().close(code, b"there is another one");
                return Ok(());
            }
            slot.link = Some(fresh);
            slot.instance = instance;
        }
        tracing::debug!(router = %router.node, ?reason, "a fresh connection stands beside an old one");
        old.inner.retired.cancel();
        Ok(())
    }

    /// Whether another connection to `node` is there instead of one that ended like this, or is just coming.
    pub(crate) fn is_replaced(&self, node: &NodeName, lost: &Lost) -> bool {
        let by_us = *lost == Lost::Here && self.held(node).is_some_and(|link| link.is_alive());
        by_us || lost.is_replaced()
    }

    /// The round trip to `router` if a connection to it lives now.
    #[must_use]
    pub fn rtt(&self, node: &NodeName) -> Option<Duration> {
        let link = self.held(node).filter(Link::is_alive)?;
        Some(link.connection().rtt())
    }

    /// Suspects every connection until it is heard again: the addresses or the routes of this machine have changed.
    ///
    /// Flows look for other legs at once; those that come first win, be it the old ones.
    pub fn network_changed(&self) {
        for slot in self.lock_slots().values() {
            if let Some(link) = &slot.link {
                link.inner.health.doubt();
            }
        }
    }

    /// Whether a connection to a router of `node` lives and the router has said that it stops.
    #[must_use]
    pub fn draining(&self, node: &NodeName) -> bool {
        self.lock_slots().get_mut(node).is_some_and(|slot| {
            slot.left.take_if(|left| !left.is_alive());
            let mut links = slot.link.iter().chain(&slot.left);
            links.any(|link| link.is_alive() && link.is_draining())
        })
    }

    /// Closes every connection, telling the peers; waits until they have been told.
    pub async fn close(&self, reason: &str) {
        self.inner
            .endpoint
            .close(crate::wire::CloseCode::Done.to_wire(), reason.as_bytes());
        self.inner.endpoint.wait_idle().await;
    }

    /// The connection in use, dead or alive.
    fn held(&self, node: &NodeName) -> Option<Link> {
        self.lock_slots().get(node)?.link.clone()
    }

    fn lock_slots(&self) -> std::sync::MutexGuard<'_, HashMap<NodeName, Slot>> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.inner
            .slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the router's first word on a connection: one that it does not want it closes instead.
    async fn greeted(&self, link: &Link) -> Result<(), LinkError> {
        let node = || link.node().clone();
        tokio::select! {
            () = link.control().greeted() => Ok(()),
            lost = link.connection().closed() => Err(LinkError::Lost { node: node(), lost }),
            () = tokio::time::sleep(self.inner.limits.answer_time) => {
                Err(LinkError::TimedOut { node: node() })
            }
        }
    }

    async fn dial(&self, router: &RouterPeer, instance: u64) -> Result<Link, LinkError> {
        let inner = &self.inner;
        // Before the handshake, which may have a newer one.
        let own = inner.live.not_after();
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
            (instance, inner.limits.answer_time),
            drain.clone(),
        );
        let peer = connection.peer().ok().flatten().map(|peer| peer.not_after);
        let ending = Ending::new(inner.live.clone(), own, peer, SystemTime::now());
        let (ends, retired) = (ending.at(), CancellationToken::new());
        let life = (ending, retired.clone());
        let health = Health::start(connection.clone(), life, renewal(inner, router));
        Ok(Link {
            inner: Arc::new(LinkInner {
                connection,
                control,
                drain,
                health,
                retired,
                ends,
                taker: Mutex::default(),
                router: router.clone(),
            }),
        })
    }
}

/// How a link's watch asks for another connection to the same router.
fn renewal(links: &Arc<Inner>, router: &RouterPeer) -> impl Fn(Reason) -> Renew + Send + 'static {
    let (links, router) = (Arc::downgrade(links), router.clone());
    move |reason| {
        let (links, router) = (Weak::upgrade(&links), router.clone());
        Box::pin(async move {
            let Some(inner) = links else { return };
            let links = Links { inner };
            let renewed = match reason {
                Reason::Suspected => links.link(&router).await.map(drop),
                Reason::Worn | Reason::Ending => links.refresh(&router, reason).await,
            };
            if let Err(error) = renewed {
                tracing::debug!(router = %router.node, %error, "no other connection yet");
            }
        })
    }
}

async fn follow(mut changes: watch::Receiver<u64>, links: Weak<Inner>) {
    while changes.changed().await.is_ok() {
        let Some(inner) = links.upgrade() else { return };
        Links { inner }.network_changed();
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
    health: Health,
    /// Another connection has taken its place for all that is to come.
    retired: CancellationToken,
    /// When a certificate of the connection ends.
    ends: SystemTime,
    /// Whoever takes the legs that the router opens, until it is cancelled.
    taker: Mutex<CancellationToken>,
    router: RouterPeer,
}

impl Link {
    /// The router's node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.inner.router.node
    }

    /// Whether the connection lives, as far as known.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.inner.connection.close_reason().is_none()
    }

    /// Whether the router stops here while the node has one elsewhere: that one takes what is new.
    pub(crate) fn is_left_for(&self, router: &RouterPeer) -> bool {
        self.is_draining() && self.inner.router.addresses != router.addresses
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

    /// Whether what was sent to the router has had no answer for too long, or the network has changed under it.
    #[must_use]
    pub fn is_suspected(&self) -> bool {
        *self.inner.health.standing().borrow() != Standing::Good
    }

    /// What is thought of the link, and every change of it; ends with the connection.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.inner.health.standing()
    }

    /// Waits until the router is heard again; for ever if it never is. Cancel safe.
    async fn answers(&self) {
        let good = |standing: &Standing| *standing == Standing::Good;
        if self.standing().wait_for(good).await.is_err() {
            std::future::pending().await
        }
    }

    /// How long a round trip may take before silence is suspicious.
    pub(crate) fn patience(&self) -> Duration {
        patience(self.connection().rtt())
    }

    /// What is known of the router's stop, to be kept longer than the link.
    pub(crate) fn drain(&self) -> Drain {
        self.inner.drain.clone()
    }

    /// Waits until another connection takes the place of this one for all that is to come; for ever if none does. Cancel safe.
    pub(crate) async fn retired(&self) {
        self.inner.retired.cancelled().await;
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.inner.retired.is_cancelled()
    }

    /// The caller takes the legs that the router opens from now on, until the token is cancelled: somebody else does then.
    pub(crate) fn take_legs(&self) -> CancellationToken {
        let mut taker = self
            .inner
            .taker
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taker.cancel();
        *taker = CancellationToken::new();
        taker.clone()
    }

    /// Closes a retired connection if it carries nothing; says whether.
    pub(crate) fn close_if_idle(&self) -> bool {
        let idle = worn::is_idle(self.connection().streams());
        if idle {
            let code = crate::wire::CloseCode::Replaced.to_wire();
            self.connection().close(code, b"its flows are over");
        }
        idle
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
