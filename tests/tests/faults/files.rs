//! Processes that may open few files, and far more connections: what is not a connection of an application goes on, and
//! so do those that have their file.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::backends::{Backend, FakeUpstream, Manner};
use keel_tests::lab::{Host, Lab};
use keel_tests::need::{self, Need, lacking};
use keel_tests::process::{Process, Program};
use keel_tests::site::{COMMAND, Node, Sidecar, dig};
use keel_tests::wait::{self, SOON};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::ground::{metrics, sum};

/// The fewest files that anything here is started with.
const FEW: [&str; 2] = ["prlimit", "--nofile=256:256"];
/// The port of the service.
const PORT: u16 = 7;
/// How much of a processor a process takes at most while it has no file left.
const BUSY: f64 = 0.2;

/// What a node may take to stop: it waits for its flows to leave.
const STOP: Duration = Duration::from_secs(25);

/// How soon a new connection carries once the others have gone.
fn recovered() -> Duration {
    Duration::from_secs(if need::long() { 1 } else { 3 })
}

/// Connections that one client makes and keeps.
struct Crowd {
    stop: CancellationToken,
    connected: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Comes from `host` and says a word; returns once nobody else gets in.
    fn at(
        host: &Host,
        address: SocketAddr,
        word: &'static [u8],
        process: &Process,
    ) -> anyhow::Result<Self> {
        let count = if need::long() { 10_000 } else { 600 };
        let (stop, connected) = (CancellationToken::new(), Arc::<AtomicUsize>::default());
        let thread = std::thread::Builder::new()
            .name("crowd".to_owned())
            .spawn({
                let (host, stop, connected) = (host.clone(), stop.clone(), Arc::clone(&connected));
                move || match (host.enter(), runtime()) {
                    (Ok(()), Ok(runtime)) => {
                        let crowd = crowd(address, word, count, &connected);
                        runtime.block_on(stop.run_until_cancelled(crowd));
                    }
                    failed => eprintln!("no crowd: {failed:?}"),
                }
            })?;
        let crowd = Self {
            stop,
            connected,
            thread: Some(thread),
        };
        let mut before = (0, 0);
        wait::until_some("as many come in as can", SOON, || {
            wait::pause(Duration::from_millis(200));
            let now = (
                crowd.connected.load(Ordering::Relaxed),
                process.open_files().map_err(|error| error.to_string())?,
            );
            if now == before && now.0 >= 100 {
                return Ok(());
            }
            before = now;
            Err(format!("{} connected, {} files open", now.0, now.1))
        })?;
        println!("{} of {count} connected, {} files open", before.0, before.1);
        Ok(crowd)
    }
}

/// All go at once.
impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

async fn crowd(address: SocketAddr, word: &'static [u8], count: usize, connected: &AtomicUsize) {
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..count {
        all.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
            stream.write_all(word).await.ok()?;
            Some(stream)
        });
        // Not so many at once that the kernel takes it for a flood of SYNs.
        tokio::task::yield_now().await;
    }
    let mut held = Vec::new();
    while let Some(done) = all.join_next().await {
        connected.fetch_add(1, Ordering::Relaxed);
        held.push(done);
    }
    std::future::pending::<()>().await;
}

/// Says a word on a connection to an echo, and hears it.
fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"still there")?;
    stream.read_exact(&mut [0; 11])
}

/// A connection that carries.
fn connect(host: &Host, address: SocketAddr, bound: Duration) -> anyhow::Result<TcpStream> {
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&address, bound)?;
        echo(&mut stream)?;
        Ok::<_, std::io::Error>(stream)
    };
    host.run(connect)?.context("connect and echo")
}

/// The part of one processor that a process takes while nothing happens.
fn takes(process: &Process) -> anyhow::Result<f64> {
    let (began, before) = (Instant::now(), process.cpu_time()?);
    wait::pause(Duration::from_secs(2));
    let used = process.cpu_time()? - before;
    Ok(used.as_secs_f64() / began.elapsed().as_secs_f64())
}

/// Waits until a new connection carries, and says how long it took.
fn recovers(host: &Host, address: SocketAddr) -> anyhow::Result<()> {
    let began = Instant::now();
    wait::until_some("a new connection carries", recovered(), || {
        let short = Duration::from_millis(500);
        connect(host, address, short).map_err(|error| format!("{error:#}"))
    })?;
    println!("recovered in {:.1?}", began.elapsed());
    Ok(())
}

/// A node, an echo with its provider, and a consumer; `few` says which of the two sidecars may open few files.
struct Site {
    // Dropped from top to bottom: processes before the namespaces they run in.
    consumer: Sidecar,
    provider: Sidecar,
    address: SocketAddr,
    node: Node,
    _backend: Backend,
    _upstream: FakeUpstream,
    _lab: Lab,
}

/// What the name server of the consumer's host says to everything.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

impl Site {
    fn new(few: &str) -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let node = Node::public(&lab.host("a")?, "a")?;
        let servers = lab.host("p")?;
        let backend = Backend::on(&servers, PORT, Manner::Echo)?;
        let apps = lab.host("c")?.resolves_by(Some("127.0.0.9"))?;
        let upstream = FakeUpstream::on(&apps, "127.0.0.9:53", ELSEWHERE)?;
        let start = |host, pod, flags| {
            if pod == few {
                Sidecar::joining_behind(FEW, host, pod, &node, flags)
            } else {
                Sidecar::joining(host, pod, &node, flags)
            }
        };
        let published = ["--published-services", "echo=127.0.0.1:7"];
        let provider = start(&servers, "provider", &published)?;
        let consumer = start(&apps, "consumer", &["--mapped-services", "echo"])?;
        let address = consumer.listens("echo", PORT)?;
        Ok(Self {
            consumer,
            provider,
            address,
            node,
            _backend: backend,
            _upstream: upstream,
            _lab: lab,
        })
    }

    /// Names of ours and of others, over both transports.
    fn resolves(&self) -> anyhow::Result<()> {
        let host = &self.consumer.host;
        let ours = self.address.ip().to_string();
        for (name, answer) in [("echo", &ours), ("example.org", &ELSEWHERE.to_string())] {
            for transport in ["+notcp", "+tcp"] {
                let said = dig(host, &[name, "A", "+short", transport])?;
                anyhow::ensure!(said.trim() == answer, "{name} {transport}: {said:?}");
            }
        }
        Ok(())
    }
}

#[test]
fn a_sidecar_that_may_open_no_more_files_resolves_and_carries() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let mut site = Site::new("consumer")?;
    let host = site.consumer.host.clone();
    let mut early = connect(&host, site.address, SOON)?;
    let crowd = Crowd::at(&host, site.address, b"x", &site.consumer.process)?;

    let takes = takes(&site.consumer.process)?;
    println!("takes {:.0} % of a processor", takes * 100.0);
    anyhow::ensure!(takes < BUSY, "takes {:.0} %", takes * 100.0);
    site.resolves()?;
    echo(&mut early).context("the connection that was there before")?;
    let metrics = || metrics(&site.consumer);
    anyhow::ensure!(sum(&metrics()?, "keel_sidecar_apiserver_connected") == 1);
    // What it needs to follow its node: a connection, and files for what it keeps.
    site.node.process.stop(STOP)?;
    wait::until("the loss is noticed", SOON, || {
        metrics().is_ok_and(|text| sum(&text, "keel_sidecar_apiserver_connected") == 0)
    })?;
    let advertise = format!("{}:7000", site.node.host.address);
    let public = [
        "--apiserver-listen",
        "0.0.0.0:7443",
        "--advertise",
        &advertise,
    ];
    site.node.again(&public)?;
    wait::until("the node is followed again", SOON, || {
        metrics().is_ok_and(|text| sum(&text, "keel_sidecar_apiserver_connected") == 1)
    })?;
    wait::until_some("the early connection carries", SOON, || {
        echo(&mut early).map_err(|error| error.to_string())
    })?;

    drop(crowd);
    recovers(&host, site.address)
}

#[test]
fn a_provider_that_may_open_no_more_files_refuses_and_carries() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let site = Site::new("provider")?;
    let host = &site.consumer.host;
    let mut early = connect(host, site.address, SOON)?;
    let crowd = Crowd::at(host, site.address, b"x", &site.provider.process)?;
    let takes = takes(&site.provider.process)?;
    println!("takes {:.0} % of a processor", takes * 100.0);
    anyhow::ensure!(takes < BUSY, "takes {:.0} %", takes * 100.0);
    let text = metrics(&site.provider)?;
    let hits = sum(
        &text,
        "keel_fabric_limit_hit_total{name=\"provider_flows\"}",
    );
    anyhow::ensure!(hits > 0, "nobody was turned away by the limit:\n{text}");
    echo(&mut early).context("the connection that was there before")?;
    drop(crowd);
    recovers(host, site.address)
}

#[test]
fn a_node_that_may_open_no_more_files_serves_its_owner_and_its_sidecars() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?.resolves_by(None)?;
    let advertise = format!("{}:7000", host.address);
    let public = [
        "--apiserver-listen",
        "0.0.0.0:7443",
        "--advertise",
        &advertise,
    ];
    let node = Node::up_behind(FEW, &host, "a", &public)?;
    let _backend = Backend::on(&host, PORT, Manner::Echo)?;
    let published = ["--published-services", "echo=127.0.0.1:7"];
    let _provider = Sidecar::beside(&node, "provider", &published)?;
    let apps = lab.host("c")?;
    let consumer = Sidecar::joining(&apps, "consumer", &node, &["--mapped-services", "echo"])?;
    let address = consumer.listens("echo", PORT)?;

    let api = SocketAddr::from((host.address, 7443));
    let crowd = Crowd::at(&apps, api, b"", &node.process)?;
    let takes = takes(&node.process)?;
    println!("takes {:.0} % of a processor", takes * 100.0);
    anyhow::ensure!(takes < BUSY, "takes {:.0} %", takes * 100.0);
    drop(crowd);
    // Those who say nothing are sent away after seconds: what is asked meanwhile is asked beside new ones.
    let crowd = Crowd::at(&apps, api, b"", &node.process)?;
    // Before the first of them are sent away.
    Program::new("curl")
        .args(["-sSf", "--max-time", "2", "http://127.0.0.1:9090/readyz"])
        .on(&host)
        .ok(COMMAND)?;
    node.token(&["--sidecar", "default/another"])?;
    node.keel(&["get", "routers"])?.ok(COMMAND)?;
    connect(&apps, address, SOON)?;
    drop(crowd);
    let began = Instant::now();
    wait::until_some("the API answers over TCP", recovered(), || {
        Program::new("curl")
            .args(["-sk", "--max-time", "1", &format!("https://{api}/version")])
            .on(&apps)
            .ok(COMMAND)
            .map_err(|error| format!("{error:#}"))
    })?;
    println!("recovered in {:.1?}", began.elapsed());
    Ok(())
}
