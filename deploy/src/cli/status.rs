//! `keel status`: what this node is, whom it sees, and what flows through it.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use keel_control::api::Router;
use keel_control::enroll::wire::{FlowInfo, NodeInfo, PeerInfo};

use super::table::ago;
use super::{NodeDir, access, answer, flows, routers};

/// How a status is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Text,
    /// JSON
    Json,
}

/// Flags of `keel status`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The flows are those of this node's Router since it started: per service and peer, UP from consumer to
provider. They are counted while they run. A Router that is another process (keel-router) is taken at its last
report, which is at most --status-interval old.

Examples:
  keel status
  keel status -o json"
)]
pub(crate) struct Flags {
    #[command(flatten)]
    node: NodeDir,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

pub(crate) async fn run(flags: Flags) -> anyhow::Result<()> {
    let admin = access::Admin::get(&flags.node.path(), None, None).await?;
    let list = admin
        .client()?
        .list_routers()
        .await
        .context("the APIServer does not answer")?;
    let live = admin.flows().await?;
    let own = list
        .routers
        .iter()
        .find(|router| router.name() == admin.info.node.as_str());
    let status = Status {
        info: &admin.info,
        own,
        all: &list.routers,
        live: live.is_some(),
        flows: live.unwrap_or_else(|| own.map(flows::reported).unwrap_or_default()),
    };
    answer(&match flags.output {
        Output::Text => render(&status, SystemTime::now())?,
        Output::Json => serde_json::to_string_pretty(&status.json())? + "\n",
    })
}

/// Everything that is shown.
struct Status<'a> {
    info: &'a NodeInfo,
    own: Option<&'a Router>,
    all: &'a [Router],
    /// Whether the flows are those of this moment.
    live: bool,
    flows: Vec<FlowInfo>,
}

impl Status<'_> {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "node": self.info, "routers": self.all, "flows": self.flows, "flowsLive": self.live,
        })
    }
}

fn render(status: &Status<'_>, now: SystemTime) -> Result<String, std::fmt::Error> {
    let (info, all) = (status.info, status.all);
    let mut out = String::new();
    writeln!(
        out,
        "node            {} (cluster {})",
        info.node, info.cluster
    )?;
    writeln!(out, "trust domain    {}", info.trust_domain)?;
    writeln!(out, "APIServer       {}", info.apiserver)?;
    let own = status.own;
    match own.and_then(|router| router.status.as_ref()) {
        Some(status) => {
            let reachable = match status.addresses.is_empty() {
                true => "no (behind NAT; give --advertise)".to_owned(),
                false => status.addresses.join(", "),
            };
            let ready = routers::ready(status, now);
            let heard = routers::heartbeat(status, now);
            writeln!(
                out,
                "Router          ready: {ready}, reported {heard}; reachable from other nodes: {reachable}"
            )?;
            for condition in status
                .conditions
                .iter()
                .filter(|condition| condition.kind != "Ready" || condition.status != "True")
            {
                writeln!(out, "                {condition}: {}", condition.message)?;
            }
        }
        None => writeln!(out, "Router          has not reported yet")?,
    }
    match info.peers.as_deref() {
        None => writeln!(
            out,
            "peers           kept by keel-syncer: see its /metrics and its log"
        )?,
        Some([]) => writeln!(out, "peers           none")?,
        Some(peers) => {
            for (index, peer) in peers.iter().enumerate() {
                let title = if index == 0 { "peers" } else { "" };
                writeln!(out, "{title:<14}  {}", peer_line(peer, now))?;
            }
        }
    }
    writeln!(out, "\n{}", routers::table(all, false, now).trim_end())?;
    if let Some(table) = routers::unhealthy(all) {
        writeln!(out, "\n{}", table.trim_end())?;
    }
    if !status.flows.is_empty() {
        let since = match own.and_then(|router| router.status.as_ref()) {
            Some(status_then) if !status.live => {
                format!(", as reported {}", routers::heartbeat(status_then, now))
            }
            _ => String::new(),
        };
        writeln!(
            out,
            "\nflows of this node's Router{since}\n{}",
            flows::table(&status.flows).trim_end()
        )?;
    }
    Ok(out)
}

/// `edge-a at a.example.net:7443: connected, heard 3s ago`.
fn peer_line(peer: &PeerInfo, now: SystemTime) -> String {
    let since = |then| ago(UNIX_EPOCH + Duration::from_secs(then), now);
    let state = if peer.connected {
        "connected"
    } else {
        "not connected"
    };
    let heard = match peer.last_contact {
        Some(then) => format!("heard {} ago", since(then)),
        None => "never heard".to_owned(),
    };
    let mut line = format!("{} at {}: {state}, {heard}", peer.node, peer.server);
    if let Some(then) = peer.behind_since {
        line.push_str(&format!(", its Router held here is {} behind", since(then)));
    }
    if let Some(error) = &peer.error {
        line.push_str(": ");
        line.push_str(error);
    }
    line
}

#[cfg(test)]
mod tests;
