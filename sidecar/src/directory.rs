//! What can be reached, and through whom: a snapshot with look-ups. Pure; built anew from the Routers at every change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keel_certs::{ClusterName, Namespace, NodeName, ServiceId, ServiceName, Subject};
use keel_control::api::{ActiveService, ProviderStatus, Router};
use keel_fabric::link::RouterPeer;
use keel_fabric::quic::HostPort;
use keel_fabric::wire::{Health, Offer, Protocol};

use crate::spec::ServiceRef;

/// Cluster of a router that does not say which.
const DEFAULT_CLUSTER: &str = "default";

/// One way to a service: a router, and a provider that it can hand a flow to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The router, with the addresses that it is dialled at from here.
    pub router: Arc<RouterPeer>,
    /// Who serves: a sidecar, or the router for a backend of its own.
    pub provider: Subject,
    /// How the provider wants to be chosen.
    pub offer: Offer,
    /// Whether the router takes nothing new.
    pub draining: bool,
    /// Whether any router, this one or another, says that the provider is not healthy. One that does not answer its router
    /// has not been asked over the others yet.
    pub doubted: bool,
    /// The cluster of the service.
    pub cluster: ClusterName,
}

/// A service's port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// The service.
    pub service: ServiceId,
    /// Its port, as consumers name it.
    pub port: u16,
    /// True for UDP.
    pub udp: bool,
}

impl PortKey {
    /// The key of `service`'s `port`.
    pub fn new(service: ServiceId, port: u16, protocol: Protocol) -> Self {
        Self {
            service,
            port,
            udp: protocol == Protocol::Udp,
        }
    }
}

/// Everything that is known about routers and services, as seen from one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    own_cluster: Option<ClusterName>,
    own_node: Option<NodeName>,
    routers: BTreeMap<NodeName, Arc<RouterPeer>>,
    public: BTreeSet<NodeName>,
    ports: BTreeMap<PortKey, Vec<Candidate>>,
}

impl Directory {
    /// The directory of a sidecar on `own`. What a Router leaves out or has wrong costs that entry only.
    pub fn build<'a>(own: &NodeName, routers: impl IntoIterator<Item = &'a Router>) -> Self {
        let mut directory = Self {
            own_node: Some(own.clone()),
            ..Self::default()
        };
        // What is old about a provider is no reason to leave it alone.
        let mut stale = BTreeSet::new();
        for router in routers {
            let (Ok(node), Some(status)) = (router.name().parse::<NodeName>(), &router.status)
            else {
                continue;
            };
            let cluster = status.cluster.as_deref().unwrap_or(DEFAULT_CLUSTER);
            let Ok(cluster) = cluster.parse::<ClusterName>() else {
                continue;
            };
            let is_own = node == *own;
            if is_own {
                directory.own_cluster = Some(cluster.clone());
            }
            // Only its own node's sidecars reach a router by its node addresses; without others it is dialled from nowhere else.
            let near = status.node_addresses.iter().filter(|_| is_own);
            let mut addresses: Vec<HostPort> = Vec::new();
            for address in near
                .chain(&status.addresses)
                .filter_map(|text| text.parse::<HostPort>().ok())
            {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if !status.addresses.is_empty() {
                directory.public.insert(node.clone());
            }
            if addresses.is_empty() {
                continue;
            }
            let peer = Arc::new(RouterPeer {
                node: node.clone(),
                addresses,
            });
            directory.routers.insert(node, peer.clone());
            for service in &status.active_services {
                directory.add(&peer, &cluster, status.is_draining(), service);
            }
            if status.is_stale() {
                stale.insert(router.name());
            }
        }
        for ways in directory.ports.values_mut() {
            doubt(ways, &stale);
        }
        directory
    }

    fn add(
        &mut self,
        router: &Arc<RouterPeer>,
        of_router: &ClusterName,
        draining: bool,
        service: &ActiveService,
    ) {
        let Some(name) = service
            .name
            .as_deref()
            .and_then(|name| name.parse::<ServiceName>().ok())
        else {
            return;
        };
        let namespace = service.namespace.as_deref().unwrap_or("default");
        let Ok(namespace) = namespace.parse::<Namespace>() else {
            return;
        };
        let cluster = match service.cluster.as_deref() {
            None | Some("") => of_router.clone(),
            Some(cluster) => match cluster.parse() {
                Ok(cluster) => cluster,
                Err(_) => return,
            },
        };
        let protocol = match service.protocol.as_deref() {
            None | Some("") => Protocol::Tcp,
            Some(text) if text.eq_ignore_ascii_case("tcp") => Protocol::Tcp,
            Some(text) if text.eq_ignore_ascii_case("udp") => Protocol::Udp,
            Some(_) => return,
        };
        let Some(port) = service.service_port().filter(|port| *port != 0) else {
            return;
        };
        let key = PortKey::new(ServiceId { name, namespace }, port, protocol);
        for provider in &service.providers {
            let Some(subject) = provider.subject() else {
                continue;
            };
            let candidate = Candidate {
                router: router.clone(),
                provider: subject,
                offer: offer(provider),
                draining,
                doubted: false,
                cluster: cluster.clone(),
            };
            let all = self.ports.entry(key.clone()).or_default();
            let known = all.iter().any(|known| {
                known.provider == candidate.provider && known.router.node == candidate.router.node
            });
            if !known {
                all.push(candidate);
            }
        }
    }

    /// All ways to a port of `target`, in no order; only those of its cluster if it names one.
    pub fn candidates<'a>(
        &'a self,
        target: &'a ServiceRef,
        port: u16,
        protocol: Protocol,
    ) -> impl Iterator<Item = &'a Candidate> + 'a {
        let key = PortKey::new(target.service.clone(), port, protocol);
        let all = self.ports.get(&key).map_or(&[][..], Vec::as_slice);
        all.iter().filter(move |candidate| {
            target
                .cluster
                .as_ref()
                .is_none_or(|cluster| candidate.cluster == *cluster)
        })
    }

    /// The ports of `target` that somebody provides.
    pub fn ports(&self, target: &ServiceRef, protocol: Protocol) -> BTreeSet<u16> {
        let of_service = self
            .ports
            .keys()
            .filter(|key| key.service == target.service && key.udp == (protocol == Protocol::Udp));
        of_service
            .map(|key| key.port)
            .filter(|port| self.candidates(target, *port, protocol).next().is_some())
            .collect()
    }

    /// Every port with its providers.
    pub fn providers(&self) -> BTreeMap<&PortKey, BTreeSet<&Subject>> {
        self.ports
            .iter()
            .map(|(key, all)| (key, all.iter().map(|c| &c.provider).collect()))
            .collect()
    }

    /// The routers that can be dialled from here.
    pub fn routers(&self) -> &BTreeMap<NodeName, Arc<RouterPeer>> {
        &self.routers
    }

    /// The own node's router.
    pub fn own_router(&self) -> Option<&RouterPeer> {
        let own = self.own_node.as_ref()?;
        self.routers.get(own).map(|router| &**router)
    }

    /// The routers of other nodes that say how they are reached, by name.
    pub fn public_others(&self) -> impl Iterator<Item = &RouterPeer> {
        let others = self.routers.iter().filter(|(node, _)| {
            self.public.contains(*node) && Some(*node) != self.own_node.as_ref()
        });
        others.map(|(_, router)| &**router)
    }

    /// The node that this is seen from.
    pub fn own_node(&self) -> Option<&NodeName> {
        self.own_node.as_ref()
    }

    /// The cluster of the own node, once its router has said it.
    pub fn own_cluster(&self) -> Option<&ClusterName> {
        self.own_cluster.as_ref()
    }
}

/// Marks the ways to providers that a router, not one of the `stale` ones, calls unhealthy.
fn doubt(ways: &mut [Candidate], stale: &BTreeSet<&str>) {
    let unhealthy = ways.iter().filter(|way| {
        way.offer.health == Health::Unhealthy && !stale.contains(way.router.node.as_str())
    });
    let unhealthy: BTreeSet<Subject> = unhealthy.map(|way| way.provider.clone()).collect();
    for way in ways {
        way.doubted = unhealthy.contains(&way.provider);
    }
}

fn offer(provider: &ProviderStatus) -> Offer {
    let default = Offer::default();
    Offer {
        weight: provider.weight.unwrap_or(default.weight),
        priority: provider.priority.unwrap_or(default.priority),
        health: match (provider.is_healthy(), provider.health.as_deref()) {
            (false, _) => Health::Unhealthy,
            (true, Some("healthy")) => Health::Healthy,
            (true, _) => Health::Unknown,
        },
    }
}

/// A provider on another node that a service did not have before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gained {
    /// The service and port.
    pub key: PortKey,
    /// The new one.
    pub provider: Subject,
    /// One that was there before, on another node.
    pub besides: Subject,
}

/// What `now` has more than `before` in providers on other nodes than those that served until then.
pub fn gained(before: &Directory, now: &Directory) -> Vec<Gained> {
    let had = before.providers();
    let mut found = Vec::new();
    for (key, providers) in now.providers() {
        let Some(old) = had.get(key) else { continue };
        for provider in providers
            .iter()
            .filter(|provider| !old.contains(**provider))
        {
            let elsewhere = old.iter().all(|other| other.node() != provider.node());
            if let Some(first) = old.iter().next().filter(|_| elsewhere) {
                found.push(Gained {
                    key: key.clone(),
                    provider: (*provider).clone(),
                    besides: (*first).clone(),
                });
            }
        }
    }
    found
}

#[cfg(test)]
pub(crate) mod tests;
