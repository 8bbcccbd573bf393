//! From what a node was told (flags, its Router's spec) to what its router does. Pure.

use std::net::IpAddr;

use keel_certs::{Namespace, ServiceId};
use keel_fabric::provider::Publication;
use keel_fabric::quic::{HostPort, ListenAddr};
use keel_fabric::units::Rate;
use keel_fabric::wire::Protocol;

use crate::api::{AdvertisedService, FrpServer, RouterSpec, Transport, options};

/// The port that a router listens on when nobody says otherwise.
pub const DEFAULT_PORT: u16 = 7000;

/// What the command line holds fast, whatever the spec says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterFlags {
    /// `--router-listen`, if it was given.
    pub listen: Option<ListenAddr>,
    /// `--advertise`, if it was given.
    pub advertise: Vec<HostPort>,
    /// `--identity-limit`, if it was given.
    pub identity_limit: Option<Rate>,
    /// `--follow`: the FRPServer whose settings take the place of `spec.frps`.
    pub follow: Option<String>,
}

/// What a router has to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Where it listens.
    pub listen: ListenAddr,
    /// What says so: a flag, or a part of a spec.
    pub listen_said_by: String,
    /// How other nodes reach it; empty if they cannot.
    pub addresses: Vec<HostPort>,
    /// Most bytes per second of each identity, each direction for itself.
    pub identity_limit: Option<Rate>,
    /// Services whose backend the router dials itself.
    pub backends: Vec<Publication>,
    /// Services that are announced and wait for a provider.
    pub announced: Vec<Announced>,
    /// The FRPServer that is followed, if one is to be.
    pub following: Option<Following>,
    /// Parts of the spec that a flag holds fast, each as a sentence.
    pub overridden: Vec<String>,
    /// Parts of the spec that cannot be used, each as a sentence. The rest is used all the same.
    pub faults: Vec<String>,
}

/// The FRPServer that a router follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Following {
    /// Its name.
    pub name: String,
    /// What of it is in force; `None` while there is no such FRPServer.
    pub found: Option<Found>,
}

/// The settings of an FRPServer that are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its `metadata.generation`.
    pub generation: Option<i64>,
    /// Fields of its spec that have no effect here.
    pub unused: Vec<String>,
}

/// What of frp's settings a router uses; all else is accepted and told.
const USED: [&str; 2] = ["bindAddr", "bindPort"];

/// A service that waits for a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The service.
    pub service: ServiceId,
    /// Its port.
    pub port: u16,
    /// Its transport.
    pub protocol: Protocol,
}

/// Decides what the router does: an explicit flag wins over the spec, the spec over the default. `followed` is the FRPServer that
/// `--follow` names, if there is one.
#[must_use]
pub fn compile(spec: &RouterSpec, followed: Option<&FrpServer>, flags: &RouterFlags) -> Plan {
    let mut plan = Plan {
        listen: ListenAddr::any(DEFAULT_PORT),
        listen_said_by: "--router-listen".to_owned(),
        addresses: Vec::new(),
        identity_limit: None,
        backends: Vec::new(),
        announced: Vec::new(),
        following: flags.follow.clone().map(|name| Following {
            name,
            found: followed.map(found),
        }),
        overridden: Vec::new(),
        faults: Vec::new(),
    };
    listen(&mut plan, spec, followed, flags);
    addresses(&mut plan, spec, flags);
    identity_limit(&mut plan, spec, flags);
    for service in &spec.advertised_services {
        advertise(&mut plan, service);
    }
    plan
}

fn found(server: &FrpServer) -> Found {
    let said = serde_json::to_value(&server.spec).unwrap_or_default();
    let fields = said.as_object().into_iter().flatten();
    let names = fields.map(|(name, _)| name.clone());
    Found {
        generation: server.metadata.generation,
        unused: names
            .filter(|name| !USED.contains(&name.as_str()))
            .collect(),
    }
}

fn listen(plan: &mut Plan, spec: &RouterSpec, followed: Option<&FrpServer>, flags: &RouterFlags) {
    let own = spec.frps.clone().unwrap_or_default();
    let (frps, place) = match (followed, &flags.follow) {
        (Some(server), Some(name)) => {
            if spec.frps.is_some() && own != server.spec {
                plan.overridden
                    .push(format!("--follow {name} overrides spec.frps"));
            }
            (server.spec.clone(), format!("FRPServer {name}: spec"))
        }
        _ => (own, "spec.frps".to_owned()),
    };
    let mut wanted = None;
    if frps.bind_addr.is_some() || frps.bind_port.is_some() {
        let port = frps.bind_port.unwrap_or(DEFAULT_PORT);
        match frps.bind_addr.as_deref().map(str::parse::<IpAddr>) {
            // frp's word for every address; on Linux that includes IPv6, which takes a socket of its own here.
            None => wanted = Some(ListenAddr::any(port)),
            Some(Ok(ip)) => wanted = Some(ListenAddr::from(std::net::SocketAddr::new(ip, port))),
            Some(Err(_)) => plan.faults.push(format!(
                "{place}.bindAddr {:?} is no IP address; the router listens on every address",
                frps.bind_addr.unwrap_or_default(),
            )),
        }
    }
    plan.listen = match (flags.listen, wanted) {
        (Some(flag), Some(spec)) if flag != spec => {
            plan.overridden
                .push(format!("--router-listen {flag} overrides {place} {spec}"));
            flag
        }
        (Some(flag), _) => flag,
        (None, Some(spec)) => {
            plan.listen_said_by = place;
            spec
        }
        (None, None) => plan.listen,
    };
}

fn addresses(plan: &mut Plan, spec: &RouterSpec, flags: &RouterFlags) {
    let mut wanted = Vec::new();
    for text in &spec.addresses {
        match text.parse::<HostPort>() {
            Ok(address) => wanted.push(address),
            Err(error) => plan.faults.push(format!("spec.addresses: {error}")),
        }
    }
    if flags.advertise.is_empty() {
        plan.addresses = wanted;
        return;
    }
    if !wanted.is_empty() && wanted != flags.advertise {
        let list = |all: &[HostPort]| {
            all.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        plan.overridden.push(format!(
            "--advertise {} overrides spec.addresses {}",
            list(&flags.advertise),
            list(&wanted),
        ));
    }
    plan.addresses.clone_from(&flags.advertise);
}

fn identity_limit(plan: &mut Plan, spec: &RouterSpec, flags: &RouterFlags) {
    let wanted = match spec.identity_limit.as_deref().map(str::parse::<Rate>) {
        None => None,
        Some(Ok(rate)) => Some(rate),
        Some(Err(error)) => {
            plan.faults.push(format!("spec.identityLimit: {error}"));
            None
        }
    };
    if let (Some(flag), Some(spec)) = (flags.identity_limit, wanted)
        && flag != spec
    {
        plan.overridden.push(format!(
            "--identity-limit {flag} overrides spec.identityLimit {spec}"
        ));
    }
    plan.identity_limit = flags.identity_limit.or(wanted);
}

fn advertise(plan: &mut Plan, wanted: &AdvertisedService) {
    let service = ServiceId {
        name: wanted.name.clone(),
        namespace: wanted
            .namespace
            .clone()
            .unwrap_or_else(Namespace::default_namespace),
    };
    let protocol = match wanted.protocol.unwrap_or(Transport::Tcp) {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    };
    let port = wanted.port;
    let same = |other: &ServiceId, at: u16, kind: Protocol| {
        *other == service && at == port && kind == protocol
    };
    let known = plan
        .backends
        .iter()
        .any(|known| same(&known.service, known.port, known.protocol))
        || plan
            .announced
            .iter()
            .any(|known| same(&known.service, known.port, known.protocol));
    if known {
        plan.faults.push(format!(
            "spec.advertisedServices has {service}:{port} twice; the first one counts"
        ));
        return;
    }
    match wanted.target.as_deref().map(str::parse::<HostPort>) {
        None => plan.announced.push(Announced {
            service,
            port,
            protocol,
        }),
        Some(Ok(backend)) => {
            let (options, faults) = options(wanted);
            plan.faults.extend(faults.into_iter().map(|fault| {
                format!(
                    "spec.advertisedServices {service}:{port}: {} {:?}: {}",
                    fault.key, fault.value, fault.why
                )
            }));
            plan.backends.push(Publication {
                service,
                port,
                protocol,
                backend,
                options,
            });
        }
        Some(Err(error)) => plan.faults.push(format!(
            "spec.advertisedServices {service}:{port}: target: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> RouterSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn nothing_said_means_port_7000_behind_nat() {
        let plan = compile(&RouterSpec::default(), None, &RouterFlags::default());
        assert_eq!(plan.listen.to_string(), ":7000");
        assert!(plan.addresses.is_empty() && plan.backends.is_empty() && plan.faults.is_empty());
    }

    #[test]
    fn the_spec_wins_over_the_default_and_the_flag_over_the_spec() {
        let spec = spec(serde_json::json!({
            "frps": {"bindAddr": "127.0.0.1", "bindPort": 7100}, "addresses": ["203.0.113.10:7000"],
            "identityLimit": "10MB/s"}));
        let plan = compile(&spec, None, &RouterFlags::default());
        assert_eq!(plan.listen.to_string(), "127.0.0.1:7100");
        assert_eq!(plan.identity_limit, Some("10MB/s".parse().unwrap()));
        assert_eq!(plan.addresses[0].to_string(), "203.0.113.10:7000");
        assert!(plan.overridden.is_empty());

        let flags = RouterFlags {
            listen: Some(ListenAddr::any(7200)),
            advertise: vec!["a.example.net:7200".parse().unwrap()],
            identity_limit: Some("1MB/s".parse().unwrap()),
            follow: None,
        };
        let plan = compile(&spec, None, &flags);
        assert_eq!(plan.listen.to_string(), ":7200");
        assert_eq!(plan.addresses[0].to_string(), "a.example.net:7200");
        assert_eq!(plan.identity_limit, flags.identity_limit);
        assert_eq!(plan.overridden.len(), 3, "{:?}", plan.overridden);
        assert!(plan.overridden[0].contains("127.0.0.1:7100"));
        assert_eq!(
            plan.overridden[2],
            "--identity-limit 1MB/s overrides spec.identityLimit 10MB/s"
        );
    }

    #[test]
    fn a_flag_that_says_the_same_overrides_nothing() {
        let spec = spec(serde_json::json!({"frps": {"bindPort": 7000}}));
        let flags = RouterFlags {
            listen: Some(ListenAddr::any(7000)),
            ..RouterFlags::default()
        };
        assert!(compile(&spec, None, &flags).overridden.is_empty());
    }

    #[test]
    fn services_with_a_target_are_dialled_and_others_announced() {
        let plan = compile(
            &spec(serde_json::json!({"advertisedServices": [
                {"name": "mysql", "port": 3306, "target": "10.0.0.5:3306"},
                {"name": "redis", "namespace": "cache", "port": 6379},
                {"name": "mysql", "namespace": "default", "port": 3306, "target": "10.0.0.6:3306"},
                {"name": "web", "port": 80, "target": "nonsense"}]})),
            None,
            &RouterFlags::default(),
        );
        assert_eq!(plan.backends.len(), 1);
        assert_eq!(plan.backends[0].service.to_string(), "mysql.default");
        assert_eq!(plan.backends[0].backend.to_string(), "10.0.0.5:3306");
        assert_eq!(plan.announced[0].service.to_string(), "redis.cache");
        assert_eq!(plan.faults.len(), 2, "{:?}", plan.faults);
        assert!(plan.faults[0].contains("twice") && plan.faults[1].contains("web.default:80"));
    }

    #[test]
    fn a_wrong_bind_address_is_a_fault_and_not_the_end() {
        let plan = compile(
            &spec(serde_json::json!({"frps": {"bindAddr": "everywhere"}})),
            None,
            &RouterFlags::default(),
        );
        assert_eq!(plan.listen.to_string(), ":7000");
        assert_eq!(plan.faults.len(), 1);
    }

    #[test]
    fn an_frpserver_takes_the_place_of_the_listener_settings() {
        let spec = spec(serde_json::json!({
            "frps": {"bindPort": 7100}, "advertisedServices": [{"name": "mysql", "port": 3306}]}));
        let flags = RouterFlags {
            follow: Some("sample".into()),
            ..RouterFlags::default()
        };
        // The sample of frp's operator.
        let server: FrpServer = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "sample", "generation": 3},
            "spec": {"bindAddr": "0.0.0.0", "bindPort": 17000, "kcpBindPort": 17000, "proxyBindAddr": "0.0.0.0",
                "allowPorts": [{"start": 2000, "end": 2000}], "udpPacketSize": 1500, "vhostHTTPTimeout": 60, "version": "v1",
                "webServer": {"addr": "0.0.0.0", "password": "s3cret", "port": 7500, "user": "admin"}},
        }))
        .unwrap();
        let plan = compile(&spec, Some(&server), &flags);
        assert_eq!(plan.listen.to_string(), "0.0.0.0:17000");
        assert_eq!(plan.announced.len(), 1, "services are the Router's own");
        assert_eq!(plan.overridden, ["--follow sample overrides spec.frps"]);
        let found = plan.following.unwrap().found.unwrap();
        assert_eq!(found.generation, Some(3));
        let expected = [
            "allowPorts",
            "kcpBindPort",
            "proxyBindAddr",
            "udpPacketSize",
            "version",
            "vhostHTTPTimeout",
            "webServer",
        ];
        assert_eq!(found.unused, expected);

        let missing = compile(&spec, None, &flags);
        assert_eq!(missing.listen.to_string(), ":7100");
        assert_eq!(missing.following.unwrap().found, None);
        let flags = RouterFlags {
            listen: Some(ListenAddr::any(7200)),
            ..flags
        };
        let held = compile(&RouterSpec::default(), Some(&server), &flags);
        assert_eq!(held.listen.to_string(), ":7200");
        assert!(
            held.overridden[0].contains("FRPServer sample"),
            "{:?}",
            held.overridden
        );
    }
}
