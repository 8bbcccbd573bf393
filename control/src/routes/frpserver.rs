//! What a router reports into the FRPServer that it follows: its own status in frp's words.

use std::sync::Arc;

use keel_certs::NodeName;
use serde_json::json;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::compile::Plan;
use super::report::FOLLOWS;
use super::reporter::StatusSink;
use crate::api::{
    ActiveConnection, ActiveService, ClientStatus, Condition, FrpServerStatus, RouterStatus, SYNCED,
};
use crate::client::{Client, ClientError};

/// Writes a Router's status, and the same in frp's words to the FRPServer that the router follows.
#[derive(Debug)]
pub struct StatusWriter {
    client: Client,
    plan: watch::Receiver<Arc<Plan>>,
}

impl StatusWriter {
    /// A writer at the APIServer of `client`; `plan` says who is followed.
    #[must_use]
    pub fn new(client: Client, plan: watch::Receiver<Arc<Plan>>) -> Self {
        Self { client, plan }
    }
}

impl StatusSink for StatusWriter {
    async fn write(&self, node: &NodeName, status: &RouterStatus) -> Result<(), ClientError> {
        self.client.apply_status(node, status).await?;
        let following = self.plan.borrow().following.clone();
        let Some((name, found)) = following.and_then(|one| Some((one.name, one.found?))) else {
            return Ok(());
        };
        let status = frpserver_status(status, found.generation);
        // The Router's own status counts; this one is written again with its next.
        match self.client.apply_frpserver_status(&name, &status).await {
            Ok(()) => {}
            Err(error) if error.is_not_found() => {
                debug!(
                    frpserver = name,
                    "the FRPServer is gone: nothing is reported there"
                );
            }
            Err(error) => warn!(frpserver = name, %error, "cannot report to the FRPServer"),
        }
        Ok(())
    }
}

/// The status of a Router in the words of frp's operator, for settings of this generation.
#[must_use]
pub fn frpserver_status(router: &RouterStatus, generation: Option<i64>) -> FrpServerStatus {
    let own = |condition: &&Condition| condition.kind != FOLLOWS && condition.kind != SYNCED;
    let conditions = router.conditions.iter().filter(own);
    FrpServerStatus {
        active_connections: router.active_services.iter().map(connection).collect(),
        conditions: conditions
            .map(|condition| Condition {
                observed_generation: generation,
                ..condition.clone()
            })
            .collect(),
        service_status: router.service_status.clone(),
        ..FrpServerStatus::default()
    }
}

/// One published service; frp counts it as one connection of its client.
fn connection(service: &ActiveService) -> ActiveConnection {
    let name = service.name.as_deref().unwrap_or_default();
    let namespace = service.namespace.as_deref().unwrap_or("default");
    let proxy_name = format!("{name}.{namespace}");
    let proxy_type = match service.protocol.as_deref() {
        Some("UDP") => "sudp",
        _ => "stcp",
    };
    let is = |role: &'static str| {
        let clients = service.clients.iter();
        clients.filter(move |client| client.role.as_deref() == Some(role))
    };
    let sum = |of: fn(&ClientStatus) -> Option<u64>| is("consumer").filter_map(of).sum();
    let config = json!({
        "name": proxy_name, "type": proxy_type, "remotePort": service.service_port(), "localPort": service.target_port,
    });
    let config = config.as_object().cloned().unwrap_or_default();
    let online = service.providers.iter().any(|one| one.is_healthy());
    let first = service.providers.first();
    let times = service.providers.iter().filter_map(|one| one.since.clone());
    ActiveConnection {
        proxy_config: config
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect(),
        proxy_name,
        proxy_type: proxy_type.to_owned(),
        status: if online { "online" } else { "offline" }.to_owned(),
        client_name: first.map(|one| one.identity.clone()).unwrap_or_default(),
        remote_addr: is("provider")
            .find_map(|client| client.remote_addr.clone())
            .unwrap_or_default(),
        start_time: times.min_by_key(|time| time.to_system_time()),
        current_connections: sum(|client| client.current_connections),
        bytes_in: sum(|client| client.bytes_in),
        bytes_out: sum(|client| client.bytes_out),
        ..ActiveConnection::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_speaks_in_the_words_of_frps_operator() {
        let router: RouterStatus = serde_json::from_value(json!({
            "activeServices": [
                {"name": "mysql", "namespace": "abc", "protocol": "TCP", "port": 3306, "targetPort": 13306,
                 "providers": [{"identity": "/node/b/ns/abc/pod/db-0", "health": "healthy", "since": "2026-01-02T00:00:00Z"}],
                 "clients": [
                    {"id": "db-0-mysql", "role": "provider", "remoteAddr": "198.51.100.7:40112", "bytesIn": 1},
                    {"id": "one", "role": "consumer", "currentConnections": 2, "bytesIn": 10, "bytesOut": 20},
                    {"id": "two", "role": "consumer", "currentConnections": 1, "bytesIn": 5, "bytesOut": 6}]},
                {"name": "ntp", "protocol": "UDP", "port": 123, "providers": []}],
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "Running", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "FollowsFRPServer", "status": "True"}, {"type": "SettingsWithoutEffect", "status": "True"}],
            "serviceStatus": {"totalClients": 3, "uptime": "12s"},
        }))
        .unwrap();
        let status = serde_json::to_value(frpserver_status(&router, Some(4))).unwrap();
        let [mysql, ntp] = [0, 1].map(|at| &status["activeConnections"][at]);
        assert_eq!(
            (&mysql["proxyName"], &mysql["proxyType"], &mysql["status"]),
            (&json!("mysql.abc"), &json!("stcp"), &json!("online"))
        );
        assert_eq!(mysql["proxyConfig"]["remotePort"], 3306);
        assert_eq!(
            (
                &mysql["currentConnections"],
                &mysql["bytesIn"],
                &mysql["bytesOut"]
            ),
            (&json!(3), &json!(15), &json!(26))
        );
        assert_eq!(mysql["remoteAddr"], "198.51.100.7:40112");
        assert_eq!(mysql["startTime"], "2026-01-02T00:00:00Z");
        assert_eq!(
            (&ntp["proxyName"], &ntp["status"]),
            (&json!("ntp.default"), &json!("offline"))
        );
        let conditions: Vec<_> = status["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["type"])
            .collect();
        assert_eq!(conditions, ["Ready", "SettingsWithoutEffect"]);
        assert_eq!(status["conditions"][0]["observedGeneration"], 4);
        assert_eq!(status["serviceStatus"]["totalClients"], 3);
    }
}
