//! Backends that refuse, reset or say nothing, and services that nobody provides: the client gets an RST, in time.

use std::net::SocketAddr;
use std::time::Duration;

use keel_tests::backends::{Backend, Manner};
use keel_tests::client::{End, Exchange};
use keel_tests::lab::Lab;
use keel_tests::need::{Need, lacking};
use keel_tests::site::{DNS, Node, Sidecar};
use keel_tests::wait::{self, SOON};

/// The default connect timeout, and what the RST may come later on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);
const LATE: Duration = Duration::from_secs(3);
/// How soon a refusal must be at the client.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
fn no_failure_looks_like_a_clean_end() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?.resolves_by(Some(DNS))?;
    // A backend that does not answer: its address is there, its packets go nowhere.
    host.swallow(3004)?;
    let node = Node::public(&host, "a")?;
    let published =
        "good=127.0.0.1:3001,closed=127.0.0.1:3002,rude=127.0.0.1:3003,deaf:3104=127.0.0.1:3004";
    let _good = Backend::on(&host, 3001, Manner::Echo)?;
    let _rude = Backend::on(&host, 3003, Manner::Reset)?;
    let _provider = Sidecar::beside(&node, "provider", &["--published-services", published])?;
    let consumer = Sidecar::beside(
        &node,
        "consumer",
        &["--mapped-services", "good,closed,rude,deaf,nobody:3005"],
    )?;

    let ask = Exchange {
        send: b"anybody?",
        finish: false,
        bound: TIMEOUT + LATE,
    };
    let listener = |name: &str, port| -> anyhow::Result<SocketAddr> {
        Ok((consumer.resolves(name)?, port).into())
    };
    for (name, port) in [("closed", 3002), ("rude", 3003)] {
        let server = listener(name, port)?;
        // Until the listener is there the kernel itself refuses: wait for the first flow that reached the provider.
        consumer.listens(name, port)?;
        let seen = ask.run(&host, server)?;
        assert_eq!((seen.end, seen.bytes.len()), (End::Reset, 0), "{name}");
        assert!(
            seen.took < AT_ONCE,
            "{name}: the RST came after {:.1?}",
            seen.took
        );
    }

    consumer.listens("deaf", 3104)?;
    let (deaf, nobody) = (listener("deaf", 3104)?, listener("nobody", 3005)?);
    let (nobody, deaf) = std::thread::scope(|scope| {
        let deaf = scope.spawn(|| ask.run(&host, deaf));
        (ask.run(&host, nobody), deaf.join())
    });
    let deaf = deaf.map_err(|_| anyhow::anyhow!("the other client panicked"))?;
    for (name, seen) in [("no provider", nobody?), ("no answer", deaf?)] {
        assert_eq!((seen.end, seen.bytes.len()), (End::Reset, 0), "{name}");
        assert!(
            seen.took > TIMEOUT - LATE && seen.took < TIMEOUT + LATE,
            "{name}: the RST came after {:.1?}",
            seen.took
        );
    }

    // One bad service does not stop the others.
    let echo = Exchange {
        send: b"still here",
        finish: true,
        bound: SOON,
    }
    .run(&host, consumer.listens("good", 3001)?)?;
    assert_eq!(
        (echo.bytes.as_slice(), echo.end),
        (b"still here".as_slice(), End::Closed)
    );
    let lines = [
        ("good.default:3001", "DONE"),
        ("closed.default:3002", "BACKEND_REFUSED"),
        ("rude.default:3003", ""),
        ("deaf.default:3104", ""),
        ("nobody.default:3005", "NO_PROVIDER"),
    ];
    for (service, close) in lines {
        wait::until_some("each connection has a line that says why", SOON, || {
            let log = consumer.process.log();
            let words = [
                "role=\"consumer\" peer=127.".to_owned(),
                format!("service={service} "),
                format!("close=\"{close}"),
            ];
            let told = |line: &str| words.iter().all(|word| line.contains(word));
            let found = log.lines().any(told);
            found
                .then_some(())
                .ok_or_else(|| format!("{words:?}: {log}"))
        })?;
    }
    Ok(())
}

#[test]
fn services_come_and_go_without_a_restart() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?.resolves_by(Some(DNS))?;
    let node = Node::public(&host, "a")?;
    let _backend = Backend::on(&host, 3001, Manner::Echo)?;
    let consumer = Sidecar::beside(&node, "consumer", &["--mapped-services", "late"])?;
    let address = consumer.resolves("late")?;
    let ask = Exchange {
        send: b"x",
        finish: true,
        bound: SOON,
    };
    assert_eq!(
        ask.run(&host, (address, 3001).into())?.end,
        End::Reset,
        "nobody provides it, so no port is known"
    );

    let mut provider = Sidecar::beside(
        &node,
        "provider",
        &["--published-services", "late=127.0.0.1:3001"],
    )?;
    assert_eq!(
        ask.run(&host, consumer.listens("late", 3001)?)?.bytes,
        b"x",
        "it came"
    );
    provider.process.stop(SOON)?;
    let status = node.keel(&["get", "routers", "-o", "json"])?;
    wait::until("the router no longer offers it", SOON, || {
        status.ok(SOON).is_ok_and(|json| !json.contains("\"late\""))
    })?;
    assert_eq!(
        consumer.resolves("late")?,
        address,
        "the name and its address stay as long as the mapping"
    );
    provider.again()?;
    wait::until("it works again", SOON, || {
        ask.run(&host, (address, 3001).into())
            .is_ok_and(|seen| seen.bytes == b"x")
    })
}

#[test]
fn a_pod_publishes_for_its_own_namespace_only() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?.resolves_by(Some(DNS))?;
    let node = Node::public(&host, "a")?;
    let _backend = Backend::on(&host, 3001, Manner::Echo)?;
    let published = "alien.stage:3002=127.0.0.1:3001,mine:3001=127.0.0.1:3001";
    let mut provider = Sidecar::beside(&node, "provider", &["--published-services", published])?;
    let consumer = Sidecar::beside(
        &node,
        "consumer",
        &["--mapped-services", "mine,alien.stage:3002"],
    )?;
    let ask = Exchange {
        send: b"x",
        finish: true,
        bound: TIMEOUT + LATE,
    };
    assert_eq!(
        ask.run(&host, consumer.listens("mine", 3001)?)?.bytes,
        b"x",
        "the good one is not stopped by the other"
    );
    provider.process.says("alien.stage", SOON)?;
    let server = (consumer.resolves("alien.stage")?, 3002).into();
    let seen = ask.run(&host, server)?;
    assert_eq!(
        (seen.end, seen.bytes.len()),
        (End::Reset, 0),
        "refused where it was published, so nobody provides it"
    );
    Ok(())
}
