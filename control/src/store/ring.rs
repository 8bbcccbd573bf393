//! The last committed events, in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Event;
use crate::api::Revision;

/// The last events, at most so many and so large. What they share (an object is the next event's `previous`) is counted twice.
#[derive(Debug)]
pub(super) struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    max_events: usize,
    max_bytes: usize,
    /// Every event after this revision is in the ring.
    floor: Revision,
}

impl Ring {
    pub(super) fn new(floor: Revision, max_events: usize, max_bytes: usize) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            max_events,
            max_bytes,
            floor,
        }
    }

    /// Forgets everything: what comes next are the events after this revision.
    pub(super) fn restart(&mut self, floor: Revision) {
        self.events.clear();
        self.bytes = 0;
        self.floor = floor;
    }

    /// Takes events in the order of their revisions.
    pub(super) fn extend(&mut self, events: Vec<Arc<Event>>) {
        for event in events {
            self.bytes += size(&event);
            self.events.push_back(event);
        }
        while self.events.len() > self.max_events || self.bytes > self.max_bytes {
            let Some(oldest) = self.events.pop_front() else {
                break;
            };
            self.bytes -= size(&oldest);
            self.floor = oldest.revision;
        }
    }

    /// The first `max` events after the revision, up to the one that makes it `bytes` of objects; `None` if the ring does not reach
    /// back that far.
    pub(super) fn after(
        &self,
        after: Revision,
        max: usize,
        bytes: usize,
    ) -> Option<Vec<Arc<Event>>> {
        if after < self.floor {
            return None;
        }
        let start = self.events.partition_point(|event| event.revision <= after);
        let mut taken = 0;
        let part = self.events.range(start..).take(max).take_while(|event| {
            let begins = taken < bytes;
            taken += event.objects();
            begins
        });
        Some(part.cloned().collect())
    }
}

fn size(event: &Event) -> usize {
    event.objects() + size_of::<Event>()
}
