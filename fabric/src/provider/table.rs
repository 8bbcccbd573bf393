//! The table of flows that end in one process: those that run, and those that are over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use keel_certs::Subject;
use tokio::time::Instant;

use super::remembered::Remembered;
use crate::flow::{Finished, FlowLimits};
use crate::wire::{FlowId, Generation, GoneCode};

/// A flow is its initiator's: nobody else finds it, whatever id he guesses.
pub(crate) type Key = (Arc<Subject>, FlowId);

/// The table; `L` is what is kept of a flow that runs.
#[derive(Debug)]
pub(crate) struct Table<L> {
    live: HashMap<Key, L>,
    remembered: Remembered,
    /// Those of which only a repeated open came. Apart, so that nobody's repeated opens make room where the ends of others'
    /// flows are.
    strangers: Remembered,
    limits: FlowLimits,
    /// Flows that are over and remembered at once.
    most: usize,
}

/// What the table says of a flow that a leg asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<L> {
    /// It runs.
    Live(L),
    /// It is over.
    Finished(GoneCode),
    /// It may start.
    New,
    /// Only a repeated open came here; and whether another flow was forgotten early to remember that.
    NeverArrived { forgot: bool },
    /// Nothing is known of it.
    Unknown,
}

impl<L: Clone> Table<L> {
    /// An empty one, of a process that begins now.
    pub(crate) fn new(limits: FlowLimits, most: usize, now: Instant) -> Self {
        Self {
            live: HashMap::new(),
            remembered: Remembered::new(now),
            strangers: Remembered::new(now),
            limits,
            most,
        }
    }

    /// The name of a flow here.
    pub(crate) fn key(&mut self, from: &Subject, flow: FlowId) -> Key {
        (self.remembered.subject(from), flow)
    }

    /// Looks a flow up for a leg that begins with an open of this generation, or with a resume.
    pub(crate) fn find(&mut self, key: &Key, open: Option<Generation>, now: Instant) -> Found<L> {
        if let Some(live) = self.live.get(key) {
            return Found::Live(live.clone());
        }
        let finished = self.remembered.get(key).or(self.strangers.get(key));
        let finished = finished.map(|finished| finished.code);
        let repeated = open.is_some_and(|generation| generation > Generation::FIRST);
        if repeated && finished.is_none_or(|code| code == GoneCode::Unknown) {
            // The first one may have been taken by a process that is gone, or come later: it must not start here.
            let stranger = Finished::never_arrived(&self.limits, now);
            let forgot = self.strangers.insert(key, stranger, now, self.most);
            return Found::NeverArrived { forgot };
        }
        match (finished, open) {
            (Some(code), _) => Found::Finished(code),
            (None, Some(_)) => Found::New,
            (None, None) => Found::Unknown,
        }
    }

    /// A new flow runs from now on.
    pub(crate) fn begin(&mut self, key: &Key, live: L) {
        self.live.insert(key.clone(), live);
    }

    /// The flow is over. Without a record nothing is known of its end. Whether another one was forgotten early for it.
    pub(crate) fn over(&mut self, key: &Key, finished: Option<Finished>, now: Instant) -> bool {
        match finished {
            Some(finished) => {
                self.live.remove(key);
                self.remember(key, finished, now)
            }
            None => {
                self.forget_live(key, now);
                false
            }
        }
    }

    /// The flow runs no more, and nothing is known of its end if that was not entered before.
    pub(crate) fn forget_live(&mut self, key: &Key, now: Instant) {
        if self.live.remove(key).is_some() {
            self.remembered.lost(now);
        }
    }

    fn remember(&mut self, key: &Key, finished: Finished, now: Instant) -> bool {
        self.remembered.insert(key, finished, now, self.most)
    }

    /// How old a flow that is not found may be and would still be found, had it come here.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.remembered.age(now)
    }

    /// Those that run.
    pub(crate) fn all_live(&self) -> impl Iterator<Item = &L> {
        self.live.values()
    }

    /// How many flows run.
    pub(crate) fn live(&self) -> usize {
        self.live.len()
    }

    /// Drops what need not be remembered any more; whether anything is left.
    pub(crate) fn tidy(&mut self, now: Instant) -> bool {
        self.strangers.tidy(now);
        // It has the names of all initiators.
        let left = self.remembered.tidy(now);
        if !left {
            self.live.shrink_to_fit();
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_opens_of_flows_that_never_came_forget_nobodys_end() {
        let now = Instant::now();
        let mut table: Table<()> = Table::new(FlowLimits::default(), 4, now);
        let subject: Subject = "/node/a".parse().unwrap();
        let key = |table: &mut Table<()>, id: u8| table.key(&subject, FlowId::from_bytes([id; 16]));
        let ended = key(&mut table, 0);
        table.begin(&ended, ());
        let until = now + Duration::from_secs(60);
        let code = GoneCode::Complete;
        table.over(&ended, Some(Finished { code, until }), now);
        for id in 1..=20 {
            let stranger = key(&mut table, id);
            let found = table.find(&stranger, Some(Generation(2)), now);
            assert_eq!(found, Found::NeverArrived { forgot: id > 4 });
        }
        assert_eq!(table.find(&ended, None, now), Found::Finished(code));
        // Its first open comes late, and must not start it.
        let late = key(&mut table, 20);
        let found = table.find(&late, Some(Generation::FIRST), now);
        assert_eq!(found, Found::Finished(GoneCode::Unknown));
        drop((ended, late));
        assert!(!table.tidy(until + Duration::from_secs(60)));
    }
}
