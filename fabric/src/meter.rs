//! Counts what passes, at every place that wants to know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;

/// Bytes of one direction.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) counters: Vec<Arc<AtomicU64>>,
    pub(crate) metric: Counter,
}

impl Meter {
    pub(crate) fn add(&self, bytes: u64) {
        for counter in &self.counters {
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
        self.metric.inc_by(bytes);
    }
}

/// A flow that passes; counts as one in each of its gauges as long as it lives.
#[derive(Debug)]
pub(crate) struct Passing {
    gauges: Vec<Arc<AtomicU64>>,
    /// From consumer to provider.
    pub(crate) up: Meter,
    /// From provider to consumer.
    pub(crate) down: Meter,
}

impl Passing {
    pub(crate) fn new(gauges: Vec<Arc<AtomicU64>>, up: Meter, down: Meter) -> Self {
        for gauge in &gauges {
            gauge.fetch_add(1, Ordering::Relaxed);
        }
        Self { gauges, up, down }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        for gauge in &self.gauges {
            gauge.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
