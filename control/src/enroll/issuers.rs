//! Whom a process asks for its own certificate again: [`keel_certs::Issuer`]s for [`keel_certs::rotate`].

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, header};
use keel_certs::{
    Csr, Hosts, Issuer, Namespace, NodeAuthority, PodName, RenewError, Renewed, UserName,
};
use rustls_pki_types::CertificateDer;

use super::local::{self, LocalError, parse};
use super::wire::{Issued, PemCsr, RenewRequest};
use crate::api::Status;
use crate::client::{Class, Client, ClientError};
use crate::http::read;

/// How long one attempt may take, from connecting to the last byte of the answer.
const ATTEMPT: Duration = Duration::from_secs(45);
/// Largest answer that is taken, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// The node's own leaf, where its authority is.
#[derive(Clone, Debug)]
pub struct LocalIssuer {
    /// The node's intermediate.
    pub authority: NodeAuthority,
    /// Names and addresses that the leaf carries.
    pub hosts: Hosts,
    /// Its life.
    pub life: Duration,
}

/// The node's own leaf, for a process that runs apart from its authority: by `admin.sock`.
#[derive(Clone, Debug)]
pub struct NodeSocketIssuer {
    /// The socket.
    pub socket: PathBuf,
}

/// The leaf of an admin of the node, by `admin.sock`; as long as all leaves.
#[derive(Clone, Debug)]
pub struct AdminSocketIssuer {
    /// The socket.
    pub socket: PathBuf,
    /// The admin's name.
    pub user: UserName,
}

/// The leaf of a workload, by `workload.sock`.
#[derive(Clone, Debug)]
pub struct SocketIssuer {
    /// The socket.
    pub socket: PathBuf,
    /// Namespace of the workload.
    pub namespace: Namespace,
    /// Its name.
    pub pod: PodName,
}

/// The leaf of a pod that joined with a token: by `/v1/renew` at its node's APIServer.
#[derive(Clone, Debug)]
pub struct RemoteIssuer {
    /// A client of that APIServer with the identity to be renewed.
    pub client: Client,
}

impl Issuer for LocalIssuer {
    fn renew(&self, csr: &Csr) -> BoxFuture<'static, Result<Renewed, RenewError>> {
        let signed = self.authority.sign_node(csr, &self.hosts, self.life);
        let renewed = signed
            .map(|chain| (chain, self.authority.roots()))
            .map_err(|error| RenewError::Refused(error.to_string()));
        Box::pin(std::future::ready(renewed))
    }
}

impl Issuer for NodeSocketIssuer {
    fn renew(&self, csr: &Csr) -> BoxFuture<'static, Result<Renewed, RenewError>> {
        let (this, csr) = (self.clone(), csr.clone());
        Box::pin(async move {
            local::node_chain(&this.socket, &csr)
                .await
                .map_err(renew_error)
        })
    }
}

impl Issuer for AdminSocketIssuer {
    fn renew(&self, csr: &Csr) -> BoxFuture<'static, Result<Renewed, RenewError>> {
        let (this, csr) = (self.clone(), csr.clone());
        Box::pin(async move {
            local::admin_chain(&this.socket, &this.user, None, false, &csr)
                .await
                .map_err(renew_error)
        })
    }
}

impl Issuer for SocketIssuer {
    fn renew(&self, csr: &Csr) -> BoxFuture<'static, Result<Renewed, RenewError>> {
        let (this, csr) = (self.clone(), csr.clone());
        Box::pin(async move {
            let workload = local::workload(&this.socket, &this.namespace, &this.pod, &csr).await;
            workload
                .map(|workload| (workload.chain, workload.roots))
                .map_err(renew_error)
        })
    }
}

impl Issuer for RemoteIssuer {
    fn renew(&self, csr: &Csr) -> BoxFuture<'static, Result<Renewed, RenewError>> {
        let (this, csr) = (self.clone(), csr.clone());
        Box::pin(async move { renew(&this.client, &csr, &Hosts::default()).await })
    }
}

/// Asks the node that holds the root key (`client` must go there, with this node's identity) for a new intermediate. Whether it
/// is under a root that is held is for [`NodeAuthority::replace`] to say. Ends within a minute.
///
/// # Errors
/// [`RenewError::Refused`] if that node does not hold the root key or does not sign; [`RenewError::Unreachable`] if it is away.
pub async fn renew_intermediate(
    client: &Client,
    csr: &Csr,
    hosts: &Hosts,
) -> Result<CertificateDer<'static>, RenewError> {
    let (mut chain, _) = renew(client, csr, hosts).await?;
    // `Chain` is never empty.
    Ok(chain.certs.remove(0))
}

async fn renew(client: &Client, csr: &Csr, hosts: &Hosts) -> Result<Renewed, RenewError> {
    within(ATTEMPT, exchange(client, csr, hosts)).await
}

/// `attempt`, which counts as unreachable if it takes longer: a peer that stops in the middle of its answer holds up nobody.
pub(super) async fn within<T>(
    limit: Duration,
    attempt: impl Future<Output = Result<T, RenewError>>,
) -> Result<T, RenewError> {
    tokio::time::timeout(limit, attempt)
        .await
        .unwrap_or_else(|_| {
            let why = format!("no whole answer within {} s", limit.as_secs());
            Err(RenewError::Unreachable(why))
        })
}

async fn exchange(client: &Client, csr: &Csr, hosts: &Hosts) -> Result<Renewed, RenewError> {
    let body = RenewRequest {
        csr: PemCsr(csr.clone()),
        hosts: hosts.clone(),
    };
    let body = serde_json::to_vec(&body).map_err(|error| RenewError::Refused(error.to_string()))?;
    let request = http::Request::builder()
        .method(Method::POST)
        .uri("/v1/renew")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::from(body))
        .map_err(|error| RenewError::Refused(error.to_string()))?;
    let (parts, body) = client
        .request(request)
        .await
        .map_err(client_error)?
        .into_parts();
    let bytes = read(body, MAX_ANSWER)
        .await
        .map_err(|error| RenewError::Unreachable(error.to_string()))?;
    if !parts.status.is_success() {
        let status = serde_json::from_slice::<Status>(&bytes).unwrap_or_default();
        let why = format!("{}: {}", parts.status, status.message);
        return Err(if parts.status.is_server_error() {
            RenewError::Unreachable(why)
        } else {
            RenewError::Refused(why)
        });
    }
    let issued: Issued =
        serde_json::from_slice(&bytes).map_err(|error| RenewError::Refused(error.to_string()))?;
    parse(&issued).map_err(|error| RenewError::Refused(error.to_string()))
}

fn client_error(error: ClientError) -> RenewError {
    match error.class() {
        Class::Retry => RenewError::Unreachable(error.to_string()),
        _ => RenewError::Refused(error.to_string()),
    }
}

fn renew_error(error: LocalError) -> RenewError {
    if error.is_retryable() {
        RenewError::Unreachable(error.to_string())
    } else {
        RenewError::Refused(error.to_string())
    }
}
