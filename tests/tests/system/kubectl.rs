//! Stock `kubectl` with the kubeconfig that `keel kubeconfig` prints.

use std::path::{Path, PathBuf};

use keel_tests::lab::{Host, Lab};
use keel_tests::need::{Need, lacking};
use keel_tests::process::{Finished, Program};
use keel_tests::site::{COMMAND, Node, Sidecar};
use keel_tests::wait::{self, SOON};

struct Kubectl {
    host: Host,
    config: PathBuf,
    home: tempfile::TempDir,
}

impl Kubectl {
    fn of(node: &Node) -> anyhow::Result<Self> {
        Ok(Self {
            host: node.host.clone(),
            config: node.kubeconfig()?,
            home: tempfile::tempdir()?,
        })
    }

    fn program(&self, words: &[&str]) -> Program {
        Program::new("kubectl")
            .env("HOME", self.home.path())
            .arg("--kubeconfig")
            .arg(&self.config)
            .args(words)
            .on(&self.host)
    }

    /// Runs it, expects success, and no warning.
    fn quiet(&self, words: &[&str]) -> anyhow::Result<String> {
        let finished = self.program(words).output(COMMAND)?;
        anyhow::ensure!(
            finished.code() == Some(0) && finished.stderr().is_empty(),
            "kubectl {words:?}: {finished:?}"
        );
        Ok(finished.stdout())
    }

    fn apply(&self, yaml: &str, more: &[&str]) -> anyhow::Result<Finished> {
        self.program(&[&["apply", "-f", "-"], more].concat())
            .input(yaml)
            .output(COMMAND)
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

#[test]
fn routers_by_kubectl() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Kubectl, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let node = Node::public(&lab.host("edge")?, "edge")?;
    let kubectl = Kubectl::of(&node)?;

    for name in [
        "router-overview.yaml",
        "router-architecture-router.yaml",
        "router-architecture-crd.yaml",
    ] {
        let path = fixture(name);
        let file = path.to_str().unwrap_or_default();
        let applied = kubectl.quiet(&["apply", "-f", file])?;
        assert!(applied.contains("node-1 created"), "{name}: {applied}");
        let spec = kubectl.quiet(&[
            "get",
            "router",
            "node-1",
            "-o",
            "jsonpath={.spec.frps.bindPort} {.spec.frps.dashboardPort}",
        ])?;
        assert_eq!(spec, "7000 7500", "{name}: the spec is read back");
        // kubectl calls it "configured": it sends the status again, which is not taken on this resource.
        let version = [
            "get",
            "router",
            "node-1",
            "-o",
            "jsonpath={.metadata.resourceVersion}",
        ];
        let before = kubectl.quiet(&version)?;
        kubectl.quiet(&["apply", "-f", file])?;
        assert_eq!(
            kubectl.quiet(&version)?,
            before,
            "{name}: applied again, nothing is written"
        );
        assert!(
            kubectl.quiet(&["get", "routers"])?.contains("node-1"),
            "{name} is in the table"
        );
        assert!(
            kubectl
                .quiet(&["describe", "router", "node-1"])?
                .contains("7500"),
            "{name} is described"
        );
        assert!(
            kubectl
                .quiet(&["delete", "router", "node-1"])?
                .contains("deleted"),
            "{name}"
        );
    }
    let gone = kubectl
        .program(&["get", "router", "node-1"])
        .output(COMMAND)?;
    gone.complains(1, &["NotFound"])?;

    let document = |spec: &str| {
        format!(
            "apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {{name: bad}}\nspec: {spec}\n"
        )
    };
    for (spec, word) in [
        ("{frps: {bindPort: seven}}", "bindPort"),
        ("{frps: {bindPrt: 7000}}", "bindPrt"),
        ("{advertisedServices: {name: mysql}}", "advertisedServices"),
        ("{frps: {bindPort: 70000}}", "bindPort"),
    ] {
        kubectl.apply(&document(spec), &[])?.complains(1, &[word])?;
    }
    // The server checks types by itself, too; who asks to ignore unknown fields gets them pruned, as in Kubernetes.
    let wrong = document("{frps: {bindPort: seven}}");
    kubectl
        .apply(&wrong, &["--validate=false"])?
        .complains(1, &["bindPort"])?;
    kubectl.apply(&document("{frps: {bindPrt: 7000}}"), &["--validate=false"])?;
    let pruned = kubectl.quiet(&["get", "router", "bad", "-o", "jsonpath={.spec}"])?;
    assert!(!pruned.contains("bindPrt"), "{pruned}");
    kubectl
        .apply("kind: Router\n  name: [", &[])?
        .complains(1, &["error"])?;

    watches_what_the_router_writes(&kubectl, &node)
}

fn watches_what_the_router_writes(kubectl: &Kubectl, node: &Node) -> anyhow::Result<()> {
    let columns = "jsonpath={.metadata.name}:{.status.activeServices[*].name};";
    let mut watch = kubectl
        .program(&["get", "router", "edge", "-w", "-o", columns])
        .start()?;
    watch.says("edge:", SOON)?;
    let _provider = Sidecar::beside(
        node,
        "provider",
        &["--published-services", "mysql=127.0.0.1:3306"],
    )?;
    watch.says("edge:mysql;", SOON)?;

    let ready = kubectl.quiet(&[
        "wait",
        "--for=condition=Ready",
        "router/edge",
        "--timeout=10s",
    ])?;
    assert!(ready.contains("condition met"), "{ready}");
    let spec = "apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {name: edge}\nspec: {advertisedServices: [{name: cache, port: 6379, target: '127.0.0.1:6379'}]}\n";
    assert_eq!(
        kubectl.apply(spec, &[])?.code(),
        Some(0),
        "the spec of a Router that runs"
    );
    let again = kubectl.apply(spec, &[])?;
    assert!(again.stdout().contains("unchanged"), "{again:?}");
    watch.says("cache", SOON)?;
    wait::until("the status survives the write of the spec", SOON, || {
        kubectl
            .quiet(&["get", "router", "edge", "-o", columns])
            .is_ok_and(|line| line.contains("mysql") && line.contains("cache"))
    })
}
