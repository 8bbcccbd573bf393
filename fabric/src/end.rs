//! How flows end, and the one line that says so.

use std::fmt;
use std::time::Duration;

use keel_certs::NodeName;

use crate::flow::{FlowStats, State};
use crate::meter::FlowMeter;
use crate::metrics::{EndLabels, FabricMetrics, Side};
use crate::series::{At, NOBODY};
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
    /// The provider that may have been given the first bytes is silent.
    ProviderSilent,
    /// Nobody provides the service.
    NoProvider,
    /// This process has no identity yet.
    NoIdentity,
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
            Self::ProviderSilent => "PROVIDER_SILENT",
            Self::NoProvider => "NO_PROVIDER",
            Self::NoIdentity => "NO_IDENTITY",
        }
    }

    /// The kind of end, for metrics.
    const fn how(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused(_) => "refused",
            Self::Aborted(_) => "reset",
            Self::NoRouter
            | Self::NoAnswer
            | Self::ProviderSilent
            | Self::NoProvider
            | Self::NoIdentity => "unserved",
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
    /// Legs after the first that were attached.
    pub resumes: u32,
    /// Times that bytes which this end sent made no progress for a second.
    pub stalls: u32,
    /// How long they made none, altogether.
    pub stalled: Duration,
}

impl FlowEnd {
    pub(crate) const fn new(
        side: Side,
        reason: EndReason,
        stats: FlowStats,
        (stalls, stalled): (u32, Duration),
        duration: Duration,
    ) -> Self {
        let (bytes_up, bytes_down) = side.up_and_down(&stats);
        Self {
            reason,
            bytes_up,
            bytes_down,
            duration,
            resumes: stats.resumes,
            stalls,
            stalled,
        }
    }
}

/// The routers that a flow's legs went over, in the order of their first use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Route(Vec<NodeName>);

/// Routers that a line names; a flow that wanders more leaves the rest out.
const NAMED: usize = 8;

impl Route {
    pub(crate) fn note(&mut self, router: &NodeName) {
        if self.0.len() < NAMED && !self.0.contains(router) {
            self.0.push(router.clone());
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, router) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{router}")?;
        }
        Ok(())
    }
}

/// What the line says about a flow besides its end.
pub(crate) struct Told<'a> {
    pub(crate) flow: Option<FlowId>,
    pub(crate) side: Side,
    pub(crate) peer: &'a (dyn fmt::Display + Sync),
    pub(crate) service: At<'a>,
    pub(crate) provider: &'a (dyn fmt::Display + Sync),
    pub(crate) routers: &'a Route,
}

/// Writes the line and counts the end; `meter` is what the flow was counted with, if somebody was asked for it.
pub(crate) fn tell(
    told: &Told<'_>,
    end: &FlowEnd,
    metrics: &FabricMetrics,
    meter: Option<&mut FlowMeter>,
) {
    let labels = EndLabels {
        role: told.side,
        how: end.reason.how(),
        code: end.reason.name(),
    };
    metrics.flows_ended.get_or_create(&labels).inc();
    match meter {
        Some(meter) => meter.end(end),
        None => {
            let pairs = &metrics.pairs;
            let flow = pairs.start(told.side.name(), told.service, &NOBODY);
            flow.reset(end.reason.name());
        }
    }
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(
        target: "keel::flow",
        flow = told.flow.map(|flow| flow.to_string()).unwrap_or_default(),
        role = told.side.name(),
        peer = %told.peer,
        service = %told.service,
        provider = %told.provider,
        router = %told.routers,
        bytes_up = end.bytes_up,
        bytes_down = end.bytes_down,
        dur_ms = millis(end.duration),
        resumes = end.resumes,
        stalls = end.stalls,
        stalled_ms = millis(end.stalled),
        close = end.reason.name(),
        "flow end"
    );
}
