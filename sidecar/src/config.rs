//! What a sidecar is told to do: one plain struct, resolved by whoever reads flags and environment.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use keel_certs::{JoinToken, Namespace, PodName};
use keel_fabric::Grace;
use keel_fabric::limits::Limits;
use keel_fabric::quic::HostPort;
use thiserror::Error;

use crate::options::AllOptions;
use crate::spec::{MappedService, PublishedService};
use crate::udp::MaxAssociations;
use crate::vip::IpRange;

/// Where DNS listens if nobody says: an address of its own, as resolv.conf has no syntax for ports.
pub const DEFAULT_DNS_ADDR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), 53);

/// Where metrics and health are served if nobody says.
pub const DEFAULT_METRICS_ADDR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);

/// An address to listen on, and whether somebody asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenOn {
    /// The address.
    pub address: SocketAddr,
    /// True if the user gave it: then it is that one or an error. A default that is not to be had gives way to a free port.
    pub given: bool,
}

impl ListenOn {
    /// A default.
    pub fn default_of(address: SocketAddr) -> Self {
        Self {
            address,
            given: false,
        }
    }

    /// An address that the user gave.
    pub fn given(address: SocketAddr) -> Self {
        Self {
            address,
            given: true,
        }
    }
}

/// Where names that are not mapped are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// At the name servers of the resolv.conf found at the start.
    ResolvConf,
    /// Nowhere: they do not exist.
    None,
    /// At these.
    Given(Vec<SocketAddr>),
}

/// `--dns-upstream` in no known form.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` is no DNS server; write its IP address like 10.0.0.2 or 10.0.0.2:53, several with commas, or none"
)]
pub struct UpstreamsError(String);

impl std::str::FromStr for Upstreams {
    type Err = UpstreamsError;

    fn from_str(text: &str) -> Result<Self, UpstreamsError> {
        if text.trim() == "none" {
            return Ok(Self::None);
        }
        let mut servers = Vec::new();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            let server = item.parse().or_else(|_| {
                let bare = item
                    .strip_prefix('[')
                    .and_then(|rest| rest.strip_suffix(']'))
                    .unwrap_or(item);
                bare.parse().map(|ip| SocketAddr::new(ip, 53))
            });
            let server: Option<SocketAddr> = server.ok();
            let server = server.filter(|server| server.port() > 0);
            servers.push(server.ok_or_else(|| UpstreamsError(item.to_owned()))?);
        }
        Ok(if servers.is_empty() {
            Self::ResolvConf
        } else {
            Self::Given(servers)
        })
    }
}

/// Everything that a sidecar is told.
#[derive(Debug, Clone)]
pub struct SidecarConfig {
    /// Services to reach here.
    pub mapped: Vec<MappedService>,
    /// Services to offer from here.
    pub published: Vec<PublishedService>,
    /// What is said about single services, and about all together.
    pub options: AllOptions,
    /// Bounds of what is carried.
    pub limits: Limits,
    /// Where the local addresses come from.
    pub ip_range: IpRange,
    /// Where DNS listens.
    pub dns: ListenOn,
    /// Who is asked for other names.
    pub dns_upstreams: Upstreams,
    /// Zones that are ours besides `clusterset.local`, lower case.
    pub dns_zones: Vec<String>,
    /// The resolv.conf in force at the start; its search domains count even with other upstreams.
    pub resolv_conf: PathBuf,
    /// The APIServer, if it is another one than the identity's source names.
    pub apiserver: Option<HostPort>,
    /// A token to join with.
    pub join: Option<JoinToken>,
    /// A directory with an identity that somebody else renews.
    pub identity_dir: Option<PathBuf>,
    /// Sockets at which a node hands out identities, in the order in which they are tried.
    pub workload_sockets: Vec<PathBuf>,
    /// Where the state is kept, if the user says so.
    pub state_dir: Option<PathBuf>,
    /// The directory for the state of sidecars without `state_dir`: `<data directory>/sidecar`.
    pub state_root: PathBuf,
    /// The namespace of this sidecar and of services named without one.
    pub namespace: Namespace,
    /// The name of the pod, if there is one.
    pub pod: Option<PodName>,
    /// What a name is made up from without a pod: `<user>-<host>`.
    pub pod_base: String,
    /// Where metrics and health are served.
    pub metrics: ListenOn,
    /// How long a connection waits for a provider.
    pub connect_timeout: Duration,
    /// UDP associations at a time; beyond that the idlest one makes room.
    pub max_associations: MaxAssociations,
    /// How long an identity is looked for before the sidecar gives up; `None` for ever.
    pub identity_timeout: Option<Duration>,
    /// How long live connections may go on when the sidecar stops; then they are reset.
    pub stop_grace: Grace,
}

impl SidecarConfig {
    /// A sidecar in `namespace` that maps and publishes nothing yet, with every default; state below `state_root`.
    pub fn new(namespace: Namespace, state_root: PathBuf) -> Self {
        Self {
            mapped: Vec::new(),
            published: Vec::new(),
            options: AllOptions::default(),
            limits: Limits::default(),
            ip_range: IpRange::default(),
            dns: ListenOn::default_of(DEFAULT_DNS_ADDR),
            dns_upstreams: Upstreams::ResolvConf,
            dns_zones: Vec::new(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            apiserver: None,
            join: None,
            identity_dir: None,
            workload_sockets: Vec::new(),
            state_dir: None,
            state_root,
            namespace,
            pod: None,
            pod_base: "sidecar".to_owned(),
            metrics: ListenOn::default_of(DEFAULT_METRICS_ADDR),
            connect_timeout: Duration::from_secs(10),
            max_associations: MaxAssociations::default(),
            identity_timeout: None,
            stop_grace: Duration::from_secs(5).into(),
        }
    }
}

/// `--apiserver` in no known form.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{url}` is no APIServer; write it like https://127.0.0.1:7443 ({why})")]
pub struct ApiserverError {
    url: String,
    why: String,
}

/// Port of an APIServer that is named without one.
const APISERVER_PORT: u16 = 7443;

/// Reads `--apiserver`: `https://host[:port]`, or `host:port`.
///
/// # Errors
/// Another scheme, a path, or no host.
pub fn parse_apiserver(url: &str) -> Result<HostPort, ApiserverError> {
    let wrong = |why: &str| ApiserverError {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let rest = match url.trim().split_once("://") {
        Some(("https", rest)) => rest,
        Some(_) => return Err(wrong("only https is spoken")),
        None => url.trim(),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('/') || rest.contains('@') {
        return Err(wrong(
            "nothing may stand before the host or behind the port",
        ));
    }
    let has_port = rest
        .rsplit_once(':')
        .is_some_and(|(host, _)| !host.starts_with('[') || host.ends_with(']'));
    let text = if has_port {
        rest.to_owned()
    } else {
        format!("{rest}:{APISERVER_PORT}")
    };
    text.parse()
        .map_err(|error: keel_fabric::quic::AddrError| wrong(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_addresses_with_or_without_a_port() {
        assert_eq!("none".parse(), Ok(Upstreams::None));
        assert!("8.8.8.8:0".parse::<Upstreams>().is_err());
        assert_eq!("".parse(), Ok(Upstreams::ResolvConf));
        let Ok(Upstreams::Given(servers)) =
            "10.0.0.2, fd00::1,[fd00::2],[fd00::3]:5353,1.1.1.1:54".parse()
        else {
            panic!()
        };
        let text: Vec<_> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "10.0.0.2:53",
                "[fd00::1]:53",
                "[fd00::2]:53",
                "[fd00::3]:5353",
                "1.1.1.1:54"
            ]
        );
        let error = "10.0.0.2,dns.example"
            .parse::<Upstreams>()
            .unwrap_err()
            .to_string();
        assert!(error.contains("`dns.example`"), "{error}");
    }

    #[test]
    fn an_apiserver_is_a_url_or_an_address() {
        for (text, expected) in [
            ("https://127.0.0.1:7443", "127.0.0.1:7443"),
            ("https://a.example/", "a.example:7443"),
            ("a.example:1", "a.example:1"),
            ("https://[::1]", "[::1]:7443"),
            ("https://[::1]:5", "[::1]:5"),
        ] {
            assert_eq!(parse_apiserver(text).unwrap().to_string(), expected);
        }
        for text in [
            "http://a:1",
            "https://a:1/x",
            "https://",
            "https://a:b",
            "https://u@a:1",
            "",
        ] {
            let error = parse_apiserver(text).unwrap_err().to_string();
            assert!(error.contains("https://127.0.0.1:7443"), "{error}");
        }
    }
}
