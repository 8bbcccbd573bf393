//! What is said when something that was asked for is not to be had, and what gives way.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use crate::support::{LONG, ending, range};
use keel_sidecar::config::ListenOn;
use keel_sidecar::listener::PortState;
use keel_sidecar::spec::Port;
use keel_sidecar::spec::parse_mapped;
use keel_sidecar::{Sidecar, SidecarConfig, StartError};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A sidecar that maps `mysql:3306` and has no identity to be found.
fn config(root: &std::path::Path, third: u8) -> SidecarConfig {
    let mut config = SidecarConfig::new("default".parse().unwrap(), root.join("sidecar"));
    config.mapped = parse_mapped("mysql:3306", &config.namespace).unwrap();
    config.ip_range = range(third);
    config.pod = Some("app-0".parse().unwrap());
    config.dns = ListenOn::given("127.0.0.1:0".parse().unwrap());
    config.metrics = ListenOn::given("127.0.0.1:0".parse().unwrap());
    config.connect_timeout = Duration::from_millis(300);
    config
}

async fn start(config: SidecarConfig, stop: &CancellationToken) -> Result<Sidecar, StartError> {
    Sidecar::start(config, Registry::default(), stop.clone(), Handle::current()).await
}

async fn error(config: SidecarConfig) -> String {
    start(config, &CancellationToken::new())
        .await
        .unwrap_err()
        .to_string()
}

#[tokio::test]
async fn an_address_that_the_user_gave_is_that_one_or_an_error() {
    let root = tempfile::tempdir().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut dns = config(root.path(), 20);
    dns.dns = ListenOn::given(udp.local_addr().unwrap());
    let text = error(dns).await;
    assert!(
        text.contains(&udp.local_addr().unwrap().to_string()) && text.contains("--dns-addr"),
        "{text}"
    );
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut metrics = config(root.path(), 20);
    metrics.metrics = ListenOn::given(tcp.local_addr().unwrap());
    let text = error(metrics).await;
    assert!(
        text.contains(&tcp.local_addr().unwrap().to_string()) && text.contains("--metrics-addr"),
        "{text}"
    );
}

#[tokio::test]
async fn a_default_address_that_is_taken_gives_way_to_a_free_port() {
    let root = tempfile::tempdir().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(root.path(), 21);
    config.dns = ListenOn::default_of(udp.local_addr().unwrap());
    config.metrics = ListenOn::default_of(tcp.local_addr().unwrap());
    let sidecar = start(config, &CancellationToken::new()).await.unwrap();
    assert_ne!(
        sidecar.dns_addr().unwrap().port(),
        udp.local_addr().unwrap().port()
    );
    assert_ne!(
        sidecar.metrics_addr().port(),
        tcp.local_addr().unwrap().port()
    );
}

#[tokio::test]
async fn a_range_that_is_too_small_and_a_directory_in_use_are_errors() {
    let root = tempfile::tempdir().unwrap();
    let mut small = config(root.path(), 22);
    small.mapped = parse_mapped("a,b,c", &small.namespace).unwrap();
    small.ip_range = "127.66.22.0/30".parse().unwrap();
    let text = error(small).await;
    assert!(
        text.contains("room for 2 services and 3 are mapped"),
        "{text}"
    );
    let _first = start(config(root.path(), 22), &CancellationToken::new())
        .await
        .unwrap();
    let text = error(config(root.path(), 23)).await;
    assert!(
        text.contains("in use") && text.contains(&std::process::id().to_string()),
        "{text}"
    );
}

#[tokio::test]
async fn our_own_dns_is_no_upstream() {
    let root = tempfile::tempdir().unwrap();
    // No port that the other tests may be given meanwhile.
    let own = "127.66.24.53:5353";
    let mut config = config(root.path(), 24);
    config.dns = ListenOn::given(own.parse().unwrap());
    config.dns_upstreams = own.parse().unwrap();
    let text = error(config).await;
    assert!(
        text.contains("this sidecar itself") && text.contains("--dns-upstream"),
        "{text}"
    );
}

#[tokio::test]
async fn without_an_identity_it_waits_is_not_ready_and_resets_connections() {
    let root = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let sidecar = start(config(root.path(), 25), &stop).await.unwrap();
    let metrics = sidecar.metrics_addr();
    assert_eq!(sidecar.ready().missing(), ["identity", "routers"]);
    let mut tasks = JoinSet::new();
    tasks.spawn(sidecar.run());
    let mut stream = TcpStream::connect(metrics).await.unwrap();
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    timeout(LONG, stream.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    let (_, ended) = ending("127.66.25.1:3306".parse().unwrap()).await;
    assert_eq!(
        ended.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    stop.cancel();
    timeout(LONG, tasks.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .unwrap();
}

/// Set in the child of the test that must not be root.
const UNPRIVILEGED: &str = "KEEL_TEST_UNPRIVILEGED";

/// Runs this test again as nobody, from a copy of this program that everybody may run. False if that cannot be done here.
fn again_as_nobody(name: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), everybody).unwrap();
    let ran = std::process::Command::new(copy)
        .args([name, "--exact", "--nocapture"])
        .env(UNPRIVILEGED, "1")
        .env_remove("TMPDIR")
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output();
    let Ok(output) = ran else { return false };
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    true
}

#[tokio::test]
async fn a_port_that_is_not_permitted_fails_alone_and_says_how_to_allow_it() {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first.is_ok_and(|first| first.trim().parse::<u16>().is_ok_and(|first| first <= 80)) {
        eprintln!("SKIPPED: everybody may listen on port 80 here (ip_unprivileged_port_start)");
        return;
    }
    let child = std::env::var_os(UNPRIVILEGED).is_some();
    if !child && nix::unistd::geteuid().is_root() {
        let name = "start::a_port_that_is_not_permitted_fails_alone_and_says_how_to_allow_it";
        if !again_as_nobody(name) {
            eprintln!("SKIPPED: a program cannot be run as another user here");
        }
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path(), 27);
    config.mapped = parse_mapped("mysql:3306,web:80,web:8080", &config.namespace).unwrap();
    let sidecar = start(config, &CancellationToken::new()).await.unwrap();
    let states = sidecar.mappings().borrow().clone();
    let state = |name: &str, port: u16| {
        let found = states
            .iter()
            .find(|state| state.target.service.name.as_ref() == name);
        found.unwrap().ports[&Port::tcp(port)].clone()
    };
    assert_eq!(state("mysql", 3306), PortState::Listening);
    assert_eq!(state("web", 8080), PortState::Listening);
    let PortState::Failed(why) = state("web", 80) else {
        panic!("port 80 was permitted");
    };
    for remedy in ["ip_unprivileged_port_start=80", "cap_net_bind_service"] {
        assert!(why.contains(remedy), "{why}");
    }
}

#[tokio::test]
async fn with_a_limit_on_the_search_it_ends_with_the_remedies() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path(), 26);
    config.identity_timeout = Some(Duration::ZERO);
    let sidecar = start(config, &CancellationToken::new()).await.unwrap();
    let text = timeout(LONG, sidecar.run())
        .await
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("keel up") && text.contains("--join"),
        "{text}"
    );
}
