//! Joining with a token: the one conversation with a server that is known by nothing but the hash of its root's key.

use std::time::Duration;

use keel_certs::{Chain, Csr, Hosts, JoinToken, NodeName, RootPin, join_client_config};
use keel_fabric::quic::HostPort;
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;

use super::local::parse;
use super::wire::{EnrollRequest, Issued, PemCsr, PlainSecret, Wants};
use crate::client::{Class, ClientError, post};
use crate::transport::ALPN_H3;

/// How long one attempt may take, from connecting to the last byte of the answer.
const ATTEMPT: Duration = Duration::from_secs(45);

/// What a node gets for its token.
#[derive(Clone, Debug)]
pub struct JoinedNode {
    /// The node's intermediate.
    pub intermediate: CertificateDer<'static>,
    /// The trust bundle: the root that the token names.
    pub roots: Vec<CertificateDer<'static>>,
    /// The node that answered: the first peer.
    pub through: NodeName,
}

/// What a sidecar gets for its token.
#[derive(Clone, Debug)]
pub struct JoinedSidecar {
    /// Leaf and intermediate.
    pub chain: Chain,
    /// The trust bundle: the root that the token names.
    pub roots: Vec<CertificateDer<'static>>,
    /// The node that answered.
    pub node: NodeName,
}

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// What came back cannot be used.
    #[error("the answer to join token {token} cannot be used: {why}")]
    Answer {
        /// Id of the token.
        token: String,
        /// What is wrong with it.
        why: String,
    },
    /// The token is not taken: a new one is needed.
    #[error("cannot join with token {token}: {why}")]
    Refused {
        /// Id of the token.
        token: String,
        /// What the server said.
        why: String,
    },
    /// Nobody that the token names could be reached. Also if somebody else answered there: nothing was sent to them.
    #[error("cannot join with token {token}: {source}")]
    Unreachable {
        /// Id of the token.
        token: String,
        /// What happened.
        source: ClientError,
    },
}

impl JoinError {
    /// Whether trying again with the same token and key may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Becomes the node `name`. A repeated call must use the same key: the token is bound to it.
///
/// # Errors
/// [`JoinError`].
pub async fn node(
    token: &JoinToken,
    name: &NodeName,
    csr: &Csr,
    hosts: &Hosts,
) -> Result<JoinedNode, JoinError> {
    let wants = Wants::Node {
        name: name.clone(),
        hosts: hosts.clone(),
    };
    let (through, mut chain, roots) = enroll(token, csr, wants).await?;
    // `Chain` is never empty.
    Ok(JoinedNode {
        intermediate: chain.certs.remove(0),
        roots,
        through,
    })
}

/// Becomes the sidecar that the token names. A repeated call must use the same key: the token is bound to it.
///
/// # Errors
/// [`JoinError`].
pub async fn sidecar(token: &JoinToken, csr: &Csr) -> Result<JoinedSidecar, JoinError> {
    let (node, chain, roots) = enroll(token, csr, Wants::Sidecar {}).await?;
    Ok(JoinedSidecar { chain, roots, node })
}

async fn enroll(
    token: &JoinToken,
    csr: &Csr,
    wants: Wants,
) -> Result<(NodeName, Chain, Vec<CertificateDer<'static>>), JoinError> {
    let unusable = |why: &dyn std::fmt::Display| JoinError::Answer {
        token: token.id.to_string(),
        why: why.to_string(),
    };
    let server: HostPort = token.endpoint.parse().map_err(|error| unusable(&error))?;
    let secret = PlainSecret(token.secret.clone());
    let request = EnrollRequest {
        id: token.id.clone(),
        secret,
        csr: PemCsr(csr.clone()),
        wants,
    };
    let request = serde_json::to_value(&request).map_err(|error| unusable(&error))?;
    let tls = join_client_config(&token.pin, &[ALPN_H3]);
    let late = |_| {
        Err(ClientError::Interrupted {
            server: server.clone(),
            why: format!("no whole answer within {} s", ATTEMPT.as_secs()),
        })
    };
    let answer = timeout(ATTEMPT, post(&server, tls, "/v1/enroll", &request))
        .await
        .unwrap_or_else(late)
        .map_err(|error| match error.class() {
            Class::Retry => JoinError::Unreachable {
                token: token.id.to_string(),
                source: error,
            },
            _ => JoinError::Refused {
                token: token.id.to_string(),
                why: error.to_string(),
            },
        })?;
    let issued: Issued = serde_json::from_value(answer).map_err(|error| unusable(&error))?;
    let (chain, mut roots) = parse(&issued).map_err(|error| unusable(&error))?;
    // The token vouches for one root and for no other that the answer may hold.
    roots.retain(|root| RootPin::of(root).is_ok_and(|pin| pin == token.pin));
    roots.truncate(1);
    if roots.is_empty() {
        return Err(unusable(&"the root that the token names is not in it"));
    }
    Ok((issued.node, chain, roots))
}
