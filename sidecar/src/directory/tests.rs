use serde_json::{Value, json};

use super::*;

/// A Router as it comes from the APIServer.
pub(crate) fn router(name: &str, status: Value) -> Router {
    let document = json!({
        "apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": name}, "spec": {}, "status": status,
    });
    serde_json::from_value(document).unwrap()
}

/// The status of a router that hands `service:port` to `providers`.
pub(crate) fn serving(
    cluster: &str,
    addresses: &[&str],
    service: &str,
    port: u16,
    providers: &[&str],
) -> Value {
    let providers: Vec<Value> = providers
        .iter()
        .map(|p| json!({"identity": p, "health": "healthy"}))
        .collect();
    json!({
        "cluster": cluster, "addresses": addresses, "nodeAddresses": ["127.0.0.1:7000"],
        "activeServices": [{"name": service, "namespace": "default", "port": port, "protocol": "TCP", "providers": providers}],
    })
}

pub(crate) fn target(text: &str) -> ServiceRef {
    ServiceRef {
        service: text.parse().unwrap(),
        cluster: None,
    }
}

fn own() -> NodeName {
    "a".parse().unwrap()
}

const POD_A: &str = "/node/a/ns/default/pod/db-0";
const POD_B: &str = "/node/b/ns/default/pod/db-0";

#[test]
fn a_router_without_addresses_is_dialled_only_from_its_own_node() {
    let all = [
        router("a", serving("home", &[], "mysql", 3306, &[POD_A])),
        router("b", serving("home", &[], "mysql", 3306, &[POD_B])),
        router(
            "c",
            serving("cloud", &["c.example:7000"], "mysql", 3306, &[POD_B]),
        ),
    ];
    let directory = Directory::build(&own(), &all);
    let mysql = target("mysql.default");
    let ways: Vec<_> = directory
        .candidates(&mysql, 3306, Protocol::Tcp)
        .map(|c| {
            (
                c.router.node.to_string(),
                c.router.addresses[0].to_string(),
                c.provider.to_string(),
            )
        })
        .collect();
    let expected = [
        ("a", "127.0.0.1:7000", POD_A),
        ("c", "c.example:7000", POD_B),
    ];
    assert_eq!(
        ways,
        expected.map(|(n, a, p)| (n.to_owned(), a.to_owned(), p.to_owned()))
    );
    assert_eq!(directory.own_cluster().unwrap().as_ref(), "home");
    assert_eq!(
        directory.ports(&mysql, Protocol::Tcp),
        BTreeSet::from([3306])
    );
    assert!(directory.ports(&mysql, Protocol::Udp).is_empty());
    let at: Vec<_> = directory
        .own_router()
        .into_iter()
        .chain(directory.public_others())
        .map(|peer| peer.node.to_string())
        .collect();
    assert_eq!(at, ["a", "c"]);
}

#[test]
fn a_mapping_of_one_cluster_sees_only_that_one() {
    let all = [
        router("b", serving("east", &["b:7000"], "mysql", 3306, &[POD_B])),
        router(
            "c",
            serving("west", &["c:7000"], "mysql", 3307, &["/node/c"]),
        ),
    ];
    let directory = Directory::build(&own(), &all);
    let west = ServiceRef {
        cluster: Some("west".parse().unwrap()),
        ..target("mysql.default")
    };
    assert_eq!(
        directory.ports(&west, Protocol::Tcp),
        BTreeSet::from([3307])
    );
    assert_eq!(
        directory
            .ports(&target("mysql.default"), Protocol::Tcp)
            .len(),
        2
    );
    assert_eq!(directory.candidates(&west, 3306, Protocol::Tcp).count(), 0);
}

#[test]
fn the_shapes_of_older_documents_are_read() {
    let first = json!({"activeServices": [{"name": "mysql", "localPort": 7001, "targetPort": 3306,
        "clients": [{"id": "pod-abc-mysql", "type": "stcp", "localAddr": "127.0.66.1:3306", "serviceName": "mysql"}]}]});
    let second = json!({"clients": [{"name": "pod-abc", "address": "127.0.66.1:3306"}]});
    let third = json!({"addresses": ["c:7000"], "activeServices": [
        {"name": "mysql", "targetPort": 3306, "providers": [{"identity": "/node/c"}]},
        {"clients": [{"id": "x", "remoteAddr": "<ip>:<port>"}]},
        null, 7, {"name": "My SQL", "port": 1}, {"name": "redis", "port": 6379, "protocol": "SCTP", "providers": [{"identity": "/node/c"}]},
        {"name": "web", "port": 0, "providers": [{"identity": "/node/c"}]},
        {"name": "web", "port": 80, "providers": [{"identity": "nobody"}, null, {"identity": "/node/c", "health": "failing"}]},
    ]});
    let all = [
        router("a", first),
        router("b", second),
        router("c", third),
        router("Not A Node", json!({})),
        router("d", json!(null)),
    ];
    let directory = Directory::build(&own(), &all);
    let mysql = target("mysql.default");
    assert_eq!(directory.candidates(&mysql, 3306, Protocol::Tcp).count(), 1);
    let web = target("web.default");
    let web: Vec<_> = directory.candidates(&web, 80, Protocol::Tcp).collect();
    assert_eq!(web.len(), 1);
    assert_eq!(web[0].offer.health, Health::Unhealthy);
    assert!(!web[0].draining);
    assert!(
        directory
            .ports(&target("redis.default"), Protocol::Tcp)
            .is_empty()
    );
}

#[test]
fn what_providers_and_routers_say_of_themselves_is_kept() {
    let status = json!({"addresses": ["b:7000"],
        "conditions": [{"type": "Ready", "status": "False", "reason": "Draining"}],
        "activeServices": [{"name": "mysql", "port": 3306, "providers": [
            {"identity": POD_B, "health": "healthy", "weight": 10, "priority": 2},
            {"identity": "/node/b", "health": "unknown", "weight": 70_000, "priority": null}]}]});
    let directory = Directory::build(&own(), &[router("b", status)]);
    let mysql = target("mysql.default");
    let found: Vec<_> = directory.candidates(&mysql, 3306, Protocol::Tcp).collect();
    let offer = Offer {
        weight: 10,
        priority: 2,
        health: Health::Healthy,
    };
    assert_eq!((found[0].offer, found[0].draining), (offer, true));
    assert_eq!(found[1].offer, Offer::default());
}

#[test]
fn a_provider_on_another_node_is_noticed() {
    let one = Directory::build(
        &own(),
        &[router(
            "b",
            serving("east", &["b:7000"], "mysql", 3306, &[POD_B]),
        )],
    );
    let other = "/node/evil/ns/default/pod/db-0";
    let two = Directory::build(
        &own(),
        &[router(
            "b",
            serving("east", &["b:7000"], "mysql", 3306, &[POD_B, other]),
        )],
    );
    let found = gained(&one, &two);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].provider.to_string(), found[0].besides.to_string()),
        (other.to_owned(), POD_B.to_owned())
    );
    assert!(gained(&two, &one).is_empty());
    assert!(
        gained(&Directory::default(), &two).is_empty(),
        "the first providers are no surprise"
    );
    let replica = Directory::build(
        &own(),
        &[router(
            "b",
            serving(
                "east",
                &["b:7000"],
                "mysql",
                3306,
                &[POD_B, "/node/b/ns/default/pod/db-1"],
            ),
        )],
    );
    assert!(
        gained(&one, &replica).is_empty(),
        "a second pod of the same node is no surprise"
    );
}

/// One that does not answer one router is not asked over another before those that all routers call healthy.
#[test]
fn who_is_unhealthy_at_one_router_is_doubted_at_all() {
    let sick = |name: &str, health: &str| {
        let mut status = serving("east", &["r:7000"], "mysql", 3306, &[POD_A, POD_B]);
        status["activeServices"][0]["providers"][0]["health"] = json!(health);
        router(name, status)
    };
    let mysql = target("mysql.default");
    let doubted = |all: &[Router]| -> Vec<(String, String)> {
        let directory = Directory::build(&own(), all);
        let ways = directory.candidates(&mysql, 3306, Protocol::Tcp);
        let doubted = ways.filter(|way| way.doubted);
        let names = doubted.map(|way| (way.router.node.to_string(), way.provider.to_string()));
        names.collect()
    };
    let at = |router: &str| (router.to_owned(), POD_A.to_owned());
    let all = [sick("b", "healthy"), sick("c", "unhealthy")];
    assert_eq!(doubted(&all), [at("b"), at("c")]);
    assert_eq!(doubted(&all[..1]), []);
    // Nobody heard of that router for long.
    let mut stale = sick("c", "unhealthy");
    let status = stale.status.as_mut().unwrap();
    let synced = json!([{"type": "Synced", "status": "False", "reason": "PeerNotHeard"}]);
    status.conditions = serde_json::from_value(synced).unwrap();
    assert_eq!(doubted(&[sick("b", "healthy"), stale]), []);
}
