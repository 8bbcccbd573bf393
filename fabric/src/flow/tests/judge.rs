//! What must hold in a random world, at any time and at its end.

use std::time::Duration;

use super::check::Ending;
use super::world::{World, initiator, is_through};
use crate::flow::{State, TERMINATOR_GRACE};
use crate::provider::table::Found;
use crate::wire::{AbortCode, EARLY};

impl World {
    /// After everything was taken, nothing may come by itself before the next timeout: a driver would sleep.
    pub(super) fn check_quiet(&mut self) -> Result<(), String> {
        let flows = self
            .served
            .values_mut()
            .filter(|served| served.blocked.is_none())
            .map(|served| &mut served.flow)
            .chain((!self.consumer_gone && self.blocked.is_none()).then_some(&mut self.consumer));
        for flow in flows {
            let asleep = flow.next_timeout().is_none_or(|at| at > self.now);
            let generation = flow.generation();
            if asleep && let Some(frame) = flow.transmit(generation, self.now) {
                return Err(format!("a sleeping driver would miss {}", frame.name()));
            }
        }
        Ok(())
    }

    /// I4 and I5, at any time.
    pub(super) fn check_bounds(&mut self) -> Result<(), String> {
        let cap = self.limits.max_window.max(EARLY as usize);
        let served = self.served.get(&self.consumer.id());
        for flow in [Some(&self.consumer), served.map(|served| &served.flow)]
            .into_iter()
            .flatten()
        {
            let (replay, unread) = (flow.send.buffered(), flow.recv.buffered());
            if replay > self.limits.max_window || unread > cap {
                return Err(format!(
                    "I4: {replay} to send, {unread} to read, at most {cap} allowed"
                ));
            }
        }
        let Some(served) = served else { return Ok(()) };
        if self.died {
            // The provider's process is another one.
            return Ok(());
        }
        for (from, to) in [
            (&self.consumer, &served.flow),
            (&served.flow, &self.consumer),
        ] {
            let (acked, owned) = (
                from.stats().written - from.send.buffered() as u64,
                to.recv.owned(),
            );
            // What is not kept counts as acknowledged when it is sent.
            let open = [from, to]
                .iter()
                .all(|flow| !flow.is_over() && flow.is_kept());
            if open && (acked > owned || owned > from.stats().written + 1) {
                return Err(format!(
                    "I5: acknowledged {acked}, owned {owned}, written {}",
                    from.stats().written
                ));
            }
        }
        Ok(())
    }

    /// I7: flows that are through leave the table, and nothing stays behind a consumer that is gone.
    pub(super) fn leave_table(&mut self) -> Result<bool, String> {
        for (id, served) in &self.served {
            if is_through(&served.flow) {
                let key = self.table.key(&initiator(), *id);
                if self.table.find(&key, None, self.now) == Found::Live(()) {
                    let finished = served.flow.finished(self.now);
                    self.table.over(&key, finished, self.now);
                }
            }
        }
        self.table.tidy(self.now);
        let Some(ended) = self.consumer_ended else {
            return Ok(false);
        };
        let through = self.served.values().all(|served| is_through(&served.flow));
        let window = self.limits.resume_window + TERMINATOR_GRACE;
        if !through && self.now > ended + window + Duration::from_secs(15) {
            return Err("I7: the provider's end outlived the window".to_owned());
        }
        Ok(through)
    }

    /// How it ended, when all is over.
    pub(super) fn judge(&mut self) -> Result<(), String> {
        let Some(served) = self.served.get(&self.consumer.id()) else {
            return self.excused("the flow never reached the provider");
        };
        self.report.bytes += self.app.read + served.app.read;
        if served.refuse {
            return self.excused("refused for good");
        }
        let carried = self.app.is_satisfied(served.app.as_peer())
            && served.app.is_satisfied(self.app.as_peer());
        let done = *self.consumer.state() == State::Done && *served.flow.state() == State::Done;
        self.report.done += u64::from(done);
        if done != carried && done {
            return Err("done, but not everything was carried".to_owned());
        }
        if done {
            Ok(())
        } else {
            self.excused("not everything was carried")
        }
    }

    /// A flow may end otherwise only if an application reset it or an outage was longer than the window.
    pub(super) fn excused(&mut self, what: &str) -> Result<(), String> {
        let served = self.served.get(&self.consumer.id());
        let reset = self.app.ended && self.app.ending == Ending::Reset
            || served.is_some_and(|served| served.app.ended && served.app.ending == Ending::Reset);
        let expired = matches!(
            self.consumer.state(),
            State::Aborted(AbortCode::WindowExpired)
        );
        self.report.expired += u64::from(expired);
        if reset || self.long_outage || self.died || self.limits.resume_window.is_zero() {
            return Ok(());
        }
        let states = (
            self.consumer.state(),
            served.map(|served| served.flow.state()),
        );
        Err(format!("{what} without a reason: {states:?}"))
    }
}
