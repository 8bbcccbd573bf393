//! The other end of the node's Unix sockets.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use keel_certs::{
    Chain, ChainError, Csr, KeyError, KeyPair, LiveError, LiveIdentity, Namespace, NodeName,
    PodName, TokenError, TokenId, UserName,
};
use rustls_pki_types::CertificateDer;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::wire::{
    AdminRequest, FlowInfo, FlowList, Issued, NodeInfo, NodeRequest, PemCsr, TokenAnswer,
    TokenInfo, TokenList, TokenRequest, WorkloadAnswer, WorkloadRequest,
};
use crate::api::Status;

/// How long a call over a local socket may take.
const CALL: Duration = Duration::from_secs(10);
/// Largest answer that is taken, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Why a call over a local socket failed.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// What came back is no answer.
    #[error("the answer over {path:?} cannot be used: {why}")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The own key could not be made, or does not fit what came back.
    #[error(transparent)]
    Identity(#[from] LiveError),
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The user may not open the socket.
    #[error(
        "this user may not use {path:?}: it is for the user who runs the node (workload.sock also for the group keel); use sudo, or \
         name the directory of a node of your own with --data-dir"
    )]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The node said no.
    #[error("{0}")]
    Refused(String),
    /// Nobody listens.
    #[error(
        "no node answers at {path:?} ({source}): start one with `keel up` (or `keel-apiserver`), or name its --data-dir"
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl LocalError {
    /// Whether asking again later may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Answer { .. })
    }
}

/// What a workload gets from its node.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Leaf and intermediate.
    pub chain: Chain,
    /// The trust bundle.
    pub roots: Vec<CertificateDer<'static>>,
    /// The node.
    pub node: NodeName,
    /// What the node says about itself: APIServer, router.
    pub info: NodeInfo,
}

/// Asks `workload.sock` for the leaf of a workload.
///
/// # Errors
/// [`LocalError`].
pub async fn workload(
    socket: &Path,
    namespace: &Namespace,
    pod: &PodName,
    csr: &Csr,
) -> Result<Workload, LocalError> {
    let request = WorkloadRequest {
        namespace: namespace.clone(),
        pod: pod.clone(),
        csr: PemCsr(csr.clone()),
    };
    let answer: WorkloadAnswer = call(socket, Method::POST, "/v1/workload", Some(&request)).await?;
    let (chain, roots) = certificates(socket, &answer.issued)?;
    Ok(Workload {
        chain,
        roots,
        node: answer.issued.node,
        info: answer.info,
    })
}

/// Asks `admin.sock` what the node says about itself.
///
/// # Errors
/// [`LocalError`].
pub async fn info(socket: &Path) -> Result<NodeInfo, LocalError> {
    call(socket, Method::GET, "/v1/info", None::<&()>).await
}

/// Asks `admin.sock` what the node's process counts of flows now; none if its router is another process.
///
/// # Errors
/// [`LocalError`].
pub async fn flows(socket: &Path) -> Result<Option<Vec<FlowInfo>>, LocalError> {
    let list: FlowList = call(socket, Method::GET, "/v1/flows", None::<&()>).await?;
    Ok(list.flows)
}

/// Asks `admin.sock` for a leaf of the node itself, for a given key.
///
/// # Errors
/// [`LocalError`].
pub async fn node_chain(
    socket: &Path,
    csr: &Csr,
) -> Result<(Chain, Vec<CertificateDer<'static>>), LocalError> {
    let request = NodeRequest {
        csr: PemCsr(csr.clone()),
    };
    let issued: Issued = call(socket, Method::POST, "/v1/node", Some(&request)).await?;
    certificates(socket, &issued)
}

/// A new identity of the node itself, by `admin.sock`.
///
/// # Errors
/// [`LocalError`].
pub async fn node_identity(socket: &Path) -> Result<LiveIdentity, LocalError> {
    let key = KeyPair::generate()?;
    let (chain, roots) = node_chain(socket, &key.csr()?).await?;
    Ok(LiveIdentity::new(key, chain, roots)?)
}

/// A new identity of an admin of the node (`fabric`: of all nodes, where the root key is), by `admin.sock`. Without `ttl` it lives
/// as long as all leaves.
///
/// # Errors
/// [`LocalError`].
pub async fn admin_identity(
    socket: &Path,
    user: &UserName,
    ttl: Option<Duration>,
    fabric: bool,
) -> Result<LiveIdentity, LocalError> {
    let key = KeyPair::generate()?;
    let (chain, roots) = admin_chain(socket, user, ttl, fabric, &key.csr()?).await?;
    Ok(LiveIdentity::new(key, chain, roots)?)
}

/// Certificates of an admin for a key of the caller's; as [`admin_identity`].
///
/// # Errors
/// [`LocalError`].
pub async fn admin_chain(
    socket: &Path,
    user: &UserName,
    ttl: Option<Duration>,
    fabric: bool,
    csr: &Csr,
) -> Result<(Chain, Vec<CertificateDer<'static>>), LocalError> {
    let request = AdminRequest {
        user: user.clone(),
        ttl_seconds: ttl.map(|ttl| ttl.as_secs()),
        fabric,
        csr: PemCsr(csr.clone()),
    };
    let issued: Issued = call(socket, Method::POST, "/v1/admin", Some(&request)).await?;
    certificates(socket, &issued)
}

/// Makes a join token, by `admin.sock`.
///
/// # Errors
/// [`LocalError`].
pub async fn create_token(
    socket: &Path,
    request: &TokenRequest,
) -> Result<keel_certs::JoinToken, LocalError> {
    let answer: TokenAnswer = call(socket, Method::POST, "/v1/tokens", Some(request)).await?;
    answer
        .token
        .parse()
        .map_err(|error: TokenError| unusable(socket, &error))
}

/// Lists the join tokens of the node, by `admin.sock`.
///
/// # Errors
/// [`LocalError`].
pub async fn tokens(socket: &Path) -> Result<Vec<TokenInfo>, LocalError> {
    let list: TokenList = call(socket, Method::GET, "/v1/tokens", None::<&()>).await?;
    Ok(list.tokens)
}

/// Revokes a join token, by `admin.sock`.
///
/// # Errors
/// [`LocalError::Refused`] if there is none of that id.
pub async fn revoke_token(socket: &Path, id: &TokenId) -> Result<(), LocalError> {
    let _: TokenList = call(
        socket,
        Method::DELETE,
        &format!("/v1/tokens/{id}"),
        None::<&()>,
    )
    .await?;
    Ok(())
}

fn certificates(
    socket: &Path,
    issued: &Issued,
) -> Result<(Chain, Vec<CertificateDer<'static>>), LocalError> {
    parse(issued).map_err(|error| unusable(socket, &error))
}

/// Chain and roots of an answer.
pub(super) fn parse(issued: &Issued) -> Result<(Chain, Vec<CertificateDer<'static>>), ChainError> {
    Ok((
        Chain::from_pem(&issued.certificates)?,
        Chain::from_pem(&issued.roots)?.certs,
    ))
}

fn unusable(socket: &Path, why: &dyn std::fmt::Display) -> LocalError {
    LocalError::Answer {
        path: socket.to_owned(),
        why: why.to_string(),
    }
}

/// One request on a connection of its own.
async fn call<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, LocalError> {
    match tokio::time::timeout(CALL, exchange(socket, method, path, body)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(unusable(
            socket,
            &format!("nothing came within {} s", CALL.as_secs()),
        )),
    }
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, LocalError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => LocalError::Permission {
                path: socket.to_owned(),
            },
            _ => LocalError::Unreachable {
                path: socket.to_owned(),
                source,
            },
        })?;
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(|error| unusable(socket, &error))?,
        None => Vec::new(),
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| unusable(socket, &error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unusable(socket, &error))?;
    let receive = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| unusable(socket, &error))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| unusable(socket, &error))?;
        drop(sender);
        Ok::<_, LocalError>((parts.status, body.to_bytes()))
    };
    // The connection moves the bytes; its own failure is the request's failure too.
    let (answer, _) = tokio::join!(receive, connection);
    let (status, bytes) = answer?;
    if status.is_success() {
        return serde_json::from_slice(&bytes).map_err(|error| unusable(socket, &error));
    }
    match serde_json::from_slice::<Status>(&bytes) {
        Ok(status) if !status.message.is_empty() => Err(LocalError::Refused(status.message)),
        _ => Err(unusable(socket, &status)),
    }
}
