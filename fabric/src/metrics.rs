//! Metric families of the fabric.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Which limit was hit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabels {
    /// Its name, as in the documentation of the limits.
    pub name: &'static str,
}

/// Which end of a flow this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(
    non_camel_case_types,
    reason = "the variants' names are the label values"
)]
pub enum Side {
    /// The end that the application connected to.
    consumer,
    /// The end that dialled the backend.
    provider,
}

impl Side {
    /// The name in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::consumer => "consumer",
            Self::provider => "provider",
        }
    }
}

/// An end of a flow, and how the flow ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabels {
    /// Which end this process is.
    pub role: Side,
    /// `DONE`, or the code of the refusal or cut.
    pub close: &'static str,
}

/// An end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabels {
    /// Which end this process is.
    pub role: Side,
}

/// A byte count's direction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabels {
    /// `up` is from consumer to provider.
    pub direction: &'static str,
}

/// A refusal by a router.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefuseLabels {
    /// The code's name.
    pub code: &'static str,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DropLabels {
    /// `too_large`, `queue`, `no_leg`, `unknown_flow`, `socket` or `malformed`.
    pub reason: &'static str,
}

/// Metrics of routers and flow ends of one process.
#[derive(Debug, Default)]
pub struct FabricMetrics {
    /// Limits hit.
    pub limit_hit: Family<LimitLabels, Counter>,
    /// Flow ends started here. The difference to `flows_ended` is the number open now.
    pub flows_started: Family<RoleLabels, Counter>,
    /// Flow ends that are over.
    pub flows_ended: Family<EndLabels, Counter>,
    /// Bytes of applications moved by flow ends.
    pub flow_bytes: Family<DirectionLabels, Counter>,
    /// Legs that were lost and replaced.
    pub flow_resumes: Family<RoleLabels, Counter>,
    /// Bytes that flow ends hold in memory now, both directions.
    pub flow_buffered: Gauge,
    /// Connections open at the router.
    pub router_connections: Gauge,
    /// Legs that the router forwards now.
    pub router_legs: Gauge,
    /// Bytes that the router forwarded, headers of the flow protocol included.
    pub router_bytes: Family<DirectionLabels, Counter>,
    /// Legs that the router did not forward.
    pub router_refusals: Family<RefuseLabels, Counter>,
    /// Packets of UDP flows that were dropped.
    pub packets_dropped: Family<DropLabels, Counter>,
    /// Links to routers that were established.
    pub links_connected: Counter,
}

impl FabricMetrics {
    /// Registers all families under the prefix `keel_fabric`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self::default();
        let r = registry.sub_registry_with_prefix("keel_fabric");
        r.register(
            "limit_hit",
            "Limits hit, by name",
            metrics.limit_hit.clone(),
        );
        r.register(
            "flows_started",
            "Flow ends started",
            metrics.flows_started.clone(),
        );
        r.register(
            "flows_ended",
            "Flow ends that are over, by reason",
            metrics.flows_ended.clone(),
        );
        r.register(
            "flow_bytes",
            "Application bytes moved by flow ends",
            metrics.flow_bytes.clone(),
        );
        r.register(
            "flow_resumes",
            "Legs lost and replaced",
            metrics.flow_resumes.clone(),
        );
        r.register(
            "flow_buffered_bytes",
            "Bytes that flow ends hold now",
            metrics.flow_buffered.clone(),
        );
        r.register(
            "router_connections",
            "Connections open at the router",
            metrics.router_connections.clone(),
        );
        r.register(
            "router_legs",
            "Legs forwarded now",
            metrics.router_legs.clone(),
        );
        r.register(
            "router_bytes",
            "Bytes forwarded by the router",
            metrics.router_bytes.clone(),
        );
        r.register(
            "router_refusals",
            "Legs that the router did not forward, by code",
            metrics.router_refusals.clone(),
        );
        r.register(
            "packets_dropped",
            "Packets of UDP flows dropped, by reason",
            metrics.packets_dropped.clone(),
        );
        r.register(
            "links_connected",
            "Connections made to routers",
            metrics.links_connected.clone(),
        );
        Arc::new(metrics)
    }

    pub(crate) fn dropped(&self, reason: &'static str) {
        self.packets_dropped
            .get_or_create(&DropLabels { reason })
            .inc();
    }

    pub(crate) fn hit(&self, name: &'static str) {
        self.limit_hit.get_or_create(&LimitLabels { name }).inc();
    }
}
