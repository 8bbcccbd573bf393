//! The sidecar's metric families.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How a DNS question ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum DnsOutcome {
    /// Answered for a name of ours.
    Own,
    /// The name does not exist.
    Absent,
    /// Answered by an upstream.
    Forwarded,
    /// No answer could be had.
    Failed,
    /// A question that is not answered here.
    Refused,
}

/// Label of [`DnsMetrics`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    outcome: DnsOutcome,
}

/// Label of `limit_hit`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabel {
    name: &'static str,
}

/// Counters of the DNS server.
#[derive(Debug, Default)]
pub struct DnsMetrics {
    questions: Family<OutcomeLabel, Counter>,
    limits: Family<LimitLabel, Counter>,
}

impl DnsMetrics {
    pub(crate) fn answered(&self, outcome: DnsOutcome) {
        self.questions
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
    }

    /// A limit held something back.
    pub(crate) fn limit_hit(&self, name: &'static str) {
        self.limits.get_or_create(&LimitLabel { name }).inc();
    }
}

/// Counters and gauges of the sidecar, DNS included.
#[derive(Debug, Default)]
pub struct SidecarMetrics {
    /// Of the DNS server.
    pub dns: Arc<DnsMetrics>,
    /// Connections that listeners accepted. Pairs with `connections_closed`.
    pub connections_accepted: Counter,
    /// Connections that ended, in whatever way.
    pub connections_closed: Counter,
    /// Connections that were reset because no provider took them.
    pub connections_unserved: Counter,
    /// Times that a provider was put last because it failed.
    pub ejections: Counter,
    /// Listeners that are open.
    pub listeners: Gauge,
    /// Mapped ports that could not be listened on.
    pub listeners_failed: Gauge,
    /// Routers that are known.
    pub routers: Gauge,
    /// 1 while the APIServer's events arrive.
    pub apiserver_connected: Gauge,
}

impl SidecarMetrics {
    /// Creates the families and makes them part of `registry`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self::default();
        let dns = &metrics.dns;
        registry.register(
            "keel_sidecar_dns_questions",
            "DNS questions by how they ended",
            dns.questions.clone(),
        );
        registry.register(
            "keel_sidecar_limit_hit",
            "Times that a limit of the sidecar held something back",
            dns.limits.clone(),
        );
        registry.register(
            "keel_sidecar_connections_accepted",
            "Connections that listeners of mapped services accepted",
            metrics.connections_accepted.clone(),
        );
        registry.register(
            "keel_sidecar_connections_closed",
            "Accepted connections that ended",
            metrics.connections_closed.clone(),
        );
        registry.register(
            "keel_sidecar_connections_unserved",
            "Accepted connections that were reset because no provider took them",
            metrics.connections_unserved.clone(),
        );
        registry.register(
            "keel_sidecar_ejections",
            "Times that a provider was put last because opens at it failed",
            metrics.ejections.clone(),
        );
        registry.register(
            "keel_sidecar_listeners",
            "Open listeners of mapped services",
            metrics.listeners.clone(),
        );
        registry.register(
            "keel_sidecar_listeners_failed",
            "Ports of mapped services that cannot be listened on",
            metrics.listeners_failed.clone(),
        );
        registry.register(
            "keel_sidecar_routers",
            "Routers that are known",
            metrics.routers.clone(),
        );
        registry.register(
            "keel_sidecar_apiserver_connected",
            "1 while events of the APIServer arrive",
            metrics.apiserver_connected.clone(),
        );
        Arc::new(metrics)
    }
}
