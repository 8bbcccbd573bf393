//! `keel status`: what this node is and whom it sees.

use std::fmt::Write as _;
use std::time::SystemTime;

use anyhow::Context as _;
use keel_control::api::Router;
use keel_control::enroll::wire::NodeInfo;

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
            let ready = routers::ready(status);
            writeln!(
                out,
                "Router          ready: {ready}; reachable from other nodes: {reachable}"
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
    writeln!(out, "\n{}", routers::table(all, false, now).trim_end())?;
    Ok(out)
}
