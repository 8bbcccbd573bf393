//! How Routers look to people.

use std::time::{Duration, SystemTime};

use keel_control::api::{ActiveService, Router, RouterStatus, SYNCED};

use super::table::{ago, render};

/// A table of `routers`; `wide` adds what is only sometimes wanted.
pub(crate) fn table(routers: &[Router], wide: bool, now: SystemTime) -> String {
    let rows: Vec<Vec<String>> = routers
        .iter()
        .map(|router| row(router, wide, now))
        .collect();
    let mut header = vec![
        "NAME",
        "CLUSTER",
        "READY",
        "HEARTBEAT",
        "REACHABLE AT",
        "SERVICES",
    ];
    if wide {
        header.extend(["PROVIDERS", "CLIENTS", "CONNECTIONS", "NODE ADDRESSES"]);
    }
    render(&header, &rows)
}

/// A table of the providers whose checks fail; none if all are well.
pub(crate) fn unhealthy(routers: &[Router]) -> Option<String> {
    let mut rows = Vec::new();
    for router in routers {
        let services = router
            .status
            .iter()
            .flat_map(|status| &status.active_services);
        for service in services {
            let sick = service.providers.iter().filter(|one| !one.is_healthy());
            rows.extend(sick.map(|one| {
                let name = self::service(service);
                vec![name, one.identity.clone(), router.name().to_owned()]
            }));
        }
    }
    let header = ["SERVICE", "UNHEALTHY PROVIDER", "AT ROUTER"];
    (!rows.is_empty()).then(|| render(&header, &rows))
}

fn row(router: &Router, wide: bool, now: SystemTime) -> Vec<String> {
    let unknown = RouterStatus::default();
    let status = router.status.as_ref().unwrap_or(&unknown);
    let mut row = vec![
        router.name().to_owned(),
        status.cluster.clone().unwrap_or_default(),
        ready(status, now),
        heartbeat(status, now),
        status.addresses.join(","),
        status
            .active_services
            .iter()
            .map(service)
            .collect::<Vec<_>>()
            .join(","),
    ];
    if wide {
        let totals = status.service_status.clone().unwrap_or_default();
        row.extend([
            status
                .active_services
                .iter()
                .map(|service| service.providers.len())
                .sum::<usize>()
                .to_string(),
            totals.total_clients.to_string(),
            totals.total_connections.to_string(),
            status.node_addresses.join(","),
        ]);
    }
    row
}

/// A Router that reported nothing for this long is not taken at its last word: three of the usual intervals.
const STALE: Duration = Duration::from_secs(90);

/// `True`, or the reason why not; `Unknown` if the Router never reported.
pub(crate) fn ready(status: &RouterStatus, now: SystemTime) -> String {
    let marked = status
        .conditions
        .iter()
        .any(|one| one.kind == SYNCED && one.status == "False");
    match status
        .conditions
        .iter()
        .find(|condition| condition.kind == "Ready")
    {
        None => "Unknown".to_owned(),
        Some(condition) if condition.status == "True" => match heard(status) {
            Some(then) if now.duration_since(then).is_ok_and(|age| age > STALE) => {
                "True (stale)".to_owned()
            }
            _ if marked => "True (stale)".to_owned(),
            _ => condition.status.clone(),
        },
        Some(condition) => format!("{} ({})", condition.status, condition.reason),
    }
}

/// How long ago the Router was last heard of.
pub(crate) fn heartbeat(status: &RouterStatus, now: SystemTime) -> String {
    match heard(status) {
        Some(then) => format!("{} ago", ago(then, now)),
        None => "never".to_owned(),
    }
}

fn heard(status: &RouterStatus) -> Option<SystemTime> {
    status
        .heartbeat_time
        .as_ref()
        .and_then(keel_control::api::Time::to_system_time)
}

/// `mysql.default:3306`.
pub(crate) fn service(service: &ActiveService) -> String {
    let name = service.name.as_deref().unwrap_or("?");
    let namespace = service.namespace.as_deref().unwrap_or("default");
    let protocol = match service.protocol.as_deref() {
        Some("UDP") => "/udp",
        _ => "",
    };
    match service.service_port() {
        Some(port) => format!("{name}.{namespace}:{port}{protocol}"),
        None => format!("{name}.{namespace}{protocol}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_that_never_reported_and_one_that_did() {
        let silent = Router::named("edge-b");
        let reporting: Router = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "edge-a"},
            "status": {"cluster": "site-1", "addresses": ["a.example.net:7000"], "heartbeatTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "message": ""}],
                "activeServices": [{"name": "mysql", "port": 3306}]}}))
        .unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + 12);
        let text = table(&[reporting, silent], false, now);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            lines[1],
            [
                "edge-a",
                "site-1",
                "True",
                "12s ago",
                "a.example.net:7000",
                "mysql.default:3306"
            ]
        );
        assert_eq!(lines[2], ["edge-b", "-", "Unknown", "never", "-", "-"]);
    }
}
