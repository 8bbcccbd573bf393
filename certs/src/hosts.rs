//! The DNS names and addresses that a node's certificates carry, so that ordinary TLS clients believe them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

/// Addresses of interfaces that [`Hosts::local`] takes at most.
const MAX_LOCAL: usize = 48;

/// DNS names and IP addresses of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// DNS names, lower case.
    #[serde(default)]
    pub dns: BTreeSet<String>,
    /// Addresses.
    #[serde(default)]
    pub ips: BTreeSet<IpAddr>,
}

impl Hosts {
    /// `localhost` and the two loopback addresses: what every node has.
    #[must_use]
    pub fn loopback() -> Self {
        Self {
            dns: BTreeSet::from(["localhost".to_owned()]),
            ips: BTreeSet::from([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
        }
    }

    /// Loopback, this machine's host name and the addresses of its interfaces. Link-local ones are left out (they mean
    /// nothing without an interface), and all after the first 48: a certificate has to stay small.
    #[must_use]
    pub fn local() -> Self {
        let mut hosts = Self::loopback();
        if let Some(name) = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
        {
            hosts.add(&name);
            // A host may be called `dev`, but no certificate may speak for all names below that.
            hosts.dns.retain(|name| !is_shared_suffix(name));
        }
        let mut addresses = BTreeSet::new();
        for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
            let Some(address) = interface.address else {
                continue;
            };
            let v4 = address
                .as_sockaddr_in()
                .map(|address| IpAddr::V4(address.ip()));
            let v6 = address
                .as_sockaddr_in6()
                .map(|address| IpAddr::V6(address.ip()));
            addresses.extend(v4.or(v6).filter(|ip| !is_link_local(*ip)));
        }
        hosts.ips.extend(addresses.into_iter().take(MAX_LOCAL));
        hosts
    }

    /// Adds a host name or address, as users write it. Text that is neither is ignored.
    pub fn add(&mut self, host: &str) {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = host.parse::<IpAddr>() {
            if !ip.is_unspecified() {
                self.ips.insert(ip);
            }
        } else if is_dns_name(host) {
            self.dns
                .insert(host.trim_end_matches('.').to_ascii_lowercase());
        }
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.dns.extend(other.dns.iter().cloned());
        self.ips.extend(other.ips.iter().copied());
    }
}

/// Whether a name is one that many hosts end in, so that permitting it would permit them all.
pub(crate) fn is_shared_suffix(name: &str) -> bool {
    const SHARED: &[&str] = &[
        "arpa", "cluster", "com", "dev", "home", "internal", "io", "lan", "local", "net", "org",
        "svc", "test",
    ];
    SHARED.contains(&name)
}

/// Whether `host` is a DNS name that a certificate may carry (no wildcard, no underscore at the ends of a label).
pub(crate) fn is_dns_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    rustls_pki_types::DnsName::try_from(host).is_ok() && host.len() <= 253
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_has_loopback_and_no_link_local() {
        let hosts = Hosts::local();
        assert!(hosts.dns.contains("localhost"));
        assert!(hosts.ips.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(!hosts.ips.iter().any(|ip| is_link_local(*ip)));
    }

    #[test]
    fn add_sorts_names_from_addresses() {
        let mut hosts = Hosts::default();
        for host in [
            "A.example.net",
            "192.0.2.1",
            "[2001:db8::1]",
            "0.0.0.0",
            "*.example.net",
            "a b",
            "",
        ] {
            hosts.add(host);
        }
        assert_eq!(hosts.dns, BTreeSet::from(["a.example.net".to_owned()]));
        assert_eq!(hosts.ips.len(), 2);
    }
}
