//! Flows that are over and whose late legs are still answered.
//!
//! There are many of them for long, each a crowd's, so one costs its places in two tables and nothing on the heap: what is small
//! and stays would keep the memory of everything around it from going back to the system.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use keel_certs::Subject;
use tokio::time::Instant;

use super::table::Key;
use crate::flow::Finished;

/// The records of flows that are over, and who their initiators are.
#[derive(Debug)]
pub(super) struct Remembered {
    finished: HashMap<Key, Finished>,
    /// When each was entered, in that order.
    order: VecDeque<(Instant, Key)>,
    subjects: HashSet<Arc<Subject>>,
    /// What is asked for first from then on, and not found, never came here.
    since: Instant,
}

impl Remembered {
    /// Nothing came here before `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            finished: HashMap::new(),
            order: VecDeque::new(),
            subjects: HashSet::new(),
            since: now,
        }
    }

    /// How old a flow that is not found may be and would still be found, had it come here.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// A flow that came here by `now` is over and not entered.
    pub(super) fn lost(&mut self, now: Instant) {
        self.since = self.since.max(now);
    }

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
            self.order.push_back((now, key.clone()));
        }
        self.forget(now, most)
    }

    /// Drops what is remembered for too long, and the oldest flows if there are too many; whether there were.
    fn forget(&mut self, now: Instant, most: usize) -> bool {
        let mut early = false;
        while let Some((_, key)) = self.order.front() {
            let until = self.finished.get(key).map_or(now, |record| record.until);
            if until > now && self.order.len() <= most {
                break;
            }
            early |= until > now;
            if let Some((entered, key)) = self.order.pop_front() {
                self.finished.remove(&key);
                self.lost(entered);
            }
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
        let began = Instant::now();
        let mut remembered = Remembered::new(began);
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
        let began = Instant::now();
        let mut remembered = Remembered::new(began);
        let keys: Vec<Key> = (0..3).map(|id| key(&mut remembered, id)).collect();
        let early: Vec<bool> = keys
            .iter()
            .map(|key| remembered.insert(key, finished(began), began, 2))
            .collect();
        assert_eq!(early, [false, false, true]);
        assert!(remembered.get(&keys[0]).is_none() && remembered.get(&keys[1]).is_some());
    }

    /// An initiator that is told so may send the same bytes to somebody else.
    #[test]
    fn only_of_flows_that_are_younger_than_the_last_forgotten_one_it_is_known_that_they_never_came()
    {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let age = |remembered: &Remembered, seconds| remembered.age(at(seconds)).as_secs();
        let mut remembered = Remembered::new(began);
        let keys: Vec<Key> = (0..5).map(|id| key(&mut remembered, id)).collect();
        remembered.insert(&keys[0], finished(at(10)), at(10), 2);
        remembered.insert(&keys[1], finished(at(20)), at(20), 2);
        assert_eq!(age(&remembered, 29), 29);
        // Too many: the first one makes room.
        remembered.insert(&keys[2], finished(at(30)), at(30), 2);
        assert_eq!(age(&remembered, 30), 20);
        // Its time is over.
        remembered.tidy(at(80));
        assert_eq!(age(&remembered, 80), 60);
        let short = Finished {
            until: at(82),
            ..finished(at(81))
        };
        remembered.insert(&keys[3], short, at(81), 2);
        remembered.tidy(at(100));
        assert_eq!(age(&remembered, 100), 19, "the third and the fourth");
        remembered.lost(at(101));
        assert_eq!(age(&remembered, 101), 0);
    }

    #[test]
    fn a_flow_that_is_entered_again_is_kept_as_long_as_the_later_record() {
        let began = Instant::now();
        let mut remembered = Remembered::new(began);
        let one = key(&mut remembered, 1);
        let half = began + WINDOW / 2;
        remembered.insert(&one, finished(began), began, 9);
        remembered.insert(&one, finished(half), half, 9);
        remembered.tidy(began + WINDOW);
        assert!(remembered.get(&one).is_some());
        remembered.tidy(half + WINDOW);
        assert!(remembered.get(&one).is_none());
    }
}
