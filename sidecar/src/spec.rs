//! Services as people write them: `--mapped-services` and `--published-services`. Pure: text in, values out.
//!
//! Mapped: `[alias=]name[.namespace[.cluster]][:port][/tcp|/udp]`. Published: `name[.namespace[.cluster]][:port][/tcp|/udp]=host:port`.
//! Several are separated by commas; empty items (a trailing comma) are skipped. The suffixes `.svc`, `.svc.cluster.local` and
//! `.svc.clusterset.local` are dropped, so a name copied from somewhere else works.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use keel_certs::{ClusterName, NameError, Namespace, ServiceId, ServiceName};
use keel_fabric::quic::HostPort;
use keel_fabric::wire::Protocol;
use thiserror::Error;

/// Most services that one sidecar maps: each costs an address, listeners and a place in every answer of `/metrics`.
pub const MAX_MAPPED: usize = 100;

/// A service as a mapping means it: in every cluster that has it, or in one only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceRef {
    /// Name and namespace.
    pub service: ServiceId,
    /// The only cluster to use; `None` uses all, the own one first.
    pub cluster: Option<ClusterName>,
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cluster {
            Some(cluster) => write!(f, "{}.{cluster}", self.service),
            None => self.service.fmt(f),
        }
    }
}

impl std::str::FromStr for ServiceRef {
    type Err = NameError;

    /// Reads `name.namespace` or `name.namespace.cluster`.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.match_indices('.').nth(1) {
            Some((dot, _)) => Ok(Self {
                service: text[..dot].parse()?,
                cluster: Some(text[dot + 1..].parse()?),
            }),
            None => Ok(Self {
                service: text.parse()?,
                cluster: None,
            }),
        }
    }
}

/// A port of a service, as it is listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl Port {
    /// A TCP port.
    #[must_use]
    pub const fn tcp(number: u16) -> Self {
        Self {
            number,
            protocol: Protocol::Tcp,
        }
    }

    /// A UDP port.
    #[must_use]
    pub const fn udp(number: u16) -> Self {
        Self {
            number,
            protocol: Protocol::Udp,
        }
    }
}

/// As people write it: TCP goes without saying.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "{}", self.number),
            Protocol::Udp => write!(f, "{}/udp", self.number),
        }
    }
}

/// One item of `--mapped-services`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedService {
    /// A further name for the service, here only.
    pub alias: Option<ServiceName>,
    /// What is mapped.
    pub target: ServiceRef,
    /// The service's port; `None` maps every port that a provider offers.
    pub port: Option<u16>,
    /// What is carried.
    pub protocol: Protocol,
}

/// One item of `--published-services`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedService {
    /// Name and namespace; the cluster, if one was written, must be the node's.
    pub target: ServiceRef,
    /// The service's port, what consumers connect to.
    pub port: u16,
    /// What is carried.
    pub protocol: Protocol,
    /// Where the service really listens.
    pub backend: HostPort,
}

/// Why a list of services was refused. Names the item and the right form.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// One item is not in the form of its list.
    #[error("service `{item}`: {problem}; write it as `{form}`")]
    Item {
        /// The item as it was written.
        item: String,
        /// What is wrong with it.
        problem: String,
        /// The form that is right for the list.
        form: &'static str,
    },
    /// The same thing twice.
    #[error("service `{item}` is given twice ({what}); leave one of them out")]
    Duplicate {
        /// The second item as it was written.
        item: String,
        /// What both have in common.
        what: String,
    },
    /// More than [`MAX_MAPPED`].
    #[error(
        "{given} mapped services are given and at most {MAX_MAPPED} are possible; start a second sidecar for the others"
    )]
    TooMany {
        /// How many there are.
        given: usize,
    },
}

const MAPPED_FORM: &str = "[alias=]name[.namespace[.cluster]][:port][/tcp|/udp]";
const PUBLISHED_FORM: &str = "name[.namespace[.cluster]][:port][/tcp|/udp]=host:port";

/// Reads `--mapped-services`; `namespace` is the one of a bare name.
///
/// # Errors
/// An item in another form, a service or alias that occurs twice, more than [`MAX_MAPPED`] items.
pub fn parse_mapped(list: &str, namespace: &Namespace) -> Result<Vec<MappedService>, SpecError> {
    let items = items(list);
    if items.len() > MAX_MAPPED {
        return Err(SpecError::TooMany { given: items.len() });
    }
    let mut ports: BTreeMap<(ServiceRef, bool), BTreeSet<Option<u16>>> = BTreeMap::new();
    let mut aliases: BTreeMap<ServiceName, ServiceRef> = BTreeMap::new();
    let mut mapped = Vec::with_capacity(items.len());
    for item in items {
        let one =
            mapped_item(item, namespace).map_err(|problem| wrong(item, problem, MAPPED_FORM))?;
        let duplicate = |what: String| SpecError::Duplicate {
            item: item.to_owned(),
            what,
        };
        let taken = ports
            .entry((one.target.clone(), one.protocol == Protocol::Udp))
            .or_default();
        // A mapping without a port stands for every port, so nothing can stand beside it.
        if taken.contains(&None)
            || (one.port.is_none() && !taken.is_empty())
            || taken.contains(&one.port)
        {
            return Err(duplicate(format!("{} is already mapped", one.target)));
        }
        taken.insert(one.port);
        if let Some(alias) = &one.alias
            && let Some(other) = aliases.insert(alias.clone(), one.target.clone())
            && other != one.target
        {
            return Err(duplicate(format!(
                "alias {alias} already stands for {other}"
            )));
        }
        mapped.push(one);
    }
    if let Some((alias, one)) = mapped.iter().find_map(|one: &MappedService| {
        let alias = one.alias.as_ref()?;
        let clash = mapped.iter().find(|other| {
            other.target != one.target
                && other.target.service.name == *alias
                && other.target.service.namespace == *namespace
        })?;
        Some((alias, clash))
    }) {
        return Err(SpecError::Duplicate {
            item: one.target.to_string(),
            what: format!("the alias {alias} of another service has the same name"),
        });
    }
    Ok(mapped)
}

/// Reads `--published-services`; `namespace` is the one of a bare name.
///
/// # Errors
/// An item in another form; a service whose port and protocol occur twice.
pub fn parse_published(
    list: &str,
    namespace: &Namespace,
) -> Result<Vec<PublishedService>, SpecError> {
    let mut seen = BTreeSet::new();
    let mut published = Vec::new();
    for item in items(list) {
        let one = published_item(item, namespace)
            .map_err(|problem| wrong(item, problem, PUBLISHED_FORM))?;
        if !seen.insert((
            one.target.service.clone(),
            one.port,
            one.protocol == Protocol::Udp,
        )) {
            let what = format!(
                "{} port {} is already published",
                one.target.service, one.port
            );
            return Err(SpecError::Duplicate {
                item: item.to_owned(),
                what,
            });
        }
        published.push(one);
    }
    Ok(published)
}

fn items(list: &str) -> Vec<&str> {
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .collect()
}

fn wrong(item: &str, problem: String, form: &'static str) -> SpecError {
    SpecError::Item {
        item: item.to_owned(),
        problem,
        form,
    }
}

fn mapped_item(item: &str, namespace: &Namespace) -> Result<MappedService, String> {
    let (alias, rest) = match item.split_once('=') {
        Some((_, rest)) if looks_like_backend(rest) => {
            return Err("`=host:port` belongs to a published service".to_owned());
        }
        Some((alias, rest)) => {
            let alias = alias
                .parse::<ServiceName>()
                .map_err(|error| format!("alias `{alias}`: {error}"))?;
            (Some(alias), rest)
        }
        None => (None, item),
    };
    let (target, port, protocol) = service(rest, namespace)?;
    Ok(MappedService {
        alias,
        target,
        port,
        protocol,
    })
}

fn published_item(item: &str, namespace: &Namespace) -> Result<PublishedService, String> {
    let (name, backend) = item
        .split_once('=')
        .ok_or("no `=host:port` says where it listens")?;
    if backend.contains('=') {
        return Err("an alias is for mapped services only".to_owned());
    }
    let (target, port, protocol) = service(name, namespace)?;
    let backend: HostPort = backend
        .parse()
        .map_err(|error| format!("backend `{backend}`: {error}"))?;
    let port = port.unwrap_or(backend.port());
    if port == 0 {
        return Err("port 0 cannot be connected to".to_owned());
    }
    Ok(PublishedService {
        target,
        port,
        protocol,
        backend,
    })
}

/// `name[.namespace[.cluster]][:port][/protocol]`
pub(crate) fn service(
    text: &str,
    default: &Namespace,
) -> Result<(ServiceRef, Option<u16>, Protocol), String> {
    let (text, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((text, "tcp")) => (text, Protocol::Tcp),
        Some((text, "udp")) => (text, Protocol::Udp),
        Some((_, other)) => {
            return Err(format!("`{other}` is not a protocol, only tcp and udp are"));
        }
    };
    let (name, port) = match text.split_once(':') {
        None => (text, None),
        Some((name, port)) => match port.parse::<u16>() {
            // `+80` parses as a number but is nothing that anybody means.
            Ok(number @ 1..) if port.bytes().all(|b| b.is_ascii_digit()) => (name, Some(number)),
            _ => {
                return Err(format!(
                    "`{port}` is not a port, a number from 1 to 65535 is"
                ));
            }
        },
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let name = [".svc.cluster.local", ".svc.clusterset.local", ".svc"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name);
    let mut labels = name.split('.');
    let service = label::<ServiceName>(labels.next().unwrap_or_default())?;
    let namespace = labels.next().map(label::<Namespace>).transpose()?;
    let cluster = labels.next().map(label::<ClusterName>).transpose()?;
    if labels.next().is_some() {
        return Err("there are more than three parts between the dots".to_owned());
    }
    let service = ServiceId {
        name: service,
        namespace: namespace.unwrap_or_else(|| default.clone()),
    };
    Ok((ServiceRef { service, cluster }, port, protocol))
}

fn label<T>(text: &str) -> Result<T, String>
where
    T: std::str::FromStr<Err = NameError>,
{
    text.parse().map_err(|error: NameError| error.to_string())
}

/// True for what can only be the right-hand side of a published service.
fn looks_like_backend(text: &str) -> bool {
    text.starts_with('[')
        || text
            .rsplit_once(':')
            .is_some_and(|(host, _)| host.parse::<std::net::IpAddr>().is_ok())
}

#[cfg(test)]
mod tests;
