//! `workload.sock`: leaves of sidecars, and where they go with them. It is mounted into pods, so nobody gets more here than
//! a workload needs, whatever their user id: a container's root has the id of the machine's.

use keel_certs::{Namespace, Subject};

use super::server::issued;
use super::wire::{NodeInfo, WorkloadAnswer, WorkloadRequest};
use super::{Answer, Inner, body, forbidden, internal};
use crate::http::{Body, Caller, Remote};

pub(super) async fn issue(
    inner: &Inner,
    request: http::Request<Body>,
    caller: &Caller,
) -> Answer<WorkloadAnswer> {
    let WorkloadRequest {
        namespace,
        pod,
        csr,
    } = body(request).await?;
    permitted(inner, caller, &namespace)?;
    let chain = inner
        .authority
        .sign_pod(&csr.0, &namespace, &pod, inner.config.leaf_life)
        .map_err(|error| internal(&error))?;
    let subject = Subject::Pod {
        node: inner.authority.node(),
        namespace,
        pod,
    };
    tracing::debug!(%subject, remote = %caller.remote, "workload certificate issued");
    Ok(WorkloadAnswer {
        issued: issued(inner, subject, &chain),
        info: NodeInfo {
            peers: None,
            ..(**inner.config.info.borrow()).clone()
        },
    })
}

/// Local users may be workloads of `default` and of the namespaces that were opened for them; the owner and root of any.
fn permitted(inner: &Inner, caller: &Caller, namespace: &Namespace) -> Answer<()> {
    let Remote::Unix { uid, .. } = caller.remote else {
        return Err(forbidden("only over workload.sock"));
    };
    let opened =
        namespace.as_str() == "default" || inner.config.local_namespaces.contains(namespace);
    if opened || uid == 0 || uid == inner.config.owner {
        return Ok(());
    }
    Err(forbidden(format!(
        "user {uid} may not be a workload of namespace {namespace}: use namespace default, or start the node with --local-namespaces {namespace}"
    )))
}
