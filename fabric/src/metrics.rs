//! Metric families of the fabric.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::flow::FlowStats;
use crate::series::PairsCollector;
pub use crate::series::{MAX_PAIRS, OTHER, PairCounts, Pairs};
use crate::wire::GoneCode;

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

    /// Bytes from consumer to provider, and back.
    pub(crate) const fn up_and_down(self, stats: &FlowStats) -> (u64, u64) {
        match self {
            Self::consumer => (stats.written, stats.delivered),
            Self::provider => (stats.delivered, stats.written),
        }
    }
}

/// An end of a flow, and how the flow ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabels {
    /// Which end this process is.
    pub role: Side,
    /// `done`, `refused`, `reset`, or `unserved` if nobody answered.
    pub how: &'static str,
    /// `DONE`, or the code of the refusal or cut.
    pub code: &'static str,
}

/// An end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabels {
    /// Which end this process is.
    pub role: Side,
}

/// Which end moved bytes, and which way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FlowLabels {
    /// Which end this process is.
    pub role: Side,
    /// `up` is from consumer to provider.
    pub direction: &'static str,
}

/// A byte count's direction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabels {
    /// `up` is from consumer to provider.
    pub direction: &'static str,
}

/// How a check of a backend ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CheckLabels {
    /// `ok` or `failed`.
    pub result: &'static str,
}

/// A backend that is checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CheckedLabels {
    /// The service with its port. There are no more than publications.
    pub service: String,
}

/// Something that has a code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabels {
    /// The code's name.
    pub code: &'static str,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DropLabels {
    /// `too_large`, `queue`, `rate`, `no_leg`, `unknown_flow`, `socket` or `malformed`.
    pub reason: &'static str,
}

/// A leg that a flow's end lost.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LossLabels {
    /// Which end this process is.
    pub role: Side,
    /// `finished`, `connection`, `protocol`, `suspected`, or the code of the stream's reset.
    pub cause: &'static str,
}

/// An answer to a leg that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GoneLabels {
    /// Which end this process is: the provider's gives the answer, the consumer's gets it.
    pub role: Side,
    /// The code's name.
    pub code: &'static str,
}

/// A bandwidth limit, and the direction in which it held bytes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PaceLabels {
    /// `service.namespace:port`, `all` for a whole sidecar, `identity` for those of single identities at a router.
    pub limit: String,
    /// `up` is from consumer to provider.
    pub direction: &'static str,
}

/// A bandwidth limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RateLabels {
    /// As in [`PaceLabels`].
    pub limit: String,
}

/// Seconds, with fractions.
pub type Seconds = Counter<f64, AtomicU64>;

macro_rules! metrics {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $name:literal $(in $unit:ident)?, $help:literal;)+) => {
        /// Metrics of routers and flow ends of one process.
        #[derive(Debug, Default)]
        pub struct FabricMetrics {
            $($(#[$doc])* pub $field: $kind,)+
            /// Live counters per service and peer.
            pub pairs: Arc<Pairs>,
        }

        impl FabricMetrics {
            /// Registers all families under the prefix `keel_fabric`.
            pub fn register(registry: &mut Registry) -> Arc<Self> {
                let metrics = Self::default();
                let r = registry.sub_registry_with_prefix("keel_fabric");
                $(metrics!(@register r, metrics.$field, $name, $help $(, $unit)?);)+
                r.register_collector(Box::new(PairsCollector(Arc::clone(&metrics.pairs))));
                Arc::new(metrics)
            }
        }
    };
    (@register $r:ident, $metric:expr, $name:literal, $help:literal) => {
        $r.register($name, $help, $metric.clone());
    };
    (@register $r:ident, $metric:expr, $name:literal, $help:literal, $unit:ident) => {
        $r.register_with_unit($name, $help, Unit::$unit, $metric.clone());
    };
}

metrics! {
    /// Limits hit.
    limit_hit: Family<LimitLabels, Counter> = "limit_hit", "Limits hit, by name";
    /// Flow ends started here. The difference to `flows_ended` is the number open now.
    flows_started: Family<RoleLabels, Counter> = "flows_started", "Flow ends started";
    /// Flow ends that are over.
    flows_ended: Family<EndLabels, Counter> = "flows_ended", "Flow ends that are over, by reason";
    /// Bytes of applications moved by flow ends so far; of flows that run, too.
    flow_bytes: Family<FlowLabels, Counter> = "flow" in Bytes, "Application bytes moved by flow ends so far";
    /// Legs after the first that were attached.
    flow_resumes: Family<RoleLabels, Counter> = "flow_resumes", "Legs that replaced another one";
    /// Times that bytes which a flow's end sent made no progress for a second.
    flow_stalls: Family<RoleLabels, Counter> = "flow_stalls", "Times that sent bytes made no progress for a second";
    /// How long they made none.
    flow_stalled: Family<RoleLabels, Seconds> = "flow_stalled" in Seconds, "Time in which sent bytes made no progress";
    /// Times that a flow's end suspected its leg.
    flow_suspicions: Family<RoleLabels, Counter> = "flow_suspicions", "Times that a leg was suspected to be lost";
    /// Resumes and repeated opens that the provider's end did not take.
    gone: Family<GoneLabels, Counter> = "gone", "Resumes that the provider's end did not take, by code";
    /// Answers to a resume whose proof was wrong: the leg led to somebody else.
    forged: Counter = "resumes_forged", "Answers to a resume with a wrong proof";
    /// Legs that flow ends lost.
    legs_lost: Family<LossLabels, Counter> = "legs_lost", "Legs lost by flow ends, by cause";
    /// Attempts of consumers' ends at another leg.
    legs_dialled: Counter = "legs_dialled", "Attempts at another leg for a flow";
    /// Those that were begun while the leg before or another attempt still had a chance.
    legs_raced: Counter = "legs_raced", "Attempts at another leg beside one that may still work";
    /// Bytes that flow ends hold in memory now, both directions.
    flow_buffered: Gauge = "flow_buffered" in Bytes, "Bytes that flow ends hold now";
    /// Bytes that had to wait for a bandwidth limit.
    limited: Family<PaceLabels, Counter> = "limited" in Bytes, "Bytes that a bandwidth limit delayed";
    /// How long flows waited for it.
    limited_time: Family<PaceLabels, Seconds> = "limited" in Seconds, "Time that flows waited for a bandwidth limit";
    /// Bandwidth limits in force, in bytes per second.
    rate_limit: Family<RateLabels, Gauge> = "rate_limit_bytes_per_second", "Bandwidth limits in force, each direction";
    /// Connections open at the router.
    router_connections: Gauge = "router_connections", "Connections open at the router";
    /// Legs that the router forwards now.
    router_legs: Gauge = "router_legs", "Legs forwarded now";
    /// Legs that wait for their provider.
    router_legs_parked: Gauge = "router_legs_parked", "Legs that wait for their provider to come back";
    /// Legs that the router cut because it lost their other side.
    router_legs_cut: Counter = "router_legs_cut", "Legs cut because their other side was lost, or a silent provider";
    /// Bytes that the router has read and that wait for a slow reader.
    router_held: Gauge = "router_held" in Bytes, "Bytes that the router has read and that wait for a slow reader";
    /// Times that a provider did not answer the router in time.
    router_suspicions: Counter = "router_suspicions", "Times that a provider did not answer the router in time";
    /// Bytes that the router forwarded, headers of the flow protocol included.
    router_bytes: Family<DirectionLabels, Counter> = "router" in Bytes, "Bytes forwarded by the router";
    /// Legs that the router did not forward.
    router_refusals: Family<CodeLabels, Counter> = "router_refusals", "Legs that the router did not forward, by code";
    /// Opens that ended before they became a flow.
    provider_refusals: Family<CodeLabels, Counter> = "provider_refusals", "Opens that the provider's end refused before it dialled, by code";
    /// Packets of UDP flows that were dropped.
    packets_dropped: Family<DropLabels, Counter> = "packets_dropped", "Packets of UDP flows dropped, by reason";
    /// Checks of backends.
    checks: Family<CheckLabels, Counter> = "checks", "Checks of backends made, by result";
    /// Whether each backend that is checked works.
    check_healthy: Family<CheckedLabels, Gauge> = "check_healthy", "1 while the checks of a backend of this process find it healthy";
    /// Links to routers that were established.
    links_connected: Counter = "links_connected", "Connections made to routers";
}

impl FabricMetrics {
    pub(crate) fn dropped(&self, reason: &'static str) {
        self.packets_dropped
            .get_or_create(&DropLabels { reason })
            .inc();
    }

    /// A packet was dropped because the queue that it should wait in has reached a limit.
    pub(crate) fn queue_full(&self, limit: &'static str) {
        self.dropped("queue");
        self.hit(limit);
    }

    pub(crate) fn leg_lost(&self, role: Side, cause: &'static str) {
        let labels = LossLabels { role, cause };
        self.legs_lost.get_or_create(&labels).inc();
    }

    pub(crate) fn gone(&self, role: Side, code: GoneCode) {
        let code = code.name();
        self.gone.get_or_create(&GoneLabels { role, code }).inc();
    }

    pub(crate) fn hit(&self, name: &'static str) {
        self.limit_hit.get_or_create(&LimitLabels { name }).inc();
    }
}
