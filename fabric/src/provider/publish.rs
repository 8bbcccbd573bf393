//! One router: link, publications, legs; for as long as the router is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use keel_certs::Subject;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::{Healths, Key, key};
use super::terminator::Via;
use super::{Backend, Inner, Publication, PublishOutcome};
use crate::leg::{Header, IncomingLeg};
use crate::link::{Drain, Link, PublishError, RouterPeer};
use crate::quic::{Lost, RecvStream, SendStream};
use crate::wire::{Offer, RefuseCode, ResetCode};

/// First pause before a router is dialled again; doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(100);
/// A router that was lost just now may only restart: for so long the pause stays short.
const EAGER: Duration = Duration::from_secs(5);
/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// After which time a refused publication is tried again, if nothing changes before.
const REFUSED: Duration = Duration::from_secs(60);
/// How long a connection whose place another one took must carry nothing before it is closed: the router may still have
/// been opening something there when it heard of the publications at the other one.
const LEAVING: Duration = Duration::from_secs(3);
/// Time for the router to hear of all withdrawals at the end.
const FAREWELL: Duration = Duration::from_secs(1);

type Publications = watch::Receiver<Arc<Vec<Publication>>>;

/// What is to be published, and how well it works.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) publications: Publications,
    pub(super) healths: watch::Receiver<Healths>,
}

/// The task of one router. A later one for the same node has a higher number.
pub(super) struct At {
    pub(super) inner: Arc<Inner>,
    pub(super) router: RouterPeer,
    pub(super) number: u64,
}

/// Keeps everything published at the router until `cancel`, then withdraws it.
///
/// The flows over its connections may go on, and lose their legs: the tasks that are returned take later ones until the
/// connections end.
pub(super) async fn at(at: At, mut wanted: Wanted, cancel: CancellationToken) -> JoinSet<()> {
    let mut pause = BACKOFF;
    let mut lost_at: Option<Instant> = None;
    let mut retired = JoinSet::new();
    // Their flows go on over the next link once everything is published there.
    let mut replaced = Vec::new();
    let node = &at.router.node;
    loop {
        // Without anything to publish there is no reason for a link.
        let linked = async {
            if wanted
                .publications
                .wait_for(|list| !list.is_empty())
                .await
                .is_err()
            {
                return std::future::pending().await;
            }
            at.inner.links.link(&at.router).await
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            linked = linked => match linked {
                Ok(link) => {
                    pause = BACKOFF;
                    let lost = match serve(&at, &link, wanted.clone(), &cancel, &mut replaced).await {
                        Served::Cancelled(taking) => {
                            retired.spawn(linger(link, taking));
                            break;
                        }
                        Served::Retired(taking) => {
                            while retired.try_join_next().is_some() {}
                            replaced.push(link.drain());
                            retired.spawn(leave(link, taking));
                            continue;
                        }
                        // Another connection is there already, or is just coming: nobody should miss us meanwhile.
                        Served::Lost(lost) if at.inner.links.is_replaced(node, &lost) => continue,
                        Served::Lost(lost) => lost,
                    };
                    tracing::info!(router = %node, %lost, "link to router lost");
                    lost_at = Some(Instant::now());
                    at.unreachable(&wanted.publications, &lost.to_string());
                }
                Err(error) => {
                    tracing::debug!(router = %node, %error, "cannot publish");
                    at.unreachable(&wanted.publications, &error.to_string());
                }
            },
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
        }
        if lost_at.is_none_or(|lost_at| lost_at.elapsed() > EAGER) {
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }
    at.inner.keep_only(&at, &[]);
    tracing::trace!(router = %node, "publisher ended");
    retired
}

impl At {
    fn unreachable(&self, publications: &Publications, error: &str) {
        let wanted = Arc::clone(&publications.borrow());
        self.inner.keep_only(self, &wanted);
        for publication in wanted.iter() {
            let outcome = PublishOutcome::Unreachable(error.to_owned());
            self.inner.note(self, publication, outcome);
        }
    }
}

/// Why a link is served no more.
enum Served {
    /// It was lost.
    Lost(Lost),
    /// Another one is there; legs that are opened over this one are still taken by the task.
    Retired(Taking),
    /// Nothing is published at its router any more; legs are still taken.
    Cancelled(Taking),
}

/// The one task that takes a link's legs; it ends with the link, or without a word when another one takes them.
type Taking = JoinSet<Option<Lost>>;

/// Publishes and takes legs. Flows leave the links that are `replaced` when everything is published over this one.
async fn serve(
    at: &At,
    link: &Link,
    mut wanted: Wanted,
    cancel: &CancellationToken,
    replaced: &mut Vec<Drain>,
) -> Served {
    let mut standing = Standing::default();
    let current = wanted.publications.clone();
    let publishing = async {
        let mut changed = true;
        loop {
            let list = Arc::clone(&wanted.publications.borrow_and_update());
            let healths = wanted.healths.borrow_and_update().clone();
            let retry = reconcile(at, link, &list, &healths, changed, &mut standing).await;
            if standing.has_all(&list) {
                for old in replaced.drain(..) {
                    old.replace();
                }
            }
            let retry = async {
                match retry {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            changed = tokio::select! {
                changed = wanted.publications.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return std::future::pending().await,
                },
                Ok(()) = wanted.healths.changed() => false,
                () = retry => false,
            };
        }
    };
    let mut taking = JoinSet::new();
    taking.spawn(take_all(Arc::clone(&at.inner), link.clone(), current));
    let served = tokio::select! {
        Some(lost) = taking.join_next() => match lost {
            Ok(Some(lost)) => Served::Lost(lost),
            Ok(None) => Served::Cancelled(taking),
            Err(error) => Served::Lost(Lost::Transport(error.to_string())),
        },
        () = publishing => Served::Cancelled(taking),
        () = cancel.cancelled() => Served::Cancelled(taking),
        () = link.retired() => Served::Retired(taking),
        () = left(link, &at.router) => Served::Retired(taking),
    };
    if matches!(served, Served::Cancelled(_)) {
        // A router that does not answer hears of it when the connection ends.
        let nothing = Healths::default();
        let farewell = reconcile(at, link, &[], &nothing, true, &mut standing);
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
    served
}

/// Waits until the router stops here while the node has one elsewhere.
async fn left(link: &Link, router: &RouterPeer) {
    link.drain().begun().await;
    if !link.is_left_for(router) {
        std::future::pending().await
    }
}

/// Takes the legs that the router opens until the link is lost, or another task takes them.
async fn take_all(inner: Arc<Inner>, link: Link, publications: Publications) -> Option<Lost> {
    let relieved = link.take_legs();
    let mut legs = JoinSet::new();
    loop {
        tokio::select! {
            () = relieved.cancelled() => break,
            stream = link.connection().accept_bi() => match stream {
                Ok((send, recv)) if legs.len() < inner.config.limits.headers => {
                    legs.spawn(take(Arc::clone(&inner), link.clone(), publications.clone(), send, recv));
                }
                Ok((mut send, mut recv)) => {
                    inner.metrics.hit("headers");
                    send.reset(ResetCode::Limit.to_wire());
                    recv.stop(ResetCode::Limit.to_wire());
                }
                Err(lost) => return Some(lost),
            },
            Some(_) = legs.join_next() => {}
        }
    }
    while legs.join_next().await.is_some() {}
    None
}

/// Takes legs over a link at whose router nothing is published any more. It may serve others, so it is closed only when
/// another one has taken its place.
async fn linger(link: Link, mut taking: Taking) {
    tokio::select! {
        _ = taking.join_next() => return,
        () = link.retired() => {}
    }
    leave(link, taking).await;
}

/// Closes a link whose place another one took when it carries nothing any more.
async fn leave(link: Link, mut taking: Taking) {
    loop {
        tokio::select! {
            _ = taking.join_next() => return,
            () = tokio::time::sleep(LEAVING) => if link.close_if_idle() {
                return;
            },
        }
    }
}

/// What stands at a router over one link.
#[derive(Default)]
struct Standing {
    published: BTreeMap<Key, (u64, Offer)>,
    /// When each was refused.
    refused: BTreeMap<Key, Instant>,
    /// Numbers whose publication was said anew under another one. Routers of an earlier version know them still.
    replaced: Vec<u64>,
    /// Numbers that have to be withdrawn; also those whose publication had no answer, and may stand.
    stale: BTreeSet<u64>,
}

impl Standing {
    fn has_all(&self, wanted: &[Publication]) -> bool {
        let stands = |publication| self.published.contains_key(&key(publication));
        !wanted.is_empty() && wanted.iter().all(stands)
    }
}

/// Makes what is published at the router what is wanted; says when to try again what did not work.
async fn reconcile(
    at: &At,
    link: &Link,
    wanted: &[Publication],
    healths: &Healths,
    changed: bool,
    standing: &mut Standing,
) -> Option<Duration> {
    at.inner.keep_only(at, wanted);
    let control = link.control();
    let stale = &mut standing.stale;
    let is_wanted = |one: &Key| wanted.iter().any(|publication| key(publication) == *one);
    standing.published.retain(|key, (id, _)| {
        let keep = is_wanted(key);
        if !keep {
            stale.insert(*id);
        }
        keep
    });
    standing.refused.retain(|key, _| is_wanted(key));
    let withdrawn = stale
        .iter()
        .map(|&id| async move { (id, control.withdraw(id).await) });
    for (id, answer) in join_all(withdrawn).await {
        if let Err(error) = &answer {
            tracing::debug!(router = %link.node(), %error, "withdraw");
        }
        if answer != Err(PublishError::NoAnswer) {
            stale.remove(&id);
        }
    }
    let mut missing = !standing.stale.is_empty();
    for publication in wanted {
        let key = key(publication);
        let offer = healths.offer(publication);
        let stands = standing.published.get(&key);
        let outcome = if stands.is_some_and(|(_, stands)| *stands == offer) {
            PublishOutcome::Published
        } else if !standing.stale.is_empty() {
            // It takes nothing now, and more questions would only wait behind the others.
            PublishOutcome::Unreachable(PublishError::NoAnswer.to_string())
        } else {
            let refused = standing.refused.get(&key);
            if !changed && refused.is_some_and(|at| at.elapsed() < REFUSED) {
                continue;
            }
            let again = refused.is_some();
            match publish(link, &key, offer, standing).await {
                Ok(()) => PublishOutcome::Published,
                Err(error @ PublishError::Refused { .. }) => {
                    if !again {
                        tracing::warn!(service = %key.0, port = key.1, router = %link.node(), %error, "not published");
                    }
                    PublishOutcome::Refused(error)
                }
                Err(error) => {
                    missing = true;
                    PublishOutcome::Unreachable(error.to_string())
                }
            }
        };
        at.inner.note(at, publication, outcome);
    }
    for id in std::mem::take(&mut standing.replaced) {
        if control.withdraw(id).await == Err(PublishError::NoAnswer) {
            standing.stale.insert(id);
            missing = true;
        }
    }
    if missing {
        Some(BACKOFF_MAX)
    } else {
        (!standing.refused.is_empty()).then_some(REFUSED)
    }
}

async fn publish(
    link: &Link,
    key: &Key,
    offer: Offer,
    standing: &mut Standing,
) -> Result<(), PublishError> {
    let (service, port, protocol) = key;
    let id = link.control().next_id();
    let asked = link
        .control()
        .publish(id, service.clone(), *port, *protocol, offer)
        .await;
    standing.refused.remove(key);
    match &asked {
        Ok(()) => {
            if let Some((before, _)) = standing.published.insert(key.clone(), (id, offer)) {
                tracing::debug!(%service, port, router = %link.node(), ?offer, "published anew");
                standing.replaced.push(before);
            } else {
                tracing::info!(%service, port, router = %link.node(), "published");
            }
        }
        Err(PublishError::Refused { .. }) => {
            standing.refused.insert(key.clone(), Instant::now());
        }
        Err(PublishError::NoAnswer) => {
            standing.stale.insert(id);
            // If it was taken, it has replaced the one before.
            let before = standing.published.remove(key);
            standing.stale.extend(before.map(|(id, _)| id));
        }
        Err(PublishError::Lost) => {}
    }
    asked
}

/// Reads a leg's header, authorises it and hands it on.
async fn take(
    inner: Arc<Inner>,
    link: Link,
    publications: Publications,
    send: SendStream,
    recv: RecvStream,
) {
    let leg = match IncomingLeg::read(send, recv, inner.config.limits.header()).await {
        Ok(leg) => leg,
        Err(error) => {
            tracing::debug!(router = %link.node(), %error, "leg without a header");
            if let Some(limit) = error.limit() {
                inner.metrics.hit(limit);
            }
            return;
        }
    };
    if leg.header.is_of_known_flow() && inner.resumes.take().await.is_err() {
        return leg.cut(ResetCode::Limit);
    }
    let provider = inner.live.identity().subject;
    match authorise(&link, &leg, &provider) {
        Ok(from) => {
            let backend = backend(&publications.borrow(), &leg);
            let via = Via {
                from,
                provider,
                router: link.node().clone(),
                drain: Some(link.drain()),
                passing: None,
                limit: None,
            };
            inner.terminator.take(leg, via, backend).await;
        }
        Err((code, text)) => {
            tracing::warn!(router = %link.node(), text, "flow refused");
            // Nobody was asked whether the flow is known here.
            leg.refuse(code, text, Duration::ZERO).await;
        }
    }
}

/// Who opened the flow: believed only from a node, and only if the flow is for us.
fn authorise(
    link: &Link,
    leg: &IncomingLeg,
    us: &Subject,
) -> Result<Subject, (RefuseCode, String)> {
    let (from, provider) = match &leg.header {
        Header::Open(open) => (&open.from, &open.provider),
        Header::Resume(resume) => (&resume.from, &resume.provider),
    };
    match link.connection().peer() {
        Ok(Some(peer)) if peer.identity.subject.is_node() => {}
        _ => {
            return Err((
                RefuseCode::Forbidden,
                "flows are taken from nodes only".to_owned(),
            ));
        }
    }
    if provider != us {
        return Err((
            RefuseCode::NoProvider,
            format!("this is {us}, not {provider}"),
        ));
    }
    // Until a policy restricts a service, every identity of the trust domain may dial it.
    from.clone().ok_or_else(|| {
        (
            RefuseCode::Forbidden,
            "the router did not say who opened the flow".to_owned(),
        )
    })
}

/// The backend of what a leg asks for.
fn backend(publications: &[Publication], leg: &IncomingLeg) -> Option<Backend> {
    let Header::Open(open) = &leg.header else {
        return None;
    };
    let asked = (open.service.clone(), open.port, open.protocol);
    publications
        .iter()
        .find(|publication| key(publication) == asked)
        .map(Backend::from)
}
