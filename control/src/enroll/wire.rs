//! The JSON of the enrolment paths. Certificates and signing requests are PEM in strings; unknown fields are ignored, so
//! that nodes of different versions understand each other.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use keel_certs::{
    ClusterName, Csr, Hosts, Namespace, NodeName, PodName, Subject, TokenId, TokenSecret,
    TrustDomain,
};
use keel_fabric::metrics::{PairCounts, Pairs};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::time::Instant;

use crate::store::{TokenRecord, TokenScope};
use crate::syncer::PeerState;

/// What a node tells about itself on its sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// The node.
    pub node: NodeName,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// URL of the APIServer for those on this machine: `https://127.0.0.1:7443`.
    pub apiserver: String,
    /// The router as this machine's sidecars and pods reach it: `host:port`, best first.
    #[serde(default)]
    pub routers: Vec<String>,
    /// `host:port` of the APIServer for joiners, unless the maker of a token says otherwise. None: see `unreachable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_endpoint: Option<String>,
    /// Why there is no `token_endpoint`, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// How the exchange with each peer goes; none if another process does it. Not told to workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<PeerInfo>>,
}

/// How the exchange with one peer goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerInfo {
    /// The peer.
    pub node: NodeName,
    /// `host:port` of its APIServer.
    pub server: String,
    /// Whether the last thing that was heard is good news.
    pub connected: bool,
    /// When it was last heard, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_contact: Option<u64>,
    /// Since when what is held here of it may differ from what it is, in seconds since 1970; none in sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_since: Option<u64>,
    /// What goes wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `GET /v1/flows` on `admin.sock`: what the process counts of flows at this moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowList {
    /// By role, service and peer; none if another process is the node's router.
    #[serde(default)]
    pub flows: Option<Vec<FlowInfo>>,
}

/// Flows of one service and peer, from the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowInfo {
    /// `router` for flows that pass, `provider` for those that end in the router's own backends.
    pub role: String,
    /// `mysql.default:3306`.
    pub service: String,
    /// Whose connection opened the flows.
    pub peer: String,
    /// Flows now.
    pub active: u64,
    /// Flows that were started; none if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
    /// Bytes from consumer to provider.
    pub bytes_up: u64,
    /// Bytes from provider to consumer.
    pub bytes_down: u64,
    /// Legs that replaced another one.
    pub resumes: u64,
    /// Times that sent bytes made no progress for a second.
    pub stalls: u64,
    /// How long they made none.
    pub stalled_seconds: f64,
    /// Flows, or legs at a router, that did not end well, by code.
    pub resets: BTreeMap<String, u64>,
}

/// A signing request as PEM; its signature is verified on reading.
#[derive(Clone, Debug)]
pub struct PemCsr(pub Csr);

/// `POST /v1/enroll`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnrollRequest {
    /// Public name of the token.
    pub id: TokenId,
    /// Its secret.
    pub secret: PlainSecret,
    /// The key to certify.
    pub csr: PemCsr,
    /// What the holder wants to be. The token decides what it may be.
    pub wants: Wants,
}

/// The secret of a token in the one request that shows it.
#[derive(Debug)]
pub struct PlainSecret(pub TokenSecret);

/// What the holder of a token wants to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wants {
    /// A node.
    Node {
        /// Its name.
        name: NodeName,
        /// Names and addresses that its certificates may carry.
        #[serde(default)]
        hosts: Hosts,
    },
    /// A sidecar; namespace and name come from the token.
    Sidecar {},
}

/// Certificates as an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// Who the certificates are for.
    pub subject: Subject,
    /// PEM: for a node that joins or renews its intermediate; for all others the leaf and what signed it.
    pub certificates: String,
    /// PEM: the roots of the trust domain.
    pub roots: String,
    /// The node that answers.
    pub node: NodeName,
}

/// `POST /v1/renew`: the identity of the client certificate again, for a new key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewRequest {
    /// The key to certify.
    pub csr: PemCsr,
    /// Of a node: names and addresses that its certificates may carry.
    #[serde(default)]
    pub hosts: Hosts,
}

/// `POST /v1/workload` on `workload.sock`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRequest {
    /// Namespace of the workload.
    pub namespace: Namespace,
    /// Its pod, or the name that plays the part of one.
    pub pod: PodName,
    /// The key to certify.
    pub csr: PemCsr,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadAnswer {
    /// The leaf.
    #[serde(flatten)]
    pub issued: Issued,
    /// Where to go with it.
    pub info: NodeInfo,
}

/// `POST /v1/node` on `admin.sock`: a leaf of the node itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRequest {
    /// The key to certify.
    pub csr: PemCsr,
}

/// `POST /v1/admin` on `admin.sock`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminRequest {
    /// Name of the admin.
    pub user: keel_certs::UserName,
    /// Life of the certificate; none for that of all leaves.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// Admin at every node, signed by the root itself.
    #[serde(default)]
    pub fabric: bool,
    /// The key to certify.
    pub csr: PemCsr,
}

/// `POST /v1/tokens` on `admin.sock`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRequest {
    /// What it is good for.
    pub scope: TokenScope,
    /// For how long.
    pub ttl_seconds: u64,
    /// For how many keys.
    pub uses: u32,
    /// `host:port` to join at, instead of the node's own idea.
    #[serde(default)]
    pub endpoint: Option<String>,
}

/// The answer to it. Holds the secret: not for logs.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenAnswer {
    /// The whole token, as text.
    pub token: String,
}

/// A token in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// Names it.
    pub id: TokenId,
    /// What it is good for.
    pub scope: TokenScope,
    /// End of its life, in seconds since 1970.
    pub expires_at: u64,
    /// For how many further keys it is good.
    pub uses_left: u32,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// `GET /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// Oldest first.
    pub tokens: Vec<TokenInfo>,
}

impl fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenAnswer(..)")
    }
}

impl FlowList {
    pub(super) fn of(pairs: Option<&Pairs>) -> Self {
        let all = |pairs: &Pairs| pairs.counts().into_iter().map(FlowInfo::from).collect();
        Self {
            flows: pairs.map(all),
        }
    }
}

impl From<PairCounts> for FlowInfo {
    fn from(pair: PairCounts) -> Self {
        let resets = pair.resets.into_iter();
        Self {
            role: pair.role.to_owned(),
            service: pair.service,
            peer: pair.peer,
            active: pair.active,
            started: Some(pair.started),
            bytes_up: pair.bytes_up,
            bytes_down: pair.bytes_down,
            resumes: pair.resumes,
            stalls: pair.stalls,
            stalled_seconds: pair.stalled.as_secs_f64(),
            resets: resets
                .map(|(code, count)| (code.to_owned(), count))
                .collect(),
        }
    }
}

impl From<TokenRecord> for TokenInfo {
    fn from(record: TokenRecord) -> Self {
        let expires_at = seconds(record.expires_at);
        Self {
            id: record.id,
            scope: record.scope,
            expires_at,
            uses_left: record.uses_left,
            revoked: record.revoked,
        }
    }
}

impl From<&PeerState> for PeerInfo {
    fn from(state: &PeerState) -> Self {
        Self {
            node: state.node.clone(),
            server: state.server.to_string(),
            connected: state.connected,
            last_contact: state.last_contact.map(seconds),
            behind_since: state
                .behind(Instant::now())
                .map(|since| seconds(SystemTime::now() - since.elapsed())),
            error: state.error.clone(),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

impl Serialize for PemCsr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.pem())
    }
}

impl<'de> Deserialize<'de> for PemCsr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Csr::from_pem(&text).map(Self).map_err(de::Error::custom)
    }
}

impl Serialize for PlainSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.encoded())
    }
}

impl<'de> Deserialize<'de> for PlainSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map(Self)
            .map_err(de::Error::custom)
    }
}
