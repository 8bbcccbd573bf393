//! Through which routers a flow that runs may go on.

use std::sync::Arc;
use std::time::Duration;

use keel_certs::{ClusterName, ServiceId, Subject};
use keel_fabric::legs::Ways;
use keel_fabric::link::{Links, RouterPeer};
use keel_fabric::wire::{Health, Protocol};
use tokio::sync::watch;

use crate::directory::{Candidate, Directory};
use crate::spec::ServiceRef;

/// The routers of the directory that list the provider: the own node's first, then the nearest. Those that drain come last.
#[derive(Debug)]
pub(crate) struct DirectoryWays {
    /// The only cluster whose providers may take a new association; `None` takes all.
    pub(crate) cluster: Option<ClusterName>,
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    pub(crate) links: watch::Receiver<Option<Links>>,
}

impl Ways for DirectoryWays {
    fn ways(&self, service: &ServiceId, port: u16, provider: &Subject) -> Vec<RouterPeer> {
        let directory = self.directory.borrow().clone();
        let links = self.links.borrow().clone();
        let service = ServiceRef {
            service: service.clone(),
            cluster: None,
        };
        let mut ways: Vec<&Candidate> = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for way in directory.candidates(&service, port, protocol) {
                let known = ways
                    .iter()
                    .any(|other| other.router.node == way.router.node);
                if way.provider == *provider && !known {
                    ways.push(way);
                }
            }
        }
        ways.sort_by_cached_key(|way| {
            let node = &way.router.node;
            let round_trip = links.as_ref().and_then(|links| links.rtt(node));
            (
                way.draining,
                Some(node) != directory.own_node(),
                round_trip.unwrap_or(Duration::MAX),
            )
        });
        ways.into_iter().map(|way| (*way.router).clone()).collect()
    }

    fn another(&self, service: &ServiceId, port: u16, provider: &Subject) -> bool {
        let service = ServiceRef {
            service: service.clone(),
            cluster: self.cluster.clone(),
        };
        let directory = self.directory.borrow();
        let mut all = directory.candidates(&service, port, Protocol::Udp);
        all.any(|way| {
            let works = way.offer.health != Health::Unhealthy && !way.draining;
            works && way.provider != *provider
        })
    }
}
