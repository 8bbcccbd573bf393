use std::net::{Ipv4Addr, SocketAddr};

use keel_fabric::quic::ListenAddr;

use super::*;
use crate::cli::access::Admin;
use crate::run::Node;
use crate::settings::NodeFlags;

async fn node(folder: &std::path::Path) -> crate::run::RunningNode {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let flags = NodeFlags {
        node_name: Some("a".parse().unwrap()),
        data_dir: Some(folder.join("a")),
        apiserver_listen: Some(ListenAddr::from(free)),
        router_listen: Some(ListenAddr::from(free)),
        metrics_listen: Some(free),
        ..NodeFlags::default()
    };
    let settings = flags.resolve(folder.to_owned(), "a".to_owned()).unwrap();
    Node::start(settings).await.unwrap()
}

fn router(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// What is broken, and words that its error has to have: what is wrong, where, and what to do.
fn broken() -> Vec<(String, [&'static str; 2])> {
    let of = |spec: &str| router("broken", spec);
    let large = format!(
        "{{addresses: [{}]}}",
        "'a.example.net:7000',".repeat(60_000)
    );
    let deep = format!("{{frps: {}{}}}", "[".repeat(300), "]".repeat(300));
    vec![
        ("kind: [\n".into(), ["routers.yaml:", ""]),
        ("a: 1\na: 2\n".into(), ["routers.yaml:", "duplicate"]),
        ("just a text\n".into(), ["routers.yaml:", "there are Event"]),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n".into(),
            [
                "\"Pod\" is not known",
                "there are Event, Namespace, Router, FRPServer",
            ],
        ),
        (
            "apiVersion: v2\nkind: Router\nmetadata: {name: p}\n".into(),
            ["\"v2\" is not known", "write edge.example.com/v1"],
        ),
        (
            "apiVersion: edge.example.com/v1\nkind: Router\n".into(),
            ["metadata.name", "use a text of lower-case letters"],
        ),
        (
            "apiVersion: v1\nkind: List\nitems: 5\n".into(),
            ["routers.yaml:", "without items"],
        ),
        (router("Broken", "{}"), ["router Broken", "correct that"]),
        (of("{frp: {}}"), ["unknown field", "correct that"]),
        (of("{frps: 7000}"), ["router broken", "correct that"]),
        (
            of("{frps: {bindPort: '7000'}}"),
            ["router broken", "correct that"],
        ),
        (
            of("{frps: {bindPort: 70000}}"),
            ["router broken", "correct that"],
        ),
        (
            of("{frps: {bindAddr: everywhere}}"),
            ["router broken", "correct that"],
        ),
        (
            of("{frps: {allowPorts: [{start: 5, end: 1}]}}"),
            ["must not be above end", "correct that"],
        ),
        (
            of("{addresses: [nowhere]}"),
            ["router broken", "correct that"],
        ),
        (
            of("{advertisedServices: [{name: mysql}]}"),
            ["need their keys", "correct that"],
        ),
        (
            of("{advertisedServices: [{name: mysql, port: 0}]}"),
            ["port", "correct that"],
        ),
        (
            of("{advertisedServices: [{name: 'my sql', port: 1}]}"),
            ["name", "correct that"],
        ),
        (
            of("{advertisedServices: [{name: a, port: 1, protocol: SCTP}]}"),
            ["protocol", "correct that"],
        ),
        (
            of("{advertisedServices: [{name: a, port: 1, limit: fast}]}"),
            ["limit", "correct that"],
        ),
        (of(&deep), ["", ""]),
        (of(&large), ["too large", "1 MiB"]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_resources_only_the_broken_ones_fail_and_each_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let node = node(folder.path()).await;
    let admin = Admin::get(node.data_dir(), None, None).await.unwrap();
    let client = admin.client().unwrap();
    let how = |manager: &str, force: bool| How {
        query: format!("fieldManager={manager}&force={force}&fieldValidation=Strict"),
        note: "",
        namespace: "default".to_owned(),
        client: client.clone(),
    };
    let bad = broken();
    let mut text = String::new();
    let mut left = bad.iter();
    for at in 0..500 {
        text += &format!(
            "---\n{}",
            router(&format!("r-{at}"), "{frps: {bindPort: 7000}}")
        );
        if at % 20 == 0
            && let Some((one, _)) = left.next()
        {
            text += &format!("---\n{one}");
        }
    }
    assert!(left.next().is_none());
    let found = documents::read(&text, "routers.yaml");
    assert_eq!(found.len(), 500 + bad.len());
    let failed = how("keel", false).apply_all(found).await.unwrap();
    for (why, (_, words)) in failed.iter().zip(&bad) {
        assert!(
            words.iter().all(|word| why.contains(word)),
            "{why}: {words:?}"
        );
        assert!(why.len() < 2000, "{} bytes", why.len());
    }
    assert_eq!(failed.len(), bad.len(), "{failed:#?}");
    let routers = client.list_routers().await.unwrap().routers;
    let effective = routers.iter().filter(|router| router.spec.frps.is_some());
    assert_eq!(effective.count(), 500);

    // Another program owns other fields, and not the same ones unless it insists.
    let other = documents::read(&router("r-0", "{frps: {bindPort: 7001}}"), "f");
    let refused = how("other", false).apply_all(other).await.unwrap();
    assert!(
        refused[0].contains("--force-conflicts") && refused[0].contains("keel"),
        "{refused:?}"
    );
    let other = documents::read(&router("r-0", "{frps: {bindPort: 7001}}"), "f");
    assert!(
        how("other", true)
            .apply_all(other)
            .await
            .unwrap()
            .is_empty()
    );
    node.stop().await.unwrap();
}
