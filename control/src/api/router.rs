//! Kind `Router`: the router of one node, cluster-scoped and named after its node.

use std::fmt;

use keel_certs::{Namespace, ServiceName};
use keel_fabric::units::Rate;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::kind::{About, Column, Names, Typed};
use super::meta::ObjectMeta;
use super::options;
use super::state::RouterStatus;
use super::validate::FieldError;
use super::{API_VERSION, GROUP, KIND, PLURAL, VERSION};

/// The router of one node: what it is told to be (spec) and what it is (status).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Router {
    /// Version of the schema of this object: `edge.example.com/v1`.
    pub api_version: String,
    /// Kind of the object: `Router`.
    pub kind: String,
    /// Name, labels and bookkeeping.
    pub metadata: ObjectMeta,
    /// What the router is told to be; written by people and the cloud controller, never by the router.
    #[serde(deserialize_with = "null_is_default")]
    pub spec: RouterSpec,
    /// What the router is; written by its node, read by everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<RouterStatus>,
}

/// What a router is told to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouterSpec {
    /// Listener settings, in the words of frp's server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frps: Option<Frps>,
    /// How other nodes reach the router (`host:port`), where the cloud controller knows.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(extend("items" = {"type": "string", "format": "host-port"}))]
    pub addresses: Vec<String>,
    /// Services that the router announces. With a `target` it dials the backend itself.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name", "namespace", "port", "protocol"]
    ))]
    pub advertised_services: Vec<AdvertisedService>,
    /// Most bytes per second that each identity may carry over the router, each direction for itself, e.g. `10MB/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "rate"))]
    pub identity_limit: Option<String>,
}

/// A service that the router announces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdvertisedService {
    /// Name of the service.
    #[schemars(with = "String", extend("format" = "label"))]
    pub name: ServiceName,
    /// Namespace of the service; `default` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "label", "x-default" = "default"))]
    pub namespace: Option<Namespace>,
    /// Port of the service: what consumers connect to.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// `TCP` (the default) or `UDP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("enum" = ["TCP", "UDP"], "x-default" = "TCP"))]
    pub protocol: Option<Transport>,
    /// Backend that the router dials, `host:port`; without it the service waits for a provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "host-port"))]
    pub target: Option<String>,
    /// Share of new connections among providers of the same priority; 1 if absent, 0 gets none while others have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub weight: Option<u16>,
    /// Providers of a lower number are taken first; 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub priority: Option<u16>,
    /// How the backend's health is found out; without it the backend counts as healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<HealthCheck>,
    /// Most bytes per second of all flows to the backend together, each direction for itself, e.g. `10MB/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "rate"))]
    pub limit: Option<String>,
    /// How long a connection outlives the loss of its way, `0s` to `600s`; `60s` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "span"))]
    pub resume_window: Option<String>,
    /// How long a UDP association without packets is kept, `1s` to `1d`; `60s` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "span"))]
    pub idle_timeout: Option<String>,
}

/// An active check of a backend, made by the router that dials it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthCheck {
    /// Path that is asked for by HTTP; 2xx and 3xx are healthy. Without it a TCP connection is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Time between two checks, e.g. `5s`, which is what it is if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "span"))]
    pub interval: Option<String>,
    /// Time for one check; `2s` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "span"))]
    pub timeout: Option<String>,
    /// Failures in a row that make the backend unhealthy; 3 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub failures: Option<u16>,
    /// Successes in a row that make it healthy again; 2 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub recoveries: Option<u16>,
}

/// The transport of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// A stream of bytes.
    #[serde(rename = "TCP")]
    Tcp,
    /// Datagrams.
    #[serde(rename = "UDP")]
    Udp,
}

/// Listener settings in the words of frp's server, so that its documents apply unchanged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Frps {
    /// Address that the router listens on; all addresses if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "ip"))]
    pub bind_addr: Option<String>,
    /// UDP port that the router listens on; 7000 if absent, 0 takes a free one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_port: Option<u16>,
    /// Port of the dashboard; 7500 if absent, 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dashboard_port: Option<u16>,
    /// frp's KCP port; the router speaks QUIC on `bindPort`, so this one has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kcp_bind_port: Option<u16>,
    /// frp's QUIC port; the router speaks QUIC on `bindPort`, so this one has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quic_bind_port: Option<u16>,
    /// Address that public ports are bound to; `bindAddr` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "ip"))]
    pub proxy_bind_addr: Option<String>,
    /// Ports that public services may take.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub allow_ports: Vec<PortRange>,
    /// Whether clients are told why they were refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detailed_errors_to_client: Option<bool>,
    /// How many public ports one client may take; 0 for any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ports_per_client: Option<u32>,
    /// How long frp keeps the results of hole punching, in hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nathole_analysis_data_reserve_hours: Option<u32>,
    /// Largest UDP packet, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_packet_size: Option<u32>,
    /// How long a connection to a public port waits for its provider, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_conn_timeout: Option<u32>,
    /// How long frp waits for the answer of a web server, in seconds.
    #[serde(rename = "vhostHTTPTimeout", skip_serializing_if = "Option::is_none")]
    pub vhost_http_timeout: Option<u32>,
    /// frp's port for HTTP by name.
    #[serde(rename = "vhostHTTPPort", skip_serializing_if = "Option::is_none")]
    pub vhost_http_port: Option<u16>,
    /// frp's port for HTTPS by name.
    #[serde(rename = "vhostHTTPSPort", skip_serializing_if = "Option::is_none")]
    pub vhost_https_port: Option<u16>,
    /// Domain whose names belong to the router.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_domain_host: Option<String>,
    /// Whether frp shows metrics on its web server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_prometheus: Option<bool>,
    /// frp's generation of the settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The dashboard's listener and login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web_server: Option<WebServer>,
}

/// A range of ports, both ends included, or a single one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortRange {
    /// First port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub start: Option<u16>,
    /// Last port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end: Option<u16>,
    /// The only port, instead of `start` and `end`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub single: Option<u16>,
}

/// The dashboard's listener and login.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WebServer {
    /// Address that it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "ip"))]
    pub addr: Option<String>,
    /// Port that it listens on; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Name to log in with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Password to log in with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub password: Option<Secret>,
    /// Whether profiles are served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pprof_enable: Option<bool>,
    /// Folder with other pages for the dashboard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assets_dir: Option<String>,
}

/// A text that stands in an object but never in a log: `Debug` hides it and there is no `Display`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Default for Router {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            metadata: ObjectMeta::default(),
            spec: RouterSpec::default(),
            status: None,
        }
    }
}

impl Router {
    /// A router with nothing but a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            metadata: ObjectMeta::named(name),
            ..Self::default()
        }
    }

    /// Name of the router, which is the name of its node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.metadata.name
    }
}

impl Typed for Router {
    const ABOUT: About = About {
        group: GROUP,
        version: VERSION,
        kind: KIND,
        plural: PLURAL,
        singular: "router",
        resource: "routers.edge.example.com",
        short_names: &["rt"],
        categories: &["all", "keel"],
        has_status: true,
        names: Names::Node,
        columns: &COLUMNS,
        fields: &["status.cluster"],
        secrets: &["/spec/frps/webServer/password"],
        ..About::PLAIN
    };

    fn check(&self) -> Vec<FieldError> {
        self.spec.check()
    }
}

const COLUMNS: [Column; 10] = [
    Column::new("Name", "string", ".metadata.name", "Name of the node."),
    Column::new(
        "Ready",
        "string",
        ".status.conditions[?(@.type==\"Ready\")].status",
        "Whether the router runs.",
    ),
    Column::new(
        "Cluster",
        "string",
        ".status.cluster",
        "Cluster of the node.",
    ),
    Column::new(
        "Addresses",
        "string",
        ".status.addresses[*]",
        "How other nodes reach the router; none behind NAT.",
    ),
    Column::new(
        "Services",
        "string",
        ".status.activeServices[*].name",
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
        "Attached sidecars.",
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
        "How long the router has been up.",
    )
    .wide(),
    Column::new(
        "Heartbeat",
        "date",
        ".status.heartbeatTime",
        "When the node last said that it is alive.",
    )
    .wide(),
];

impl RouterSpec {
    /// What no schema can say: services announced twice, ranges that run backwards.
    pub(super) fn check(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Some(text) = &self.identity_limit
            && let Err(error) = text.parse::<Rate>()
        {
            let path = "spec.identityLimit".to_owned();
            errors.push(FieldError::invalid(path, text, &error.to_string()));
        }
        let mut seen = std::collections::BTreeSet::new();
        for (index, service) in self.advertised_services.iter().enumerate() {
            let namespace = service
                .namespace
                .as_ref()
                .map_or("default", Namespace::as_str);
            let protocol = service.protocol.unwrap_or(Transport::Tcp);
            if !seen.insert((service.name.as_str(), namespace, service.port, protocol)) {
                let value = format!("{}.{namespace}:{}", service.name, service.port);
                errors.push(FieldError::duplicate(
                    format!("spec.advertisedServices[{index}]"),
                    &value,
                ));
            }
            if protocol == Transport::Udp && service.check.is_some() {
                errors.push(FieldError::forbidden(
                    &format!("spec.advertisedServices[{index}].check"),
                    "is made over TCP, which says nothing of a service over UDP",
                ));
            }
            errors.extend(options(service).1.into_iter().map(|fault| {
                let path = format!("spec.advertisedServices[{index}].{}", fault.key);
                FieldError::invalid(path, &fault.value, &fault.why)
            }));
        }
        if let Some(frps) = &self.frps {
            errors.extend(frps.check("spec.frps"));
        }
        errors
    }
}

impl Frps {
    /// What no schema can say about settings that stand at `path`: ranges that run backwards.
    pub(super) fn check(&self, path: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (index, range) in self.allow_ports.iter().enumerate() {
            let path = format!("{path}.allowPorts[{index}]");
            match (range.start, range.end, range.single) {
                (Some(start), Some(end), None) if start > end => {
                    errors.push(FieldError::invalid(
                        path,
                        &format!("{start}-{end}"),
                        "start must not be above end",
                    ));
                }
                (Some(_), Some(_), None) | (None, None, Some(_)) => {}
                _ => errors.push(FieldError::required(
                    path,
                    "either start and end, or single",
                )),
            }
        }
        errors
    }
}

pub(super) fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
