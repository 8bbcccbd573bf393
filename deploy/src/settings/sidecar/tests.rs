use super::*;

fn machine() -> Machine {
    Machine {
        data_dir: "/data/keel".into(),
        host: "laptop".into(),
        user: "u".into(),
    }
}

#[test]
fn nothing_given_means_every_default() {
    let config = SidecarFlags::default().resolve(&machine()).unwrap().config;
    assert!(config.mapped.is_empty() && config.published.is_empty() && !config.dns.given);
    assert_eq!(config.state_root, Path::new("/data/keel/sidecar"));
    let sockets: Vec<_> = config
        .workload_sockets
        .iter()
        .map(|path| path.to_str().unwrap())
        .collect();
    assert_eq!(
        sockets,
        [
            "/run/keel/workload.sock",
            "/data/keel/workload.sock",
            "/var/lib/keel/workload.sock"
        ]
    );
}

#[test]
fn a_given_data_directory_comes_first() {
    let flags = SidecarFlags {
        data_dir: Some("/d".into()),
        ..SidecarFlags::default()
    };
    let config = flags.resolve(&machine()).unwrap().config;
    assert_eq!(config.workload_sockets[0], Path::new("/d/workload.sock"));
    assert_eq!(config.state_root, Path::new("/d/sidecar"));
}

#[test]
fn a_directory_without_a_socket_has_no_node() {
    let dir = tempfile::tempdir().unwrap();
    assert!(is_without_node(dir.path()) && is_without_node(&dir.path().join("gone")));
    std::fs::write(dir.path().join(WORKLOAD_SOCK), "").unwrap();
    assert!(!is_without_node(dir.path()));
    let unseen = dir.path().join(WORKLOAD_SOCK);
    assert!(!is_without_node(&unseen), "nobody can look into it");
}

#[test]
fn a_token_that_is_gone_matters_only_before_it_was_used() {
    let dir = tempfile::tempdir().unwrap();
    let flags = SidecarFlags {
        join: Some("@/nowhere/token".parse().unwrap()),
        state_dir: Some(dir.path().to_owned()),
        ..SidecarFlags::default()
    };
    let error = flags.clone().resolve(&machine()).unwrap_err().to_string();
    assert!(error.contains("/nowhere/token"), "{error}");
    std::fs::create_dir(dir.path().join("identity")).unwrap();
    std::fs::write(dir.path().join("identity/tls.crt"), "").unwrap();
    assert!(flags.resolve(&machine()).unwrap().config.join.is_none());
}

#[test]
fn wrong_values_name_their_flag() {
    let text = |text: &str| Some(text.to_owned());
    let all = [
        (
            "--mapped-services",
            SidecarFlags {
                mapped_services: vec!["my sql".into()],
                ..SidecarFlags::default()
            },
        ),
        (
            "--published-services",
            SidecarFlags {
                published_services: vec!["web".into()],
                ..SidecarFlags::default()
            },
        ),
        (
            "--ip-range",
            SidecarFlags {
                ip_range: text("127.0.66.0/99"),
                ..SidecarFlags::default()
            },
        ),
        (
            "--dns-upstream",
            SidecarFlags {
                dns_upstream: vec!["dns.example".into()],
                ..SidecarFlags::default()
            },
        ),
        (
            "--apiserver",
            SidecarFlags {
                apiserver: text("http://a"),
                ..SidecarFlags::default()
            },
        ),
        (
            "--pod-namespace",
            SidecarFlags {
                pod_namespace: text("A B"),
                ..SidecarFlags::default()
            },
        ),
        (
            "--dns-zone",
            SidecarFlags {
                dns_zone: vec!["bad zone".into()],
                ..SidecarFlags::default()
            },
        ),
        (
            "--connect-timeout",
            SidecarFlags {
                connect_timeout: Some("0s".parse().unwrap()),
                ..SidecarFlags::default()
            },
        ),
        (
            "--identity-dir",
            SidecarFlags {
                identity_dir: Some("/dev/null".into()),
                ..SidecarFlags::default()
            },
        ),
        (
            "--service-option",
            SidecarFlags {
                service_options: vec!["web=weight:1".parse().unwrap()],
                ..SidecarFlags::default()
            },
        ),
        (
            "--limit",
            SidecarFlags {
                limit: vec!["web=1MB/s".parse().unwrap()],
                ..SidecarFlags::default()
            },
        ),
        (
            "--join",
            SidecarFlags {
                join: Some("nonsense".parse().unwrap()),
                ..SidecarFlags::default()
            },
        ),
    ];
    for (flag, flags) in all {
        let error = flags.resolve(&machine()).unwrap_err().to_string();
        assert!(error.starts_with(flag), "{error}");
    }
}
