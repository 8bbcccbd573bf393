//! Through which routers a flow that runs may go on.

use std::sync::Arc;

use keel_certs::{ServiceId, Subject};
use keel_fabric::legs::Ways;
use keel_fabric::link::RouterPeer;
use keel_fabric::wire::Protocol;
use tokio::sync::watch;

use crate::directory::Directory;
use crate::spec::ServiceRef;

/// The routers of the directory that list the provider, the own node's first.
#[derive(Debug)]
pub(crate) struct DirectoryWays(pub(crate) watch::Receiver<Arc<Directory>>);

impl Ways for DirectoryWays {
    fn ways(&self, service: &ServiceId, port: u16, provider: &Subject) -> Vec<RouterPeer> {
        let directory = self.0.borrow().clone();
        let service = ServiceRef {
            service: service.clone(),
            cluster: None,
        };
        let mut routers: Vec<RouterPeer> = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for way in directory.candidates(&service, port, protocol) {
                let known = routers.iter().any(|router| router.node == way.router.node);
                if way.provider == *provider && !known {
                    routers.push((*way.router).clone());
                }
            }
        }
        routers.sort_by_key(|router| Some(&router.node) != directory.own_node());
        routers
    }
}
