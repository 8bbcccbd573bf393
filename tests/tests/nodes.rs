//! Two nodes and two sidecars in one process: a service of one node is used at the other, and all of it stops.

use std::net::{Ipv4Addr, SocketAddr};

use keel::settings::SidecarFlags;
use keel_tests::backends::{Backend, Manner, pattern};
use keel_tests::client::{End, Exchange, Seen};
use keel_tests::nodes;
use keel_tests::wait::{self, SOON};
use tokio_util::sync::CancellationToken;

/// Asks until there is an answer: the listener takes connections before the provider is known here.
fn first_answer(server: SocketAddr, ask: &Exchange<'_>) -> anyhow::Result<Seen> {
    wait::until_some(&format!("an answer from {server}"), SOON, || {
        match ask.here(server) {
            seen if seen.end == End::Closed => Ok(seen),
            other => Err(format!("{:?} after {:.1?}", other.end, other.took)),
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_one_node_is_used_at_the_other() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let echo = Backend::here(Manner::Echo)?;
    let first = nodes::node(folder.path(), "a", None).await?;
    let second = nodes::node(folder.path(), "b", Some(&first)).await?;
    assert_eq!(first.trust_domain(), second.trust_domain(), "joined");

    let stop = CancellationToken::new();
    let published = SidecarFlags {
        published_services: vec![format!("echo:4000={}", echo.address())],
        ..SidecarFlags::default()
    };
    let provider = nodes::sidecar(&second, "provider", published, stop.clone()).await?;
    let mapped = SidecarFlags {
        mapped_services: vec!["echo:4000".to_owned()],
        ip_range: Some("127.0.88.0/24".to_owned()),
        ..SidecarFlags::default()
    };
    let consumer = nodes::sidecar(&first, "consumer", mapped, stop.clone()).await?;

    let server = SocketAddr::from((Ipv4Addr::new(127, 0, 88, 1), 4000));
    let sent = pattern(1 << 20);
    let expected = sent.clone();
    let seen = tokio::task::spawn_blocking(move || {
        first_answer(
            server,
            &Exchange {
                send: &sent,
                finish: true,
                bound: SOON,
            },
        )
    })
    .await??;
    assert!(
        seen.bytes == expected,
        "{} of {} bytes came back",
        seen.bytes.len(),
        expected.len()
    );

    consumer.stop().await?;
    provider.stop().await?;
    second.stop().await?;
    first.stop().await
}
