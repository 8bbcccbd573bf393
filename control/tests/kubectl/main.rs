//! The real kubectl against the real APIServer: what its users type, and what they see.
//!
//! Runs the kubectl on the path, and each `kubectl.1.NN` beside it from 1.28 to 1.33; one that is missing is named as skipped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apply;
mod kinds;
#[path = "../need/mod.rs"]
mod need;
mod node;
mod program;

use std::path::{Path, PathBuf};

use keel_certs::NodeName;

use node::Node;
use program::{Kubectl, of_minor, on_the_path, text};

macro_rules! versions {
    ($($test:ident $minor:literal),+) => {$(
        #[test]
        fn $test() {
            finds_what_it_expects(of_minor($minor), concat!("kubectl 1.", $minor));
        }
    )+};
}

versions!(with_1_28 28, with_1_29 29, with_1_30 30, with_1_31 31, with_1_32 32, with_1_33 33);

#[test]
fn with_the_one_on_the_path() {
    finds_what_it_expects(on_the_path(), "kubectl on the path");
}

fn finds_what_it_expects(kubectl: Option<PathBuf>, name: &str) {
    let Some(kubectl) = kubectl else {
        return need::skipped(name);
    };
    let node = Node::start();
    let admin = node.user(&kubectl, "admin", &node.fabric.node_admin("edge-a", "root"));
    discovery(&admin);
    life(&admin);
    lists(&admin);
    apply_and_patch(&admin);
    watch_and_wait(&node, &admin);
    apply::server_side(&admin);
    apply::moved(&admin);
    apply::edited_and_pruned(&node, &admin);
    let pod = node.user(
        &kubectl,
        "reader",
        &node.fabric.pod("edge-a", "default", "p"),
    );
    kinds::frpserver(&admin, &pod);
    kinds::namespaces_and_events(&admin);
    kinds::access(&admin, &pod);
    refusals(&node, &kubectl, &admin);
    node.stop();
}

fn discovery(admin: &Kubectl) {
    let resources = admin.ok(&["api-resources"]);
    assert!(
        resources.lines().any(|line| line.starts_with("routers")
            && line.contains("rt")
            && line.contains("Router")),
        "{resources}"
    );
    assert!(admin.ok(&["api-versions"]).contains("edge.example.com/v1"));
    assert!(
        admin
            .ok(&["version", "-o", "json"])
            .contains("+servicekeel-")
    );
    let explained = admin.ok(&["explain", "router.spec.frps.bindPort"]);
    assert!(
        explained.contains("UDP port that the router listens on")
            && explained.contains("<integer>"),
        "{explained}"
    );
    assert!(
        admin
            .ok(&["explain", "routers", "--recursive"])
            .contains("advertisedServices")
    );
    assert_eq!(admin.ok(&["get", "--raw", "/healthz"]), "ok");
    assert!(
        admin
            .fails(&["get", "router", "node-1"])
            .contains("routers.edge.example.com \"node-1\" not found")
    );
    assert!(admin.ok(&["get", "routers"]).is_empty());
}

const SEED: &str = "\
apiVersion: edge.example.com/v1
kind: Router
metadata:
  name: node-1
spec:
  frps:
    bindPort: 7000
    dashboardPort: 7500
  # 可选：advertisedServices 列表
status:
  activeServices:
    - name: mysql
      localPort: 7001
      targetPort: 3306
      clients:
        - id: pod-abc-mysql
          type: stcp
          localAddr: 127.0.66.1:3306
          serviceName: mysql
    - id: nameless
";

fn life(admin: &Kubectl) {
    let file = admin.file("seed.yaml", SEED);
    assert_eq!(
        admin.quiet(&["apply", "-f", &file]),
        "router.edge.example.com/node-1 created\n"
    );
    // "configured", not "unchanged": kubectl sends the status again each time, and the main resource ignores it each time.
    let revision = admin.ok(&[
        "get",
        "rt",
        "node-1",
        "-o",
        "jsonpath={.metadata.resourceVersion}",
    ]);
    assert_eq!(
        admin.quiet(&["apply", "-f", &file]),
        "router.edge.example.com/node-1 configured\n"
    );
    assert_eq!(
        admin.ok(&[
            "get",
            "rt",
            "node-1",
            "-o",
            "jsonpath={.metadata.resourceVersion}"
        ]),
        revision,
        "nothing is written"
    );
    assert!(
        admin
            .fails(&["create", "-f", &file])
            .contains("routers.edge.example.com \"node-1\" already exists")
    );
    let yaml = admin.ok(&["get", "router", "node-1", "-o", "yaml"]);
    assert!(
        yaml.contains("  frps:\n    bindPort: 7000\n    dashboardPort: 7500\n")
            && !yaml.contains("status:"),
        "{yaml}"
    );
    let diff = admin.run(&["diff", "-f", &file]);
    assert_eq!(diff.status.code(), Some(0), "{}", text(&diff.stdout));
    let described = admin.ok(&["describe", "rt", "node-1"]);
    assert!(
        described.contains("Bind Port:") && described.contains("Events:"),
        "{described}"
    );
    assert_eq!(
        admin.quiet(&["replace", "-f", &file]),
        "router.edge.example.com/node-1 replaced\n"
    );
    assert_eq!(
        admin.quiet(&["replace", "--subresource=status", "-f", &file]),
        "router.edge.example.com/node-1 replaced\n"
    );
    let yaml = admin.ok(&["get", "router", "node-1", "-o", "yaml"]);
    assert!(
        yaml.contains("localPort: 7001") && yaml.contains("- id: nameless"),
        "{yaml}"
    );
    assert_eq!(
        admin.quiet(&["delete", "-f", &file]),
        "router.edge.example.com \"node-1\" deleted\n"
    );
    assert_eq!(admin.ok(&["get", "routers", "-o", "name"]), "");
}

fn lists(admin: &Kubectl) {
    let routers = admin.file(
        "many.yaml",
        "\
apiVersion: edge.example.com/v1
kind: Router
metadata: {name: a, labels: {site: x}}
---
apiVersion: edge.example.com/v1
kind: Router
metadata: {name: b, labels: {site: z}}
---
apiVersion: edge.example.com/v1
kind: Router
metadata: {name: c}
",
    );
    admin.quiet(&["create", "-f", &routers]);
    let status = "{\"status\":{\"cluster\":\"berlin\",\"addresses\":[\"203.0.113.10:7000\"],\
        \"activeServices\":[{\"name\":\"mysql\"},{\"name\":\"redis\"}],\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\"}]}}";
    admin.quiet(&[
        "patch",
        "router",
        "a",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    let table = admin.ok(&["get", "routers"]);
    let mut lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(
        lines.next().unwrap(),
        ["NAME", "READY", "CLUSTER", "ADDRESSES", "SERVICES", "AGE"]
    );
    assert_eq!(
        lines.next().unwrap()[..5],
        ["a", "True", "berlin", "203.0.113.10:7000", "mysql,redis"]
    );
    assert!(admin.ok(&["get", "rt", "-o", "wide"]).contains("HEARTBEAT"));
    assert!(admin.ok(&["get", "all"]).contains("berlin"));
    let names = |arguments: &[&str]| {
        admin
            .ok(&[&["get", "rt", "-o", "name"], arguments].concat())
            .replace("router.edge.example.com/", "")
    };
    assert_eq!(names(&["-l", "site in (x,z)"]), "a\nb\n");
    assert_eq!(names(&["-l", "!site"]), "c\n");
    assert_eq!(names(&["--field-selector", "metadata.name=b"]), "b\n");
    assert_eq!(names(&["--sort-by=.metadata.name"]), "a\nb\nc\n");
    assert!(
        admin
            .ok(&["get", "rt", "--sort-by=.metadata.name"])
            .contains("berlin")
    );
    assert_eq!(
        admin.ok(&["get", "rt", "a", "-o", "jsonpath={.status.cluster}"]),
        "berlin"
    );
    assert_eq!(
        admin.quiet(&["delete", "routers", "--all"]).lines().count(),
        3
    );
}

fn apply_and_patch(admin: &Kubectl) {
    let write = |spec: &str| {
        admin.file("one.yaml", &format!("apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {{name: one}}\nspec: {spec}\n"))
    };
    let file = write("{frps: {bindPort: 7001, version: v1}}");
    assert!(
        admin
            .quiet(&["apply", "--dry-run=server", "-f", &file])
            .ends_with("created (server dry run)\n")
    );
    admin.quiet(&["apply", "-f", &file]);
    let file = write(
        "{frps: {bindPort: 7002}, advertisedServices: [{name: mysql, port: 3306, target: '10.0.0.5:3306'}]}",
    );
    let diff = admin.run(&["diff", "-f", &file]);
    assert!(
        diff.status.code() == Some(1) && text(&diff.stdout).contains("+    bindPort: 7002"),
        "{}",
        text(&diff.stdout)
    );
    assert_eq!(
        admin.quiet(&["apply", "-f", &file]),
        "router.edge.example.com/one configured\n"
    );
    let spec = admin.ok(&["get", "rt", "one", "-o", "jsonpath={.spec}"]);
    assert!(
        spec.contains("7002") && spec.contains("10.0.0.5:3306") && !spec.contains("version"),
        "{spec}"
    );
    admin.quiet(&["label", "rt", "one", "site=x"]);
    admin.quiet(&["annotate", "rt", "one", "note=hello"]);
    admin.quiet(&[
        "patch",
        "rt",
        "one",
        "--type=merge",
        "-p",
        "{\"spec\":{\"frps\":{\"bindPort\":7003}}}",
    ]);
    admin.quiet(&[
        "patch",
        "rt",
        "one",
        "--type=json",
        "-p",
        "[{\"op\":\"remove\",\"path\":\"/spec/advertisedServices\"}]",
    ]);
    let found = admin.ok(&[
        "get",
        "rt",
        "one",
        "-o",
        "jsonpath={.metadata.labels.site}{.metadata.annotations.note}{.spec}",
    ]);
    assert_eq!(found, "xhello{\"frps\":{\"bindPort\":7003}}");
    assert!(
        admin
            .fails(&["patch", "rt", "one", "-p", "{}"])
            .contains("application/merge-patch+json")
    );

    let unknown = admin.fails(&["apply", "-f", &write("{x: 1}")]);
    assert!(
        unknown.contains("strict decoding error: unknown field \"spec.x\""),
        "{unknown}"
    );
    let warned = admin.run(&["apply", "--validate=warn", "-f", &write("{x: 1}")]);
    assert!(
        warned.status.success()
            && text(&warned.stderr).contains("Warning: unknown field \"spec.x\""),
        "{}",
        text(&warned.stderr)
    );
    let wrong = admin.fails(&["apply", "-f", &write("{frps: {bindPort: high}}")]);
    assert!(
        wrong.contains("spec.frps.bindPort in body must be of type integer: \"string\""),
        "{wrong}"
    );
    admin.quiet(&["delete", "rt", "one"]);
}

fn watch_and_wait(node: &Node, admin: &Kubectl) {
    let watch = admin.start(&["get", "routers", "-w", "--output-watch-events"]);
    // The node reports, as its router does: over HTTP/3, on the status subresource.
    let status = serde_json::json!({"cluster": "berlin", "conditions": [{"type": "Ready", "status": "True"}]});
    let status = serde_json::from_value(status).unwrap();
    let name: NodeName = "edge-a".parse().unwrap();
    let client = node.client();
    node.runtime
        .block_on(async { client.apply_status(&name, &status).await })
        .unwrap();
    let seen = watch.until("berlin");
    assert!(seen.contains("ADDED") && seen.contains("edge-a"), "{seen}");
    admin.quiet(&[
        "wait",
        "rt/edge-a",
        "--for=condition=Ready",
        "--timeout=20s",
    ]);
    admin.quiet(&[
        "wait",
        "rt/edge-a",
        "--for=jsonpath={.status.cluster}=berlin",
        "--timeout=20s",
    ]);
    let source = admin.ok(&[
        "get",
        "rt",
        "edge-a",
        "-o",
        "jsonpath={.status.source.revision}={.metadata.resourceVersion}",
    ]);
    let (source, revision) = source.split_once('=').unwrap();
    assert_eq!(source, revision, "stamped with its own commit");
    admin.quiet(&["delete", "rt", "edge-a"]);
    let seen = watch.until("DELETED");
    assert!(seen.contains("edge-a"), "{seen}");
}

fn refusals(node: &Node, kubectl: &Path, admin: &Kubectl) {
    let pod = node.user(kubectl, "pod", &node.fabric.pod("edge-a", "default", "p"));
    assert_eq!(pod.ok(&["get", "routers", "-o", "name"]), "");
    let refused = pod.fails(&["apply", "-f", &admin.file("seed.yaml", SEED)]);
    assert!(
        refused.contains("Forbidden")
            && refused.contains("pod/p\" cannot create resource \"routers\""),
        "{refused}"
    );
    let nobody = node.user_without_certificate(kubectl);
    let refused = nobody.fails(&["get", "routers"]);
    assert!(
        refused.contains("Unauthorized") || refused.contains("must be logged in"),
        "{refused}"
    );
}
