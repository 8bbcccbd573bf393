//! Connections that wait for a provider, counted per service so that one without a provider does not take all the room.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::directory::PortKey;

/// How many wait for what.
#[derive(Debug)]
pub(crate) struct Parked {
    most: usize,
    waiting: Mutex<BTreeMap<PortKey, usize>>,
}

impl Parked {
    /// Room for `most` connections of each service's port.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Mutex::default(),
        }
    }

    /// A place to wait in, until it is dropped; `None` if all are taken.
    pub(crate) fn enter<'a>(&'a self, key: &'a PortKey) -> Option<Place<'a>> {
        let mut all = self.lock();
        let waiting = all.get(key).copied().unwrap_or(0);
        if waiting >= self.most {
            return None;
        }
        all.insert(key.clone(), waiting + 1);
        Some(Place { parked: self, key })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PortKey, usize>> {
        // Nothing is left half changed, so a panic elsewhere does not spoil it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection that waits.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    parked: &'a Parked,
    key: &'a PortKey,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.parked.lock();
        if let Some(waiting) = all.get_mut(self.key) {
            *waiting -= 1;
            if *waiting == 0 {
                all.remove(self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use keel_fabric::wire::Protocol;

    use super::*;

    #[test]
    fn a_service_has_so_many_places_and_no_more() {
        let parked = Parked::new(2);
        let key = |name: &str| PortKey::new(name.parse().unwrap(), 80, Protocol::Tcp);
        let (one, other) = (key("one.default"), key("other.default"));
        let first = parked.enter(&one).unwrap();
        let _second = parked.enter(&one).unwrap();
        assert!(parked.enter(&one).is_none());
        assert!(parked.enter(&other).is_some());
        drop(first);
        let _third = parked.enter(&one).unwrap();
        assert!(parked.enter(&one).is_none());
        // Nothing is kept for a service that nobody waits for.
        assert_eq!(parked.lock().len(), 1);
    }
}
