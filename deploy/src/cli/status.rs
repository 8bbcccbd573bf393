//! `keel status`: what this node is and whom it sees.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use keel_control::api::Router;
use keel_control::enroll::wire::{NodeInfo, PeerInfo};

use super::table::ago;
use super::{NodeDir, access, answer, routers};

/// Flags of `keel status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  keel status")]
pub(crate) struct Flags {
    #[command(flatten)]
    node: NodeDir,
}

pub(crate) async fn run(flags: Flags) -> anyhow::Result<()> {
    let admin = access::Admin::get(&flags.node.path(), None, None).await?;
    let list = admin
        .client()?
        .list_routers()
        .await
        .context("the APIServer does not answer")?;
    answer(&render(&admin.info, &list.routers, SystemTime::now())?)
}

fn render(info: &NodeInfo, all: &[Router], now: SystemTime) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    writeln!(
        out,
        "node            {} (cluster {})",
        info.node, info.cluster
    )?;
    writeln!(out, "trust domain    {}", info.trust_domain)?;
    writeln!(out, "APIServer       {}", info.apiserver)?;
    let own = all
        .iter()
        .find(|router| router.name() == info.node.as_str());
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
mod tests {
    use super::*;

    #[test]
    fn a_status_names_every_peer_and_a_router_that_is_silent() {
        let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600 + 300);
        let at = |seconds: u64| 1_767_225_600 + seconds;
        let mut info: NodeInfo = serde_json::from_value(serde_json::json!({
            "node": "a", "cluster": "site-1", "trustDomain": "t", "apiserver": "https://127.0.0.1:7443",
            "peers": [
                {"node": "b", "server": "b.example.net:7443", "connected": true, "lastContact": at(297)},
                {"node": "c", "server": "192.0.2.1:7443", "connected": false, "lastContact": at(0), "behindSince": at(10),
                    "error": "nothing heard for too long"},
                {"node": "d", "server": "d:1", "connected": false}]}))
        .unwrap();
        let silent: Router = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "b"}, "status": {"heartbeatTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "message": ""}]}}))
        .unwrap();
        let text = render(&info, &[silent], now).unwrap();
        for line in [
            "peers           b at b.example.net:7443: connected, heard 3s ago\n",
            "                c at 192.0.2.1:7443: not connected, heard 5m ago, its Router held here is 4m behind: nothing heard for too long\n",
            "                d at d:1: not connected, never heard\n",
            "True (stale)   5m ago",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        info.peers = None;
        assert!(render(&info, &[], now).unwrap().contains("keel-syncer"));
    }
}
