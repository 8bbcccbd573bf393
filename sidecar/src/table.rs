//! The table of names, addresses and ports, for people whose resolver does not ask us. Pure.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::dns::names::NameTable;
use crate::listener::{MappingState, PortState};
use crate::spec::Port;
use crate::start::Elsewhere;

/// Names, addresses and ports of all mappings, and how to make the names work if DNS listens at `dns`; `why` it is not port 53,
/// if it is not.
pub(crate) fn table(
    names: &NameTable,
    states: &[MappingState],
    (dns, why): (SocketAddr, Elsewhere),
) -> String {
    let mut text = String::from("mapped services:\n");
    let mut hosts = String::new();
    for state in states {
        let ports = if state.ports.is_empty() {
            "(ports appear with their first provider)".to_owned()
        } else {
            let port = |(port, what): (&Port, &PortState)| match what {
                PortState::Listening => port.to_string(),
                PortState::Failed(_) => format!("{port} (failed)"),
            };
            state.ports.iter().map(port).collect::<Vec<_>>().join(", ")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {:<32} {:<18} {ports}",
            state.target.to_string(),
            state.address.to_string()
        );
        let all = names.names_of(state.address);
        let short: Vec<&str> = all
            .into_iter()
            .filter(|name| !name.ends_with(".local"))
            .collect();
        if !short.is_empty() {
            let _ = writeln!(hosts, "  {} {}", state.address, short.join(" "));
        }
    }
    if dns.port() == 53 {
        let _ = write!(
            text,
            "names resolve for whoever asks {}: put `nameserver {}` first in /etc/resolv.conf",
            dns,
            dns.ip()
        );
        return text;
    }
    let (at_53, server) = match why {
        Elsewhere::Asked => (
            "give --dns-addr an address with port 53, like 127.0.0.2:53",
            "127.0.0.2",
        ),
        Elsewhere::Taken => (
            "give --dns-addr an address of its own, like 127.0.0.3:53",
            "127.0.0.3",
        ),
        Elsewhere::NotAllowed => (
            "allow port 53 with `sudo sysctl net.ipv4.ip_unprivileged_port_start=53`",
            "127.0.0.2",
        ),
    };
    let _ = write!(
        text,
        "DNS listens on {dns}, where no resolver looks by itself. To make the names work, do one of these:\n\
         - connect to the addresses above\n\
         - {at_53}, start again, and put `nameserver {server}` \
         first in /etc/resolv.conf\n\
         - ask directly: `dig @{} -p {} NAME`\n\
         - add these lines to /etc/hosts:\n{}",
        dns.ip(),
        dns.port(),
        hosts.trim_end()
    );
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::dns::names::NamedMapping;
    use crate::spec::ServiceRef;

    #[test]
    fn it_shows_names_addresses_ports_and_a_way_out() {
        let target: ServiceRef = "mysql.default".parse().unwrap();
        let address = "127.0.66.1".parse().unwrap();
        let mapping = NamedMapping {
            target: target.clone(),
            aliases: BTreeSet::new(),
            address,
        };
        let (names, _) = NameTable::build(&[mapping], &"default".parse().unwrap(), &[], &[]);
        let ports = BTreeMap::from([
            (Port::tcp(3306), PortState::Listening),
            (Port::udp(53), PortState::Listening),
            (Port::tcp(80), PortState::Failed("no".to_owned())),
        ]);
        let states = [MappingState {
            target,
            address,
            ports,
        }];
        let dns = "127.0.0.2:40053".parse().unwrap();
        let chosen = table(&names, &states, (dns, Elsewhere::Asked));
        assert!(!chosen.contains("sysctl") && chosen.contains("--dns-addr"));
        let beside = table(&names, &states, (dns, Elsewhere::Taken));
        assert!(!beside.contains("sysctl") && beside.contains("--dns-addr"));
        let text = table(&names, &states, (dns, Elsewhere::NotAllowed));
        for part in [
            "mysql.default",
            "127.0.66.1",
            "53/udp, 80 (failed), 3306",
            "-p 40053",
            "  127.0.66.1 mysql mysql.default mysql.default.svc",
            "ip_unprivileged_port_start",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
