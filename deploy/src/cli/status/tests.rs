use super::*;

/// 2026-01-01T00:00:00Z.
const DAY: u64 = 1_767_225_600;

fn info(peers: serde_json::Value) -> NodeInfo {
    serde_json::from_value(serde_json::json!({
        "node": "a", "cluster": "site-1", "trustDomain": "t", "apiserver": "https://127.0.0.1:7443", "peers": peers}))
    .unwrap()
}

fn status<'a>(info: &'a NodeInfo, all: &'a [Router]) -> Status<'a> {
    Status {
        info,
        own: all
            .iter()
            .find(|router| router.name() == info.node.as_str()),
        all,
        live: true,
        flows: Vec::new(),
        rates: Vec::new(),
    }
}

#[test]
fn a_status_names_every_peer_and_a_router_that_is_silent() {
    let now = UNIX_EPOCH + Duration::from_secs(DAY + 300);
    let at = |seconds: u64| DAY + seconds;
    let mut info = info(serde_json::json!([
        {"node": "b", "server": "b.example.net:7443", "connected": true, "lastContact": at(297)},
        {"node": "c", "server": "192.0.2.1:7443", "connected": false, "lastContact": at(0), "behindSince": at(10),
            "error": "nothing heard for too long"},
        {"node": "d", "server": "d:1", "connected": false}]));
    let silent: Router = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "b"}, "status": {"heartbeatTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "message": ""}]}}))
    .unwrap();
    let text = render(&status(&info, std::slice::from_ref(&silent)), now).unwrap();
    for line in [
        "peers           b at b.example.net:7443: connected, heard 3s ago\n",
        "                c at 192.0.2.1:7443: not connected, heard 5m ago, what is held here of it may be 4m old: nothing heard for too long\n",
        "                d at d:1: not connected, never heard\n",
        "True (stale)   5m ago",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("flows"), "{text}");
    info.peers = Some(Vec::new());
    let text = render(
        &status(&info, &[silent, Router::named("a"), Router::named("d")]),
        now,
    )
    .unwrap();
    let line = "peers           none that this node calls; b reports here, 5m ago\n";
    assert!(text.contains(line), "{text}");
    info.peers = None;
    let text = render(&status(&info, &[]), now).unwrap();
    assert!(text.contains("keel-syncer"));
}

#[test]
fn a_status_names_providers_whose_checks_fail() {
    let router: Router = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "b"}, "status": {"activeServices": [{"name": "web", "port": 80, "providers": [
            {"identity": "/node/b", "health": "unknown"}, {"identity": "/node/b/ns/default/pod/p", "health": "unhealthy"}]}]}}))
    .unwrap();
    let info = info(serde_json::json!([]));
    let text = render(&status(&info, &[router]), UNIX_EPOCH).unwrap();
    let table = "
SERVICE          UNHEALTHY PROVIDER         AT ROUTER
web.default:80   /node/b/ns/default/pod/p   b
";
    assert!(text.contains(table), "{text}");
}

#[test]
fn a_whole_status_looks_like_this() {
    let now = UNIX_EPOCH + Duration::from_secs(DAY + 12);
    let info = info(serde_json::json!([]));
    let own: Router = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "a"}, "status": {"cluster": "site-1", "addresses": ["a.example.net:7000"],
            "heartbeatTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "message": "listening"}],
            "activeServices": [{"name": "mysql", "port": 3306, "clients": [
                {"id": "app-0-mysql", "role": "consumer", "currentConnections": 1, "bytesIn": 900, "bytesOut": 20000}]}]}}))
    .unwrap();
    let all = [own];
    let mut status = status(&info, &all);
    status.flows = vec![FlowInfo {
        role: "router".into(),
        service: "mysql.default:3306".into(),
        peer: "/node/a/ns/default/pod/app-0".into(),
        active: 1,
        started: Some(4),
        bytes_up: 1000,
        bytes_down: 23_400_000,
        resumes: 1,
        ..FlowInfo::default()
    }];
    let head = "\
node            a (cluster site-1)
trust domain    t
APIServer       https://127.0.0.1:7443
Router          ready: True, reported 12s ago; reachable from other nodes: a.example.net:7000
peers           none that this node calls

NAME   CLUSTER   READY   HEARTBEAT   REACHABLE AT         SERVICES
a      site-1    True    12s ago     a.example.net:7000   mysql.default:3306
";
    status.rates = vec![Rate {
        service: "mysql.default:3306".into(),
        role: "router".into(),
        active: 1,
        bytes_down_per_second: 1_500_000.0,
        ..Rate::default()
    }];
    let live = "
per second, now
SERVICE              ROLE     ACTIVE   NEW/S   UP/S   DOWN/S
mysql.default:3306   router   1        0.0     0 B    1.5 MB

flows of this node's Router
SERVICE              ROLE     PEER                           ACTIVE   STARTED   UP       DOWN      RESUMES   STALLED   RESETS
mysql.default:3306   router   /node/a/ns/default/pod/app-0   1        4         1.0 kB   23.4 MB   1         0         -
";
    assert_eq!(render(&status, now).unwrap(), format!("{head}{live}"));
    let json = status.json();
    assert_eq!(json["flows"][0]["bytesDown"], 23_400_000);
    assert_eq!(json["flowsLive"], true);
    assert_eq!(json["rates"][0]["bytesDownPerSecond"], 1_500_000.0);
    assert_eq!(json["node"]["node"], "a");

    status.live = false;
    status.rates = Vec::new();
    status.flows = flows::reported(&all[0]);
    let reported = "
flows of this node's Router, as reported 12s ago
SERVICE              ROLE     PEER          ACTIVE   STARTED   UP      DOWN      RESUMES   STALLED   RESETS
mysql.default:3306   router   app-0-mysql   1        -         900 B   20.0 kB   0         0         -
";
    assert_eq!(render(&status, now).unwrap(), format!("{head}{reported}"));
}
