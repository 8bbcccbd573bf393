//! A byte a second: nothing takes such a connection for a dead one, and nothing waits for more before it sends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::backends::{Backend, Manner};
use keel_tests::lab::{Conditions, Host, Lab};
use keel_tests::need::{Need, lacking, long};
use keel_tests::site::{DNS, Node, Sidecar};
use keel_tests::wait;

/// What the fabric may add to the way of one byte and its answer.
const ADDED: Duration = Duration::from_millis(5);
/// Each way between provider and router.
const AWAY: Duration = Duration::from_millis(10);
/// Connections at once.
const FLOWS: usize = 8;

/// Sends a byte each second on every connection, and waits for its answer; the time that each took.
fn trickle(connections: &mut [TcpStream], seconds: u64) -> std::io::Result<Vec<Duration>> {
    let (began, mut times) = (Instant::now(), Vec::new());
    for second in 0..seconds {
        for connection in &mut *connections {
            let (sent, byte) = (Instant::now(), [second as u8]);
            connection.write_all(&byte)?;
            let mut back = [0];
            connection.read_exact(&mut back)?;
            times.push(sent.elapsed());
            if back != byte {
                return Err(std::io::Error::other(format!(
                    "{back:?} came, not {byte:?}"
                )));
            }
        }
        let next = Duration::from_secs(second + 1);
        wait::pause(next.saturating_sub(began.elapsed()));
    }
    times.sort_unstable();
    Ok(times)
}

fn connect(host: &Host, address: SocketAddr) -> anyhow::Result<Vec<TcpStream>> {
    let connect = || {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(wait::SOON))?;
        Ok::<_, std::io::Error>(stream)
    };
    host.run(|| (0..FLOWS).map(|_| connect()).collect::<Result<_, _>>())?
        .with_context(|| address.to_string())
}

#[test]
fn a_byte_a_second_arrives_at_once_for_as_long_as_it_is_sent() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let seconds = if long() { 3600 } else { 16 };
    let mut lab = Lab::new()?;
    let apps = lab.host("a")?.resolves_by(Some(DNS))?;
    let node = Node::public(&apps, "a")?;
    let far = Conditions {
        delay: AWAY,
        ..Conditions::default()
    };
    let (servers, _link) = lab.host_over("p", far, 1)?;
    // The same server is reached directly, over the same link.
    let backend = Backend::anywhere(&servers, 2003, Manner::Echo)?;
    let published = ["--published-services", "echo=127.0.0.1:2003"];
    let _provider = Sidecar::joining(&servers, "provider", &node, &published)?;
    let consumer = Sidecar::beside(&node, "consumer", &["--mapped-services", "echo"])?;
    let through = consumer.listens("echo", backend.address().port())?;

    let direct = SocketAddr::from((servers.address, 2003));
    let round_trip = trickle(&mut connect(&apps, direct)?, 2)?[FLOWS];
    let mut connections = connect(&apps, through)?;
    let times = trickle(&mut connections, seconds).with_context(|| consumer.process.log())?;
    let part = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "{FLOWS} connections for {seconds} s, direct {round_trip:.1?}: p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, longest {:.1?}",
        part(50),
        part(90),
        part(99),
        part(100)
    );
    anyhow::ensure!(
        round_trip >= AWAY * 2,
        "the link is shorter than it should be"
    );
    // The short form runs beside others: many a byte waits for a processor.
    let judged = part(if long() { 99 } else { 50 });
    anyhow::ensure!(
        judged <= round_trip + ADDED,
        "{judged:.1?} for a byte and its answer, {round_trip:.1?} directly"
    );
    Ok(())
}
