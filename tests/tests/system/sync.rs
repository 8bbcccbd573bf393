//! Nodes that see each other's Routers, whoever else is listening, lying or broken.

use keel_tests::backends::{Backend, Manner};
use keel_tests::client::Exchange;
use keel_tests::lab::{Lab, NatKind};
use keel_tests::need::{Need, lacking};
use keel_tests::process::Program;
use keel_tests::site::{COMMAND, DNS, Node, Sidecar};
use keel_tests::wait::{self, SOON};

/// A Router of a node, as JSON; nothing if there is none.
fn router(node: &Node, name: &str) -> serde_json::Value {
    let json = node
        .keel(&["get", "router", name, "-o", "json"])
        .and_then(|get| get.ok(COMMAND))
        .unwrap_or_default();
    serde_json::from_str(&json).unwrap_or_default()
}

#[test]
fn a_node_behind_nat_is_seen() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let public = Node::public(&lab.host("a")?, "a")?;
    let (edge_host, _nat) = lab.behind_nat("b", NatKind::Symmetric)?;
    let edge = Node::joining(&edge_host, "b", &public)?;
    wait::until(
        "the public node has the other's Router, which was pushed",
        SOON,
        || !router(&public, "b")["status"]["source"].is_null(),
    )?;
    wait::until(
        "the edge node has the public one's, which it pulled",
        SOON,
        || {
            router(&edge, "a")["status"]["addresses"][0]
                == serde_json::json!(format!("{}:7000", public.host.address))
        },
    )?;
    let addresses = &router(&public, "b")["status"]["addresses"];
    assert!(
        addresses.is_null() || addresses == &serde_json::json!([]),
        "behind NAT there is no address: {addresses}"
    );

    let _sidecar = Sidecar::beside(
        &edge,
        "db-0",
        &["--published-services", "mysql=127.0.0.1:3306"],
    )?;
    for node in [&public, &edge] {
        wait::until("the provider is seen where it can be reached", SOON, || {
            let services = &router(node, "a")["status"]["activeServices"];
            services[0]["name"] == "mysql"
                && services[0]["providers"][0]["identity"] == "/node/b/ns/default/pod/db-0"
        })?;
    }
    Ok(())
}

#[test]
fn one_bad_peer_or_object_stops_nobody() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let stranger = Node::public(&lab.host("x")?, "b")?;
    let host = lab.host("a")?.resolves_by(Some(DNS))?;
    // A peer of another trust domain, one that is not the node that it should be, one that is nobody.
    let peers = [
        format!("b={}:7443", stranger.host.address),
        "c=127.0.0.1:7443".to_owned(),
        "d=192.0.2.1:7443".to_owned(),
    ];
    let advertise = format!("{}:7000", host.address);
    let mut flags = vec![
        "--apiserver-listen",
        "0.0.0.0:7443",
        "--advertise",
        &advertise,
    ];
    flags.extend(peers.iter().flat_map(|peer| ["--peer", peer.as_str()]));
    let mut node = Node::up(&host, "a", &flags)?;
    let other = Node::joining(&lab.host("e")?, "e", &node)?;
    let _echo = Backend::on(&other.host, 2003, Manner::Echo)?;
    let _provider = Sidecar::beside(
        &other,
        "provider",
        &["--published-services", "echo=127.0.0.1:2003"],
    )?;

    // Objects as the documents of old have them: no provider, a service without a name, an address that is none.
    let fixture = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/router-architecture-crd.yaml"
    );
    node.keel(&["apply", "-f", fixture])?.ok(COMMAND)?;
    let consumer = Sidecar::beside(&node, "consumer", &["--mapped-services", "echo,mysql"])?;
    let ask = Exchange {
        send: b"through",
        finish: true,
        bound: SOON,
    };
    assert_eq!(
        ask.run(&host, consumer.listens("echo", 2003)?)?.bytes,
        b"through"
    );

    for peer in ["b", "c", "d"] {
        node.process.says(&format!("peer={peer}"), SOON)?;
    }
    let status = node.keel(&["status"])?.ok(COMMAND)?;
    for line in peers.iter().map(|peer| peer.replacen('=', " at ", 1)) {
        assert!(
            status
                .lines()
                .any(|said| said.contains(&format!("{line}: not connected"))),
            "{line}: {status}"
        );
    }
    Ok(())
}

#[test]
fn garbage_at_the_ports_changes_nothing() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Curl]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let mut node = Node::public(&host, "a")?;
    let noise = keel_tests::backends::pattern(60_000);
    host.run(|| -> std::io::Result<()> {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        for port in [7000, 7443] {
            for packet in noise.chunks(1200) {
                socket.send_to(packet, ("127.0.0.1", port))?;
            }
        }
        Ok(())
    })??;
    for send in [noise.as_slice(), b"GET / HTTP/1.1\r\n\r\n", b""] {
        let garbage = Exchange {
            send,
            finish: true,
            bound: SOON,
        };
        garbage.run(&host, ([127, 0, 0, 1], 7443).into())?;
        garbage.run(&host, ([127, 0, 0, 1], 9090).into())?;
    }
    // Somebody who speaks TLS, but another protocol.
    let other = Program::new("curl")
        .args(["-sSk", "--http0.9", "--no-alpn", "https://127.0.0.1:7443/"])
        .on(&host)
        .output(COMMAND)?;
    assert!(!other.stdout().contains("Router"), "{other:?}");
    node.keel(&["get", "routers"])?.ok(COMMAND)?;
    assert!(
        node.process.is_running() && !node.process.log().contains("panicked"),
        "{}",
        node.process.log()
    );
    Ok(())
}
