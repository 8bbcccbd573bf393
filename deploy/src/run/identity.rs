//! Who a node is: read from its data directory, joined with a token, or founded as the first of a new trust domain.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow};
use keel_certs::{
    DataDir, Hosts, INTERMEDIATE_LIFE, JoinToken, KeyPair, LiveIdentity, NodeAuthority, NodeName,
    RootAuthority, write_atomic,
};
use keel_control::api::Time;
use keel_control::enroll;
use keel_fabric::quic::HostPort;
use tracing::{info, warn};

use super::{peers, renewal};
use crate::errors::{Usage, chain};
use crate::settings::{NodeSettings, PeerArg, ValueError};

/// A node that knows who it is.
pub(super) struct Established {
    /// The node's own authority, which signs its pods.
    pub(super) authority: NodeAuthority,
    /// The root; on the first node of a trust domain only.
    pub(super) root: Option<RootAuthority>,
    /// The node's own identity, freshly signed.
    pub(super) live: LiveIdentity,
    /// The names and addresses in its certificates.
    pub(super) hosts: Hosts,
    /// Peers given, and the one joined through.
    pub(super) peers: Vec<PeerArg>,
}

/// Reads the identity of the data directory, or makes one.
pub(super) async fn establish(
    data: &DataDir,
    settings: &NodeSettings,
) -> anyhow::Result<Established> {
    establish_at(data, settings, SystemTime::now()).await
}

async fn establish_at(
    data: &DataDir,
    settings: &NodeSettings,
    now: SystemTime,
) -> anyhow::Result<Established> {
    let root = held_root(data)?;
    let hosts = hosts(settings);
    let (authority, root) = match held(data)? {
        Some(authority) => {
            // It may be typed, or come from a pipe that says nothing: a signal must get through meanwhile.
            let source = settings.join.clone();
            let read = tokio::task::spawn_blocking(move || source.map(|source| source.read()));
            let token = resumed(&authority, settings, read.await?)?;
            if root.is_none() && authority.not_before() > now && token.is_none() {
                return Err(ahead(data, &authority));
            }
            if root.is_none() && (authority.not_after() <= now || authority.not_before() > now) {
                (join_again(data, &authority, token, &hosts).await?, None)
            } else {
                if token.is_some() {
                    info!("already joined: the token is not used again");
                }
                (authority, root)
            }
        }
        None if let Some(source) = settings.join.as_ref().filter(|_| root.is_none()) => {
            let token = wanted_token(source.read())?;
            let node = node_name(settings)?;
            (join(data, &token, &node, &hosts).await?, None)
        }
        None => {
            if settings.join.is_some() {
                warn!("this directory holds the root of a trust domain: --join is not used");
            }
            let root = match root {
                Some(root) => root,
                None => found(data, settings)?,
            };
            (
                under_root(data, &root, &node_name(settings)?, &hosts)?,
                Some(root),
            )
        }
    };
    // A new address of the machine asks for a new intermediate, because that one names the addresses it may sign for.
    let authority = match &root {
        Some(root) if !authority.covers(&hosts) || authority.needs_renewal(now) => {
            under_root(data, root, &authority.node(), &hosts)?
        }
        _ => authority,
    };
    let key = KeyPair::generate()?;
    let leaf = authority
        .sign_node(&key.csr()?, &hosts, settings.leaf_life)
        .context("cannot sign the node's certificate")?;
    let live = LiveIdentity::new(key, leaf, authority.roots())
        .context("the node's certificate cannot be used")?;
    let peers = peers::merge(&settings.peers, peers::load(&data.peers())?);
    if root.is_none() && peers.is_empty() {
        warn!(
            until = Time::from(authority.not_after()).as_str(),
            "the root key is not here (ca/), and there is no peer to have it: nobody can renew this node's intermediate, and nobody can \
             join. If this node has founded the trust domain, put its ca directory back from a backup; else give the node that it \
             joined through with --peer"
        );
    }
    Ok(Established {
        authority,
        root,
        live,
        hosts,
        peers,
    })
}

/// The root that the data directory has, if it has one.
pub(super) fn held_root(data: &DataDir) -> anyhow::Result<Option<RootAuthority>> {
    close(&data.ca().join("root.key"));
    close(&data.node().join("intermediate.pem"));
    RootAuthority::load(data).with_context(|| unreadable(&data.ca()))
}

/// Takes a key back from everybody but its owner.
fn close(key: &Path) {
    let Ok(found) = std::fs::metadata(key) else {
        return;
    };
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return;
    }
    let closed = std::fs::set_permissions(key, Permissions::from_mode(0o600));
    warn!(
        key = %key.display(), mode = format!("{mode:03o}"), closed = closed.is_ok(),
        "others could read or write this private key: whoever may have done so can act as this node, or found nodes of its trust domain"
    );
}

/// The node that the data directory is of, if it is of one.
pub(super) fn held(data: &DataDir) -> anyhow::Result<Option<NodeAuthority>> {
    NodeAuthority::load(data).with_context(|| unreadable(&data.node()))
}

fn unreadable(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "the identity in {dir} cannot be read: put the files back from a backup; without one, move {dir} away, and a node that joined \
         can join again (`keel token create --node` where the root key is)"
    )
}

/// A token without which there is no node, or what is wrong with it.
pub(super) fn wanted_token<T>(read: Result<T, ValueError>) -> Result<T, Usage> {
    read.map_err(|error| Usage(format!("--join: {}", chain(&error))))
}

/// Checks what was asked for against what the directory says. The token, if it is for the trust domain that the node is in.
fn resumed(
    authority: &NodeAuthority,
    settings: &NodeSettings,
    token: Option<Result<JoinToken, ValueError>>,
) -> anyhow::Result<Option<JoinToken>> {
    let node = authority.node();
    if let Some(asked) = settings.node.as_ref().filter(|asked| **asked != node) {
        let dir = settings.data_dir.display();
        return Err(Usage(format!(
            "the data directory {dir} belongs to node {node}, not {asked}: leave --node-name out, or give another --data-dir"
        ))
        .into());
    }
    if let Some(asked) = settings
        .trust_domain
        .as_ref()
        .filter(|asked| **asked != authority.trust_domain())
    {
        warn!(in_use = %authority.trust_domain(), %asked, "--trust-domain counts only when a trust domain is made; going on");
    }
    let Some(token) = token else {
        return Ok(None);
    };
    // The token may long be gone from its file: the node is what it is without it.
    match token {
        Ok(token) if Some(&token.pin) == authority.pin().ok().as_ref() => return Ok(Some(token)),
        Ok(_) => warn!(
            trust_domain = %authority.trust_domain(),
            "the token is for another trust domain; going on as node {node} of this one. To join the other one, give an empty --data-dir"
        ),
        Err(error) => warn!(
            error = chain(&error),
            "already joined, so the token is not needed"
        ),
    }
    Ok(None)
}

/// The node's intermediate was signed while a clock was ahead.
fn ahead(data: &DataDir, authority: &NodeAuthority) -> anyhow::Error {
    let (node, dir) = (authority.node(), data.path().display());
    anyhow!(
        "the intermediate certificate of node {node} is valid from {} on: it was made while a clock was ahead, here or where the root key \
         is. If this machine's clock is right (it says {}), make a token with `keel token create --node {node}` where the root key is, and start this \
         node with --join and that token; the data directory {dir} stays",
        Time::from(authority.not_before()).as_str(),
        Time::from(SystemTime::now()).as_str()
    )
}

/// Joins again as the node that the directory says, because its intermediate is over: no other node takes it for a renewal, and
/// nothing that it signs is believed.
async fn join_again(
    data: &DataDir,
    authority: &NodeAuthority,
    token: Option<JoinToken>,
    hosts: &Hosts,
) -> anyhow::Result<NodeAuthority> {
    let node = authority.node();
    let Some(token) = token else {
        return Err(anyhow!(
            "the intermediate certificate of node {node} has expired: if this machine's clock is right, make a token with `keel token create --node {node}` where the root key is, and start this node with --join and that token; the data directory stays"
        ));
    };
    warn!(%node, token = %token.id, "the node's intermediate has expired: joining again under the same name");
    join(data, &token, &node, hosts).await.with_context(|| {
        format!("the intermediate certificate of node {node} has expired, and it cannot join again")
    })
}

/// Becomes a node of somebody else's trust domain.
async fn join(
    data: &DataDir,
    token: &JoinToken,
    node: &NodeName,
    hosts: &Hosts,
) -> anyhow::Result<NodeAuthority> {
    // The token belongs to the first key that uses it, so the key outlives a crash between question and answer.
    let key = pending_key(data)?;
    let joined = enroll::join::node(token, node, &key.csr()?, hosts).await?;
    let server: HostPort = token.endpoint.parse().context("the token's endpoint")?;
    // Before the intermediate: a node that knows who it is also knows its first peer.
    let through = PeerArg {
        node: joined.through.clone(),
        server,
    };
    let known = peers::load(&data.peers())?;
    peers::save(&data.peers(), &peers::merge(&[through], known))?;
    let authority = NodeAuthority::create(key, joined.intermediate, joined.roots)?;
    authority
        .save(data)
        .context("cannot keep the intermediate")?;
    renewal::keep_asked(data, hosts)?;
    // Best effort: the key is in the authority now.
    let _ = std::fs::remove_file(data.path().join(PENDING_KEY));
    info!(%node, trust_domain = %authority.trust_domain(), through = %joined.through, token = %token.id, "joined");
    if !authority.covers(hosts) {
        info!(
            "some names or addresses of this machine are or may be of another node: this node's certificates do not carry them"
        );
    }
    Ok(authority)
}

/// The key of a join that was not answered yet.
const PENDING_KEY: &str = "join.key";

fn pending_key(data: &DataDir) -> anyhow::Result<KeyPair> {
    let path = data.path().join(PENDING_KEY);
    if let Ok(text) = std::fs::read_to_string(&path)
        && let Ok(key) = KeyPair::from_pem(&text)
    {
        return Ok(key);
    }
    let key = KeyPair::generate()?;
    write_atomic(&path, key.pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// Refuses to found a trust domain where a node of another one has been: its peers would not know it any more. Asked before
/// there is a store that this start has made.
pub(super) fn lost(data: &DataDir) -> anyhow::Result<()> {
    let dir = data.path().display();
    if !peers::load(&data.peers())?.is_empty() {
        return Err(anyhow!(
            "{dir} is of a node that joined others, and its identity (node/) is gone: put it back from a backup, join again with --join \
             (`keel token create --node` where the root key is), or give an empty --data-dir to found a trust domain"
        ));
    }
    if std::fs::metadata(data.store()).is_ok_and(|store| store.len() > 0) {
        warn!(
            "{dir} has a store and no identity (ca/, node/): a NEW trust domain is made, which no other node and no sidecar of before \
             knows. If that is not meant, stop, and put the identity back from a backup"
        );
    }
    Ok(())
}

fn found(data: &DataDir, settings: &NodeSettings) -> anyhow::Result<RootAuthority> {
    let root =
        RootAuthority::create(settings.trust_domain.clone()).context("cannot make a root")?;
    root.save(data).context("cannot keep the root")?;
    info!(trust_domain = %root.trust_domain(), ca = %data.ca().display(), "made a new trust domain; back up its ca directory");
    Ok(root)
}

/// Makes the node's intermediate with the root at hand.
pub(super) fn under_root(
    data: &DataDir,
    root: &RootAuthority,
    node: &NodeName,
    hosts: &Hosts,
) -> anyhow::Result<NodeAuthority> {
    let key = KeyPair::generate()?;
    let intermediate = root
        .sign_intermediate(&key.csr()?, node, hosts, INTERMEDIATE_LIFE)
        .context("cannot sign the intermediate")?;
    let authority = NodeAuthority::create(key, intermediate, vec![root.certificate().clone()])?;
    authority
        .save(data)
        .context("cannot keep the intermediate")?;
    renewal::keep_asked(data, hosts)?;
    Ok(authority)
}

/// The node's name for an empty data directory: as given, else the host's.
pub(super) fn node_name(settings: &NodeSettings) -> anyhow::Result<NodeName> {
    match &settings.node {
        Some(node) => Ok(node.clone()),
        None => NodeName::from_host(&settings.host).map_err(|error| {
            let reason = chain(&error);
            Usage(format!(
                "the host's name `{}` is no node name ({reason}): give one with --node-name",
                settings.host
            ))
            .into()
        }),
    }
}

/// Names and addresses that the node's certificates carry.
fn hosts(settings: &NodeSettings) -> Hosts {
    let mut hosts = Hosts::local();
    for advertised in &settings.advertise {
        hosts.add(advertised.host());
    }
    if let Some(ip) = settings.apiserver_listen.ip() {
        hosts.add(&ip.to_string());
    }
    hosts
}

#[cfg(test)]
mod tests;
