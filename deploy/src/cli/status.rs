//! `keel status`: what this node is, whom it sees, and what flows through it.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use keel_control::api::Router;
use keel_control::enroll::wire::{FlowInfo, NodeInfo, PeerInfo};

use super::rates::Rate;
use super::table::ago;
use super::{NodeDir, access, answer, flows, rates, routers};
use crate::settings::{Span, within};

/// The longest `--over`.
const MAX_OVER: Duration = Duration::from_secs(3600);

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
report, which is at most --status-interval old, and has no rates. Rates are measured while the command runs.

Examples:
  keel status
  keel status --over 10s
  keel status -o json"
)]
pub(crate) struct Flags {
    #[command(flatten)]
    node: NodeDir,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// Over what time rates are measured; 0s: not at all
    #[arg(long, value_name = "TIME", default_value = "1s")]
    over: Span,
}

pub(crate) async fn run(flags: Flags) -> anyhow::Result<()> {
    let over = within(flags.over, "--over", Duration::ZERO, MAX_OVER)?;
    let admin = access::Admin::get(&flags.node.path(), None, None).await?;
    let (before, then) = (admin.flows().await?, Instant::now());
    let list = admin
        .client()?
        .list_routers()
        .await
        .context("cannot list the routers")?;
    let mut rates = Vec::new();
    let mut live = before;
    if !over.is_zero()
        && let Some(before) = live.take()
    {
        tokio::time::sleep(over.saturating_sub(then.elapsed())).await;
        live = admin.flows().await?;
        rates = rates::between(&before, live.as_deref().unwrap_or_default(), then.elapsed());
    }
    let own = list
        .routers
        .iter()
        .find(|router| router.name() == admin.info.node.as_str());
    let status = Status {
        info: &admin.info,
        own,
        all: &list.routers,
        live: live.is_some(),
        rates,
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
    /// What moves at this moment.
    rates: Vec<Rate>,
}

impl Status<'_> {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "node": self.info, "routers": self.all, "flows": self.flows, "flowsLive": self.live,
            "rates": self.rates,
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
        Some([]) => writeln!(out, "peers           {}", no_peers(status, now))?,
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
    if !status.rates.is_empty() {
        let now = rates::table(&status.rates);
        writeln!(out, "\nper second, now\n{}", now.trim_end())?;
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

/// `none that this node calls; edge-b reports here, 3s ago`: who calls is no peer, but what it reports is here.
fn no_peers(status: &Status<'_>, now: SystemTime) -> String {
    let mut line = "none that this node calls".to_owned();
    let others = status.all.iter().filter_map(|router| {
        let is_own = router.name() == status.info.node.as_str();
        let reported = router.status.as_ref().filter(|_| !is_own)?;
        Some((router.name(), routers::heartbeat(reported, now)))
    });
    for (node, heard) in others {
        line.push_str(&format!("; {node} reports here, {heard}"));
    }
    line
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
    // Of who was never heard, nothing is held.
    if let Some(then) = peer.behind_since.filter(|_| peer.last_contact.is_some()) {
        line.push_str(&format!(
            ", what is held here of it may be {} old",
            since(then)
        ));
    }
    if let Some(error) = &peer.error {
        line.push_str(": ");
        line.push_str(error);
    }
    line
}

#[cfg(test)]
mod tests;
