//! Which of the names and addresses that a node asks for it gets, and who has joined before.

use std::net::IpAddr;

use keel_certs::{Hosts, NodeName};
use keel_fabric::quic::HostPort;

use super::server::{AUDIT, no_root};
use super::{Answer, Inner, bad_request, internal};
use crate::api::{GROUP, PLURAL, Router};
use crate::store::{Change, Key, StoreError};

/// What nodes that joined are kept under. The API does not serve it.
const JOINED: &str = "joined.enrolment";

/// The part of `asked` that the node's certificates may carry.
///
/// Stock clients believe any name that an intermediate permits, and one that permits a name permits all names below it. So a node
/// gets no name that is, contains or lies in one that another node is known by, and no address that another one is reached at.
/// Private addresses of two machines behind different NATs may well be the same: only advertised ones count.
///
/// # Errors
/// Where the root key is not, and for what no certificate can carry.
pub(super) async fn granted(inner: &Inner, node: &NodeName, asked: &Hosts) -> Answer<Hosts> {
    let root = inner.root.as_ref().ok_or_else(|| no_root(inner))?;
    let granted = if *node == inner.authority.node() {
        asked.clone()
    } else {
        let taken = taken(inner, node).await.map_err(|error| internal(&error))?;
        let granted = Hosts {
            dns: asked
                .dns
                .iter()
                .filter(|name| may_have_name(&taken, node, name))
                .cloned()
                .collect(),
            ips: asked
                .ips
                .iter()
                .filter(|ip| may_have_address(&taken, **ip))
                .copied()
                .collect(),
        };
        if granted != *asked {
            let dns: Vec<_> = asked.dns.difference(&granted.dns).collect();
            let ips: Vec<_> = asked.ips.difference(&granted.ips).collect();
            tracing::info!(target: AUDIT, %node, ?dns, ?ips, "names and addresses that are or may be of others are left out of its certificates");
        }
        granted
    };
    root.check_hosts(&granted)
        .map_err(|error| bad_request(error.to_string()))?;
    Ok(granted)
}

/// What this node and all others but `node` are known by.
async fn taken(inner: &Inner, node: &NodeName) -> Result<Hosts, StoreError> {
    let mut taken = inner.config.hosts.clone();
    let mut add = |address: &str| {
        if let Ok(address) = address.parse::<HostPort>() {
            taken.add(address.host());
        }
    };
    if let Some(endpoint) = &inner.config.info.borrow().token_endpoint {
        add(endpoint);
    }
    let (routers, _) = inner.store.list(&format!("{PLURAL}.{GROUP}")).await?;
    for object in routers {
        // One that cannot be read advertises nothing.
        let Ok(router) = serde_json::from_slice::<Router>(&object.data) else {
            continue;
        };
        if router.metadata.name == node.as_str() {
            continue;
        }
        let reported = router.status.unwrap_or_default().addresses;
        for address in router.spec.addresses.iter().chain(&reported) {
            add(address);
        }
    }
    Ok(taken)
}

/// A single label is a name only within some network, and permits all names below it: nobody gets one but the node of that name.
fn may_have_name(taken: &Hosts, node: &NodeName, name: &str) -> bool {
    if name == "localhost" {
        return true;
    }
    let below = |name: &str, parent: &str| {
        name.strip_suffix(parent)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let is_free = |other: &String| !below(name, other) && !below(other, name);
    (name.contains('.') || name.eq_ignore_ascii_case(node.as_str()))
        && taken.dns.iter().all(is_free)
}

fn may_have_address(taken: &Hosts, ip: IpAddr) -> bool {
    ip.is_loopback() || !taken.ips.contains(&ip)
}

/// Notes that a key becomes the node. Whether another key was that node before, or there is a Router of that name.
pub(super) async fn note_join(
    inner: &Inner,
    node: &NodeName,
    key_hash: &[u8; 32],
) -> Result<bool, StoreError> {
    let key = data_encoding::HEXLOWER.encode(key_hash);
    let record = serde_json::json!({ "key": key }).to_string();
    let joined = Key {
        resource: JOINED.into(),
        name: node.to_string(),
    };
    let before = inner
        .store
        .write(joined, move |before, _| match before {
            Some(before) if before.data == record.as_bytes() => (Change::Keep, Some(true)),
            before => (Change::Put(record.into()), before.map(|_| false)),
        })
        .await?;
    let router = Key {
        resource: format!("{PLURAL}.{GROUP}").into(),
        name: node.to_string(),
    };
    Ok(match before {
        Some(same_key) => !same_key,
        None => inner.store.get(&router).await?.is_some(),
    })
}
