//! The status of a `Router`: what a node reports, and what everybody else reads.
//!
//! Status is lenient. It comes from other nodes and other versions, so a null, an unknown field, a field of another type or an odd
//! string must not make the rest unreadable: what cannot be read counts as absent, what is unknown is kept.

use std::collections::BTreeMap;
use std::fmt;

use keel_certs::Subject;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::meta::{Revision, Time};

/// The condition of a Router of another node that says whether what is held here of it may be old. Written here, by the node's Syncer.
pub const SYNCED: &str = "Synced";

/// What is known about the router of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct RouterStatus {
    /// The cluster that the node belongs to.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// How other nodes reach the router, `host:port`; empty if the node is behind NAT.
    #[serde(deserialize_with = "lenient_list")]
    pub addresses: Vec<String>,
    /// How sidecars and pods of the same node reach the router, with the port that is really bound.
    #[serde(deserialize_with = "lenient_list")]
    pub node_addresses: Vec<String>,
    /// What can be reached through the router now.
    #[serde(deserialize_with = "lenient_list")]
    pub active_services: Vec<ActiveService>,
    /// Conditions, as Kubernetes has them; `Ready` says whether the router runs.
    #[serde(deserialize_with = "lenient_list")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Totals over all services.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub service_status: Option<ServiceStatus>,
    /// Which state of the writing node this is.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// When the node last said that it is alive.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub heartbeat_time: Option<Time>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

impl RouterStatus {
    /// Whether the router says that it takes nothing new, because it stops.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.conditions.iter().any(|condition| {
            condition.kind == "Ready"
                && condition.status == "False"
                && condition.reason == "Draining"
        })
    }

    /// Whether this may be old: the Syncer has not heard its node for long.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        let stale = |condition: &Condition| condition.kind == SYNCED && condition.status == "False";
        self.conditions.iter().any(stale)
    }
}

/// The writing node's number for a status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Source {
    /// Revision at which the node itself wrote the status. Another node takes a status only if its number is higher.
    pub revision: Revision,
}

/// A service that can be reached through the router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct ActiveService {
    /// Name of the service.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Namespace of the service; absent means `default`.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Cluster of the service; absent means that of the router.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// `TCP` or `UDP`; absent means TCP.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Port of the service: what consumers connect to.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Port that the router itself listens on for the service, if any.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    /// Port of the backend.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// Who serves it: what consumers choose from.
    #[serde(deserialize_with = "lenient_list")]
    pub providers: Vec<ProviderStatus>,
    /// Who is attached to it, as consumer or provider.
    #[serde(deserialize_with = "lenient_list")]
    pub clients: Vec<ClientStatus>,
    /// What became of their connections, by consumer; those with nothing to tell are left out.
    #[serde(
        deserialize_with = "lenient_list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub incidents: Vec<Incidents>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

impl ActiveService {
    /// The port that consumers connect to: `port`, or `targetPort` where there is none.
    #[must_use]
    pub fn service_port(&self) -> Option<u16> {
        self.port.or(self.target_port)
    }
}

/// One provider of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct ProviderStatus {
    /// Path of the provider's identity: `/node/edge-b/ns/default/pod/db-0`.
    #[serde(deserialize_with = "lenient")]
    pub identity: String,
    /// `healthy` or `unhealthy`; absent where nothing has checked it, of which earlier versions say `unknown`.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Its share of the connections among equals; absent means 1.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Lower ones are used first; absent means 0.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// Since when the provider is there.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

impl ProviderStatus {
    /// Who the provider is; none if the identity cannot be read.
    #[must_use]
    pub fn subject(&self) -> Option<Subject> {
        self.identity.parse().ok()
    }

    /// Whether consumers should try it before unhealthy ones.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.health
            .as_deref()
            .is_none_or(|health| matches!(health, "healthy" | "unknown" | ""))
    }
}

/// One sidecar that is attached to a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct ClientStatus {
    /// Identifies the client within the service.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `consumer` or `provider`.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// `stcp` (relayed), `xtcp` (direct) or `sudp` (UDP).
    #[serde(
        rename = "type",
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub kind: Option<String>,
    /// Address of the client as the router sees it.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub remote_addr: Option<String>,
    /// Address that the client listens on for its application.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub local_addr: Option<String>,
    /// Name of the service.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Since when the client is there.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub connected_at: Option<Time>,
    /// Connections that it has open now.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub current_connections: Option<u64>,
    /// Bytes from the client.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<u64>,
    /// Bytes to the client.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<u64>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

/// What became of the connections of one consumer to a service, counted since the router's process began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Incidents {
    /// Path of the consumer's identity; `other` for those that are not counted apart.
    #[serde(deserialize_with = "lenient")]
    pub identity: String,
    /// How often one went on over another way.
    #[serde(deserialize_with = "lenient")]
    pub resumes: u64,
    /// How often sent bytes made no progress for a second; of connections that end at this router.
    #[serde(deserialize_with = "lenient")]
    pub stalls: u64,
    /// How often one was cut, by reason. `LEG_LOST` is a way that was lost: its connection goes on over another one, if it can.
    #[serde(deserialize_with = "lenient")]
    pub resets: BTreeMap<String, u64>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

/// A condition, as Kubernetes has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Condition {
    /// What it is about, e.g. `Ready`.
    #[serde(rename = "type", deserialize_with = "lenient")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    #[serde(deserialize_with = "lenient")]
    pub status: String,
    /// One word for programs.
    #[serde(deserialize_with = "lenient")]
    pub reason: String,
    /// A sentence for people.
    #[serde(deserialize_with = "lenient")]
    pub message: String,
    /// When `status` last changed.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
    /// `metadata.generation` that it was made for.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

/// Totals over all services of a router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct ServiceStatus {
    /// Attached sidecars.
    #[serde(deserialize_with = "lenient")]
    pub total_clients: u64,
    /// Open connections.
    #[serde(deserialize_with = "lenient")]
    pub total_connections: u64,
    /// Published services.
    #[serde(deserialize_with = "lenient")]
    pub total_proxies: u64,
    /// Bytes from consumers to providers.
    #[serde(deserialize_with = "lenient")]
    pub total_bytes_in: u64,
    /// Bytes from providers to consumers.
    #[serde(deserialize_with = "lenient")]
    pub total_bytes_out: u64,
    /// How long the router has been up, e.g. `12s`.
    #[serde(deserialize_with = "lenient")]
    pub uptime: String,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.status)
    }
}

/// Reads a value that may be null or of another type, which count as absent.
pub(super) fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(T::deserialize(value).unwrap_or_default())
}

/// Reads a list, leaving out the items that cannot be read; anything but a list counts as empty.
pub(super) fn lenient_list<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let Value::Array(items) = Value::deserialize(deserializer)? else {
        return Ok(Vec::new());
    };
    Ok(items
        .into_iter()
        .filter_map(|item| T::deserialize(item).ok())
        .collect())
}
