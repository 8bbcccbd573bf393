//! Applying on the server's side, editing, pruning, waiting.

use crate::node::Node;
use crate::program::{Kubectl, text};

fn write(admin: &Kubectl, spec: &str) -> String {
    let object = format!(
        "apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {{name: ssa, labels: {{site: x}}}}\nspec: {spec}\n"
    );
    admin.file("ssa.yaml", &object)
}

pub(crate) fn server_side(admin: &Kubectl) {
    let file = write(admin, "{frps: {bindPort: 7001}}");
    let apply = ["apply", "--server-side", "-f", &file];
    assert_eq!(
        admin.quiet(&apply),
        "router.edge.example.com/ssa serverside-applied\n"
    );
    let revision = || {
        let path = "jsonpath={.metadata.resourceVersion}";
        admin.ok(&["get", "rt", "ssa", "-o", path])
    };
    let before = revision();
    admin.quiet(&apply);
    assert_eq!(revision(), before, "applying again writes nothing");

    admin.quiet(&[
        "patch",
        "rt",
        "ssa",
        "--type=merge",
        "--field-manager=hand",
        "-p",
        "{\"spec\":{\"frps\":{\"bindPort\":7005}}}",
    ]);
    let refused = admin.fails(&apply);
    assert!(
        refused.contains("Apply failed with 1 conflict: conflict with \"hand\" using edge.example.com/v1: .spec.frps.bindPort"),
        "{refused}"
    );
    assert!(refused.contains("--force-conflicts"), "{refused}");
    let diff = ["diff", "--server-side", "--force-conflicts", "-f", &file];
    let diff = admin.run(&diff);
    assert!(
        diff.status.code() == Some(1) && text(&diff.stdout).contains("+    bindPort: 7001"),
        "{}{}",
        text(&diff.stdout),
        text(&diff.stderr)
    );
    // What is tried has the revision that is held: another one would be a difference.
    let changed = |line: &str| line.starts_with(['+', '-']) && line.contains("resourceVersion");
    let diff = text(&diff.stdout);
    assert!(!diff.lines().any(changed), "{diff}");
    admin.quiet(&[&apply[..], &["--force-conflicts"]].concat());
    let managers = "jsonpath={.metadata.managedFields[*].manager}";
    let managers = admin.ok(&["get", "rt", "ssa", "--show-managed-fields", "-o", managers]);
    assert_eq!(managers, "kubectl");

    // What the file says no more goes.
    let dry = write(admin, "{addresses: ['203.0.113.10:7000']}");
    let dried = admin.quiet(&["apply", "--server-side", "--dry-run=server", "-f", &dry]);
    assert_eq!(
        dried,
        "router.edge.example.com/ssa serverside-applied (server dry run)\n"
    );
    admin.quiet(&["apply", "--server-side", "-f", &dry]);
    let spec = admin.ok(&["get", "rt", "ssa", "-o", "jsonpath={.spec}"]);
    assert_eq!(spec, "{\"addresses\":[\"203.0.113.10:7000\"]}");
    admin.quiet(&["delete", "rt", "ssa"]);
}

/// From applying on kubectl's side to applying on the server's, with the same file.
pub(crate) fn moved(admin: &Kubectl) {
    let file = write(admin, "{frps: {bindPort: 7001}}");
    admin.quiet(&["apply", "-f", &file]);
    admin.quiet(&["apply", "--server-side", "-f", &file]);
    let less = write(admin, "{}");
    admin.quiet(&["apply", "--server-side", "-f", &less]);
    let spec = admin.ok(&["get", "rt", "ssa", "-o", "jsonpath={.spec}"]);
    assert_eq!(spec, "{}", "kubectl's own fields came along");
    let managers = "jsonpath={.metadata.managedFields[*].manager}";
    let managers = admin.ok(&["get", "rt", "ssa", "--show-managed-fields", "-o", managers]);
    assert!(
        managers.contains("kubectl-last-applied") && !managers.contains("client-side"),
        "{managers}"
    );
    admin.quiet(&["delete", "rt", "ssa"]);
}

pub(crate) fn edited_and_pruned(node: &Node, admin: &Kubectl) {
    admin.quiet(&["apply", "-f", &write(admin, "{frps: {bindPort: 7001}}")]);
    let edited = admin.edit(&["edit", "rt", "ssa"], "s/bindPort: 7001/bindPort: 7009/");
    assert!(edited.contains("edited"), "{edited}");
    let port = "jsonpath={.spec.frps.bindPort}";
    assert_eq!(admin.ok(&["get", "rt", "ssa", "-o", port]), "7009");
    let status = "{\"status\":{\"cluster\":\"berlin\"}}";
    admin.quiet(&[
        "patch",
        "rt",
        "ssa",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ]);
    let by_field = [
        "get",
        "rt",
        "-o",
        "name",
        "--field-selector",
        "status.cluster=berlin",
    ];
    assert_eq!(admin.ok(&by_field), "router.edge.example.com/ssa\n");
    let refused = admin.fails(&["get", "rt", "--field-selector", "spec.x=1"]);
    assert!(
        refused.contains("field label not supported: spec.x"),
        "{refused}"
    );

    let other = admin.file(
        "other.yaml",
        "apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {name: other, labels: {site: x}}\n",
    );
    let prune = [
        "apply",
        "--prune",
        "-l",
        "site=x",
        "--prune-allowlist=edge.example.com/v1/Router",
        "-f",
        &other,
    ];
    let pruned = admin.ok(&prune);
    assert!(
        pruned.contains("router.edge.example.com/ssa pruned"),
        "{pruned}"
    );

    // Many, in pages of three.
    let many: String = (0..8)
        .map(|index| format!("---\napiVersion: edge.example.com/v1\nkind: Router\nmetadata: {{name: many-{index}}}\n"))
        .collect();
    let many = admin.file("many.yaml", &many);
    admin.quiet(&["apply", "-f", &many]);
    let listed = admin.ok(&["get", "rt", "--chunk-size=3", "-o", "name"]);
    assert_eq!(listed.lines().count(), 9, "{listed}");

    // A finalizer holds it until it is taken away.
    let finalizer = "{\"metadata\":{\"finalizers\":[\"example.com/wait\"]}}";
    admin.quiet(&["patch", "rt", "other", "--type=merge", "-p", finalizer]);
    admin.quiet(&["delete", "rt", "other", "--wait=false"]);
    node.has_watches(0);
    let waits = admin.start(&["wait", "rt/other", "--for=delete", "--timeout=25s"]);
    node.has_watches(1);
    let none = "{\"metadata\":{\"finalizers\":null}}";
    admin.quiet(&["patch", "rt", "other", "--type=merge", "-p", none]);
    waits.until("condition met");
    admin.quiet(&["delete", "rt", "--all"]);
    let made = admin.file(
        "named.yaml",
        "apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {generateName: made-}\n",
    );
    let made = admin.quiet(&["create", "-f", &made]);
    assert!(made.starts_with("router.edge.example.com/made-"), "{made}");
    // In one request, which kubectl itself has no command for.
    let all = "/apis/edge.example.com/v1/routers?labelSelector=!site";
    let gone = admin.quiet(&["delete", "--raw", all]);
    assert!(gone.contains("\"name\":\"made-"), "{gone}");
    assert_eq!(admin.quiet(&["get", "rt", "-o", "name"]), "");
}
