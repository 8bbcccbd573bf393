//! The memory that all flow ends of a process share.

use std::sync::Arc;

use crate::flow::{Flow, FlowLimits};
use crate::metrics::FabricMetrics;

/// Bytes that all flow ends of a process may hold together.
const PROCESS: i64 = 256 << 20;
/// Above this, flows get no more than the window that they start with.
const TIGHT: i64 = PROCESS / 4 * 3;

/// One flow's part of the process's budget.
#[derive(Debug)]
pub(crate) struct Buffers {
    metrics: Arc<FabricMetrics>,
    limits: FlowLimits,
    counted: i64,
    tight: bool,
}

impl Buffers {
    pub(crate) const fn new(metrics: Arc<FabricMetrics>, limits: FlowLimits) -> Self {
        Self {
            metrics,
            limits,
            counted: 0,
            tight: false,
        }
    }

    /// Whether the process has room for another flow.
    pub(crate) fn have_room(metrics: &FabricMetrics) -> bool {
        metrics.flow_buffered.get() < PROCESS
    }

    /// Counts what `flow` holds, and lets its windows grow only while there is room.
    pub(super) fn follow(&mut self, flow: &mut Flow) {
        let held = i64::try_from(flow.stats().buffered).unwrap_or(i64::MAX);
        let before = self.counted;
        if held == before {
            return;
        }
        let all = self.metrics.flow_buffered.inc_by(held - before) + held - before;
        self.counted = held;
        let tight = all > TIGHT;
        if tight != self.tight {
            self.tight = tight;
            if tight {
                self.metrics.hit("buffers");
            }
            flow.set_max_window(if tight {
                self.limits.window
            } else {
                self.limits.max_window
            });
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        self.metrics.flow_buffered.dec_by(self.counted);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::{FlowId, Generation, Open, Protocol, Secret, VERSION};

    fn flow() -> Flow {
        let open = Open {
            version: VERSION,
            flow: FlowId::random(),
            generation: Generation::FIRST,
            secret: Secret::random(),
            service: "a.b".parse().unwrap(),
            port: 1,
            protocol: Protocol::Tcp,
            provider: "/node/a".parse().unwrap(),
            limit: 0,
            max_datagram: 0,
            hops: 0,
            flags: 0,
            from: None,
            rest: Bytes::new(),
        };
        Flow::initiate(open, FlowLimits::default())
    }

    #[test]
    fn what_a_flow_holds_is_counted_and_given_back() {
        let metrics = Arc::new(FabricMetrics::default());
        let mut flow = flow();
        let mut buffers = Buffers::new(Arc::clone(&metrics), FlowLimits::default());
        flow.write(Bytes::from_static(&[0; 100]));
        buffers.follow(&mut flow);
        assert_eq!(metrics.flow_buffered.get(), 100);
        drop(buffers);
        assert_eq!(metrics.flow_buffered.get(), 0);
    }

    #[test]
    fn a_full_process_is_noticed() {
        let metrics = Arc::new(FabricMetrics::default());
        metrics.flow_buffered.set(TIGHT);
        let mut flow = flow();
        let mut buffers = Buffers::new(Arc::clone(&metrics), FlowLimits::default());
        flow.write(Bytes::from_static(&[0; 100]));
        buffers.follow(&mut flow);
        assert!(buffers.tight);
        assert!(Buffers::have_room(&metrics));
        metrics.flow_buffered.set(PROCESS);
        assert!(!Buffers::have_room(&metrics));
    }
}
