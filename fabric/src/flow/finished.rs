//! What a terminator remembers of a flow that is over.

use tokio::time::Instant;

use super::{Flow, FlowLimits, State, TERMINATOR_GRACE};
use crate::wire::{AbortCode, GoneCode, Role};

/// The answer to legs that come too late, kept under the flow's id until `until`.
///
/// Without it an initiator whose leg broke at the very end could not tell a flow that was delivered from one that was
/// lost, and a repeated OPEN would dial the backend a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// What to answer with GONE. `COMPLETE` counts as an acknowledgement of everything.
    pub code: GoneCode,
    /// When the record may be dropped: no initiator resumes so late.
    pub until: Instant,
}

impl Finished {
    /// The record of a flow of which only a repeated open came: its first one may still be on its way, and comes too late.
    pub fn never_arrived(limits: &FlowLimits, now: Instant) -> Self {
        Self {
            code: GoneCode::Unknown,
            until: now + limits.resume_window.max(TERMINATOR_GRACE),
        }
    }
}

impl Flow {
    /// Terminator: the record of a flow that is over (or only draining), `None` while it is not.
    pub fn finished(&self, now: Instant) -> Option<Finished> {
        if self.role != Role::Terminator {
            return None;
        }
        let code = match &self.state {
            State::Done | State::Draining => GoneCode::Complete,
            State::Refused { .. } => GoneCode::Refused,
            State::Aborted(AbortCode::WindowExpired) => GoneCode::Expired,
            State::Aborted(_) | State::Aborting { .. } => GoneCode::Aborted,
            State::Opening | State::Attached(_) | State::Detached { .. } => return None,
        };
        Some(Finished {
            code,
            // An initiator that keeps its flows longer than this end may still ask.
            until: now + self.limits.resume_window.max(TERMINATOR_GRACE),
        })
    }
}
