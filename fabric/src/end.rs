//! How flows end, and the one line that says so.

use std::fmt;
use std::time::Duration;

use keel_certs::ServiceId;

use crate::flow::{FlowStats, State};
use crate::metrics::{DirectionLabels, EndLabels, FabricMetrics, RoleLabels, Side};
use crate::wire::{AbortCode, FlowId, RefuseCode};

/// Why a flow is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Everything was delivered both ways.
    Done,
    /// The provider or a router refused it.
    Refused(RefuseCode),
    /// It was cut: the application saw an RST.
    Aborted(AbortCode),
    /// No provider could be asked.
    NoRouter,
    /// Nobody answered while the application waited.
    NoAnswer,
}

impl EndReason {
    /// The name in logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done => "DONE",
            Self::Refused(code) => code.name(),
            Self::Aborted(code) => code.name(),
            Self::NoRouter => "NO_ROUTER",
            Self::NoAnswer => "NO_ANSWER",
        }
    }

    pub(crate) const fn of(state: &State) -> Self {
        match state {
            State::Done | State::Draining => Self::Done,
            State::Refused { code, .. } => Self::Refused(*code),
            State::Aborted(code) | State::Aborting { code, .. } => Self::Aborted(*code),
            State::Opening => Self::NoAnswer,
            State::Attached(_) | State::Detached { .. } => Self::Aborted(AbortCode::Shutdown),
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What came of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEnd {
    /// Why it ended.
    pub reason: EndReason,
    /// Bytes from the consumer's application.
    pub bytes_up: u64,
    /// Bytes to the consumer's application.
    pub bytes_down: u64,
    /// From the accept of the socket, or of the flow, to the end.
    pub duration: Duration,
    /// Legs that were lost and replaced.
    pub resumes: u32,
}

impl FlowEnd {
    pub(crate) const fn new(
        side: Side,
        reason: EndReason,
        stats: FlowStats,
        duration: Duration,
    ) -> Self {
        let (bytes_up, bytes_down) = match side {
            Side::consumer => (stats.written, stats.delivered),
            Side::provider => (stats.delivered, stats.written),
        };
        Self {
            reason,
            bytes_up,
            bytes_down,
            duration,
            resumes: stats.resumes,
        }
    }
}

/// What the line says about a flow besides its end.
pub(crate) struct Told<'a> {
    pub(crate) flow: Option<FlowId>,
    pub(crate) side: Side,
    pub(crate) peer: &'a (dyn fmt::Display + Sync),
    pub(crate) service: Option<(&'a ServiceId, u16)>,
    pub(crate) provider: &'a (dyn fmt::Display + Sync),
    pub(crate) router: &'a (dyn fmt::Display + Sync),
}

/// Writes the line and counts the end.
pub(crate) fn tell(told: Told<'_>, end: &FlowEnd, metrics: &FabricMetrics) {
    let close = end.reason.name();
    metrics
        .flows_ended
        .get_or_create(&EndLabels {
            role: told.side,
            close,
        })
        .inc();
    metrics
        .flow_bytes
        .get_or_create(&DirectionLabels { direction: "up" })
        .inc_by(end.bytes_up);
    metrics
        .flow_bytes
        .get_or_create(&DirectionLabels { direction: "down" })
        .inc_by(end.bytes_down);
    metrics
        .flow_resumes
        .get_or_create(&RoleLabels { role: told.side })
        .inc_by(u64::from(end.resumes));
    let service = told
        .service
        .map(|(service, port)| format!("{service}:{port}"))
        .unwrap_or_default();
    tracing::info!(
        target: "keel::flow",
        flow = told.flow.map(|flow| flow.to_string()).unwrap_or_default(),
        role = told.side.name(),
        peer = %told.peer,
        service,
        provider = %told.provider,
        router = %told.router,
        bytes_up = end.bytes_up,
        bytes_down = end.bytes_down,
        dur_ms = u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX),
        resumes = end.resumes,
        close,
        "flow end"
    );
}
