//! Kind `FRPServer`: settings and state of a router in the words of frp's operator, so that its documents apply as they stand.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kind::{About, Column, Typed};
use super::meta::{ObjectMeta, Time};
use super::router::{Frps, null_is_default};
use super::state::{Condition, ServiceStatus, lenient, lenient_list};
use super::validate::FieldError;

/// Settings and state of a router, in the words of frp's operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FrpServer {
    /// Version of the schema of this object: `tunnel.kubeinfra.io/v1alpha1`.
    pub api_version: String,
    /// Kind of the object: `FRPServer`.
    pub kind: String,
    /// Name, labels and bookkeeping.
    pub metadata: ObjectMeta,
    /// Listener settings, the same as `spec.frps` of a Router.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: Frps,
    /// What runs with these settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<FrpServerStatus>,
}

/// What runs with the settings of an [`FrpServer`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct FrpServerStatus {
    /// What can be reached through it, one entry for each published service.
    #[serde(deserialize_with = "lenient_list")]
    pub active_connections: Vec<ActiveConnection>,
    /// Conditions, as Kubernetes has them; `Ready` says whether it runs.
    #[serde(deserialize_with = "lenient_list")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Totals over all services.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub service_status: Option<ServiceStatus>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

/// A service that can be reached through an [`FrpServer`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct ActiveConnection {
    /// Name of the service, e.g. `mysql.abc`.
    #[serde(deserialize_with = "lenient")]
    pub proxy_name: String,
    /// How it is reached, e.g. `tcp` or `stcp`.
    #[serde(deserialize_with = "lenient")]
    pub proxy_type: String,
    /// How its client published it.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Map::is_empty")]
    pub proxy_config: Map<String, Value>,
    /// What a visitor of a secret service shows.
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<String>,
    /// `online` or `offline`.
    #[serde(deserialize_with = "lenient")]
    pub status: String,
    /// Name of the client that published it.
    #[serde(deserialize_with = "lenient")]
    pub client_name: String,
    /// Version of that client.
    #[serde(deserialize_with = "lenient")]
    pub client_version: String,
    /// Address of the client.
    #[serde(deserialize_with = "lenient")]
    pub remote_addr: String,
    /// Address of the backend.
    #[serde(deserialize_with = "lenient")]
    pub local_addr: String,
    /// Since when it is there. frp writes no year (`0000-05-04T23:10:04Z`).
    #[serde(deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// Connections that are open now.
    #[serde(deserialize_with = "lenient")]
    pub current_connections: u64,
    /// Bytes from consumers.
    #[serde(deserialize_with = "lenient")]
    pub bytes_in: u64,
    /// Bytes to consumers.
    #[serde(deserialize_with = "lenient")]
    pub bytes_out: u64,
    /// Bytes from consumers since midnight.
    #[serde(deserialize_with = "lenient")]
    pub today_traffic_in: u64,
    /// Bytes to consumers since midnight.
    #[serde(deserialize_with = "lenient")]
    pub today_traffic_out: u64,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

impl Typed for FrpServer {
    const ABOUT: About = About {
        group: "tunnel.kubeinfra.io",
        version: "v1alpha1",
        kind: "FRPServer",
        plural: "frpservers",
        singular: "frpserver",
        resource: "frpservers.tunnel.kubeinfra.io",
        categories: &["all", "keel"],
        has_status: true,
        columns: &COLUMNS,
        secrets: &["/spec/webServer/password"],
        ..About::PLAIN
    };

    fn check(&self) -> Vec<FieldError> {
        self.spec.check("spec")
    }
}

const COLUMNS: [Column; 8] = [
    Column::new("Name", "string", ".metadata.name", "Name of the object."),
    Column::new(
        "Ready",
        "string",
        ".status.conditions[?(@.type==\"Ready\")].status",
        "Whether something runs with these settings.",
    ),
    Column::new(
        "Port",
        "integer",
        ".spec.bindPort",
        "Port that it listens on.",
    ),
    Column::new(
        "Services",
        "string",
        ".status.activeConnections[*].proxyName",
        "What can be reached through it.",
    ),
    Column::new(
        "Age",
        "date",
        ".metadata.creationTimestamp",
        "Since when the object exists.",
    ),
    Column::new(
        "Clients",
        "integer",
        ".status.serviceStatus.totalClients",
        "Attached clients.",
    )
    .wide(),
    Column::new(
        "Connections",
        "integer",
        ".status.serviceStatus.totalConnections",
        "Open connections.",
    )
    .wide(),
    Column::new(
        "Uptime",
        "string",
        ".status.serviceStatus.uptime",
        "How long it has been up.",
    )
    .wide(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_frp_is_read_whole() {
        let status = serde_json::json!({
            "activeConnections": [{
                "proxyName": "mysql.abc", "proxyType": "tcp", "startTime": "0000-05-04T23:10:04Z", "todayTrafficIn": 4029,
                "proxyConfig": {"healthCheck": {}, "localIP": "127.0.0.1", "remotePort": 2000}, "novel": [1], "bytesIn": null,
            }, "odd"],
            "conditions": [{"type": "Ready", "status": "True"}],
            "serviceStatus": {"uptime": "0s"},
        });
        let status: FrpServerStatus = serde_json::from_value(status).unwrap();
        let [connection] = &status.active_connections[..] else {
            panic!("{status:?}");
        };
        assert_eq!(connection.proxy_config["remotePort"], 2000);
        assert_eq!(connection.extra["novel"], serde_json::json!([1]));
        // Year 0000 is a year of RFC 3339.
        let started = connection.start_time.as_ref().unwrap();
        assert!(started.to_system_time().is_some());
        assert_eq!(started.as_str(), "0000-05-04T23:10:04Z");
    }

    #[test]
    fn the_password_is_in_no_log() {
        let spec = serde_json::json!({"webServer": {"user": "admin", "password": "s3cret"}});
        let server = FrpServer {
            spec: serde_json::from_value(spec).unwrap(),
            ..FrpServer::default()
        };
        assert!(!format!("{server:?}").contains("s3cret"));
    }
}
