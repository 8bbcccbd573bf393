//! The network goes away, addresses change, processes die: the application sees a pause.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::backends::{Backend, Manner, pattern};
use keel_tests::client::Exchange;
use keel_tests::credentials::search;
use keel_tests::lab::{Host, Lab, NatKind};
use keel_tests::need::{Need, lacking};
use keel_tests::site::{COMMAND, DNS, Node, Sidecar, Town};
use keel_tests::wait::{self, SOON};
use nix::sys::signal::Signal;

/// An outage that fits well into the window in which a flow can resume (60 s).
const OUTAGE: Duration = Duration::from_secs(15);

/// How long a flow waits for the other end to come back: then it ends in a reset.
const WINDOW: Duration = Duration::from_secs(60);

/// When a flow on this machine at the latest notices that its router went without a word: 15 s after the first keep-alive
/// without an answer, which is sent up to 5 s after the last word.
const NOTICED: Duration = Duration::from_secs(20);

/// Talks to an echo, block by block, while `fault` happens in the middle of the conversation.
fn talk_through(
    host: &Host,
    server: SocketAddr,
    fault: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let connect = || TcpStream::connect(server);
    let mut stream = host.run(connect)??;
    stream.set_read_timeout(Some(Duration::from_secs(90)))?;
    let sent = pattern(8 << 20);
    let blocks: Vec<_> = sent.chunks(64 << 10).collect();
    let mut echoed = vec![0; 64 << 10];
    let mut fault = Some(fault);
    for (number, block) in blocks.iter().enumerate() {
        if number == blocks.len() / 2 {
            // Written before and read after: these bytes are under way while it happens.
            stream.write_all(block)?;
            fault.take().map_or(Ok(()), |fault| fault())?;
        } else {
            stream
                .write_all(block)
                .with_context(|| format!("write block {number}"))?;
        }
        stream
            .read_exact(&mut echoed)
            .with_context(|| format!("read block {number}"))?;
        anyhow::ensure!(echoed == *block, "block {number} came back changed");
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    anyhow::ensure!(
        stream.read(&mut echoed)? == 0,
        "a clean end after the last block"
    );
    Ok(())
}

#[test]
fn a_connection_survives_the_network() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let town = Town::new(NatKind::Home, "echo=127.0.0.1:2003", "echo")?;
    let _echo = Backend::on(town.servers(), 2003, Manner::Echo)?;
    let server = town.consumer.listens("echo", 2003)?;
    let outage = |public| {
        let town = &town;
        move || {
            town.lab.unplug(public)?;
            wait::pause(OUTAGE);
            town.lab.plug(public)
        }
    };
    talk_through(town.apps(), server, outage(town.edge_nat.public))
        .context("the provider's uplink was away")?;
    talk_through(town.apps(), server, outage(town.consumer_nat.public))
        .context("the consumer's uplink was away")?;
    talk_through(town.apps(), server, || town.edge_nat.rebind())
        .context("the provider's NAT forgot its mappings")?;
    talk_through(town.apps(), server, || town.consumer_nat.rebind())
        .context("the consumer's NAT forgot its mappings")?;
    talk_through(town.apps(), server, || town.lab.lose(30))
        .context("3 % of the packets are lost from now on")?;
    Ok(())
}

#[test]
fn a_connection_survives_the_router() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut town = Town::new(NatKind::Symmetric, "echo=127.0.0.1:2003", "echo")?;
    let _echo = Backend::on(town.servers(), 2003, Manner::Echo)?;
    let server = town.consumer.listens("echo", 2003)?;
    let advertise = format!("{}:7000", town.public.host.address);
    let apps = town.apps().clone();
    let public = &mut town.public;
    talk_through(&apps, server, || {
        public.process.kill()?;
        public.again(&[
            "--apiserver-listen",
            "0.0.0.0:7443",
            "--advertise",
            &advertise,
        ])
    })
    .context("the public node was killed and started again")
}

#[test]
fn a_sidecar_restarts_without_the_apiserver() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut town = Town::new(NatKind::Home, "echo=127.0.0.1:2003", "echo")?;
    let _echo = Backend::on(town.servers(), 2003, Manner::Echo)?;
    let server = town.consumer.listens("echo", 2003)?;
    let ask = Exchange {
        send: b"anybody?",
        finish: true,
        bound: SOON,
    };
    assert_eq!(ask.run(town.apps(), server)?.bytes, b"anybody?");

    wait::until("the sidecar has written down what it knows", SOON, || {
        ["snapshot.0", "snapshot.1"].iter().any(|name| {
            let path = search(town.consumer.state(), name);
            path.and_then(|path| std::fs::read_to_string(path).ok())
                .is_some_and(|text| text.contains("/node/b/ns/default/pod/provider"))
        })
    })?;
    town.apps().block(7443)?;
    town.consumer.process.kill()?;
    town.consumer.again()?;
    assert_eq!(
        town.consumer.listens("echo", 2003)?,
        server,
        "the name, its address and its port come out of the snapshot"
    );
    assert_eq!(
        ask.run(town.apps(), server)?.bytes,
        b"anybody?",
        "and the service is reached without the control plane"
    );
    assert!(
        !town
            .consumer
            .process
            .log()
            .contains("following the APIServer"),
        "there is none"
    );
    town.apps().unblock()?;
    // It goes on by itself when the APIServer is there again.
    town.consumer.process.says("following the APIServer", SOON)
}

/// A node, an echo that a sidecar publishes and one that the node's router dials, and the sidecar that maps both.
struct Small {
    consumer: Sidecar,
    provider: Sidecar,
    node: Node,
    _echo: Backend,
    host: Host,
    _lab: Lab,
}

impl Small {
    fn new() -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let host = lab.host("a")?.resolves_by(Some(DNS))?;
        let node = Node::public(&host, "a")?;
        let echo = Backend::on(&host, 2003, Manner::Echo)?;
        let spec = r#"{"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "a"}, "spec":
            {"advertisedServices": [{"name": "dialled", "port": 2005, "target": "127.0.0.1:2003"}]}}"#;
        node.keel(&["apply", "-f", "-"])?.input(spec).ok(COMMAND)?;
        let provider = Sidecar::beside(
            &node,
            "provider",
            &["--published-services", "echo=127.0.0.1:2003"],
        )?;
        let consumer = Sidecar::beside(&node, "consumer", &["--mapped-services", "echo,dialled"])?;
        Ok(Self {
            consumer,
            provider,
            node,
            _echo: echo,
            host,
            _lab: lab,
        })
    }

    /// A live connection to a service, with one answered byte on it, to which nothing happens until something is killed.
    fn idle_connection(&self, name: &str, port: u16) -> anyhow::Result<TcpStream> {
        let server = self.consumer.listens(name, port)?;
        let mut stream = self.host.run(|| TcpStream::connect(server))??;
        stream.set_read_timeout(Some(NOTICED + WINDOW + SOON))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    }
}

/// How soon after the end of a process others know of it.
const PROMPT: Duration = Duration::from_secs(2);

/// The connection must end in a reset: an end of file would pass for the server's own.
fn is_reset(mut stream: TcpStream) -> anyhow::Result<()> {
    loop {
        match stream.read(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            // Where this process stood still meanwhile: a read with a time limit is not begun again (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => anyhow::bail!("{other:?} instead of a reset"),
        }
    }
}

#[test]
fn a_killed_sidecar_resets_its_connections() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut small = Small::new()?;
    let stream = small.idle_connection("echo", 2003)?;
    small.consumer.process.kill()?;
    is_reset(stream).context("the consumer's sidecar was killed")?;
    small.consumer.again()?;

    let stream = small.idle_connection("echo", 2003)?;
    small.provider.process.kill()?;
    is_reset(stream).context("the provider's sidecar was killed and stays away")
}

#[test]
fn an_ended_router_resets_what_ends_in_it() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut small = Small::new()?;
    let stream = small.idle_connection("dialled", 2005)?;
    // A client that does not say goodbye holds up the stop that the first signal asks for; a later one ends it at once.
    small.consumer.process.signal(Signal::SIGSTOP)?;
    let ended = small.node.process.end_by(Signal::SIGTERM, SOON)?;
    small.consumer.process.signal(Signal::SIGCONT)?;
    assert_eq!(ended.code(), Some(130), "a second signal ends it at once");
    is_reset(stream).context("the router that dialled the backend was ended and stays away")
}

/// What a sidecar gives its connections when it is told to stop.
const GRACE: Duration = Duration::from_secs(5);

#[test]
fn a_sidecar_that_stops_gives_its_connections_time() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut small = Small::new()?;
    for provider in [true, false] {
        let mut stream = small.idle_connection("echo", 2003)?;
        let process = if provider {
            &mut small.provider.process
        } else {
            &mut small.consumer.process
        };
        let begun = Instant::now();
        process.signal(Signal::SIGTERM)?;
        let ended = loop {
            stream.set_read_timeout(Some(GRACE + PROMPT))?;
            let echoed = stream
                .write_all(b"y")
                .and_then(|()| stream.read_exact(&mut [0]));
            if let Err(error) = echoed {
                break error;
            }
            wait::pause(Duration::from_millis(50));
        };
        let after = begun.elapsed();
        anyhow::ensure!(
            (GRACE..GRACE + PROMPT).contains(&after),
            "provider {provider}: {ended} after {after:?}"
        );
        anyhow::ensure!(
            matches!(
                ended.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ),
            "{ended:?}"
        );
        process.end(SOON)?;
        if provider {
            small.provider.again()?;
        }
    }
    Ok(())
}

/// Whoever ends a process in a hurry does not want others to wait for it.
#[test]
fn an_end_in_a_hurry_is_told_to_the_other_ends() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut small = Small::new()?;
    let promptly = |stream: &TcpStream| stream.set_read_timeout(Some(PROMPT));
    let stream = small.idle_connection("echo", 2003)?;
    let ended = small.provider.process.end_by(Signal::SIGTERM, SOON)?;
    promptly(&stream)?;
    is_reset(stream).context("the provider's sidecar got two signals")?;
    assert_eq!(ended.code(), Some(130));

    let stream = small.idle_connection("dialled", 2005)?;
    let ended = small.node.process.end_by(Signal::SIGTERM, SOON)?;
    promptly(&stream)?;
    is_reset(stream).context("the router that dialled the backend got two signals")?;
    assert_eq!(ended.code(), Some(130));
    Ok(())
}
