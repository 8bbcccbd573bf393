//! Kinds beside Router, and what callers are told about themselves.

use crate::program::{Kubectl, text};

const FRPSERVER: &str = include_str!("frpserver.yaml");

pub(crate) fn frpserver(admin: &Kubectl, pod: &Kubectl) {
    let file = admin.file("frpserver.yaml", FRPSERVER);
    assert_eq!(
        admin.quiet(&["apply", "-f", &file]),
        "frpserver.tunnel.kubeinfra.io/frpserver-sample created\n"
    );
    let again = admin.quiet(&["apply", "-f", &file]);
    assert!(
        again.starts_with("frpserver.tunnel.kubeinfra.io/frpserver-sample "),
        "{again}"
    );
    admin.quiet(&["replace", "--subresource=status", "-f", &file]);
    let table = admin.ok(&["get", "frpservers.tunnel.kubeinfra.io"]);
    assert!(
        table.contains("17000") && table.contains("mysql.abc"),
        "{table}"
    );
    let started = "jsonpath={.status.activeConnections[0].startTime}";
    let started = admin.ok(&["get", "frpserver", "frpserver-sample", "-o", started]);
    assert_eq!(started, "0000-05-04T23:10:04Z");
    admin.quiet(&[
        "wait",
        "frpserver/frpserver-sample",
        "--for=condition=Ready",
        "--timeout=20s",
    ]);
    for kind in [
        "events",
        "namespaces",
        "selfsubjectreviews",
        "selfsubjectaccessreviews",
        "selfsubjectrulesreviews",
        "frpservers",
        "routers",
    ] {
        admin.ok(&["explain", kind, "--recursive"]);
    }
    admin.ok(&[
        "explain",
        "events",
        "--api-version=events.k8s.io/v1",
        "--recursive",
    ]);
    let explained = admin.ok(&["explain", "frpserver.spec.webServer"]);
    assert!(
        explained.contains("password") && explained.contains("pprofEnable"),
        "{explained}"
    );
    assert!(
        admin
            .ok(&["describe", "frpserver"])
            .contains("Kcp Bind Port")
    );
    let shown = pod.ok(&["get", "frpserver", "frpserver-sample", "-o", "yaml"]);
    assert!(
        shown.contains("user: admin") && !shown.contains("s3cret"),
        "{shown}"
    );
    let shown = admin.ok(&["get", "frpserver", "frpserver-sample", "-o", "yaml"]);
    assert!(shown.contains("password: s3cret"), "{shown}");
    assert!(
        admin
            .ok(&["get", "all"])
            .contains("frpserver.tunnel.kubeinfra.io/frpserver-sample")
    );
    admin.quiet(&["delete", "-f", &file]);
}

pub(crate) fn namespaces_and_events(admin: &Kubectl) {
    let file = admin.file(
        "ns.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: prod, labels: {tier: '1'}}\n",
    );
    assert_eq!(
        admin.quiet(&["create", "-f", &file]),
        "namespace/prod created\n"
    );
    assert_eq!(
        admin.quiet(&["create", "namespace", "test"]),
        "namespace/test created\n"
    );
    let table = admin.ok(&["get", "ns"]);
    assert!(
        table.contains("STATUS") && table.contains("Active"),
        "{table}"
    );
    admin.quiet(&["label", "ns", "test", "tier=2"]);
    assert_eq!(
        admin.ok(&["get", "ns", "-l", "tier>1", "-o", "name"]),
        "namespace/test\n"
    );
    assert!(admin.ok(&["describe", "ns", "prod"]).contains("tier=1"));
    let applied = admin.file(
        "ns.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: test, labels: {tier: '3'}}\n",
    );
    // It was not applied before, which kubectl warns of.
    admin.ok(&["apply", "-f", &applied]);
    admin.quiet(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        &applied,
    ]);
    assert_eq!(
        admin.ok(&[
            "get",
            "ns",
            "test",
            "-o",
            "jsonpath={.metadata.labels.tier}"
        ]),
        "3"
    );

    lists_of_namespaces(admin);

    let router = admin.file(
        "router.yaml",
        "apiVersion: edge.example.com/v1\nkind: Router\nmetadata: {name: eventful}\n",
    );
    admin.quiet(&["create", "-f", &router]);
    let uid = admin.ok(&["get", "rt", "eventful", "-o", "jsonpath={.metadata.uid}"]);
    let event = format!(
        "apiVersion: v1\nkind: Event\nmetadata: {{name: eventful.1, namespace: default}}\nreason: Started\nmessage: It runs now.\n\
         type: Normal\nlastTimestamp: '2026-01-01T00:00:00Z'\nsource: {{component: keel}}\n\
         involvedObject: {{apiVersion: edge.example.com/v1, kind: Router, name: eventful, uid: {uid}}}\n"
    );
    let event = admin.file("event.yaml", &event);
    assert_eq!(
        admin.quiet(&["create", "-f", &event]),
        "event/eventful.1 created\n"
    );
    assert!(
        admin
            .ok(&["describe", "rt", "eventful"])
            .contains("It runs now.")
    );
    assert!(
        admin
            .ok(&["get", "events", "-n", "default"])
            .contains("Started")
    );
    assert!(admin.ok(&["get", "events", "-A"]).contains("default"));
    assert!(
        admin
            .ok(&[
                "events",
                "-n",
                "default",
                "--for",
                "router.edge.example.com/eventful"
            ])
            .contains("It runs now.")
    );
    let newer = [
        "get",
        "events.events.k8s.io",
        "-n",
        "default",
        "-o",
        "jsonpath={.items[0].note}",
    ];
    assert_eq!(admin.ok(&newer), "It runs now.");
    let empty = admin.run(&["get", "events", "-n", "test"]);
    assert!(text(&empty.stderr).contains("No resources found in test namespace"));
    admin.quiet(&["delete", "event", "eventful.1", "-n", "default"]);
    admin.quiet(&["delete", "ns", "prod", "test"]);
    admin.quiet(&["delete", "rt", "eventful"]);
}

/// What kubectl patches by type, and what its patches say of lists.
fn lists_of_namespaces(admin: &Kubectl) {
    let finalizers = |all: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: kept, finalizers: [{all}], annotations: {{a: b}}}}\n"
        );
        admin.file("kept.yaml", &text)
    };
    let found = || {
        let path = "jsonpath={.metadata.finalizers}{.metadata.annotations.note}";
        admin.ok(&["get", "ns", "kept", "-o", path])
    };
    admin.quiet(&["apply", "-f", &finalizers("x.y/a, x.y/b")]);
    admin.quiet(&["annotate", "ns", "kept", "note=hello"]);
    assert_eq!(found(), "[\"x.y/a\",\"x.y/b\"]hello");
    admin.quiet(&["apply", "-f", &finalizers("x.y/b, x.y/c")]);
    assert_eq!(found(), "[\"x.y/b\",\"x.y/c\"]hello");
    admin.quiet(&["annotate", "ns", "kept", "note-"]);
    let patch = "{\"metadata\":{\"finalizers\":[\"x.y/d\"]}}";
    admin.quiet(&["patch", "ns", "kept", "--type=strategic", "-p", patch]);
    assert_eq!(found(), "[\"x.y/b\",\"x.y/c\",\"x.y/d\"]");
    admin.edit(&["edit", "ns", "kept"], "/x.y.c/d");
    assert_eq!(found(), "[\"x.y/b\",\"x.y/d\"]");
    let patch = "{\"metadata\":{\"finalizers\":null}}";
    admin.quiet(&["patch", "ns", "kept", "-p", patch]);
    admin.quiet(&["delete", "ns", "kept"]);
}

pub(crate) fn access(admin: &Kubectl, pod: &Kubectl) {
    let can = |who: &Kubectl, arguments: &[&str]| {
        let output = who.run(&[&["auth", "can-i"], arguments].concat());
        let said = text(&output.stdout);
        assert_eq!(
            output.status.success(),
            said.starts_with("yes"),
            "{said}{}",
            text(&output.stderr)
        );
        output.status.success()
    };
    assert!(can(admin, &["delete", "routers"]));
    assert!(can(admin, &["*", "*"]));
    assert!(can(pod, &["get", "routers"]));
    assert!(can(pod, &["watch", "routers/edge-a"]));
    assert!(can(pod, &["get", "/version"]));
    assert!(!can(pod, &["delete", "routers"]));
    assert!(!can(pod, &["update", "routers", "--subresource=status"]));
    assert!(!can(pod, &["*", "*"]));
    let list = pod.ok(&["auth", "can-i", "--list"]);
    assert!(
        list.contains("routers.edge.example.com") && !list.contains("delete"),
        "{list}"
    );
    // Asked by kubectl since 1.28 in the version that is served.
    let who = pod.run(&[
        "auth",
        "whoami",
        "-o",
        "jsonpath={.status.userInfo.username}",
    ]);
    if !text(&who.stderr).contains("API is not enabled") {
        assert!(
            text(&who.stdout).ends_with("/ns/default/pod/p"),
            "{}",
            text(&who.stderr)
        );
    }
}
