//! Clients with a certificate that speak QUIC as nobody should: what they cost a node, and what others notice.
#![allow(clippy::print_stdout, reason = "tests say what they saw")]

mod forger;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_certs::LiveIdentity;
use keel_fabric::link::ALPN;
use keel_tests::backends::{Backend, Manner, pattern};
use keel_tests::client::{End, Exchange};
use keel_tests::credentials::search;
use keel_tests::lab::{Conditions, Direction, Host, Lab, Link};
use keel_tests::need::{Need, lacking};
use keel_tests::site::{DNS, Node, Sidecar};
use keel_tests::wait::SOON;
use quinn::{ConnectionError, TransportErrorCode};
use quinn_proto::VarInt;
use quinn_proto::coding::Codec;
use quinn_proto::crypto::rustls::QuicClientConfig;

use forger::{Forger, Forgery, Frames, Heard};

/// Frames of one attack.
const FRAMES: u64 = 1_000_000;
/// What a node may hold more than before, in KiB: a connection's buffers, and what the allocator does with them.
const MORE: u64 = 4 << 10;
/// What others may wait for an answer meanwhile, on a machine with other tests.
const PROMPT: Duration = Duration::from_secs(5);
/// Packets of the node before the attack. It leaves out one number of the first 64, and fewer later on.
const SOME: u64 = 200;
const ROUTER: u16 = 7000;
const ECHO: u16 = 2003;

/// A node that carries a service, and a machine with somebody on it who is let in and means harm.
struct Stage {
    // Dropped from top to bottom: processes before the namespaces they run in.
    through: SocketAddr,
    _consumer: Sidecar,
    _provider: Sidecar,
    _backend: Backend,
    live: LiveIdentity,
    node: Node,
    stranger: Host,
    _lab: Lab,
    link: Link,
}

impl Stage {
    fn new() -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let apps = lab.host("a")?.resolves_by(Some(DNS))?;
        let node = Node::public(&apps, "a")?;
        let servers = lab.host("p")?;
        let backend = Backend::anywhere(&servers, ECHO, Manner::Echo)?;
        let published = ["--published-services", "echo=127.0.0.1:2003"];
        let provider = Sidecar::joining(&servers, "provider", &node, &published)?;
        let consumer = Sidecar::beside(&node, "consumer", &["--mapped-services", "echo"])?;
        let through = consumer.listens("echo", ECHO)?;
        let (stranger, link) = lab.host_over("s", Conditions::default(), 1)?;
        // A sidecar that is gone at once leaves its certificate.
        let joined = Sidecar::joining(&stranger, "stranger", &node, &[])?;
        let cert = search(joined.state(), "tls.crt").context("no certificate")?;
        let live = LiveIdentity::load(cert.parent().context("no folder")?)?;
        Ok(Self {
            through,
            _consumer: consumer,
            _provider: provider,
            _backend: backend,
            live,
            node,
            stranger,
            _lab: lab,
            link,
        })
    }

    /// Sends packets of forged frames until `enough` says so or the node ends the connection, while others use the node;
    /// how the connection ended.
    fn attack(
        &self,
        frames: Frames,
        enough: impl Fn() -> bool + Sync,
    ) -> anyhow::Result<Option<ConnectionError>> {
        let before = self.node.process.resident_kib()?;
        let attack = || self.stranger.run(|| self.send(frames, &enough));
        let (ended, longest, asked) = std::thread::scope(|scope| {
            let attack = scope.spawn(attack);
            let (mut longest, mut asked) = (Duration::ZERO, 0);
            // Once more when it is over.
            loop {
                let last = attack.is_finished();
                longest = longest.max(self.others()?);
                asked += 1;
                if last {
                    break;
                }
            }
            let ended = attack
                .join()
                .map_err(|_| anyhow::anyhow!("it panicked"))???;
            anyhow::Ok((ended, longest, asked))
        })?;
        let more = self.node.process.resident_kib()?.saturating_sub(before);
        println!(
            "the connection {}, the node has {more} KiB more; {asked} others, the longest {longest:.1?}",
            match &ended {
                Some(error) => format!("was ended ({error})"),
                None => "lives".to_owned(),
            }
        );
        anyhow::ensure!(more <= MORE, "{more} KiB more than {before} KiB before");
        anyhow::ensure!(longest <= PROMPT, "others waited {longest:.1?}");
        Ok(ended)
    }

    /// One connection of somebody else; how long it took.
    fn others(&self) -> anyhow::Result<Duration> {
        let block = pattern(10_000);
        let exchange = Exchange {
            send: &block,
            finish: true,
            bound: SOON,
        };
        let seen = exchange.run(&self.node.host, self.through)?;
        anyhow::ensure!(
            seen.end == End::Closed && seen.bytes == block,
            "{:?}",
            seen.end
        );
        Ok(seen.took)
    }

    fn send(
        &self,
        frames: Frames,
        enough: &impl Fn() -> bool,
    ) -> anyhow::Result<Option<ConnectionError>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let forgery = Arc::<Forgery>::default();
            let mut of_endpoint = quinn::EndpointConfig::default();
            let of_ids = Arc::clone(&forgery);
            of_endpoint.cid_generator(move || of_ids.ids());
            let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
            let on = Arc::new(quinn::TokioRuntime);
            let endpoint = quinn::Endpoint::new(of_endpoint, None, socket, on)?;
            let tls = self.live.client_config(&[ALPN], &"a".parse()?);
            let config = quinn::ClientConfig::new(Arc::new(Forger {
                honest: Arc::new(QuicClientConfig::try_from(tls)?),
                forgery: Arc::clone(&forgery),
            }));
            let router = SocketAddr::from((self.node.host.address, ROUTER));
            let connecting = endpoint.connect_with(config, router, "a")?;
            let connection = tokio::time::timeout(SOON, connecting).await??;
            let size = connection.max_datagram_size().context("no datagrams")?;
            let packet = bytes::Bytes::from(vec![0; size]);
            // The node answers, so that there are numbers to acknowledge.
            while forgery.heard().largest < SOME {
                connection.send_datagram_wait(packet.clone()).await?;
            }
            forgery.begin(frames);
            while !enough() {
                let sent = connection.send_datagram_wait(packet.clone());
                if tokio::time::timeout(SOON, sent)
                    .await
                    .context("it stands still")?
                    .is_err()
                {
                    break;
                }
            }
            Ok(connection.close_reason())
        })
    }
}

/// Counts frames as they are made.
fn counted(one: impl Fn(u64, &Heard) -> Vec<u8> + Send + 'static) -> (Frames, Arc<AtomicU64>) {
    let made = Arc::<AtomicU64>::default();
    let count = Arc::clone(&made);
    let frames: Frames = Box::new(move |heard, room| {
        let mut all = Vec::with_capacity(room);
        loop {
            let frame = one(count.load(Ordering::Relaxed), heard);
            if all.len() + frame.len() > room {
                return all;
            }
            all.extend(frame);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    (frames, made)
}

fn number(number: u64, out: &mut Vec<u8>) {
    VarInt::from_u64(number)
        .expect("less than 2^62")
        .encode(out);
}

/// RFC 9000, section 19.15; each retires all before it. It is the same id again and again, so that the answers arrive.
fn new_connection_id(count: u64, heard: &Heard) -> Vec<u8> {
    let (mut frame, sequence) = (vec![0x18], count + 1_000);
    number(sequence, &mut frame);
    number(sequence, &mut frame);
    frame.push(heard.id.len() as u8);
    frame.extend(&heard.id);
    frame.extend([7; 16]);
    frame
}

#[test]
fn connection_ids_without_end_are_refused() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let (frames, made) = counted(new_connection_id);
    let ended = stage.attack(frames, || made.load(Ordering::Relaxed) >= FRAMES)?;
    println!("{} ids", made.load(Ordering::Relaxed));
    anyhow::ensure!(ended.is_some(), "a million ids were taken");
    Ok(())
}

/// RFC 9000, section 19.17.
fn path_challenge(count: u64, _: &Heard) -> Vec<u8> {
    [&[0x1a][..], &count.to_be_bytes()].concat()
}

#[test]
fn challenges_that_are_answered_slower_than_they_come_are_not_kept() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    let slow = Conditions {
        rate: 1_000_000,
        queue: 30_000,
        ..Conditions::default()
    };
    stage.link.set_one(Direction::Down, slow);
    let (frames, made) = counted(path_challenge);
    stage.attack(frames, || made.load(Ordering::Relaxed) >= FRAMES)?;
    println!("{} challenges", made.load(Ordering::Relaxed));
    Ok(())
}

/// RFC 9000, section 19.3: everything up to `largest`.
fn ack(largest: u64) -> Vec<u8> {
    let mut frame = vec![2];
    for field in [largest, 0, 0, largest] {
        number(field, &mut frame);
    }
    frame
}

/// Whoever acknowledges what never arrived is sent more than its network takes.
#[test]
fn acknowledgements_of_what_was_never_sent_end_the_connection() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let stage = Stage::new()?;
    for ahead in [0, 1_000] {
        // Numbers are left out now and then, for whoever acknowledges all up to the last one that it has seen.
        let frames: Frames = Box::new(move |heard, _| ack(heard.largest + ahead));
        let begun = Instant::now();
        let ended = stage.attack(frames, || begun.elapsed() > SOON)?;
        let Some(ConnectionError::ConnectionClosed(close)) = &ended else {
            anyhow::bail!("{ended:?}");
        };
        anyhow::ensure!(
            close.error_code == TransportErrorCode::PROTOCOL_VIOLATION,
            "{close}"
        );
    }
    Ok(())
}
