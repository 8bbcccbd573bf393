//! What the transports count, and the API behind them.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::server::ApiMetrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    name: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabel {
    transport: &'static str,
}

/// Counters of the API's transports.
#[derive(Debug, Default)]
pub struct TransportMetrics {
    connections: Family<TransportLabel, Gauge>,
    limits: Family<LimitLabel, Counter>,
    watches: Gauge,
    damaged: Counter,
}

impl TransportMetrics {
    /// Registers the metrics `keel_api_connections{transport}`, `keel_api_damaged_rows_total`, `keel_api_limit_hit_total{name}` and
    /// `keel_api_watches`.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self::default();
        registry.register(
            "keel_api_connections",
            "Open connections of the API",
            metrics.connections.clone(),
        );
        registry.register(
            "keel_api_damaged_rows",
            "Rows of the store that were not what was written",
            metrics.damaged.clone(),
        );
        registry.register(
            "keel_api_limit_hit",
            "How often a limit of the API was hit",
            metrics.limits.clone(),
        );
        registry.register(
            "keel_api_watches",
            "Open watches of the API",
            metrics.watches.clone(),
        );
        Arc::new(metrics)
    }

    /// What the API itself counts, among the transports'.
    #[must_use]
    pub fn api(&self) -> ApiMetrics {
        let limit = |name| self.limits.get_or_create(&LimitLabel { name }).clone();
        ApiMetrics {
            watches: self.watches.clone(),
            watches_refused: limit("watches"),
            pushes_refused: limit("pushes"),
        }
    }

    /// The counter of damaged rows, for the store to keep.
    #[must_use]
    pub fn damaged(&self) -> Counter {
        self.damaged.clone()
    }

    pub(super) fn limit_hit(&self, name: &'static str) {
        self.limits.get_or_create(&LimitLabel { name }).inc();
    }

    /// Counts the error of a request that was refused for its size.
    pub(super) fn limit_hit_if(&self, error: &h3::error::StreamError) {
        use h3::error::{Code, StreamError};
        if matches!(error, StreamError::HeaderTooBig { .. })
            || matches!(error, StreamError::RemoteTerminate { code, .. } if *code == Code::H3_EXCESSIVE_LOAD)
        {
            self.limit_hit("header_size");
        }
    }

    /// How often the limit of this name was hit.
    #[cfg(test)]
    pub(crate) fn hits(&self, name: &'static str) -> u64 {
        self.limits.get_or_create(&LimitLabel { name }).get()
    }

    /// Counts a connection for as long as the guard lives.
    pub(super) fn connection(self: &Arc<Self>, transport: &'static str) -> ConnectionGuard {
        let gauge = self
            .connections
            .get_or_create(&TransportLabel { transport })
            .clone();
        gauge.inc();
        ConnectionGuard(gauge)
    }
}

/// One counted connection.
pub(super) struct ConnectionGuard(Gauge);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
