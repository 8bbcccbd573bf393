use keel_fabric::metrics::PairCounts;
use keel_fabric::router::{ProviderView, Totals};
use keel_fabric::wire::{Health, Offer};

use super::super::compile::{RouterFlags, compile};
use super::*;
use crate::api::RouterSpec;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn view() -> RouterView {
    RouterView {
        started: at(0),
        services: vec![ServiceView {
            service: "mysql.default".parse().unwrap(),
            port: 3306,
            protocol: Protocol::Tcp,
            providers: vec![ProviderView {
                identity: "/node/b/ns/default/pod/db-0".parse().unwrap(),
                since: at(1),
                offer: Offer::default(),
            }],
            clients: vec![ClientView {
                identity: "/node/a/ns/default/pod/app".parse().unwrap(),
                role: Role::Consumer,
                remote: "198.51.100.7:40112".parse().unwrap(),
                connected_at: at(2),
                connections: 2,
                bytes_in: 10,
                bytes_out: 20,
            }],
            counts: vec![
                counts("router", 2, 0, &[]),
                counts("provider", 0, 3, &[("BACKEND_RESET", 1)]),
            ],
        }],
        totals: Totals {
            clients: 1,
            connections: 2,
            bytes_in: 10,
            bytes_out: 20,
        },
    }
}

fn counts(
    role: &'static str,
    resumes: u64,
    stalls: u64,
    resets: &[(&'static str, u64)],
) -> PairCounts {
    PairCounts {
        role,
        service: "mysql.default:3306".to_owned(),
        peer: "/node/a/ns/default/pod/app".to_owned(),
        active: 2,
        started: 4,
        bytes_up: 10,
        bytes_down: 20,
        resumes,
        stalls,
        stalled: Duration::from_secs(stalls),
        resets: resets.iter().copied().collect(),
    }
}

fn context(spec: serde_json::Value) -> ReportContext {
    let spec: RouterSpec = serde_json::from_value(spec).unwrap();
    ReportContext {
        cluster: "site-1".parse().unwrap(),
        plan: compile(&spec, None, &RouterFlags::default()),
        node_addresses: vec!["127.0.0.1:7000".parse().unwrap()],
        trouble: None,
    }
}

#[test]
fn a_status_says_what_consumers_need() {
    let status = status(
        &view(),
        &context(serde_json::json!({"addresses": ["a.example.net:7000"]})),
        None,
        at(12),
    );
    let text = serde_json::to_value(&status).unwrap();
    assert_eq!(text["addresses"][0], "a.example.net:7000");
    assert_eq!(text["nodeAddresses"][0], "127.0.0.1:7000");
    let service = &text["activeServices"][0];
    assert_eq!(
        (service["name"].as_str(), service["port"].as_u64()),
        (Some("mysql"), Some(3306))
    );
    assert_eq!(
        service["providers"][0]["identity"],
        "/node/b/ns/default/pod/db-0"
    );
    assert_eq!(service["clients"][0]["id"], "app-mysql");
    let incidents = serde_json::json!([{
        "identity": "/node/a/ns/default/pod/app", "resumes": 2, "stalls": 3, "resets": {"BACKEND_RESET": 1},
    }]);
    assert_eq!(service["incidents"], incidents);
    assert_eq!(text["conditions"][0]["type"], "Ready");
    assert_eq!(text["conditions"][0]["status"], "True");
    assert_eq!(text["serviceStatus"]["uptime"], "12s");
}

#[test]
fn a_status_says_how_a_provider_wants_to_be_chosen() {
    let mut view = view();
    let provider = |view: &RouterView| {
        let status = status(view, &context(serde_json::json!({})), None, at(12));
        status.active_services[0].providers[0].clone()
    };
    let plain = serde_json::to_value(provider(&view)).unwrap();
    for unsaid in ["health", "weight", "priority"] {
        assert!(plain.get(unsaid).is_none(), "{unsaid}");
    }
    view.services[0].providers[0].offer = Offer {
        weight: 10,
        priority: 2,
        health: Health::Unhealthy,
    };
    let shown = provider(&view);
    assert_eq!((shown.weight, shown.priority), (Some(10), Some(2)));
    assert!(!shown.is_healthy());
}

#[test]
fn announced_services_are_listed_without_a_provider_until_one_comes() {
    let spec = serde_json::json!({"advertisedServices": [{"name": "redis", "port": 6379}, {"name": "mysql", "port": 3306}]});
    let status = status(&view(), &context(spec), None, at(12));
    let names: Vec<_> = status
        .active_services
        .iter()
        .map(|service| service.name.clone().unwrap())
        .collect();
    assert_eq!(names, ["mysql", "redis"]);
    assert!(status.active_services[1].providers.is_empty());
}

#[test]
fn counters_and_heartbeat_tick_and_everything_else_is_state() {
    let context = context(serde_json::json!({}));
    let first = status(&view(), &context, None, at(12));
    let mut busier = view();
    busier.services[0].clients[0].bytes_in = 99;
    busier.services[0].counts[0].resumes = 3;
    busier.totals.connections = 7;
    let second = status(&busier, &context, Some(&first), at(50));
    assert_ne!(first, second);
    assert!(!state_changed(&first, &second));
    let mut gone = view();
    gone.services[0].providers.clear();
    assert!(state_changed(
        &first,
        &status(&gone, &context, Some(&first), at(50))
    ));
    let mut troubled = context;
    troubled.trouble = Some("port 7000 is taken".to_owned());
    assert!(state_changed(
        &first,
        &status(&view(), &troubled, Some(&first), at(50))
    ));
}

#[test]
fn conditions_keep_their_time_while_their_status_stays() {
    let context = context(serde_json::json!({"frps": {"bindAddr": "nonsense"}}));
    let first = status(&view(), &context, None, at(12));
    assert_eq!(first.conditions.len(), 2);
    let second = status(&view(), &context, Some(&first), at(99));
    assert_eq!(first.conditions, second.conditions);
}

#[test]
fn a_crowd_of_clients_does_not_blow_a_status_up() {
    let mut crowded = view();
    crowded.services = vec![crowded.services[0].clone(); 20];
    for service in &mut crowded.services {
        service.clients = vec![service.clients[0].clone(); 5000];
    }
    crowded.totals.clients = 100_000;
    let status = status(&crowded, &context(serde_json::json!({})), None, at(12));
    let named: Vec<usize> = status
        .active_services
        .iter()
        .map(|service| service.clients.len())
        .collect();
    assert_eq!((named[0], named.iter().sum::<usize>()), (100, 1000));
    assert_eq!(
        status.service_status.as_ref().unwrap().total_clients,
        100_000
    );
    assert!(serde_json::to_vec(&status).unwrap().len() < 1 << 19);
}

#[test]
fn ports_are_those_of_the_router_and_of_the_backend() {
    let spec = serde_json::json!({"advertisedServices": [
        {"name": "dns", "port": 53, "protocol": "TCP", "target": "10.0.0.5:5301"},
        {"name": "dns", "port": 53, "protocol": "UDP", "target": "10.0.0.5:5302"},
        {"name": "redis", "port": 6379},
    ]});
    let mut view = view();
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        view.services.push(ServiceView {
            service: "dns.default".parse().unwrap(),
            port: 53,
            protocol,
            providers: Vec::new(),
            clients: Vec::new(),
            counts: Vec::new(),
        });
    }
    let status = status(&view, &context(spec), None, at(12));
    let ports: Vec<_> = status
        .active_services
        .iter()
        .map(|service| (service.port, service.local_port, service.target_port))
        .collect();
    let bound = Some(7000);
    assert_eq!(
        ports,
        [
            (Some(3306), bound, Some(3306)),
            (Some(53), bound, Some(5302)),
            (Some(53), bound, Some(5301)),
            (Some(6379), bound, Some(6379)),
        ]
    );
}

#[test]
fn a_router_that_never_ran_is_not_up_since_1970() {
    let context = context(serde_json::json!({}));
    let status = status(&RouterView::default(), &context, None, at(12));
    assert_eq!(status.service_status.unwrap().uptime, "0s");
}
