//! Whole nodes and sidecars in this process, on free ports of loopback: no root, no namespaces, no binaries. For tests
//! whose subject is how the parts fit and not the network between them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;
use keel::run::{Node, RunningNode, RunningSidecar};
use keel::settings::{Machine, NodeFlags, SidecarFlags, TokenSource};
use keel_control::enroll::local;
use keel_control::enroll::wire::TokenRequest;
use keel_control::store::TokenScope;
use keel_fabric::quic::{HostPort, ListenAddr};
use tokio_util::sync::CancellationToken;

/// How long a token of these tests lives.
const TOKEN_SECONDS: u64 = 600;

fn free() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Starts a node under `folder`; it joins the trust domain of `first`, or makes one.
///
/// # Errors
/// What keeps it from starting.
pub async fn node(
    folder: &Path,
    name: &str,
    first: Option<&RunningNode>,
) -> anyhow::Result<RunningNode> {
    node_with(folder, name, first, NodeFlags::default()).await
}

/// As [`node`], with more flags; names, addresses and directories are filled in.
///
/// # Errors
/// What keeps it from starting.
pub async fn node_with(
    folder: &Path,
    name: &str,
    first: Option<&RunningNode>,
    flags: NodeFlags,
) -> anyhow::Result<RunningNode> {
    let join = match first {
        Some(first) => Some(token(first, name).await?.parse::<TokenSource>()?),
        None => None,
    };
    let flags = NodeFlags {
        node_name: Some(name.parse()?),
        data_dir: Some(folder.join(name)),
        apiserver_listen: Some(ListenAddr::from(free())),
        router_listen: Some(ListenAddr::from(free())),
        metrics_listen: Some(free()),
        // The first is the public one; port 0 stands for the port that its router gets.
        advertise: if join.is_none() {
            vec![HostPort::from(free())]
        } else {
            Vec::new()
        },
        join,
        ..flags
    };
    Node::start(flags.resolve(folder.to_owned(), name.to_owned())?).await
}

async fn token(first: &RunningNode, name: &str) -> anyhow::Result<String> {
    let request = TokenRequest {
        scope: TokenScope::Node {
            node: Some(name.parse()?),
        },
        ttl_seconds: TOKEN_SECONDS,
        uses: 1,
        endpoint: Some(first.apiserver_addr().to_string()),
    };
    Ok(
        local::create_token(&first.data_dir().join("admin.sock"), &request)
            .await?
            .to_string(),
    )
}

/// Starts a sidecar beside a node: it gets its identity through the node's workload socket.
///
/// `flags` say what it maps and publishes; names, addresses and directories are filled in.
///
/// # Errors
/// What keeps it from starting.
pub async fn sidecar(
    node: &RunningNode,
    pod: &str,
    flags: SidecarFlags,
    stop: CancellationToken,
) -> anyhow::Result<RunningSidecar> {
    let folder = node
        .data_dir()
        .parent()
        .context("the data directory lies in the test's folder")?;
    let flags = SidecarFlags {
        dns_addr: Some(free()),
        metrics_addr: Some(free()),
        data_dir: Some(node.data_dir().to_owned()),
        state_dir: Some(folder.join(format!("{pod}.state"))),
        pod_name: Some(pod.to_owned()),
        ..flags
    };
    let machine = Machine {
        data_dir: node.data_dir().to_owned(),
        host: "test".to_owned(),
        user: "test".to_owned(),
    };
    RunningSidecar::start(flags.resolve(&machine)?, stop).await
}

/// Has a node exchange with these and nobody else from now on; returns once it does.
///
/// # Errors
/// Its data directory cannot be written, or it does not take the change up.
pub async fn set_peers(node: &RunningNode, peers: &[&RunningNode]) -> anyhow::Result<()> {
    let line = |peer: &&RunningNode| format!("- {}={}\n", peer.node(), peer.apiserver_addr());
    let lines: String = peers.iter().map(line).collect();
    let text = match peers.is_empty() {
        true => "peers: []\n".to_owned(),
        false => format!("peers:\n{lines}"),
    };
    std::fs::write(node.data_dir().join("peers.yaml"), text)?;
    let wanted: Vec<_> = peers.iter().map(|peer| peer.node().clone()).collect();
    let mut states = node.peers();
    let taken = states.wait_for(|states| {
        let names = states.iter().map(|state| &state.node);
        names.eq(&wanted) && states.iter().all(|state| state.connected)
    });
    tokio::time::timeout(crate::wait::SOON, taken)
        .await
        .context("the node does not take its new peers up")??;
    Ok(())
}
