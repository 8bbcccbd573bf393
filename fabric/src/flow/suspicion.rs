//! When a leg that says nothing is taken for lost, although its streams still stand.
//!
//! A dead link is noticed by the connection's own watch, below the flow. This one is for what that cannot see: a link
//! behind the router that is dead, an end that lost the flow, a router that takes streams and forwards nothing. The other
//! end acknowledges what its *process* owns, whatever its application does, so an application that does not read never
//! looks like a dead leg.

use std::time::Duration;

use tokio::time::Instant;

/// What the other end owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owed {
    Nothing,
    /// ACCEPT or REFUSE: the backend is being dialled.
    Decision,
    /// RESUMED: is said at once, and until then nothing is carried.
    Resumed,
    /// An ACK.
    Ack,
}

impl Owed {
    /// In units of [`Suspicion::patience`].
    const fn units(self) -> u32 {
        match self {
            Self::Nothing | Self::Resumed => 1,
            Self::Ack => 3,
            Self::Decision => 6,
        }
    }
}

/// What has to be done about a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Wait,
    /// Half of the time is over: ask for an ACK. An end that keeps no flow over a loss sends few by itself.
    Ask,
    Suspect,
}

#[derive(Debug)]
pub(super) struct Suspicion {
    patience: Duration,
    /// The last frame of the leg, or the first one that is owed an answer.
    heard: Instant,
    /// When to look. It moves only when it has come, so that a busy flow does not set its timer with every frame.
    check: Option<Instant>,
    asked: bool,
    /// A PING was wished for: it leaves when the leg takes it.
    prompted: bool,
    suspected: bool,
    /// How often in a row nothing was heard in time: each doubles the time, so that a slow path is not taken for a dead
    /// one again and again.
    strikes: u32,
}

/// Doublings of the time at most.
const STRIKES: u32 = 3;

impl Suspicion {
    pub(super) fn new() -> Self {
        Self {
            patience: PATIENCE,
            heard: Instant::now(),
            check: None,
            asked: false,
            prompted: false,
            suspected: false,
            strikes: 0,
        }
    }

    /// How long a round trip over the leg may take; at least [`PATIENCE`].
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience.max(PATIENCE);
    }

    pub(super) const fn is_suspected(&self) -> bool {
        self.suspected
    }

    /// When to look next.
    pub(super) const fn check(&self) -> Option<Instant> {
        self.check
    }

    /// Whether a PING was sent that has no answer yet.
    pub(super) const fn has_asked(&self) -> bool {
        self.asked
    }

    fn time(&self, owed: Owed) -> Duration {
        self.patience * owed.units() * (1 << self.strikes)
    }

    /// From here on the other end owes an answer.
    pub(super) fn owes(&mut self, owed: Owed, now: Instant) {
        if owed == Owed::Nothing || self.suspected {
            return;
        }
        self.heard = now;
        let check = now + self.time(owed) / 2;
        self.check = Some(self.check.map_or(check, |at| at.min(check)));
    }

    /// A PING leaves.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// A frame came over the leg.
    pub(super) fn heard(&mut self, now: Instant) {
        if now.saturating_duration_since(self.heard) < self.patience {
            self.strikes = 0;
        }
        if self.suspected {
            // A doubt that was wrong. The watch goes on at once: with bytes always under way nothing new is ever owed.
            self.check = Some(now + self.patience / 2);
        }
        self.heard = now;
        self.asked = false;
        self.prompted = false;
        self.suspected = false;
    }

    /// The leg is gone, or another one takes its place.
    pub(super) fn forget(&mut self) {
        self.check = None;
        self.asked = false;
        self.prompted = false;
        self.suspected = false;
    }

    /// To be called when [`check`](Self::check) has come.
    pub(super) fn look(&mut self, owed: Owed, now: Instant) -> Look {
        if owed == Owed::Nothing {
            self.check = None;
            return Look::Wait;
        }
        let time = self.time(owed);
        let (ask_at, suspect_at) = (self.heard + time / 2, self.heard + time);
        if now < ask_at {
            self.check = Some(ask_at);
            return Look::Wait;
        }
        // Nobody is suspected who was not asked, also if the look comes late: something else was owed before, for longer.
        if owed == Owed::Ack && !self.asked && !self.prompted {
            self.prompted = true;
            self.check = Some(suspect_at.max(now + time / 2));
            return Look::Ask;
        }
        if now < suspect_at {
            self.check = Some(suspect_at);
            return Look::Wait;
        }
        self.check = None;
        self.suspected = true;
        self.strikes = (self.strikes + 1).min(STRIKES);
        Look::Suspect
    }
}

/// Least time for a round trip from end to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    /// Looks whenever it is due until `end`; what came of it and when, in milliseconds.
    fn looks(suspicion: &mut Suspicion, owed: Owed, start: Instant, end: u64) -> Vec<(u128, Look)> {
        let mut found = Vec::new();
        while let Some(check) = suspicion.check().filter(|check| *check <= at(start, end)) {
            match suspicion.look(owed, check) {
                Look::Wait => {}
                Look::Ask => {
                    suspicion.ask();
                    found.push(((check - start).as_millis(), Look::Ask));
                }
                Look::Suspect => found.push(((check - start).as_millis(), Look::Suspect)),
            }
        }
        found
    }

    #[test]
    fn silence_is_asked_about_and_then_suspected() {
        let start = Instant::now();
        let mut suspicion = Suspicion::new();
        suspicion.owes(Owed::Ack, start);
        let found = looks(&mut suspicion, Owed::Ack, start, 60_000);
        assert_eq!(found, [(1500, Look::Ask), (3000, Look::Suspect)]);
    }

    /// An end that keeps no flow over a loss acknowledges little unasked: its ACCEPT came, and early bytes are outstanding since.
    #[test]
    fn who_was_not_asked_is_not_suspected() {
        let start = Instant::now();
        let mut suspicion = Suspicion::new();
        suspicion.owes(Owed::Decision, start);
        suspicion.heard(at(start, 1));
        let found = looks(&mut suspicion, Owed::Ack, start, 60_000);
        assert_eq!(found, [(3000, Look::Ask), (4500, Look::Suspect)]);
        // Also if the question did not get away.
        let mut suspicion = Suspicion::new();
        suspicion.owes(Owed::Ack, start);
        assert_eq!(suspicion.look(Owed::Ack, at(start, 1500)), Look::Ask);
        assert_eq!(suspicion.look(Owed::Ack, at(start, 3000)), Look::Suspect);
    }

    #[test]
    fn an_unanswered_resume_is_suspected_later_and_later() {
        let start = Instant::now();
        let mut suspicion = Suspicion::new();
        let mut now = start;
        let mut times = Vec::new();
        for _ in 0..5 {
            suspicion.forget();
            suspicion.owes(Owed::Resumed, now);
            let found = looks(&mut suspicion, Owed::Resumed, now, 60_000);
            times.push(found[0].0);
            now = at(now, 60_000);
        }
        assert_eq!(times, [1000, 2000, 4000, 8000, 8000]);
        // An answer that comes late does not make it impatient again, one in time does.
        suspicion.forget();
        suspicion.owes(Owed::Resumed, now);
        suspicion.heard(at(now, 5000));
        assert_eq!(suspicion.strikes, STRIKES);
        suspicion.heard(at(now, 5100));
        assert_eq!(suspicion.strikes, 0);
    }

    #[test]
    fn a_leg_that_answers_is_never_suspected_and_a_doubt_can_be_wrong() {
        let start = Instant::now();
        let mut suspicion = Suspicion::new();
        suspicion.owes(Owed::Ack, start);
        for step in 1..100 {
            suspicion.heard(at(start, step * 1000));
            let found = looks(&mut suspicion, Owed::Ack, start, step * 1000);
            assert!(found.is_empty(), "{found:?}");
        }
        let end = looks(&mut suspicion, Owed::Ack, start, 200_000);
        assert_eq!(end.last(), Some(&(102_000, Look::Suspect)));
        suspicion.heard(at(start, 103_000));
        assert!(!suspicion.is_suspected());
        // The watch goes on, with what was learnt.
        let found = looks(&mut suspicion, Owed::Ack, start, 200_000);
        let after: Vec<_> = found
            .iter()
            .map(|(when, look)| (when - 103_000, *look))
            .collect();
        assert_eq!(after, [(3000, Look::Ask), (6000, Look::Suspect)]);
    }

    #[test]
    fn nothing_owed_nothing_watched() {
        let start = Instant::now();
        let mut suspicion = Suspicion::new();
        suspicion.owes(Owed::Nothing, start);
        assert_eq!(suspicion.check(), None);
        suspicion.owes(Owed::Ack, start);
        assert_eq!(suspicion.look(Owed::Nothing, at(start, 1500)), Look::Wait);
        assert_eq!(suspicion.check(), None);
    }
}
