//! One router: link, publications, legs; for as long as the router is wanted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keel_certs::{NodeName, Subject};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::terminator::Via;
use super::{Inner, Publication, PublishOutcome};
use crate::leg::{Header, IncomingLeg};
use crate::link::{Link, PublishError, RouterPeer};
use crate::quic::{HostPort, Lost, RecvStream, SendStream};
use crate::wire::{Protocol, RefuseCode, ResetCode};

/// First pause before a router is dialled again; doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Streams whose header is awaited at once on one link.
const HEADERS: usize = 4096;

type Publications = watch::Receiver<Arc<Vec<Publication>>>;

/// Keeps everything published at `router` until `cancel`, then withdraws it.
pub(super) async fn at(
    inner: Arc<Inner>,
    router: RouterPeer,
    mut publications: Publications,
    cancel: CancellationToken,
) -> NodeName {
    let mut pause = BACKOFF;
    loop {
        // Without anything to publish there is no reason for a link.
        let linked = async {
            if publications
                .wait_for(|list| !list.is_empty())
                .await
                .is_err()
            {
                return std::future::pending().await;
            }
            inner.links.link(&router).await
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            linked = linked => match linked {
                Ok(link) => {
                    pause = BACKOFF;
                    let Some(lost) = serve(&inner, &link, publications.clone(), &cancel).await else { break };
                    tracing::info!(router = %router.node, %lost, "link to router lost");
                    note_all(&inner, &publications, &router.node, &lost.to_string());
                }
                Err(error) => {
                    tracing::debug!(router = %router.node, %error, "cannot publish");
                    note_all(&inner, &publications, &router.node, &error.to_string());
                }
            },
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
        }
        pause = (pause * 2).min(BACKOFF_MAX);
    }
    inner.forget(&router.node);
    router.node
}

fn note_all(inner: &Inner, publications: &Publications, node: &NodeName, error: &str) {
    for publication in publications.borrow().iter() {
        inner.note(
            publication,
            node,
            Some(PublishOutcome::Unreachable(error.to_owned())),
        );
    }
}

/// Publishes and takes legs until the link is lost (why), or until `cancel` (nothing).
async fn serve(
    inner: &Arc<Inner>,
    link: &Link,
    mut publications: Publications,
    cancel: &CancellationToken,
) -> Option<Lost> {
    let mut published: BTreeMap<Publication, u64> = BTreeMap::new();
    let mut legs = JoinSet::new();
    let current = publications.clone();
    let publishing = async {
        loop {
            let wanted = Arc::clone(&publications.borrow_and_update());
            reconcile(inner, link, &wanted, &mut published).await;
            let retry = async {
                if published.len() < wanted.len() {
                    tokio::time::sleep(BACKOFF_MAX).await;
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                changed = publications.changed() => if changed.is_err() { return std::future::pending().await },
                () = retry => {}
            }
        }
    };
    let taking = async {
        loop {
            tokio::select! {
                stream = link.connection().accept_bi() => match stream {
                    Ok((send, recv)) if legs.len() < HEADERS => {
                        legs.spawn(take(Arc::clone(inner), link.clone(), current.clone(), send, recv));
                    }
                    Ok((mut send, mut recv)) => {
                        inner.metrics.hit("headers");
                        send.reset(ResetCode::Limit.to_wire());
                        recv.stop(ResetCode::Limit.to_wire());
                    }
                    Err(lost) => return lost,
                },
                Some(_) = legs.join_next() => {}
            }
        }
    };
    let lost = tokio::select! {
        lost = taking => Some(lost),
        () = publishing => None,
        () = cancel.cancelled() => None,
    };
    if lost.is_none() {
        reconcile(inner, link, &[], &mut published).await;
    }
    lost
}

/// Makes what is published at the router what is wanted.
async fn reconcile(
    inner: &Inner,
    link: &Link,
    wanted: &[Publication],
    published: &mut BTreeMap<Publication, u64>,
) {
    let gone: Vec<Publication> = published
        .keys()
        .filter(|old| !wanted.contains(old))
        .cloned()
        .collect();
    for publication in gone {
        let Some(id) = published.remove(&publication) else {
            continue;
        };
        // Two publications may differ in the backend only, which the router does not see: then the new one stands.
        let replaced = wanted.iter().any(|new| key(new) == key(&publication));
        if !replaced && let Err(error) = link.control().withdraw(id).await {
            tracing::debug!(router = %link.node(), %error, "withdraw");
        }
        inner.note(&publication, link.node(), None);
    }
    for publication in wanted {
        if published.contains_key(publication) {
            continue;
        }
        let asked = link
            .control()
            .publish(
                publication.service.clone(),
                publication.port,
                publication.protocol,
            )
            .await;
        let outcome = match asked {
            Ok(id) => {
                published.insert(publication.clone(), id);
                tracing::info!(service = %publication.service, port = publication.port, router = %link.node(), "published");
                PublishOutcome::Published
            }
            Err(error @ PublishError::Refused { .. }) => {
                tracing::warn!(service = %publication.service, port = publication.port, router = %link.node(), %error, "not published");
                PublishOutcome::Refused(error)
            }
            Err(error) => PublishOutcome::Unreachable(error.to_string()),
        };
        inner.note(publication, link.node(), Some(outcome));
    }
}

const fn key(publication: &Publication) -> (&keel_certs::ServiceId, u16, Protocol) {
    (&publication.service, publication.port, publication.protocol)
}

/// Reads a leg's header, authorises it and hands it on.
async fn take(
    inner: Arc<Inner>,
    link: Link,
    publications: Publications,
    send: SendStream,
    recv: RecvStream,
) {
    let leg = match IncomingLeg::read(send, recv, inner.config.limits.header_time).await {
        Ok(leg) => leg,
        Err(error) => {
            tracing::debug!(router = %link.node(), %error, "leg without a header");
            return;
        }
    };
    let provider = inner.live.identity().subject;
    match authorise(&link, &leg, &provider) {
        Ok(from) => {
            let backend = backend(&publications.borrow(), &leg);
            let via = Via {
                from,
                provider,
                router: link.node().clone(),
                passing: None,
            };
            inner.terminator.take(leg, via, backend).await;
        }
        Err((code, text)) => {
            tracing::warn!(router = %link.node(), text, "flow refused");
            leg.refuse(code, text).await;
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
fn backend(publications: &[Publication], leg: &IncomingLeg) -> Option<HostPort> {
    let Header::Open(open) = &leg.header else {
        return None;
    };
    let asked = (&open.service, open.port, open.protocol);
    publications
        .iter()
        .find(|publication| key(publication) == asked)
        .map(|publication| publication.backend.clone())
}
