//! `keel up`: a whole node until it is told to stop.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use keel_control::syncer::PeerStates;
use tokio::time::timeout;

use super::answer;
use crate::process::{self, Stop};
use crate::run::{Node, RunningNode};
use crate::settings::NodeFlags;

/// How long the block waits for peers, so that it can say how it goes with them.
const PEERS_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) async fn run(flags: NodeFlags, stop: Stop) -> anyhow::Result<()> {
    let Stop { asked: stop, hurry } = stop;
    let default_dir = flags.data_dir.is_none();
    let mut settings = process::node_settings(flags)?;
    settings.drain.hurry = hurry;
    let Some(mut node) = Node::start_unless(settings, &stop).await? else {
        return Ok(());
    };
    if std::io::stdout().is_terminal() {
        answer(&block(&node, default_dir).await?)?;
    } else {
        answer(&ready_line(&node)?)?;
    }
    tokio::select! {
        biased;
        () = stop.cancelled() => node.stop().await,
        error = node.failed() => {
            // What failed is the answer; how the rest ends is not.
            let _ = node.stop().await;
            Err(error).context("the node cannot go on")
        }
    }
}

fn reachable(node: &RunningNode) -> String {
    let addresses: Vec<String> = node
        .router_addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    match addresses.is_empty() {
        true => "no (give --advertise)".to_owned(),
        false => addresses.join(", "),
    }
}

fn ready_line(node: &RunningNode) -> Result<String, std::fmt::Error> {
    let mut line = String::new();
    write!(
        line,
        "ready node={} apiserver={} metrics={}",
        node.node(),
        node.apiserver_url(),
        node.metrics_addr()
    )?;
    if let Some(addr) = node.router_addrs().first() {
        write!(line, " router={addr}")?;
    }
    line.push('\n');
    Ok(line)
}

/// One block that answers what a person asks first.
async fn block(node: &RunningNode, default_dir: bool) -> Result<String, std::fmt::Error> {
    let mut peers = node.peers();
    let all = |states: &PeerStates| states.iter().all(|peer| peer.connected);
    // A peer that is away is shown as such: nothing waits for it longer.
    let _ = timeout(PEERS_PATIENCE, peers.wait_for(all)).await;
    let states = peers.borrow().clone();
    let mut out = String::new();
    writeln!(
        out,
        "node            {} (cluster {})",
        node.node(),
        node.cluster()
    )?;
    writeln!(out, "trust domain    {}", node.trust_domain())?;
    writeln!(out, "data directory  {}", node.data_dir().display())?;
    writeln!(out, "APIServer       {}", node.apiserver_url())?;
    let router = node
        .router_addrs()
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    writeln!(
        out,
        "Router          {router}, reachable from other nodes: {}",
        reachable(node)
    )?;
    writeln!(
        out,
        "metrics         http://{}/metrics",
        node.metrics_addr()
    )?;
    if states.is_empty() {
        writeln!(out, "peers           none")?;
    }
    for (index, peer) in states.iter().enumerate() {
        let title = if index == 0 { "peers" } else { "" };
        let state = match (&peer.error, peer.connected) {
            (_, true) => "connected".to_owned(),
            (Some(error), false) => format!("not connected: {error}"),
            (None, false) => "connecting".to_owned(),
        };
        writeln!(
            out,
            "{title:<14}  {} at {}: {state}",
            peer.node, peer.server
        )?;
    }
    let dir = match default_dir {
        true => String::new(),
        false => format!(" --data-dir {}", node.data_dir().display()),
    };
    writeln!(
        out,
        "\nTry:\n  keel get routers{dir}\n  keel token create --node NAME{dir} > token\n  keel-sidecar --mapped-services NAME{dir}"
    )?;
    Ok(out)
}
