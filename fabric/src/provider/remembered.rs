//! Flows that are over and whose late legs are still answered.
//!
//! There are many of them for long, each a crowd's, so one costs its places in two tables and nothing on the heap: what is small
//! and stays would keep the memory of everything around it from going back to the system.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use keel_certs::Subject;
use tokio::time::Instant;

use super::terminator::Key;
use crate::flow::Finished;

/// The records of flows that are over, and who their initiators are.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    finished: HashMap<Key, Finished>,
    /// In the order in which they ended.
    order: VecDeque<(Instant, Key)>,
    subjects: HashSet<Arc<Subject>>,
}

impl Remembered {
    /// The one copy of an initiator's name that all its flows share.
    pub(super) fn subject(&mut self, subject: &Subject) -> Arc<Subject> {
        if let Some(known) = self.subjects.get(subject) {
            return Arc::clone(known);
        }
        let new = Arc::new(subject.clone());
        self.subjects.insert(Arc::clone(&new));
        new
    }

    /// How the flow ended, if that is known.
    pub(super) fn get(&self, key: &Key) -> Option<&Finished> {
        self.finished.get(key)
    }

    /// Enters a flow. Of more than `most` the oldest is forgotten; whether that was earlier than it should be.
    pub(super) fn insert(
        &mut self,
        key: &Key,
        finished: Finished,
        now: Instant,
        most: usize,
    ) -> bool {
        if self.finished.insert(key.clone(), finished).is_none() {
            self.order.push_back((finished.until, key.clone()));
        }
        self.forget(now, most)
    }

    /// Drops what is remembered for too long, and the oldest flows if there are too many; whether there were.
    fn forget(&mut self, now: Instant, most: usize) -> bool {
        let mut early = false;
        while let Some((until, _)) = self.order.front()
            && (*until <= now || self.order.len() > most)
            && let Some((until, key)) = self.order.pop_front()
        {
            early |= until > now;
            self.finished.remove(&key);
        }
        early
    }

    /// Drops what is remembered for too long, and the room that it took; whether anything is left.
    pub(super) fn tidy(&mut self, now: Instant) -> bool {
        self.forget(now, usize::MAX);
        self.subjects
            .retain(|subject| Arc::strong_count(subject) > 1);
        if self.order.len() < self.order.capacity() / 4 {
            self.order.shrink_to_fit();
            self.finished.shrink_to_fit();
            self.subjects.shrink_to_fit();
        }
        !self.subjects.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::{FlowId, GoneCode};

    const WINDOW: Duration = Duration::from_secs(60);

    fn finished(now: Instant) -> Finished {
        Finished {
            code: GoneCode::Complete,
            until: now + WINDOW,
        }
    }

    fn key(remembered: &mut Remembered, id: u8) -> Key {
        let subject = Subject::Node {
            node: "a".parse().unwrap(),
        };
        (remembered.subject(&subject), FlowId::from_bytes([id; 16]))
    }

    #[test]
    fn after_their_time_nothing_is_left_of_flows_nor_of_their_initiators() {
        let (mut remembered, began) = (Remembered::default(), Instant::now());
        let one = key(&mut remembered, 1);
        let other = key(&mut remembered, 2);
        assert!(Arc::ptr_eq(&one.0, &other.0));
        assert!(!remembered.insert(&one, finished(began), began, 9));
        drop((one, other));
        assert!(remembered.tidy(began + WINDOW / 2));
        let one = key(&mut remembered, 1);
        assert!(remembered.get(&one).is_some());
        drop(one);
        assert!(!remembered.tidy(began + WINDOW));
        assert_eq!(remembered.order.capacity(), 0);
        assert_eq!(remembered.finished.capacity(), 0);
    }

    #[test]
    fn of_too_many_the_oldest_is_forgotten() {
        let (mut remembered, began) = (Remembered::default(), Instant::now());
        let keys: Vec<Key> = (0..3).map(|id| key(&mut remembered, id)).collect();
        let early: Vec<bool> = keys
            .iter()
            .map(|key| remembered.insert(key, finished(began), began, 2))
            .collect();
        assert_eq!(early, [false, false, true]);
        assert!(remembered.get(&keys[0]).is_none() && remembered.get(&keys[1]).is_some());
    }
}
