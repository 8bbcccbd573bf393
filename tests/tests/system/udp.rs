//! UDP services behind a NAT, used by name from another network: DNS, NTP, and packets of the size that VPNs make.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use keel_tests::backends::{FakeUpstream, pattern};
use keel_tests::lab::{Host, NatKind};
use keel_tests::need::{Need, lacking};
use keel_tests::process::{Process, Program};
use keel_tests::site::{COMMAND, Town};
use keel_tests::wait::{self, SOON};

/// What the name server behind the NAT says to everything.
const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
/// How long a test waits for one packet before it sends it again.
const TRY: Duration = Duration::from_millis(300);

const PUBLISHED: &str =
    "names:5300/udp=127.0.0.1:5300,ntp:123/udp=127.0.0.1:123,wire:51820/udp=127.0.0.1:51820";
const MAPPED: &str = "names:5300/udp,ntp:123/udp,wire/udp";

#[test]
fn dns_ntp_and_large_packets_across_two_nats() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Chrony]) {
        return Ok(());
    }
    let mut town = Town::new(NatKind::Symmetric, PUBLISHED, MAPPED)?;
    let _names = FakeUpstream::on(town.servers(), "127.0.0.1:5300", ANSWER)?;
    let mirror = Mirror::on(town.servers(), "127.0.0.1:51820")?;
    let folder = tempfile::tempdir()?;
    let _time = chronyd(town.servers(), folder.path())?;

    let names = town.consumer.resolves("names.default.svc")?;
    let question = [
        format!("@{names}"),
        "-p5300".to_owned(),
        "+time=5".to_owned(),
        "+tries=4".to_owned(),
        "+short".to_owned(),
        "anything.example".to_owned(),
    ];
    // A question has a client port of its own each time, and so an association.
    for _ in 0..5 {
        let answer = Program::new("dig")
            .args(&question)
            .on(town.apps())
            .ok(COMMAND)?;
        assert_eq!(answer.trim(), ANSWER.to_string());
    }

    town.consumer.resolves("ntp.default.svc")?;
    // A file of its own: chronyd removes what it finds there.
    let pidfile = format!("pidfile {}", folder.path().join("client.pid").display());
    let asked = Program::new("chronyd")
        .args(["-Q", "-t", "30", "-u", "root"])
        .arg("server ntp.default.svc iburst maxdelay 1")
        .arg(&pidfile)
        .args(["cmdport 0", "bindcmdaddress /"])
        .on(town.apps())
        .output(COMMAND)?;
    let said = format!("{}{}", asked.stdout(), asked.stderr());
    assert_eq!(asked.code(), Some(0), "{said}");
    let wrong_by: f64 = said
        .split("System clock wrong by ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or_else(|| panic!("chronyd did not say: {said}"))
        .parse()?;
    println!("chronyd: wrong by {wrong_by} s");
    assert!(wrong_by.abs() < 0.5, "one clock, two ends: {said}");

    let wire = SocketAddr::from((town.consumer.resolves("wire.default.svc")?, 51820));
    let client = town.apps().run(|| UdpSocket::bind("127.0.0.1:0"))??;
    client.connect(wire)?;
    client.set_read_timeout(Some(TRY))?;
    for length in [0, 32, 148, 1152, 1280, 1420, 1452, 1500, 9000, 65_507] {
        mirrored(&client, &pattern(length))?;
    }
    let before = mirror.sources();
    assert_eq!(before.len(), 1, "one client, one association: {before:?}");

    // Both ends lose their router without a word, and find it again.
    town.public.process.kill()?;
    let advertise = format!("{}:7000", town.public.host.address);
    town.public.again(&[
        "--apiserver-listen",
        "0.0.0.0:7443",
        "--advertise",
        &advertise,
    ])?;
    for length in [148, 1420, 9000] {
        mirrored(&client, &pattern(length))?;
    }
    assert_eq!(
        mirror.sources(),
        before,
        "the backend still sees the same client"
    );
    Ok(())
}

/// Sends a packet until it comes back, as clients of UDP do.
fn mirrored(client: &UdpSocket, packet: &[u8]) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    wait::until(&format!("{} bytes come back", packet.len()), SOON, || {
        if client.send(packet).is_err() {
            return false;
        }
        // Answers to what was repeated before may still come.
        while let Ok(length) = client.recv(&mut buffer) {
            if buffer[..length] == *packet {
                return true;
            }
        }
        false
    })
}

/// A time server that says what the clock says, and leaves the clock alone.
fn chronyd(host: &Host, folder: &Path) -> anyhow::Result<Process> {
    let pidfile = format!("pidfile {}", folder.join("server.pid").display());
    let mut server = Program::new("chronyd")
        .args(["-d", "-x", "-u", "root"])
        .args([
            "bindaddress 127.0.0.1",
            "allow 127.0.0.0/8",
            "local stratum 4",
        ])
        .arg(&pidfile)
        .args(["cmdport 0", "bindcmdaddress /"])
        .on(host)
        .start()?;
    server.says("chronyd version", SOON)?;
    Ok(server)
}

/// Sends every packet back, and remembers who sent one.
struct Mirror {
    sources: Arc<Mutex<BTreeSet<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    fn on(host: &Host, listen: &str) -> anyhow::Result<Self> {
        let socket = host.run(|| UdpSocket::bind(listen))??;
        socket.set_read_timeout(Some(TRY))?;
        let (sources, stop) = (Arc::<Mutex<BTreeSet<_>>>::default(), Arc::default());
        let thread = std::thread::Builder::new()
            .name("mirror".to_owned())
            .spawn({
                let (sources, stop) = (Arc::clone(&sources), Arc::<AtomicBool>::clone(&stop));
                move || {
                    let mut buffer = vec![0; 1 << 16];
                    while !stop.load(Ordering::Acquire) {
                        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                            continue;
                        };
                        if let Ok(mut sources) = sources.lock() {
                            sources.insert(peer);
                        }
                        let _peer_gone = socket.send_to(&buffer[..length], peer);
                    }
                }
            })?;
        Ok(Self {
            sources,
            stop,
            thread: Some(thread),
        })
    }

    fn sources(&self) -> BTreeSet<SocketAddr> {
        self.sources
            .lock()
            .map(|all| all.clone())
            .unwrap_or_default()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed.
            let _ = thread.join();
        }
    }
}
