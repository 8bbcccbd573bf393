//! How long an open waits for its answer.

use std::pin::pin;

use tokio::time::Instant;

use super::{ConsumerFlow, OpenError};
use crate::flow::State;
use crate::options::FlowOptions;
use crate::pump::{Event, Pump};
use crate::wire::AbortCode;

impl ConsumerFlow {
    /// Waits until the provider that was asked has answered, or is given up.
    pub(super) async fn answer(&mut self, options: &FlowOptions) -> Result<(), OpenError> {
        let FlowOptions {
            patience, silence, ..
        } = options;
        let mut late = pin!(tokio::time::sleep(patience.unwrap_or_default()));
        let mut waits = patience.is_some();
        let mut in_vain = pin!(tokio::time::sleep(silence.unwrap_or_default()));
        let mut silent = false;
        loop {
            tokio::select! {
                event = self.next_event() => if event == Some(Event::Silent) {
                    self.forsake()?;
                    // It may have been given what was said, and live. Over another router it would say so.
                    silent = silence.is_some();
                    in_vain.as_mut().reset(Instant::now() + silence.unwrap_or_default());
                },
                () = &mut late, if waits => {
                    waits = false;
                    self.forsake()?;
                }
                () = &mut in_vain, if silent => {
                    silent = false;
                    if self.is_detached() {
                        return Err(OpenError::Silent);
                    }
                }
            }
            let Some(pump) = &self.pump else {
                return Err(OpenError::Lost);
            };
            let flow = pump.flow();
            return match flow.state() {
                // It was taken; that its leg is lost or that it is over by now is the flow's affair, and may have come with
                // the same packet.
                _ if flow.is_accepted() => Ok(()),
                State::Opening | State::Detached { .. } => continue,
                State::Refused { code, text } => Err(OpenError::Refused {
                    code: *code,
                    text: text.clone(),
                }),
                State::Aborted(_) if flow.is_forsaken() => Err(OpenError::WayLost),
                State::Aborted(AbortCode::Reset) => Err(OpenError::ClientGone),
                State::Aborted(AbortCode::WindowExpired) => Err(OpenError::Lost),
                State::Aborted(code) => Err(OpenError::Cut(*code)),
                State::Attached(_) | State::Aborting { .. } | State::Draining | State::Done => {
                    Ok(())
                }
            };
        }
    }

    /// Whether nobody has answered since the leg before was lost.
    fn is_detached(&self) -> bool {
        let state = self.pump.as_ref().map(|pump| pump.flow().state());
        matches!(state, Some(State::Detached { .. }))
    }

    /// Gives the open up, if nothing can be delivered twice then.
    fn forsake(&mut self) -> Result<(), OpenError> {
        match self.pump.as_mut().is_some_and(Pump::forsake) {
            true => Err(OpenError::Unanswered),
            false => Ok(()),
        }
    }
}
