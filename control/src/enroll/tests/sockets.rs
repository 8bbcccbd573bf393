//! The two Unix sockets.

use std::os::unix::fs::PermissionsExt;

use keel_certs::Issuer as _;

use super::wire::{WorkloadAnswer, WorkloadRequest};
use super::*;

struct Open {
    admin: PathBuf,
    workload: PathBuf,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Open {
    fn new(node: &Node) -> Self {
        let sockets = LocalSockets::bind(&node.data).unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(sockets.run(node.enrolment.clone(), stop.clone()));
        Self {
            admin: node.data.admin_sock(),
            workload: node.data.workload_sock(),
            stop,
            tasks,
        }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.tasks.join_next())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_workload_gets_its_leaf_and_where_to_go() {
    let node = Node::first("a").await;
    let open = Open::new(&node);
    let (namespace, pod) = (
        Namespace::default_namespace(),
        PodName::new("db-0").unwrap(),
    );
    let key = KeyPair::generate().unwrap();
    let workload = local::workload(&open.workload, &namespace, &pod, &key.csr().unwrap())
        .await
        .unwrap();
    assert_eq!(workload.info.apiserver, "https://127.0.0.1:7443");
    assert_eq!(
        (workload.node.as_str(), &*workload.info.routers),
        ("a", &["127.0.0.1:7000".to_owned()][..])
    );
    let live = LiveIdentity::new(key, workload.chain, workload.roots).unwrap();
    assert_eq!(
        live.identity().to_string(),
        "spiffe://test.keel/node/a/ns/default/pod/db-0"
    );

    let issuer = SocketIssuer {
        socket: open.workload.clone(),
        namespace,
        pod,
    };
    let key = KeyPair::generate().unwrap();
    let (chain, roots) = issuer.renew(&key.csr().unwrap()).await.unwrap();
    live.replace_all(key, chain, roots).unwrap();
    open.stop().await;
}

#[tokio::test]
async fn the_owner_gets_node_admin_and_tokens() {
    let node = Node::first("a").await;
    let open = Open::new(&node);
    assert_eq!(local::info(&open.admin).await.unwrap().node.as_str(), "a");
    let live = local::node_identity(&open.admin).await.unwrap();
    assert_eq!(live.identity().subject.path(), "/node/a");
    let key = KeyPair::generate().unwrap();
    let issuer = NodeSocketIssuer {
        socket: open.admin.clone(),
    };
    let (chain, roots) = issuer.renew(&key.csr().unwrap()).await.unwrap();
    live.replace_all(key, chain, roots).unwrap();

    let user = UserName::new("ann").unwrap();
    let week = Duration::from_secs(7 * 24 * 3600);
    let admin = local::admin_identity(&open.admin, &user, Some(week), false)
        .await
        .unwrap();
    assert_eq!(admin.identity().subject.path(), "/node/a/admin/ann");
    let admin = local::admin_identity(&open.admin, &user, Some(week), true)
        .await
        .unwrap();
    assert_eq!(admin.identity().subject.path(), "/admin/ann");
    let short = local::admin_identity(&open.admin, &user, Some(Duration::from_secs(1)), false)
        .await
        .unwrap_err();
    assert!(short.to_string().contains("too short-lived"), "{short}");
    for (life, fabric) in [(31 * week, false), (Duration::MAX, true)] {
        let long = local::admin_identity(&open.admin, &user, Some(life), fabric)
            .await
            .unwrap_err();
        assert!(long.to_string().contains("at most 30d"), "{long}");
    }

    let request = TokenRequest {
        scope: node_scope(Some("b")),
        ttl_seconds: 60,
        uses: 1,
        endpoint: Some("h.example:1".into()),
    };
    let token = local::create_token(&open.admin, &request).await.unwrap();
    assert_eq!(
        (token.endpoint.as_str(), token.pin),
        ("h.example:1", node.pin())
    );
    local::revoke_token(&open.admin, &token.id).await.unwrap();
    let listed = local::tokens(&open.admin).await.unwrap();
    assert!(
        listed
            .iter()
            .any(|info| info.id == token.id && info.revoked),
        "{listed:?}"
    );
    open.stop().await;
}

#[tokio::test]
async fn the_workload_socket_gives_nothing_but_workloads() {
    let node = Node::first("a").await;
    let open = Open::new(&node);
    for outcome in [
        local::info(&open.workload).await.map(drop),
        local::node_identity(&open.workload).await.map(drop),
        local::admin_identity(&open.workload, &UserName::new("x").unwrap(), None, false)
            .await
            .map(drop),
        local::tokens(&open.workload).await.map(drop),
    ] {
        assert!(matches!(outcome, Err(LocalError::Refused(_))));
    }
    open.stop().await;
}

#[tokio::test]
async fn who_may_ask_for_what_is_decided_by_the_user_id() {
    let node = Node::first("a").await;
    let ask = |uid: u32, namespace: &str| {
        let (namespace, pod) = (
            Namespace::new(namespace).unwrap(),
            PodName::new("p").unwrap(),
        );
        let body = WorkloadRequest {
            namespace,
            pod,
            csr: wire::PemCsr(csr()),
        };
        let caller = Caller {
            identity: None,
            remote: Remote::Unix {
                uid,
                gid: uid,
                pid: Some(1),
            },
        };
        let answer = node
            .enrolment
            .handle_workload(request(Method::POST, "/v1/workload", &body), caller);
        async move {
            parsed::<WorkloadAnswer>(answer.await)
                .await
                .map(|answer| answer.issued.subject.path())
        }
    };
    assert_eq!(
        ask(65534, "default").await.unwrap(),
        "/node/a/ns/default/pod/p"
    );
    assert_eq!(ask(65534, "open").await.unwrap(), "/node/a/ns/open/pod/p");
    assert_eq!(ask(0, "team").await.unwrap(), "/node/a/ns/team/pod/p");
    let refused = ask(65534, "team").await.unwrap_err();
    assert_eq!(refused.code, 403);
    assert!(
        refused.message.contains("--local-namespaces team"),
        "{refused}"
    );

    // Nobody else gets anything on admin.sock, even if its mode were changed.
    let caller = Caller {
        identity: None,
        remote: Remote::Unix {
            uid: 65534,
            gid: 0,
            pid: None,
        },
    };
    let answer = node
        .enrolment
        .handle_admin(request(Method::GET, "/v1/info", &()), caller)
        .await;
    assert_eq!(answer.status(), 403);
    let answer = node.enrolment.handle_admin(
        request(Method::GET, "/v1/info", &()),
        Caller {
            identity: None,
            remote: Remote::Tcp("127.0.0.1:1".parse().unwrap()),
        },
    );
    assert_eq!(answer.await.status(), 403);
}

#[tokio::test]
async fn the_files_have_their_modes_and_go_at_the_end() {
    let node = Node::first("a").await;
    std::fs::write(node.data.admin_sock(), "left over").unwrap();
    let open = Open::new(&node);
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&open.admin), mode(&open.workload)), (0o600, 0o660));
    let (admin, workload) = (open.admin.clone(), open.workload.clone());
    open.stop().await;
    assert!(!admin.exists() && !workload.exists());
    let error = local::info(&admin).await.unwrap_err();
    assert!(error.is_retryable());
    assert!(error.to_string().contains("keel up"), "{error}");
}

#[test]
fn only_a_directory_as_we_make_them_is_opened_for_the_group() {
    let temp = tempfile::tempdir().unwrap();
    let group = nix::unistd::getegid();
    for (before, after) in [
        (0o700, 0o710),
        (0o710, 0o710),
        (0o755, 0o755),
        (0o1777, 0o1777),
        (0o500, 0o500),
    ] {
        let directory = temp.path().join(format!("{before:o}"));
        std::fs::create_dir(&directory).unwrap();
        let socket = directory.join("workload.sock");
        std::fs::write(&socket, "").unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(before)).unwrap();
        super::super::sockets::give_to_group(&directory, &socket, group);
        let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, after, "{before:o}");
    }
}

#[tokio::test]
async fn a_peer_that_says_nothing_stops_nobody() {
    let node = Node::first("a").await;
    let open = Open::new(&node);
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(tokio::net::UnixStream::connect(&open.admin).await.unwrap());
    }
    local::info(&open.admin).await.unwrap();
    open.stop().await;
}
