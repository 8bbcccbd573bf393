//! From what the router sees to the status that everybody reads, and when it is worth a durable write.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use keel_certs::ClusterName;
use keel_fabric::router::{ClientView, Role, RouterView, ServiceView};
use keel_fabric::wire::{Health, Protocol};

use super::compile::{Following, Plan};
use crate::api::{
    ActiveService, ClientStatus, Condition, Incidents, ProviderStatus, RouterStatus, ServiceStatus,
    Time,
};

/// Attached sidecars that a status names, of one service and in all: a status must stay far below the 1 MiB that an object may
/// have. The totals count all of them.
const MAX_CLIENTS: (usize, usize) = (100, 1000);

/// The condition that says whose settings are in force, if an FRPServer is to be followed.
pub(super) const FOLLOWS: &str = "FollowsFRPServer";

/// What besides the router's view goes into a status.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportContext {
    /// The node's cluster.
    pub cluster: ClusterName,
    /// The plan in force.
    pub plan: Plan,
    /// Addresses of this machine with the port that is really bound.
    pub node_addresses: Vec<SocketAddr>,
    /// Why the router does not do what its spec asks for, if so: a sentence.
    pub trouble: Option<String>,
}

/// Builds the status of this node's Router.
///
/// `previous` gives conditions that did not change their time.
#[must_use]
pub fn status(
    view: &RouterView,
    context: &ReportContext,
    previous: Option<&RouterStatus>,
    now: SystemTime,
) -> RouterStatus {
    let mut room = MAX_CLIENTS.1;
    let mut active_services: Vec<ActiveService> = view
        .services
        .iter()
        .map(|service| active(service, &context.cluster, &mut room))
        .collect();
    for announced in &context.plan.announced {
        let known = view.services.iter().any(|service| {
            service.service == announced.service
                && service.port == announced.port
                && service.protocol == announced.protocol
        });
        if !known {
            active_services.push(ActiveService {
                name: Some(announced.service.name.to_string()),
                namespace: Some(announced.service.namespace.to_string()),
                cluster: Some(context.cluster.to_string()),
                protocol: Some(protocol(announced.protocol).to_owned()),
                port: Some(announced.port),
                ..ActiveService::default()
            });
        }
    }
    for backend in &context.plan.backends {
        let own = active_services.iter_mut().find(|service| {
            service.name.as_deref() == Some(backend.service.name.as_str())
                && service.namespace.as_deref() == Some(backend.service.namespace.as_str())
                && service.port == Some(backend.port)
                && service.protocol.as_deref() == Some(protocol(backend.protocol))
        });
        if let Some(service) = own {
            service.target_port = Some(backend.backend.port());
        }
    }
    // Every service is reached through the router's own port, and a provider elsewhere serves it at the service's.
    let bound = context.node_addresses.first().map(SocketAddr::port);
    for service in &mut active_services {
        service.local_port = bound;
        service.target_port = service.target_port.or(service.port);
    }
    let totals = &view.totals;
    RouterStatus {
        cluster: Some(context.cluster.to_string()),
        addresses: context
            .plan
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        node_addresses: context
            .node_addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        conditions: conditions(context, previous, now),
        service_status: Some(ServiceStatus {
            total_clients: totals.clients,
            total_connections: totals.connections,
            total_proxies: active_services.len() as u64,
            total_bytes_in: totals.bytes_in,
            total_bytes_out: totals.bytes_out,
            uptime: uptime(match view.started {
                // The router has never run.
                SystemTime::UNIX_EPOCH => Duration::ZERO,
                started => now.duration_since(started).unwrap_or_default(),
            }),
            ..ServiceStatus::default()
        }),
        active_services,
        heartbeat_time: Some(Time::from(now)),
        ..RouterStatus::default()
    }
}

fn active(service: &ServiceView, cluster: &ClusterName, room: &mut usize) -> ActiveService {
    let since = |at| Some(Time::from(at));
    let named = service.clients.len().min(MAX_CLIENTS.0).min(*room);
    *room -= named;
    ActiveService {
        name: Some(service.service.name.to_string()),
        namespace: Some(service.service.namespace.to_string()),
        cluster: Some(cluster.to_string()),
        protocol: Some(protocol(service.protocol).to_owned()),
        port: Some(service.port),
        providers: service
            .providers
            .iter()
            .map(|provider| ProviderStatus {
                identity: provider.identity.to_string(),
                health: match provider.offer.health {
                    Health::Unknown => None,
                    known => Some(known.name().to_owned()),
                },
                weight: Some(provider.offer.weight).filter(|weight| *weight != 1),
                priority: Some(provider.offer.priority).filter(|priority| *priority != 0),
                since: since(provider.since),
                ..ProviderStatus::default()
            })
            .collect(),
        clients: service
            .clients
            .iter()
            .take(named)
            .map(|client| attached(client, service))
            .collect(),
        incidents: incidents(service),
        ..ActiveService::default()
    }
}

/// A flow that ends here is counted twice, by what passes and by its end; each tells what only it knows.
fn incidents(service: &ServiceView) -> Vec<Incidents> {
    let mut all: BTreeMap<&str, Incidents> = BTreeMap::new();
    for counts in &service.counts {
        if counts.resumes == 0 && counts.stalls == 0 && counts.resets.is_empty() {
            continue;
        }
        let told = all.entry(&counts.peer).or_insert_with(|| Incidents {
            identity: counts.peer.clone(),
            ..Incidents::default()
        });
        told.resumes += counts.resumes;
        told.stalls += counts.stalls;
        for (reason, count) in &counts.resets {
            *told.resets.entry((*reason).to_owned()).or_default() += count;
        }
    }
    all.into_values().collect()
}

fn attached(client: &ClientView, service: &ServiceView) -> ClientStatus {
    let who = client.identity.to_string();
    let last = who.rsplit('/').next().unwrap_or_default();
    ClientStatus {
        id: Some(format!("{last}-{}", service.service.name)),
        role: Some(match client.role {
            Role::Consumer => "consumer".to_owned(),
            Role::Provider => "provider".to_owned(),
        }),
        kind: Some(match service.protocol {
            Protocol::Tcp => "stcp".to_owned(),
            Protocol::Udp => "sudp".to_owned(),
        }),
        remote_addr: Some(client.remote.to_string()),
        service_name: Some(service.service.name.to_string()),
        connected_at: Some(Time::from(client.connected_at)),
        current_connections: Some(client.connections),
        bytes_in: Some(client.bytes_in),
        bytes_out: Some(client.bytes_out),
        ..ClientStatus::default()
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

fn conditions(
    context: &ReportContext,
    previous: Option<&RouterStatus>,
    now: SystemTime,
) -> Vec<Condition> {
    let plan = &context.plan;
    let mut all = vec![match &context.trouble {
        None => (
            "Ready",
            "True",
            "Running",
            format!("listening as {}", plan.listen),
        ),
        Some(trouble) => ("Ready", "False", "ListenFailed", trouble.clone()),
    }];
    if let Some(following) = &plan.following {
        all.push(follows(following));
        let unused = following.found.iter().flat_map(|found| &found.unused);
        let unused: Vec<&str> = unused.map(String::as_str).collect();
        if !unused.is_empty() {
            all.push((
                "SettingsWithoutEffect",
                "True",
                "NotUsedHere",
                format!("accepted, but without effect here: {}", unused.join(", ")),
            ));
        }
    }
    if !plan.overridden.is_empty() {
        all.push((
            "SpecOverridden",
            "True",
            "ExplicitFlag",
            plan.overridden.join("; "),
        ));
    }
    if !plan.faults.is_empty() {
        all.push(("SpecAccepted", "False", "Unusable", plan.faults.join("; ")));
    }
    let before = |kind: &str, status: &str| {
        let old = previous?
            .conditions
            .iter()
            .find(|old| old.kind == kind && old.status == status)?;
        old.last_transition_time.clone()
    };
    all.into_iter()
        .map(|(kind, status, reason, message)| Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: before(kind, status).or_else(|| Some(Time::from(now))),
            ..Condition::default()
        })
        .collect()
}

fn follows(following: &Following) -> (&'static str, &'static str, &'static str, String) {
    let name = &following.name;
    match &following.found {
        Some(found) => {
            let generation = found.generation.unwrap_or(0);
            let message = format!("settings of FRPServer {name}, generation {generation}");
            (FOLLOWS, "True", "Following", message)
        }
        None => {
            let message = format!("there is no FRPServer {name}: spec.frps is in force");
            (FOLLOWS, "False", "NotFound", message)
        }
    }
}

fn uptime(up: Duration) -> String {
    let seconds = up.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Whether two statuses differ in more than what only ticks (heartbeat, counters, uptime).
#[must_use]
pub fn state_changed(old: &RouterStatus, new: &RouterStatus) -> bool {
    still(old) != still(new)
}

/// The status without what only ticks.
fn still(status: &RouterStatus) -> RouterStatus {
    let mut still = status.clone();
    still.heartbeat_time = None;
    still.service_status = None;
    still.source = None;
    for service in &mut still.active_services {
        service.incidents.clear();
        for client in &mut service.clients {
            client.current_connections = None;
            client.bytes_in = None;
            client.bytes_out = None;
        }
    }
    still
}

#[cfg(test)]
mod tests;
