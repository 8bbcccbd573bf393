//! What all nodes together send.

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Attempts to connect that came to nothing.
    pub(super) failed: u64,
    pub(super) handshakes: u64,
    pub(super) lists: u64,
    pub(super) watches: u64,
    pub(super) events: u64,
    pub(super) pushes: u64,
}

impl Counts {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            failed: self.failed - before.failed,
            handshakes: self.handshakes - before.handshakes,
            lists: self.lists - before.lists,
            watches: self.watches - before.watches,
            events: self.events - before.events,
            pushes: self.pushes - before.pushes,
        }
    }

    /// Messages over connections: questions, answers and events.
    pub(super) fn messages(&self) -> u64 {
        2 * self.lists + self.watches + self.events + 2 * self.pushes
    }
}
