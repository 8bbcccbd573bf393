//! What a router reports about itself.

use std::net::SocketAddr;
use std::time::SystemTime;

use keel_certs::{ServiceId, Subject};

use crate::series::PairCounts;
use crate::wire::{Offer, Protocol};

/// What can be reached at a router now, and who uses it.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterView {
    /// When the router started.
    pub started: SystemTime,
    /// Services, sorted by name, port and protocol.
    pub services: Vec<ServiceView>,
    /// Sums over all services.
    pub totals: Totals,
}

impl Default for RouterView {
    fn default() -> Self {
        Self {
            started: SystemTime::UNIX_EPOCH,
            services: Vec::new(),
            totals: Totals::default(),
        }
    }
}

/// Sums of a router.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections to the router.
    pub clients: u64,
    /// Flows that pass now.
    pub connections: u64,
    /// Bytes from consumers since the start.
    pub bytes_in: u64,
    /// Bytes to consumers since the start.
    pub bytes_out: u64,
}

/// A service at a router.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceView {
    /// Its name.
    pub service: ServiceId,
    /// Its port.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Who provides it, sorted by identity. A backend that the router dials itself is provided by the router's node.
    pub providers: Vec<ProviderView>,
    /// Who is connected for it, consumers and providers, sorted by identity and address.
    pub clients: Vec<ClientView>,
    /// What was counted for it, by consumer: of legs that pass (`router`), and of flows that end here (`provider`).
    pub counts: Vec<PairCounts>,
}

/// A provider of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderView {
    /// Who.
    pub identity: Subject,
    /// Published since.
    pub since: SystemTime,
    /// How it wants to be chosen.
    pub offer: Offer,
}

/// What a client is to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It opens flows.
    Consumer,
    /// It takes flows.
    Provider,
}

/// A connection that uses or provides a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientView {
    /// Who.
    pub identity: Subject,
    /// What it is to the service.
    pub role: Role,
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Since when.
    pub connected_at: SystemTime,
    /// Flows now.
    pub connections: u64,
    /// Bytes that came from it.
    pub bytes_in: u64,
    /// Bytes that went to it.
    pub bytes_out: u64,
}
