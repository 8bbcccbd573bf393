//! The DNS names and addresses that a node's certificates carry, so that ordinary TLS clients believe them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Deserializer, Serialize, de};

/// Addresses of interfaces that [`Hosts::local`] takes at most.
const MAX_LOCAL: usize = 48;

/// DNS names and IP addresses of a node. Reading them brings each into the one form that is compared, and fails for names
/// that no certificate may carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hosts {
    /// DNS names: lower case, no dot at the end, no wildcard.
    pub dns: BTreeSet<String>,
    /// Addresses: none is an IPv4 address in the form of an IPv6 one.
    pub ips: BTreeSet<IpAddr>,
}

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct AsWritten {
            dns: Vec<String>,
            ips: Vec<IpAddr>,
        }
        let written = AsWritten::deserialize(deserializer)?;
        let mut hosts = Self::default();
        for name in &written.dns {
            if !hosts.add_name(name) {
                let name: String = name.chars().take(100).collect();
                let why = format!(
                    "the host {name:?} cannot be put into a certificate: give a full DNS name"
                );
                return Err(de::Error::custom(why));
            }
        }
        for ip in written.ips {
            hosts.add_ip(ip);
        }
        Ok(hosts)
    }
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
        match host.parse::<IpAddr>() {
            Ok(ip) => self.add_ip(ip),
            // What is no name is ignored.
            Err(_) => drop(self.add_name(host)),
        }
    }

    fn add_ip(&mut self, ip: IpAddr) {
        let ip = ip.to_canonical();
        if !ip.is_unspecified() {
            self.ips.insert(ip);
        }
    }

    /// Whether it is a name.
    fn add_name(&mut self, name: &str) -> bool {
        let is_name = is_dns_name(name);
        if is_name {
            self.dns
                .insert(name.trim_end_matches('.').to_ascii_lowercase());
        }
        is_name
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

    #[test]
    fn what_others_write_is_read_in_one_form_or_refused() {
        let read = |json: &str| serde_json::from_str::<Hosts>(json);
        let hosts = read(
            r#"{"dns":["A.Example.NET.","a.example.net"],"ips":["::ffff:192.0.2.1","192.0.2.1","::"]}"#,
        );
        let mut expected = Hosts::default();
        expected.add("a.example.net");
        expected.add("192.0.2.1");
        assert_eq!(hosts.unwrap(), expected);
        assert_eq!(read("{}").unwrap(), Hosts::default());
        for name in [
            "*.example.net",
            "a b",
            "",
            ".",
            ".example.net",
            "a..b",
            "192.0.2.1",
        ] {
            let error = read(&serde_json::json!({ "dns": [name] }).to_string()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
