//! Where a flow may have its legs, and how a new one is found.

use std::fmt;

use keel_certs::{ServiceId, Subject};

use crate::link::RouterPeer;

/// Knows the routers that list a provider, now.
pub trait Ways: Send + Sync + fmt::Debug {
    /// The routers through which `provider` can be reached for this service and port, best first. Asked for each new leg
    /// of a flow, so the answer may change at any time; it must not block.
    fn ways(&self, service: &ServiceId, port: u16, provider: &Subject) -> Vec<RouterPeer>;
}

/// Always the same routers.
impl Ways for Vec<RouterPeer> {
    fn ways(&self, _: &ServiceId, _: u16, _: &Subject) -> Vec<RouterPeer> {
        self.clone()
    }
}
