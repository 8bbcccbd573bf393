//! Backends that take no connection: the client hears it soon, and the metrics say which of them it was.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use keel_fabric::consumer::{OpenError, Target};
use keel_fabric::wire::RefuseCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::alone::alone;
use crate::backend::{Deaf, nobody};
use crate::scrape::Scraper;
use crate::world::{Consumer, PATIENCE, World, end, publication, soon, target};

const DIAL_TIME: Duration = Duration::from_millis(500);
/// What a client may wait beyond the time that its backend has.
const SOON: Duration = Duration::from_secs(1);
/// The bytes that a client has said before it hears anything, and whether it half-closes behind them.
const CLIENTS: [(usize, bool); 4] = [(0, false), (1, false), (32 << 10, false), (1000, true)];

/// A group of hosts: the kernel knows no way there for TCP, whatever routes and firewalls the machine has.
fn nowhere() -> SocketAddr {
    SocketAddr::from(([224, 0, 0, 1], 80))
}

fn name(service: &str) -> String {
    format!("{service}.default")
}

#[tokio::test]
async fn backends_that_refuse_are_silent_or_unreachable_are_soon_a_reset_and_counted_apart() {
    let _turn = alone().await;
    let mut world = World::new();
    let scraper = Scraper::new(&mut world);
    world.provider_limits.dial_time = DIAL_TIME;
    let router = world.router("r").await;
    let live = world.fabric.pod("b", "default", "p");
    let deaf = Deaf::new().await;
    let backends = [
        ("refuses", nobody(), RefuseCode::BackendRefused),
        ("silent", deaf.addr, RefuseCode::BackendTimeout),
        ("nowhere", nowhere(), RefuseCode::BackendUnreachable),
    ];
    let list = backends
        .iter()
        .map(|(service, addr, _)| publication(&name(service), 80, *addr))
        .collect();
    let mut provider = world.provider(&live, &[&router], list);
    provider.published().await;
    let consumer = world.consumer();
    for (service, _, code) in backends {
        let target = target(&name(service), 80, live.identity().subject, &router);
        for client in CLIENTS {
            let (took, refused) = ask(&consumer, &target, client).await;
            println!("{service}, {client:?}: {code} after {took:?}");
            assert_eq!(refused, code, "{service}, {client:?}");
            let dial = match code {
                RefuseCode::BackendTimeout => DIAL_TIME,
                _ => Duration::ZERO,
            };
            assert!(
                (dial..dial + SOON).contains(&took),
                "{service}, {client:?}: {took:?}"
            );
        }
    }

    let each = CLIENTS.len();
    let both = |code: RefuseCode| {
        ["consumer", "provider"].map(|role| {
            format!(
                "keel_fabric_flows_ended_total{{role=\"{role}\",how=\"refused\",code=\"{code}\"}} {each}"
            )
        })
    };
    let expected: BTreeSet<_> = backends.iter().flat_map(|(.., code)| both(*code)).collect();
    // The provider's end counts when its last word has left.
    let counted = async {
        while scraper.lines("keel_fabric_flows_ended_total") != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // What is wrong is seen below.
    let _ = tokio::time::timeout(PATIENCE, counted).await;
    assert_eq!(scraper.lines("keel_fabric_flows_ended_total"), expected);
    for (service, _, code) in backends {
        for role in ["consumer", "provider"] {
            let pairs = scraper.lines("keel_fabric_service_resets_total");
            let of = |line: &&String| {
                line.contains(&format!("role=\"{role}\""))
                    && line.contains(&format!("service=\"{}:80\"", name(service)))
            };
            let resets: Vec<_> = pairs.iter().filter(of).collect();
            assert_eq!(resets.len(), 1, "{pairs:?}");
            let end = format!("code=\"{code}\"}} {each}");
            assert!(resets[0].ends_with(&end), "{pairs:?}");
        }
    }
    // Only the time to dial is a limit, and nothing was refused without a dial.
    let hit = format!("keel_fabric_limit_hit_total{{name=\"dial_time\"}} {each}");
    assert_eq!(
        scraper.lines("keel_fabric_limit_hit_total"),
        BTreeSet::from([hit])
    );
    for family in ["router_refusals", "provider_refusals"] {
        let lines = scraper.lines(&format!("keel_fabric_{family}_total"));
        assert!(lines.is_empty(), "{lines:?}");
    }
}

/// Connects, says something, and waits for the reset: how long that took, and why it came.
async fn ask(
    consumer: &Consumer,
    target: &Target,
    (early, half_closes): (usize, bool),
) -> (Duration, RefuseCode) {
    let mut flows = JoinSet::new();
    let began = Instant::now();
    let mut client = consumer.connect(&mut flows, target).await;
    client.write_all(&vec![7; early]).await.unwrap();
    if half_closes {
        client.shutdown().await.unwrap();
    }
    let error = soon(client.read_u8()).await.unwrap_err();
    let took = began.elapsed();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    match end(&mut flows).await.unwrap_err() {
        OpenError::Refused { code, .. } => (took, code),
        other => panic!("{other}"),
    }
}
