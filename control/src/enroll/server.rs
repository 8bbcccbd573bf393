//! `POST /v1/enroll` and `POST /v1/renew`, on the APIServer's port.

use std::time::SystemTime;

use bytes::Bytes;
use keel_certs::{Chain, Csr, Hosts, NodeName, Subject};
use tokio::time::Instant;

use super::names::{granted, note_join};
use super::wire::{EnrollRequest, Issued, RenewRequest, Wants};
use super::{Answer, Inner, bad_request, body, failure, forbidden, internal};
use crate::api::{Reason, Status};
use crate::http::{Body, Caller, Remote};
use crate::store::{ConsumeError, TokenScope};

/// What the audit lines of this crate are filtered by.
pub(super) const AUDIT: &str = "keel::audit";

/// Gives what a join token is for to whoever shows its secret first.
pub(super) async fn enroll(
    inner: &Inner,
    request: http::Request<Body>,
    caller: &Caller,
) -> Answer<Issued> {
    let from = match caller.remote {
        Remote::Tcp(from) | Remote::Quic(from) => Some(from.ip()),
        Remote::Unix { .. } => None,
    };
    if from.is_some_and(|from| !inner.refusals.may_ask(from, Instant::now())) {
        let why = "too many joins from this address were refused";
        return Err(Box::new(Status::too_many(why)));
    }
    let EnrollRequest {
        id,
        secret,
        csr,
        wants,
    } = body(request).await?;
    let csr = csr.0;
    let key = data_encoding::HEXLOWER.encode(&csr.key_hash()[..8]);
    let refuse = |status: Box<Status>| {
        if let Some(from) = from {
            inner.refusals.note(from, Instant::now());
        }
        tracing::warn!(target: AUDIT, token = %id, key, remote = %caller.remote, why = status.message, "join refused");
        status
    };
    // Whether the token fits is decided before a use of it is taken; but only for who has its secret.
    let token = inner
        .store
        .tokens()
        .await
        .map_err(|error| internal(&error))?
        .into_iter()
        .find(|record| record.id == id && secret.0.matches(&record.secret_hash));
    let Some(token) = token else {
        return Err(refuse(failure(
            Reason::Forbidden,
            ConsumeError::Unknown.to_string(),
        )));
    };
    let subject = subject(inner, &token.scope, &wants).map_err(refuse)?;
    let hosts = match (&subject, &wants) {
        (Subject::Node { node }, Wants::Node { hosts, .. }) => {
            granted(inner, node, hosts).await.map_err(refuse)?
        }
        _ => Hosts::default(),
    };
    // Only holders of a secret wait for each other here, so a flood without one delays no join.
    let _one_at_a_time = inner.joining.lock().await;
    let now = SystemTime::now();
    let consumed = inner
        .store
        .consume_token(&id, secret.0.hash(), csr.key_hash(), now)
        .await;
    let consumed = match consumed {
        Ok(consumed) => consumed,
        Err(ConsumeError::Store(error)) => return Err(internal(&error)),
        Err(error) => return Err(refuse(forbidden(format!("token {id}: {error}")))),
    };
    if let Some(before) = consumed
        .result
        .and_then(|bytes| serde_json::from_slice::<Issued>(&bytes).ok())
    {
        // A certificate that is over helps nobody: while the token is good its key gets another.
        let is_over =
            Chain::from_pem(&before.certificates).is_ok_and(|chain| chain.not_after <= now);
        if before.subject != subject {
            let taken = format!(
                "token {id} and this key were used to become {}",
                before.subject
            );
            return Err(refuse(failure(Reason::Conflict, taken)));
        }
        if !is_over {
            tracing::info!(target: AUDIT, token = %id, key, %subject, "join repeated with the same key");
            return Ok(before);
        }
        if token.expires_at < now {
            let over = format!("token {id}: {}", ConsumeError::Expired);
            return Err(refuse(forbidden(over)));
        }
    }
    let issued = sign(inner, &csr, &subject, &hosts)?;
    if let Subject::Node { node } = &subject
        && note_join(inner, node, &csr.key_hash())
            .await
            .map_err(|error| internal(&error))?
    {
        tracing::warn!(target: AUDIT, token = %id, key, %subject, remote = %caller.remote, "a new join replaces a node of that name");
    }
    let kept = serde_json::to_vec(&issued).map_err(|error| internal(&error))?;
    inner
        .store
        .keep_result(&id, csr.key_hash(), Bytes::from(kept))
        .await
        .map_err(|error| internal(&error))?;
    tracing::info!(target: AUDIT, token = %id, key, %subject, remote = %caller.remote, "joined");
    Ok(issued)
}

/// Who a token makes of somebody who wants to be `wants`.
fn subject(inner: &Inner, scope: &TokenScope, wants: &Wants) -> Answer<Subject> {
    match (scope, wants) {
        (TokenScope::Node { node: Some(node) }, Wants::Node { name, .. }) if node != name => {
            Err(forbidden(format!(
                "the token is for node {node}, not for {name}: use --node-name {node}, or make a token for {name}"
            )))
        }
        (TokenScope::Node { .. }, Wants::Node { name, .. }) => {
            if *name == inner.authority.node() {
                let taken = format!(
                    "{name} is the name of the node you join at: choose another with --node-name"
                );
                return Err(failure(Reason::Conflict, taken));
            }
            Ok(Subject::Node { node: name.clone() })
        }
        (TokenScope::Sidecar { namespace, name }, Wants::Sidecar {}) => Ok(Subject::Pod {
            node: inner.authority.node(),
            namespace: namespace.clone(),
            pod: name.clone(),
        }),
        (TokenScope::Node { .. }, Wants::Sidecar {}) => Err(forbidden(
            "the token is for a node, not for a sidecar: use it with `keel up --join`",
        )),
        (TokenScope::Sidecar { namespace, name }, Wants::Node { .. }) => Err(forbidden(format!(
            "the token is for the sidecar {namespace}/{name}, not for a node: use it with `keel-sidecar --join`"
        ))),
    }
}

fn sign(inner: &Inner, csr: &Csr, subject: &Subject, hosts: &Hosts) -> Answer<Issued> {
    match subject {
        Subject::Node { node } => intermediate(inner, csr, node, hosts),
        Subject::Pod { namespace, pod, .. } => {
            let chain = inner
                .authority
                .sign_pod(csr, namespace, pod, inner.config.leaf_life);
            Ok(issued(
                inner,
                subject.clone(),
                &chain.map_err(|error| internal(&error))?,
            ))
        }
        // `subject` makes nothing else of a token.
        Subject::NodeAdmin { .. } | Subject::FabricAdmin { .. } => Err(bad_request(
            "the token is for something that this version does not know",
        )),
    }
}

/// Gives the identity of the client certificate again.
pub(super) async fn renew(
    inner: &Inner,
    request: http::Request<Body>,
    caller: &Caller,
) -> Answer<Issued> {
    let Some(identity) = &caller.identity else {
        let who = "renewing needs the certificate that is to be renewed; if it has expired, join again with a token";
        return Err(failure(Reason::Unauthorized, who));
    };
    let RenewRequest { csr, hosts } = body(request).await?;
    match &identity.subject {
        Subject::Node { node } => {
            let hosts = granted(inner, node, &hosts).await?;
            let issued = intermediate(inner, &csr.0, node, &hosts)?;
            tracing::info!(target: AUDIT, subject = %identity.subject, remote = %caller.remote, "intermediate renewed");
            Ok(issued)
        }
        Subject::Pod {
            node,
            namespace,
            pod,
        } if *node == inner.authority.node() => {
            let chain = inner
                .authority
                .sign_pod(&csr.0, namespace, pod, inner.config.leaf_life);
            Ok(issued(
                inner,
                identity.subject.clone(),
                &chain.map_err(|error| internal(&error))?,
            ))
        }
        Subject::Pod { node, .. } => Err(forbidden(format!(
            "{} is renewed at its own node {node}, this is {}",
            identity.subject,
            inner.authority.node()
        ))),
        subject @ (Subject::NodeAdmin { .. } | Subject::FabricAdmin { .. }) => Err(forbidden(
            format!("{subject} is not renewed: make a new kubeconfig with `keel kubeconfig`"),
        )),
    }
}

/// Signs the intermediate of a node, where the root key is. `hosts` are those that [`granted`] left.
fn intermediate(inner: &Inner, csr: &Csr, node: &NodeName, hosts: &Hosts) -> Answer<Issued> {
    let root = inner.root.as_ref().ok_or_else(|| no_root(inner))?;
    let certificate = root
        .sign_intermediate(csr, node, hosts, inner.config.intermediate_life)
        .map_err(|error| bad_request(error.to_string()))?;
    let chain = Chain::new(vec![certificate]).map_err(|error| internal(&error))?;
    Ok(issued(inner, Subject::Node { node: node.clone() }, &chain))
}

/// The answer with a chain.
pub(super) fn issued(inner: &Inner, subject: Subject, chain: &Chain) -> Issued {
    let roots = Chain {
        certs: inner.authority.roots(),
        ..chain.clone()
    };
    Issued {
        subject,
        certificates: chain.pem(),
        roots: roots.pem(),
        node: inner.authority.node(),
    }
}

/// Why this node cannot sign for other nodes.
pub(super) fn no_root(inner: &Inner) -> Box<Status> {
    let here = inner.authority.node();
    let where_ = match &inner.config.root_node {
        Some(node) => format!("ask node {node}, where it is"),
        None => "ask the first node of the trust domain; if that is this one, put its ca directory back from a backup".to_owned(),
    };
    failure(
        Reason::Conflict,
        format!("node {here} does not hold the root key: {where_}"),
    )
}
