//! What can become of an open.

use crate::end::EndReason;
use crate::link::LinkError;
use crate::wire::{AbortCode, RefuseCode};

/// Why a flow was not opened at a target.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The provider, or the router on the way, refused. Nothing was delivered.
    #[error("refused: {code}: {text}")]
    Refused {
        /// Why.
        code: RefuseCode,
        /// In words.
        text: String,
    },
    /// The router cannot be reached. Nothing was sent.
    #[error(transparent)]
    NoRouter(#[from] LinkError),
    /// The answer was lost and did not come back within the resume window; the provider may have taken the flow.
    #[error("the answer to the open was lost")]
    Lost,
    /// The leg was lost before the answer, and another one did not come within the resume window. The application had said
    /// nothing yet, so nothing was delivered.
    #[error("the way was lost before an answer")]
    WayLost,
    /// There was no answer in time. The application had said nothing yet, so nothing was delivered.
    #[error("no answer in time")]
    Unanswered,
    /// A router does not hear the provider, which did not answer over another one either. It may have been given what the
    /// application said.
    #[error("the provider is silent")]
    Silent,
    /// The provider's end cut the flow instead of taking it, or before that was heard: it may be another process by now.
    #[error("cut by the other end: {0}")]
    Cut(AbortCode),
    /// The process has no memory left for what the application had said.
    #[error("the memory for flows of this process is used up")]
    Shed,
    /// The application has gone.
    #[error("the application closed its connection")]
    ClientGone,
}

impl OpenError {
    /// How a flow ended that nobody took after this.
    pub(super) const fn end(&self) -> EndReason {
        match self {
            Self::Refused { code, .. } => EndReason::Refused(*code),
            Self::NoRouter(_) => EndReason::NoRouter,
            Self::Lost => EndReason::Aborted(AbortCode::WindowExpired),
            Self::Unanswered | Self::WayLost => EndReason::NoAnswer,
            Self::Silent => EndReason::ProviderSilent,
            Self::Cut(code) => EndReason::Aborted(*code),
            Self::Shed => EndReason::Aborted(AbortCode::Limit),
            Self::ClientGone => EndReason::Aborted(AbortCode::Reset),
        }
    }

    /// Whether another provider or router may be tried with the same bytes.
    #[must_use]
    pub fn elsewhere(&self) -> bool {
        match self {
            Self::Refused { code, .. } => code.elsewhere(),
            Self::NoRouter(_) | Self::Unanswered | Self::WayLost => true,
            Self::Lost | Self::Silent | Self::Cut(_) | Self::Shed | Self::ClientGone => false,
        }
    }
}
