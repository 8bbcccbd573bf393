//! The intermediate of a node: renewed from half of its life, by the node that holds the root key.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use keel_certs::{
    Csr, DataDir, Hosts, INTERMEDIATE_LIFE, KeyPair, LiveIdentity, NodeAuthority, RootAuthority,
    write_atomic,
};
use keel_control::enroll::renew_intermediate;
use rand::RngExt as _;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::node::client;
use super::peers::PeersSource;

/// How often the intermediate is looked at: it lives for 30 days, and a sleeping machine must not oversleep by much.
const LOOK: Duration = Duration::from_secs(600);
/// The first pause after a failure; it doubles up to [`LOOK`].
const RETRY: Duration = Duration::from_secs(30);

/// Keeps a node's intermediate fresh.
pub(super) struct Renewal {
    /// The data directory, locked by the caller.
    pub(super) path: PathBuf,
    pub(super) authority: NodeAuthority,
    pub(super) root: Option<RootAuthority>,
    /// Names and addresses that the node's certificates carry.
    pub(super) hosts: Hosts,
    pub(super) live: LiveIdentity,
    pub(super) leaf_life: Duration,
    /// Read each time: whom this node knows can change in a month.
    pub(super) peers: PeersSource,
}

impl Renewal {
    /// Renews until `stop`. One that cannot goes on, and says so louder the nearer the end is.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut pause = Duration::ZERO;
        let mut retry = RETRY;
        let mut kept = true;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = jittered(LOOK);
            let now = SystemTime::now();
            if kept
                && !self.authority.needs_renewal(now)
                && asked(&DataDir::peek(&self.path)).as_ref() == Some(&self.hosts)
            {
                retry = RETRY;
                continue;
            }
            let renewed = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                renewed = self.renew(&mut kept) => renewed,
            };
            let Err(reason) = renewed else {
                info!(node = %self.authority.node(), "intermediate renewed");
                retry = RETRY;
                continue;
            };
            let reason = format!("{reason:#}");
            if self.authority.not_after() <= now {
                let node = self.authority.node();
                error!(
                    reason,
                    "the node's intermediate has expired and cannot be renewed, so other nodes refuse this one: make a token with `keel token create --node {node}` where the root key is, and start this node with --join and that token"
                );
            } else if self.authority.needs_renewal(now) {
                warn!(reason, "the node's intermediate cannot be renewed yet");
            } else if !kept {
                warn!(
                    reason,
                    "the node's new intermediate is in use and cannot be kept: after a restart the one before counts"
                );
            } else {
                warn!(
                    reason,
                    "this machine has a new name or address, and no intermediate for it yet"
                );
            }
            pause = jittered(retry);
            retry = (retry * 2).min(LOOK);
        }
    }

    /// Gets a new intermediate, unless there is one that is not `kept`, and keeps it.
    async fn renew(&self, kept: &mut bool) -> anyhow::Result<()> {
        if *kept {
            self.replace().await?;
            *kept = false;
        }
        let data = DataDir::peek(&self.path);
        self.authority
            .save(&data)
            .context("cannot keep the new intermediate")?;
        keep_asked(&data, &self.hosts)?;
        // The leaf in use ends with the old intermediate and names the old addresses.
        let key = KeyPair::generate()?;
        let leaf = self
            .authority
            .sign_node(&key.csr()?, &self.hosts, self.leaf_life)?;
        self.live.replace(key, leaf)?;
        *kept = true;
        Ok(())
    }

    async fn replace(&self) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let csr = key.csr()?;
        match &self.root {
            Some(root) => {
                let node = self.authority.node();
                let signed = root.sign_intermediate(&csr, &node, &self.hosts, INTERMEDIATE_LIFE)?;
                self.authority.replace(key, signed)?;
            }
            None => self.ask(&key, &csr).await?,
        }
        Ok(())
    }

    /// Asks the peers in turn, the one joined through among them: one of them holds the root key. An answer that no root of
    /// this node signed is as good as none, so that a peer that lies does not keep the others from being asked.
    async fn ask(&self, key: &KeyPair, csr: &Csr) -> anyhow::Result<()> {
        let mut reasons = Vec::new();
        for peer in self.peers.read()? {
            let client = client(peer.server.clone(), &peer.node, &self.live)?;
            let replaced = match renew_intermediate(&client, csr, &self.hosts).await {
                Ok(intermediate) => self
                    .authority
                    .replace(key.clone(), intermediate)
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match replaced {
                Ok(()) => return Ok(()),
                Err(why) => reasons.push(format!("{}: {why}", peer.node)),
            }
        }
        match reasons.is_empty() {
            true => Err(anyhow!(
                "no peer to ask: give the node that holds the root key with --peer"
            )),
            false => Err(anyhow!(reasons.join("; "))),
        }
    }
}

/// The names and addresses that the last intermediate was asked for. The root need not have granted all of them (two machines
/// with one host name), so what the intermediate says would ask for the same again and again.
fn asked(data: &DataDir) -> Option<Hosts> {
    // Unreadable counts as unknown: then one intermediate too many is asked for.
    serde_json::from_slice(&std::fs::read(data.node().join(ASKED)).ok()?).ok()
}

/// Remembers what an intermediate was asked for.
pub(super) fn keep_asked(data: &DataDir, hosts: &Hosts) -> anyhow::Result<()> {
    Ok(write_atomic(
        &data.node().join(ASKED),
        &serde_json::to_vec(hosts)?,
        0o600,
    )?)
}

const ASKED: &str = "hosts.json";

/// The pause, up to a tenth longer, so that nodes that started together do not ask together.
fn jittered(pause: Duration) -> Duration {
    pause + pause.mul_f64(rand::rng().random_range(0.0..0.1))
}

#[cfg(test)]
mod tests;
