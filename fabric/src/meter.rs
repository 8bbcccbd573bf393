//! Counts what passes while it passes, at every place that wants to know.
//!
//! What a flow counts with is looked up once, when the flow starts; after that counting is a few additions per batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::end::{EndReason, FlowEnd};
use crate::flow::{FlowStats, Violation};
use crate::metrics::{FabricMetrics, FlowLabels, RoleLabels, Side};
use crate::series::{At, Running};
use crate::wire::{Frame, GoneCode};

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

/// A flow that passes a router; counts as one in each of its gauges as long as it lives.
#[derive(Debug)]
pub(crate) struct Passing {
    gauges: Vec<Arc<AtomicU64>>,
    /// From consumer to provider.
    pub(crate) up: Meter,
    /// From provider to consumer.
    pub(crate) down: Meter,
    /// Its service and consumer.
    pub(crate) pair: Running,
}

impl Passing {
    pub(crate) fn new(gauges: Vec<Arc<AtomicU64>>, up: Meter, down: Meter, pair: Running) -> Self {
        for gauge in &gauges {
            gauge.fetch_add(1, Ordering::Relaxed);
        }
        Self {
            gauges,
            up,
            down,
            pair,
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        for gauge in &self.gauges {
            gauge.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One end of a flow in the books. It follows the flow's own counters, so that the sums are the flow's to the byte.
#[derive(Debug)]
pub(crate) struct FlowMeter {
    metrics: Arc<FabricMetrics>,
    side: Side,
    pair: Running,
    up: Counter,
    down: Counter,
    /// Where a router counts a flow that ends in it.
    passing: Option<Passing>,
    counted: Counted,
    stall: Stall,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    up: u64,
    down: u64,
    resumes: u32,
}

impl FlowMeter {
    /// Enters a flow with the end at `peer`.
    pub(crate) fn new(
        metrics: &Arc<FabricMetrics>,
        side: Side,
        service: At<'_>,
        peer: &dyn std::fmt::Display,
        passing: Option<Passing>,
    ) -> Self {
        let bytes = |direction| {
            let labels = FlowLabels {
                role: side,
                direction,
            };
            metrics.flow_bytes.get_or_create_owned(&labels)
        };
        Self {
            metrics: Arc::clone(metrics),
            side,
            pair: metrics.pairs.start(side.name(), service, peer),
            up: bytes("up"),
            down: bytes("down"),
            passing,
            counted: Counted::default(),
            stall: Stall::default(),
        }
    }

    /// Counts what the flow did since the last call.
    pub(crate) fn follow(&mut self, stats: &FlowStats, now: Instant) {
        // Early bytes of an open without an answer may still go to another provider, and would be counted twice.
        if !stats.accepted {
            return;
        }
        let (up, down) = self.side.up_and_down(stats);
        self.moved(up, down, stats.resumes);
        if let Some((new, time)) = self.stall.follow(stats.outstanding, stats.acked, now) {
            self.pair.stalled(new, time);
            let role = RoleLabels { role: self.side };
            let (stalls, stalled) = (&self.metrics.flow_stalls, &self.metrics.flow_stalled);
            stalls.get_or_create(&role).inc_by(u64::from(new));
            stalled.get_or_create(&role).inc_by(time.as_secs_f64());
        }
    }

    /// Counts what is new in these sums.
    pub(crate) fn moved(&mut self, up: u64, down: u64, resumes: u32) {
        let new = Counted {
            up: up.saturating_sub(self.counted.up),
            down: down.saturating_sub(self.counted.down),
            resumes: resumes.saturating_sub(self.counted.resumes),
        };
        if new.up > 0 {
            self.up.inc_by(new.up);
            self.pair.up.fetch_add(new.up, Ordering::Relaxed);
            if let Some(passing) = &self.passing {
                passing.up.add(new.up);
            }
        }
        if new.down > 0 {
            self.down.inc_by(new.down);
            self.pair.down.fetch_add(new.down, Ordering::Relaxed);
            if let Some(passing) = &self.passing {
                passing.down.add(new.down);
            }
        }
        if new.resumes > 0 {
            self.pair.resumed(new.resumes);
            let role = RoleLabels { role: self.side };
            let resumes = &self.metrics.flow_resumes;
            resumes.get_or_create(&role).inc_by(u64::from(new.resumes));
            if let Some(passing) = &self.passing {
                passing.pair.resumed(new.resumes);
            }
        }
        self.counted = Counted { up, down, resumes };
    }

    /// A leg was lost.
    pub(crate) fn leg_lost(&self, cause: &'static str) {
        self.metrics.leg_lost(self.side, cause);
    }

    /// The other end broke the protocol on a leg, or the leg led to somebody else.
    pub(crate) fn broken(&self, violation: Violation) {
        if violation == Violation::Proof {
            self.metrics.forged.inc();
        }
        self.leg_lost("protocol");
    }

    /// A frame came.
    pub(crate) fn heard(&self, frame: &Frame) {
        if let Frame::Gone { code } = frame
            && *code != GoneCode::Complete
        {
            self.metrics.gone(self.side, *code);
        }
    }

    /// The flow goes on over another connection of its router, where its bytes are counted from now on.
    pub(crate) fn pass(&mut self, passing: Option<Passing>) {
        if passing.is_some() {
            self.passing = passing;
        }
    }

    /// When [`follow`](Self::follow) wants to be called at the latest.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.stall.look
    }

    /// Times and time in which sent bytes made no progress.
    pub(crate) fn stalls(&self) -> (u32, Duration) {
        (self.stall.count, self.stall.time)
    }

    /// Counts the rest. The flow is running until this is dropped.
    pub(crate) fn end(&mut self, end: &FlowEnd) {
        self.moved(end.bytes_up, end.bytes_down, end.resumes);
        if end.reason != EndReason::Done {
            self.pair.reset(end.reason.name());
        }
    }
}

/// A flow is stalled when bytes that were sent are not owned by the other end and none became so for this long.
const STALL: Duration = Duration::from_secs(1);

/// Notices that the bytes that were sent make no progress.
///
/// Only the end that sends can know. Bytes that wait for credit are no stall: the application does not take them.
#[derive(Debug, Default)]
struct Stall {
    /// Bytes are outstanding, and this many have been acknowledged since then.
    since: Option<(Instant, u64)>,
    /// The flow is stalled, and its time is counted until then.
    until: Option<Instant>,
    look: Option<Instant>,
    count: u32,
    time: Duration,
}

impl Stall {
    /// What to count: whether a stall began, and how much longer it is.
    fn follow(&mut self, outstanding: bool, acked: u64, now: Instant) -> Option<(bool, Duration)> {
        let since = match self.since {
            Some((since, before)) if before == acked && outstanding => since,
            _ => {
                let longer = self.until.take().map(|until| now - until);
                self.since = outstanding.then_some((now, acked));
                // A look that is too early is taken again: cheaper than moving it with every acknowledgement.
                self.look = match self.look {
                    Some(look) if look > now => Some(look),
                    _ => outstanding.then_some(now + STALL),
                };
                return longer.map(|longer| self.add(false, longer));
            }
        };
        if self.look.is_some_and(|look| look <= now) {
            let next = since + STALL;
            self.look = Some(if next > now { next } else { now + STALL });
        }
        if now.duration_since(since) < STALL {
            return None;
        }
        let new = self.until.is_none();
        let from = self.until.replace(now).unwrap_or(since);
        Some(self.add(new, now - from))
    }

    fn add(&mut self, new: bool, longer: Duration) -> (bool, Duration) {
        self.count += u32::from(new);
        self.time += longer;
        (new, longer)
    }
}

#[cfg(test)]
mod tests;
