//! Flows of a node's Router, by service and peer, as people see them.

use std::collections::BTreeMap;

use keel_control::api::{ClientStatus, Router};
use keel_control::enroll::wire::FlowInfo;

use super::routers;
use super::table::{age, render, size};

/// Rows of the table: those that moved most. JSON has all.
const ROWS: usize = 20;

/// By service and peer.
type Flows = BTreeMap<(String, String), FlowInfo>;

/// What the Router's status says of flows, for a node whose Router is another process.
pub(super) fn reported(router: &Router) -> Vec<FlowInfo> {
    let services = router
        .status
        .iter()
        .flat_map(|status| &status.active_services);
    let mut all = Flows::new();
    for service in services {
        let name = routers::service(service);
        // A provider's numbers are those of its consumers once more.
        let consumers = || {
            let is_consumer = |client: &&ClientStatus| client.role.as_deref() == Some("consumer");
            service.clients.iter().filter(is_consumer)
        };
        for client in consumers() {
            let flow = flow_of(&mut all, &name, peer(client));
            flow.active += client.current_connections.unwrap_or_default();
            flow.bytes_up += client.bytes_in.unwrap_or_default();
            flow.bytes_down += client.bytes_out.unwrap_or_default();
        }
        for told in &service.incidents {
            let pod = told.identity.rsplit('/').next().unwrap_or_default();
            let id = format!("{pod}-{}", service.name.as_deref().unwrap_or_default());
            // One that has no connection any more is named by its identity.
            let client = consumers().find(|client| client.id.as_deref() == Some(&id));
            let peer = client.map_or_else(|| told.identity.clone(), peer);
            let flow = flow_of(&mut all, &name, peer);
            flow.resumes += told.resumes;
            flow.stalls += told.stalls;
            for (code, count) in &told.resets {
                *flow.resets.entry(code.clone()).or_default() += count;
            }
        }
    }
    all.into_values().collect()
}

fn flow_of<'a>(all: &'a mut Flows, service: &str, peer: String) -> &'a mut FlowInfo {
    let flow = all.entry((service.to_owned(), peer.clone())).or_default();
    flow.role = "router".to_owned();
    flow.service = service.to_owned();
    flow.peer = peer;
    flow
}

/// `pod-abc-mysql at 198.51.100.7:40112`.
fn peer(client: &ClientStatus) -> String {
    let id = client.id.as_deref().unwrap_or("?");
    match &client.remote_addr {
        Some(remote) => format!("{id} at {remote}"),
        None => id.to_owned(),
    }
}

/// The flows that moved most, as a table.
pub(super) fn table(flows: &[FlowInfo]) -> String {
    let mut most: Vec<&FlowInfo> = flows.iter().collect();
    // Stable, so that flows that moved nothing stay in the order of their names.
    most.sort_by_key(|flow| std::cmp::Reverse((flow.bytes_up + flow.bytes_down, flow.active)));
    let rows: Vec<Vec<String>> = most.iter().take(ROWS).map(|flow| row(flow)).collect();
    let header = [
        "SERVICE", "ROLE", "PEER", "ACTIVE", "STARTED", "UP", "DOWN", "RESUMES", "STALLED",
        "RESETS",
    ];
    let mut text = render(&header, &rows);
    if most.len() > ROWS {
        text.push_str(&format!(
            "and {} more: keel status -o json\n",
            most.len() - ROWS
        ));
    }
    text
}

fn row(flow: &FlowInfo) -> Vec<String> {
    let stalled = match flow.stalls {
        0 => "0".to_owned(),
        times => format!("{times} ({})", age(flow.stalled_seconds as i64)),
    };
    // A router counts legs, and the loss of one ends no flow: it comes back, and is a resume, or goes on elsewhere.
    let is_leg = |code: &str| flow.role == "router" && code == "LEG_LOST";
    let resets: Vec<String> = flow
        .resets
        .iter()
        .filter(|(code, _)| !is_leg(code))
        .map(|(code, count)| format!("{code} {count}"))
        .collect();
    vec![
        flow.service.clone(),
        flow.role.clone(),
        flow.peer.clone(),
        flow.active.to_string(),
        flow.started
            .map(|started| started.to_string())
            .unwrap_or_default(),
        size(flow.bytes_up),
        size(flow.bytes_down),
        flow.resumes.to_string(),
        stalled,
        resets.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_that_moved_most_come_first_and_the_rest_is_counted() {
        let mut all: Vec<FlowInfo> = (0..25)
            .map(|number| FlowInfo {
                role: "router".into(),
                service: format!("s{number:02}.default:80"),
                peer: "/node/a".into(),
                started: Some(1),
                ..FlowInfo::default()
            })
            .collect();
        all[24] = FlowInfo {
            active: 2,
            bytes_up: 1_234_567,
            bytes_down: 42,
            resumes: 3,
            stalls: 2,
            stalled_seconds: 7.9,
            resets: BTreeMap::from([("LEG_LOST".into(), 1), ("RESET".into(), 4)]),
            ..all[24].clone()
        };
        let text = table(&all);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "SERVICE          ROLE     PEER      ACTIVE   STARTED   UP       DOWN   RESUMES   STALLED   RESETS"
        );
        assert_eq!(
            lines[1],
            "s24.default:80   router   /node/a   2        1         1.2 MB   42 B   3         2 (7s)    RESET 4"
        );
        assert!(lines[2].starts_with("s00.default:80 "));
        // At an end of flows it is the end of one.
        all[24].role = "consumer".into();
        assert!(table(&all).contains("LEG_LOST 1, RESET 4"));
        assert_eq!(*lines.last().unwrap(), "and 5 more: keel status -o json");
    }

    #[test]
    fn a_status_is_summed_by_service_and_client() {
        let router: Router = serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}, "status": {
            "activeServices": [{"name": "web", "port": 80, "incidents": [
                {"identity": "/node/a/ns/default/pod/c", "resumes": 3, "resets": {"RESET": 1}},
                {"identity": "/node/a/ns/default/pod/gone", "stalls": 2}], "clients": [
                {"id": "c-web", "role": "consumer", "remoteAddr": "192.0.2.1:5", "currentConnections": 2, "bytesIn": 10, "bytesOut": 20},
                {"id": "p-web", "role": "provider", "remoteAddr": "192.0.2.2:5", "currentConnections": 2, "bytesIn": 20, "bytesOut": 10}]}]}}))
        .unwrap();
        let flows = reported(&router);
        assert_eq!(flows.len(), 2);
        assert_eq!((flows[1].resumes, flows[1].resets["RESET"]), (3, 1));
        assert_eq!(
            (flows[0].peer.as_str(), flows[0].stalls),
            ("/node/a/ns/default/pod/gone", 2)
        );
        let flows = &flows[1..];
        assert_eq!(
            (
                flows[0].peer.as_str(),
                flows[0].active,
                flows[0].bytes_up,
                flows[0].bytes_down
            ),
            ("c-web at 192.0.2.1:5", 2, 10, 20)
        );
        assert_eq!(flows[0].service, "web.default:80");
    }
}
