//! Where a flow may have its legs, and how a new one is found.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use keel_certs::{NodeName, ServiceId, Subject};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::flow::Flow;
use crate::link::{Link, Links, Rider, RouterPeer, Standing};
use crate::metrics::{FabricMetrics, RoleLabels, Side};
use crate::quic::{RecvStream, SendStream};
use crate::wire::Place;

/// Knows the routers that list a provider, now.
pub trait Ways: Send + Sync + fmt::Debug {
    /// The routers through which `provider` can be reached for this service and port, best first. Asked for each new leg
    /// of a flow, so the answer may change at any time; it must not block.
    fn ways(&self, service: &ServiceId, port: u16, provider: &Subject) -> Vec<RouterPeer>;

    /// Whether another provider than this one could take a new association now. Asked while this one says nothing.
    fn another(&self, _service: &ServiceId, _port: u16, _provider: &Subject) -> bool {
        false
    }
}

/// Always the same routers.
impl Ways for Vec<RouterPeer> {
    fn ways(&self, _: &ServiceId, _: u16, _: &Subject) -> Vec<RouterPeer> {
        self.clone()
    }
}

/// Routers that are tried at once.
const AT_ONCE: usize = 3;
/// Head start of the first router before the second is tried too.
const HEAD_START: Duration = Duration::from_millis(250);
/// Time between further attempts.
const STEP: Duration = Duration::from_secs(1);
/// First pause when every router has failed; doubles up to [`STEP`].
const PAUSE: Duration = Duration::from_millis(50);
/// The flows of a link that dies come back over this time at most.
const SPREAD: Duration = Duration::from_millis(500);
/// Part of [`SPREAD`] for each flow of the link, so that a lonely one need not wait.
const SPREAD_EACH: Duration = Duration::from_millis(2);

/// A stream for a new leg.
pub(crate) struct Found {
    pub(crate) link: Link,
    pub(crate) router: RouterPeer,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

/// Why another leg is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The link is gone with the leg. Its router may be back at once, and has the first turn.
    LinkLost,
    /// The router is there and does not carry the flow: it has the last turn.
    LegLost,
    /// As before, but the leg stands and may still turn out to be good.
    Suspected,
    /// The network has changed: every router is as doubtful as this one.
    Doubted,
    /// The router stops, or the other end asks to leave it.
    Asked,
    /// Its connection comes to its end and another one stands beside it, here or at the other end.
    Replaced,
}

/// What came of a search.
pub(crate) enum Sought {
    Found(Found),
    /// Whether no router is left to try; the search goes on nevertheless.
    Stuck(bool),
}

type Attempt = Pin<Box<dyn Future<Output = (NodeName, Option<Found>)> + Send>>;

/// The search for a flow's next leg, over all routers that list its provider; the first stream that is there wins.
///
/// It lives until the flow is carried again, so that a router which took a stream and did not answer on it comes last in
/// the next round.
pub(crate) struct Seek {
    links: Links,
    ways: Arc<dyn Ways>,
    metrics: Arc<FabricMetrics>,
    service: ServiceId,
    port: u16,
    provider: Subject,
    /// The router of the last leg: it is listed even if nobody else lists it now.
    last: RouterPeer,
    running: FuturesUnordered<Attempt>,
    routers: Vec<Tried>,
    next_at: Instant,
    /// Attempts since the search began.
    begun: usize,
    pause: Duration,
    stuck: bool,
    active: bool,
    why: Why,
    /// Resumes of the flow when the search was made: once there are more, it was a success and is over.
    resumes: u32,
}

/// What a search knows of a router.
struct Tried {
    node: NodeName,
    /// The one that was tried least comes next.
    times: u32,
    state: TriedState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TriedState {
    Idle,
    Running,
    Failed,
}

impl Seek {
    pub(crate) fn new(
        links: Links,
        ways: Arc<dyn Ways>,
        metrics: Arc<FabricMetrics>,
        (service, port, provider): (ServiceId, u16, Subject),
        last: RouterPeer,
        resumes: u32,
    ) -> Self {
        Self {
            links,
            ways,
            metrics,
            service,
            port,
            provider,
            last,
            running: FuturesUnordered::new(),
            routers: Vec::new(),
            next_at: Instant::now(),
            begun: 0,
            pause: Duration::ZERO,
            stuck: false,
            active: false,
            why: Why::LinkLost,
            resumes,
        }
    }

    pub(crate) const fn resumes(&self) -> u32 {
        self.resumes
    }

    pub(crate) const fn is_active(&self) -> bool {
        self.active
    }

    /// Searches from now on. With `crowd` flows on the link that is left, they do not all come at once. `last` is the router
    /// of the leg before.
    pub(crate) fn begin(&mut self, last: &RouterPeer, why: Why, crowd: usize) {
        self.active = true;
        self.last = last.clone();
        self.why = why;
        if !matches!(why, Why::LinkLost | Why::Doubted | Why::Replaced) {
            self.tried(&last.node).times += 1;
        }
        if why == Why::Suspected {
            let role = Side::consumer;
            let suspicions = &self.metrics.flow_suspicions;
            suspicions.get_or_create(&RoleLabels { role }).inc();
        }
        let spread = SPREAD_EACH.saturating_mul(u32::try_from(crowd).unwrap_or(u32::MAX));
        let spread = match why {
            // Nobody waits for them.
            Why::Replaced => spread,
            _ => SPREAD.min(spread),
        };
        self.next_at = Instant::now() + self.pause + spread.mul_f64(rand::random_range(0.0..1.0));
        self.begun = 0;
        // A search that has to be made again soon was in vain.
        self.grow();
    }

    /// Stops searching; what was learnt of the routers stays.
    pub(crate) fn stop(&mut self) {
        self.active = false;
        self.stuck = false;
        self.running.clear();
        for tried in &mut self.routers {
            tried.state = TriedState::Idle;
        }
    }

    fn grow(&mut self) {
        self.pause = (self.pause * 2).clamp(PAUSE, STEP);
    }

    fn tried(&mut self, node: &NodeName) -> &mut Tried {
        let index = match self.routers.iter().position(|tried| tried.node == *node) {
            Some(index) => index,
            None => {
                self.routers.push(Tried {
                    node: node.clone(),
                    times: 0,
                    state: TriedState::Idle,
                });
                self.routers.len() - 1
            }
        };
        &mut self.routers[index]
    }

    /// The routers that may be tried now, the last one first. One that drains takes nothing, and one that is to be left
    /// may drain without our knowledge.
    fn candidates(&self) -> Vec<RouterPeer> {
        let listed = self.ways.ways(&self.service, self.port, &self.provider);
        let mut all: Vec<RouterPeer> = Vec::new();
        for router in std::iter::once(&self.last).chain(&listed) {
            match all.iter_mut().find(|other| other.node == router.node) {
                // What is listed now is the newer word on its addresses.
                Some(known) => *known = router.clone(),
                None => all.push(router.clone()),
            }
        }
        let leave = (self.why == Why::Asked).then_some(&self.last.node);
        all.retain(|router| Some(&router.node) != leave && !self.links.draining(&router.node));
        all
    }

    /// The next thing to know. Cancel safe; for ever if the search is not active.
    pub(crate) async fn next(&mut self) -> Sought {
        if !self.active {
            return std::future::pending().await;
        }
        loop {
            let mut candidates = None;
            if self.next_at <= Instant::now() && self.running.len() < AT_ONCE {
                let all = self.candidates();
                self.start(&all);
                candidates = Some(all);
            }
            let all = candidates.unwrap_or_else(|| self.candidates());
            let stuck = self.is_stuck(&all);
            if std::mem::replace(&mut self.stuck, stuck) != stuck {
                return Sought::Stuck(stuck);
            }
            tokio::select! {
                biased;
                Some((node, found)) = self.running.next() => {
                    if let Some(found) = found {
                        if self.why == Why::Suspected {
                            self.metrics.leg_lost(Side::consumer, "suspected");
                        }
                        self.stop();
                        return Sought::Found(found);
                    }
                    self.failed(&node);
                }
                () = tokio::time::sleep_until(self.next_at), if self.running.len() < AT_ONCE => {}
            }
        }
    }

    /// Begins an attempt at the router that was tried least.
    fn start(&mut self, candidates: &[RouterPeer]) {
        let mut best: Option<(u32, &RouterPeer)> = None;
        for router in candidates {
            let tried = self.tried(&router.node);
            let better = best.is_none_or(|(times, _)| tried.times < times);
            if tried.state != TriedState::Running && better {
                best = Some((tried.times, router));
            }
        }
        let Some((_, router)) = best else {
            self.next_at = Instant::now() + STEP;
            return;
        };
        let (links, router) = (self.links.clone(), router.clone());
        let tried = self.tried(&router.node);
        tried.times += 1;
        tried.state = TriedState::Running;
        self.begun += 1;
        self.metrics.legs_dialled.inc();
        if !matches!(self.why, Why::LinkLost | Why::LegLost) || !self.running.is_empty() {
            self.metrics.legs_raced.inc();
        }
        self.next_at = Instant::now() + if self.begun == 1 { HEAD_START } else { STEP };
        self.running.push(Box::pin(async move {
            let found = attempt(&links, &router).await;
            (router.node, found)
        }));
    }

    /// The next router has its turn at once, if there is one that did not fail.
    fn failed(&mut self, node: &NodeName) {
        self.tried(node).state = TriedState::Failed;
        let all = self.candidates();
        let fresh = all
            .iter()
            .any(|router| self.tried(&router.node).state == TriedState::Idle);
        if fresh {
            self.next_at = Instant::now();
        } else if self.running.is_empty() {
            self.next_at = Instant::now() + self.pause.mul_f64(rand::random_range(0.5..1.0));
            self.grow();
        }
    }

    fn is_stuck(&mut self, candidates: &[RouterPeer]) -> bool {
        candidates
            .iter()
            .all(|router| self.tried(&router.node).state == TriedState::Failed)
    }
}

async fn attempt(links: &Links, router: &RouterPeer) -> Option<Found> {
    let link = match links.link(router).await {
        Ok(link) => link,
        Err(error) => {
            tracing::debug!(router = %router.node, %error, "no leg over this router");
            return None;
        }
    };
    if link.is_draining() {
        return None;
    }
    let (send, recv) = link.open_leg().await.ok()?;
    Some(Found {
        link,
        router: router.clone(),
        send,
        recv,
    })
}

/// The link of the newest leg, also after its loss until another one takes its place.
pub(crate) struct Current {
    link: Link,
    router: RouterPeer,
    standing: watch::Receiver<Standing>,
    /// Dropped with the leg.
    rider: Option<Rider>,
}

impl Current {
    pub(crate) fn new(link: Link, router: RouterPeer) -> Self {
        Self {
            standing: link.standing(),
            rider: Some(link.rider()),
            link,
            router,
        }
    }

    /// Waits until there may be a reason to leave the link, or none any more. Cancel safe.
    pub(crate) async fn stirred(&mut self) {
        let draining = self.link.is_draining();
        tokio::select! {
            changed = self.standing.changed() => if changed.is_err() {
                // The connection has ended, and its streams tell.
                std::future::pending().await
            },
            () = self.link.drained(), if !draining => {}
        }
    }

    pub(crate) const fn router(&self) -> &RouterPeer {
        &self.router
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.link.is_alive()
    }

    /// The leg is gone; whether this was not known.
    pub(crate) fn leg_lost(&mut self) -> bool {
        self.rider.take().is_some()
    }

    /// Whether the flow has no other router to go on at.
    pub(crate) fn set_stuck(&mut self, stuck: bool) {
        if let Some(rider) = &mut self.rider {
            rider.set_stuck(stuck);
        }
    }

    /// How many flows are on the link.
    pub(crate) fn crowd(&self) -> usize {
        self.rider.as_ref().map_or(1, Rider::crowd)
    }
}

/// As [`Seek::next`]; for ever without a search.
pub(crate) async fn sought(seek: &mut Option<Box<Seek>>) -> Sought {
    match seek {
        Some(seek) => seek.next().await,
        None => std::future::pending().await,
    }
}

/// As [`Current::stirred`]; for ever without a leg.
pub(crate) async fn stirred(current: &mut Option<Current>) {
    match current {
        Some(current) => current.stirred().await,
        None => std::future::pending().await,
    }
}

/// Why a flow should have another leg than the one it has, or had last.
pub(crate) fn why(flow: &Flow, current: Option<&Current>) -> Option<Why> {
    if !flow.has_leg() {
        let alive = current.is_some_and(Current::is_alive);
        return Some(if alive { Why::LegLost } else { Why::LinkLost });
    }
    let standing = current.map_or(Standing::Good, |current| *current.standing.borrow());
    let draining = current.is_some_and(|current| current.link.is_draining());
    match standing {
        Standing::Silent => Some(Why::Suspected),
        Standing::Doubted => Some(Why::Doubted),
        Standing::Good if flow.is_suspected() => Some(Why::Suspected),
        Standing::Good if draining => Some(Why::Asked),
        Standing::Good => match flow.move_requested() {
            Some(Place::Elsewhere) => Some(Why::Asked),
            Some(Place::Anywhere) => Some(Why::Replaced),
            None => current
                // One that has no answer yet would have to ask again.
                .is_some_and(|current| current.link.is_retired() && flow.is_accepted())
                .then_some(Why::Replaced),
        },
    }
}
