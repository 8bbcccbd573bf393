//! `admin.sock`: for the node's owner and root only.

use std::time::Duration;

use http::{Method, Response};
use keel_certs::Subject;

use super::server::{AUDIT, issued, no_root};
use super::wire::{AdminRequest, FlowList, Issued, NodeRequest};
use super::{Answer, Inner, answer, bad_request, body, forbidden, internal, no_path, tokens};
use crate::http::{Body, Caller, Remote};

/// The longest life of an admin's certificate: it cannot be revoked.
const MAX_ADMIN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) async fn handle(
    inner: &Inner,
    request: http::Request<Body>,
    caller: &Caller,
) -> Response<Body> {
    if let Err(status) = permitted(inner, caller) {
        return answer::<()>(Err(status));
    }
    let path = request.uri().path().to_owned();
    match (request.method().clone(), &*path) {
        (Method::GET, "/v1/info") => answer(Ok((**inner.config.info.borrow()).clone())),
        (Method::GET, "/v1/flows") => answer(Ok(FlowList::of(inner.config.flows.as_deref()))),
        (Method::POST, "/v1/node") => answer(node(inner, request).await),
        (Method::POST, "/v1/admin") => answer(admin(inner, request).await),
        (Method::GET, "/v1/tokens") => answer(tokens::list(inner).await),
        (Method::POST, "/v1/tokens") => match body(request).await {
            Ok(request) => answer(tokens::create(inner, request).await),
            Err(status) => answer::<()>(Err(status)),
        },
        (Method::DELETE, path) if path.starts_with("/v1/tokens/") => {
            answer(tokens::revoke(inner, &path["/v1/tokens/".len()..]).await)
        }
        (_, path) => answer::<()>(Err(no_path(path))),
    }
}

/// The file's mode keeps others out already; this holds also if somebody changed it.
fn permitted(inner: &Inner, caller: &Caller) -> Answer<()> {
    match caller.remote {
        Remote::Unix { uid, .. } if uid == 0 || uid == inner.config.owner => Ok(()),
        Remote::Unix { uid, .. } => Err(forbidden(format!(
            "user {uid} is neither the owner of this node nor root"
        ))),
        Remote::Tcp(_) | Remote::Quic(_) => Err(forbidden("only over admin.sock")),
    }
}

async fn node(inner: &Inner, request: http::Request<Body>) -> Answer<Issued> {
    let NodeRequest { csr } = body(request).await?;
    let chain = inner
        .authority
        .sign_node(&csr.0, &inner.config.hosts, inner.config.leaf_life)
        .map_err(|error| internal(&error))?;
    Ok(issued(
        inner,
        Subject::Node {
            node: inner.authority.node(),
        },
        &chain,
    ))
}

async fn admin(inner: &Inner, request: http::Request<Body>) -> Answer<Issued> {
    let AdminRequest {
        user,
        ttl_seconds,
        fabric,
        csr,
    } = body(request).await?;
    let life = ttl_seconds.map_or(inner.config.leaf_life, Duration::from_secs);
    if life > MAX_ADMIN_LIFE {
        return Err(bad_request(
            "the life of an admin's certificate (--ttl) is at most 30d: make a new one when it ends",
        ));
    }
    let (subject, chain) = if fabric {
        let root = inner.root.as_ref().ok_or_else(|| no_root(inner))?;
        (
            Subject::FabricAdmin { user: user.clone() },
            root.sign_fabric_admin(&csr.0, &user, life),
        )
    } else {
        let subject = Subject::NodeAdmin {
            node: inner.authority.node(),
            user: user.clone(),
        };
        (subject, inner.authority.sign_admin(&csr.0, &user, life))
    };
    let chain = chain.map_err(|error| bad_request(error.to_string()))?;
    tracing::info!(target: AUDIT, %subject, seconds = life.as_secs(), "admin certificate issued");
    Ok(issued(inner, subject, &chain))
}
