//! Settings of a sidecar. Its environment names are those of the pods' manifests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use keel_certs::{Namespace, PodName};
use keel_sidecar::config::{ListenOn, SidecarConfig, Upstreams, parse_apiserver};
use keel_sidecar::options::{AllOptions, LimitArg, ServiceOption};
use keel_sidecar::spec::{parse_mapped, parse_published};
use keel_sidecar::udp::MaxAssociations;
use keel_sidecar::vip::IpRange;
use serde::Deserialize;

use super::limits::{self, LimitSetting};
use super::options;
use super::room::Room;
use super::values::{self, Span, TokenSource};
use super::{FileError, or_list, read_file};
use crate::errors::{Usage, chain};

/// Flags, environment and file of a sidecar, as they were given.
///
/// Services, the range and addresses stay text here: the sidecar's own parsers know their grammar.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SidecarFlags {
    /// Services to map here: name[.namespace[.cluster]][:port][/tcp|/udp], comma separated, `alias=` in front
    #[arg(
        long,
        env = "SIDECAR_MAPPED_SERVICES",
        value_name = "SERVICES",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "values::texts")]
    pub mapped_services: Vec<String>,
    /// Services to publish from here: name[.namespace[.cluster]][:port][/tcp|/udp]=host:port, comma separated
    #[arg(
        long,
        env = "SIDECAR_PUBLISHED_SERVICES",
        value_name = "SERVICES",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "values::texts")]
    pub published_services: Vec<String>,
    /// What is said about a service: service=key:value,..., e.g. mysql=limit:10MB/s,resume-window:30s; keys: limit,
    /// resume-window, weight, priority, sticky, check, check-interval, check-timeout, check-failures, check-recoveries,
    /// idle-timeout
    #[arg(
        long = "service-option",
        env = "SIDECAR_SERVICE_OPTIONS",
        value_name = "SERVICE=OPTIONS",
        value_delimiter = ';'
    )]
    #[serde(deserialize_with = "options::options")]
    pub service_options: Vec<ServiceOption>,
    /// Most bytes per second, each direction for itself: of a service (mysql=10MB/s), or of all together (10MB/s)
    #[arg(
        long,
        env = "SIDECAR_LIMIT",
        value_name = "[SERVICE=]RATE",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "options::limits")]
    pub limit: Vec<LimitArg>,
    /// Another value for a limit, e.g. processBuffers=64MiB; README has the table. In the file: `limits: {NAME: VALUE}`
    #[arg(
        long = "set-limit",
        env = "SIDECAR_LIMITS",
        value_name = "NAME=VALUE",
        value_delimiter = ','
    )]
    #[serde(rename = "limits", deserialize_with = "limits::settings")]
    pub set_limit: Vec<LimitSetting>,
    /// Addresses that mapped services get [default: 127.0.66.0/24]
    #[arg(long, env = "SIDECAR_IP_RANGE", value_name = "CIDR")]
    pub ip_range: Option<String>,
    /// Where DNS is answered, UDP and TCP [default: 127.0.0.2:53]
    #[arg(long, env = "SIDECAR_DNS_ADDR", value_name = "ADDR:PORT")]
    #[serde(deserialize_with = "values::text")]
    pub dns_addr: Option<SocketAddr>,
    /// Where other names are asked, comma separated, or `none` [default: the resolv.conf found at start]
    #[arg(
        long,
        env = "SIDECAR_DNS_UPSTREAM",
        value_name = "ADDR",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "values::texts")]
    pub dns_upstream: Vec<String>,
    /// More zones that are ours alone, besides clusterset.local
    #[arg(
        long,
        env = "SIDECAR_DNS_ZONE",
        value_name = "ZONE",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "values::texts")]
    pub dns_zone: Vec<String>,
    /// The APIServer [default: what the node's socket or the token says]
    #[arg(long, env = "SIDECAR_APISERVER", value_name = "URL")]
    pub apiserver: Option<String>,
    /// Join with this token: the token, @FILE, or - for standard input
    #[arg(
        long,
        env = "SIDECAR_JOIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    #[serde(deserialize_with = "values::text")]
    pub join: Option<TokenSource>,
    /// Directory with tls.crt, tls.key and ca.crt to use as the identity
    #[arg(long, env = "SIDECAR_IDENTITY_DIR", value_name = "DIR")]
    pub identity_dir: Option<PathBuf>,
    /// Where identity and snapshots are kept [default: <data directory>/sidecar/<namespace>.<pod>]
    #[arg(long, env = "SIDECAR_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory with imported-services-config.yaml and exported-services-config.yaml: nothing is read there yet
    #[arg(long, env = "SIDECAR_CONFIG_DIR", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Where /metrics, /healthz and /readyz are served [default: 127.0.0.1:1080]
    #[arg(long, env = "METRICS_ADDR", value_name = "ADDR:PORT")]
    #[serde(deserialize_with = "values::text")]
    pub metrics_addr: Option<SocketAddr>,
    /// Data directory of the node on this machine
    #[arg(long, env = "KEEL_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Name of this pod [default: <user>-<host>-<4 hex>]
    #[arg(long, env = "POD_NAME", value_name = "POD")]
    pub pod_name: Option<String>,
    /// Namespace of this pod [default: default]
    #[arg(long, env = "POD_NAMESPACE", value_name = "NS")]
    pub pod_namespace: Option<String>,
    /// How long a connection waits for an endpoint or a backend's answer [default: 10s]
    #[arg(long, env = "SIDECAR_CONNECT_TIMEOUT", value_name = "TIME")]
    #[serde(deserialize_with = "values::text")]
    pub connect_timeout: Option<Span>,
    /// YAML file with these settings, keys as the flags in camelCase
    #[arg(long, env = "SIDECAR_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// What the machine says, for the defaults.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The default data directory.
    pub data_dir: PathBuf,
    /// The host's name.
    pub host: String,
    /// The user's name.
    pub user: String,
}

/// The resolved settings of a sidecar. Made once, by [`SidecarFlags::resolve`].
#[derive(Debug, Clone)]
pub struct SidecarSettings {
    /// What the sidecar takes.
    pub config: SidecarConfig,
}

impl SidecarFlags {
    /// Reads the `--config` file, if one was given, and lays the flags over it.
    ///
    /// # Errors
    /// The file's, with file and line.
    pub fn with_file(self) -> Result<Self, FileError> {
        match &self.config {
            Some(path) => {
                let under: Self = read_file(path)?;
                Ok(self.over(under))
            }
            None => Ok(self),
        }
    }

    /// Lays these settings over `under`: what is set here wins.
    #[must_use]
    pub fn over(self, under: Self) -> Self {
        Self {
            mapped_services: or_list(self.mapped_services, under.mapped_services),
            published_services: or_list(self.published_services, under.published_services),
            service_options: or_list(self.service_options, under.service_options),
            limit: or_list(self.limit, under.limit),
            set_limit: limits::or(self.set_limit, under.set_limit),
            ip_range: self.ip_range.or(under.ip_range),
            dns_addr: self.dns_addr.or(under.dns_addr),
            dns_upstream: or_list(self.dns_upstream, under.dns_upstream),
            dns_zone: or_list(self.dns_zone, under.dns_zone),
            apiserver: self.apiserver.or(under.apiserver),
            join: self.join.or(under.join),
            identity_dir: self.identity_dir.or(under.identity_dir),
            state_dir: self.state_dir.or(under.state_dir),
            config_dir: self.config_dir.or(under.config_dir),
            metrics_addr: self.metrics_addr.or(under.metrics_addr),
            data_dir: self.data_dir.or(under.data_dir),
            pod_name: self.pod_name.or(under.pod_name),
            pod_namespace: self.pod_namespace.or(under.pod_namespace),
            connect_timeout: self.connect_timeout.or(under.connect_timeout),
            config: self.config.or(under.config),
        }
    }

    /// Parses what is text and fills in the defaults.
    ///
    /// # Errors
    /// A value that cannot be understood; the error names its flag and what to write instead.
    pub fn resolve(self, machine: &Machine) -> Result<SidecarSettings, Usage> {
        let namespace = match self.pod_namespace {
            Some(text) => parse("--pod-namespace", &text)?,
            None => Namespace::default_namespace(),
        };
        let data_dir = self
            .data_dir
            .clone()
            .unwrap_or_else(|| machine.data_dir.clone());
        let mut config = SidecarConfig::new(namespace.clone(), data_dir.join("sidecar"));
        let mapped = self.mapped_services.join(",");
        config.mapped = parse_mapped(&mapped, &namespace).map_err(wrong("--mapped-services"))?;
        let published = self.published_services.join(",");
        config.published =
            parse_published(&published, &namespace).map_err(wrong("--published-services"))?;
        for one in self.service_options {
            let added = config.options.add(one, &namespace);
            added.map_err(wrong("--service-option"))?;
        }
        let here = |options: &AllOptions| options.only_about(&config.mapped, &config.published);
        here(&config.options).map_err(wrong("--service-option"))?;
        for one in self.limit {
            let added = config.options.add_limit(one, &namespace);
            added.map_err(wrong("--limit"))?;
        }
        here(&config.options).map_err(wrong("--limit"))?;
        let users = u64::from(!config.mapped.is_empty()) + u64::from(!config.published.is_empty());
        let fitting = Room::of_process().fit(config.limits, users);
        config.limits = limits::set(fitting, self.set_limit)?;
        config.max_associations = MaxAssociations {
            port: config.limits.consumer.associations,
            client: config.limits.consumer.associations_per_client,
        };
        if let Some(text) = self.ip_range {
            config.ip_range = parse::<IpRange>("--ip-range", &text)?;
        }
        if let Some(address) = self.dns_addr {
            config.dns = ListenOn::given(address);
        }
        config.dns_upstreams = parse::<Upstreams>("--dns-upstream", &self.dns_upstream.join(","))?;
        config.dns_zones = self
            .dns_zone
            .iter()
            .filter(|text| !text.trim().trim_end_matches('.').is_empty())
            .map(|text| values::zone("--dns-zone", text))
            .collect::<Result<_, _>>()?;
        if let Some(url) = self.apiserver {
            config.apiserver = Some(parse_apiserver(&url).map_err(wrong("--apiserver"))?);
        }
        if let Some(dir) = &self.identity_dir {
            match std::fs::metadata(dir) {
                Ok(found) if !found.is_dir() => {
                    return Err(Usage(format!(
                        "--identity-dir {} is no directory; give the one with tls.crt, tls.key and ca.crt",
                        dir.display()
                    )));
                }
                Ok(_) => {}
                // Somebody may make it yet, as another container.
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "--identity-dir is waited for");
                }
            }
        }
        config.identity_dir = self.identity_dir;
        if let Some(dir) = self.data_dir.as_deref().filter(|dir| is_without_node(dir))
            && self.join.is_none()
            && config.identity_dir.is_none()
        {
            tracing::warn!(
                dir = %dir.display(),
                "--data-dir: there is no node (no workload.sock), so a node elsewhere on this machine is taken if there is one"
            );
        }
        config.workload_sockets = sockets(self.data_dir.as_deref(), &machine.data_dir);
        config.state_dir = self.state_dir;
        if let Some(text) = self.pod_name {
            config.pod = Some(parse::<PodName>("--pod-name", &text)?);
        }
        if let Some(source) = &self.join {
            match source.read() {
                Ok(token) => config.join = Some(token),
                // The file may go once it was used: whoever joined goes on as what it is.
                Err(error) if has_joined(&config) => {
                    tracing::warn!(
                        error = chain(&error),
                        "already joined, so the token is not needed"
                    );
                }
                Err(error) => return Err(wrong("--join")(error)),
            }
        }
        config.pod_base = format!("{}-{}", machine.user, machine.host);
        if let Some(address) = self.metrics_addr {
            config.metrics = ListenOn::given(address);
        }
        if let Some(span) = self.connect_timeout {
            if span.0.is_zero() {
                let text = "--connect-timeout 0s is out of range: write at least 1ms";
                return Err(Usage(text.to_owned()));
            }
            config.connect_timeout = span.0;
        }
        if let Some(dir) = self.config_dir {
            tracing::info!(dir = %dir.display(), "--config-dir: nothing is read there yet");
        }
        Ok(SidecarSettings { config })
    }
}

/// Whether a state directory that this sidecar may take holds an identity.
fn has_joined(config: &SidecarConfig) -> bool {
    let kept = |dir: &Path| dir.join("identity").join("tls.crt").exists();
    if let Some(dir) = &config.state_dir {
        return kept(dir);
    }
    let prefix = format!("{}.", config.namespace);
    let ours = |name: &str| match &config.pod {
        Some(pod) => name == format!("{prefix}{pod}"),
        None => name.starts_with(&prefix),
    };
    // No directory, or one that cannot be read, holds nothing for us.
    let entries = std::fs::read_dir(&config.state_root).into_iter().flatten();
    entries
        .flatten()
        .any(|entry| entry.file_name().to_str().is_some_and(ours) && kept(&entry.path()))
}

/// Whether no node serves from `dir`. One that cannot be looked into may have one.
fn is_without_node(dir: &Path) -> bool {
    matches!(dir.join(WORKLOAD_SOCK).try_exists(), Ok(false))
}

/// The socket of a node for the workloads beside it.
const WORKLOAD_SOCK: &str = "workload.sock";

/// Where a node's workload socket may be, in the order in which they are tried.
fn sockets(given: Option<&Path>, default: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<&Path> = given.into_iter().collect();
    dirs.extend([Path::new("/run/keel"), default, Path::new("/var/lib/keel")]);
    let mut all: Vec<PathBuf> = Vec::new();
    for dir in dirs {
        let socket = dir.join(WORKLOAD_SOCK);
        if !all.contains(&socket) {
            all.push(socket);
        }
    }
    all
}

fn parse<T: FromStr<Err: std::error::Error>>(flag: &str, text: &str) -> Result<T, Usage> {
    text.trim().parse().map_err(wrong(flag))
}

fn wrong<E: std::error::Error>(flag: &str) -> impl Fn(E) -> Usage {
    move |error| Usage(format!("{flag}: {}", chain(&error)))
}

#[cfg(test)]
mod tests;
