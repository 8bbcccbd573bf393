//! What clients saw, as they saw it, and what really happened, as the store tells it afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_control::store::EventKind;
use serde_json::Value;

/// The label that some watches and lists select by, and the value that they select.
pub(crate) const SIDE: &str = "side";
pub(crate) const SELECTED: &str = "left";
/// The label and the annotation that both name the write that made the object.
pub(crate) const WRITE: &str = "write";

/// Time since the run began.
pub(crate) type At = Duration;

/// An object, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) revision: u64,
    /// The write that made it, and once more from another place of the object.
    pub(crate) write: String,
    pub(crate) twin: String,
    pub(crate) side: String,
}

impl Object {
    /// Panics on what is no object of this test.
    pub(crate) fn read(object: &Value) -> Self {
        let text = |pointer: &str| {
            let text = object.pointer(pointer).and_then(Value::as_str);
            text.unwrap_or_else(|| panic!("no {pointer} in {object}"))
                .to_owned()
        };
        Self {
            name: text("/metadata/name"),
            revision: text("/metadata/resourceVersion").parse().unwrap(),
            write: text(&format!("/metadata/labels/{WRITE}")),
            twin: text(&format!("/metadata/annotations/{WRITE}")),
            side: text(&format!("/metadata/labels/{SIDE}")),
        }
    }

    pub(crate) fn is_selected(&self) -> bool {
        self.side == SELECTED
    }
}

/// One change, as it happened or as a watch told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) kind: EventKind,
    pub(crate) object: Object,
}

impl Change {
    pub(crate) fn revision(&self) -> u64 {
        self.object.revision
    }
}

/// One line of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Change(Change),
    Bookmark {
        revision: u64,
        /// It ends the objects that the watch began with.
        begins: bool,
    },
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// With what came after this revision.
    After(u64),
    /// With what is there, up to the bookmark that says so.
    State,
}

/// How a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The server ended it, the client did, or the connection was lost: nothing was said about what comes next.
    Open,
    /// With an error of this code, be it instead of an answer or as the last event.
    Refused(u16),
}

/// One watch, from its request to its end.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    pub(crate) watcher: String,
    pub(crate) selects: bool,
    pub(crate) from: From,
    pub(crate) asked: At,
    pub(crate) seen: Vec<Seen>,
    pub(crate) end: End,
    pub(crate) ended: At,
}

/// One list, in however many pages.
#[derive(Clone, Debug)]
pub(crate) struct List {
    pub(crate) lister: String,
    pub(crate) selects: bool,
    pub(crate) asked: At,
    pub(crate) answered: At,
    pub(crate) revision: u64,
    pub(crate) objects: Vec<Object>,
}

/// What a client knows about its write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done: the object is this.
    Done(Object),
    /// Done: the object, whose revision was this, is gone.
    Gone { revision: u64 },
    /// Not done.
    Refused,
    /// The answer did not come.
    Unknown,
}

/// One write.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) name: String,
    pub(crate) write: String,
    pub(crate) answered: At,
    pub(crate) outcome: Outcome,
}

/// Everything about one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Every change of the store, in its order; there is nothing before the first.
    pub(crate) truth: Vec<Change>,
    pub(crate) writes: Vec<Write>,
    pub(crate) lists: Vec<List>,
    pub(crate) watches: Vec<Watch>,
    /// Compactions: when they were asked for, and up to where.
    pub(crate) compactions: Vec<(At, u64)>,
    /// When a server may have been behind what its clients knew: it was stopped for a while.
    pub(crate) pauses: Vec<(At, At)>,
    /// Several servers share the store, and one may be a moment behind the other.
    pub(crate) is_shared: bool,
}

impl Watch {
    /// The objects that it began with and their revision, if they came to their end.
    pub(crate) fn beginning(&self) -> Option<(&[Seen], u64)> {
        self.seen
            .iter()
            .enumerate()
            .find_map(|(at, seen)| match seen {
                Seen::Bookmark {
                    revision,
                    begins: true,
                } => Some((&self.seen[..at], *revision)),
                _ => None,
            })
    }

    /// The revision behind which it tells changes, and what it told there. `None` if it did not get that far.
    pub(crate) fn told(&self) -> Option<(u64, &[Seen])> {
        match self.from {
            From::After(revision) => Some((revision, &self.seen)),
            From::State => {
                let (first, revision) = self.beginning()?;
                Some((revision, &self.seen[first.len() + 1..]))
            }
        }
    }
}

/// The changes among what was seen.
pub(crate) fn changes(seen: &[Seen]) -> impl Iterator<Item = &Change> {
    seen.iter().filter_map(|seen| match seen {
        Seen::Change(change) => Some(change),
        Seen::Bookmark { .. } => None,
    })
}

impl History {
    /// What a watch has to tell, by revision: with a selection, an object that begins or ceases to be selected is new or gone, and what
    /// ceases to be is told as it was, under the number of its change.
    pub(crate) fn expected(&self, selects: bool) -> BTreeMap<u64, Change> {
        let mut there: BTreeMap<&str, &Object> = BTreeMap::new();
        let mut expected = BTreeMap::new();
        for change in &self.truth {
            let meant = !selects || change.object.is_selected();
            let after = change.kind != EventKind::Deleted && meant;
            let name = change.object.name.as_str();
            let before = match after {
                true => there.insert(name, &change.object),
                false => there.remove(name),
            };
            let kind = match (before.is_some(), after) {
                (false, false) => continue,
                (false, true) => EventKind::Added,
                (true, false) => EventKind::Deleted,
                (true, true) => EventKind::Modified,
            };
            let left = before.filter(|_| !after && change.kind != EventKind::Deleted);
            let object = Object {
                revision: change.revision(),
                ..left.unwrap_or(&change.object).clone()
            };
            expected.insert(change.revision(), Change { kind, object });
        }
        expected
    }

    /// The objects as they were at each of these revisions, by name.
    pub(crate) fn states(&self, mut wanted: Vec<u64>) -> BTreeMap<u64, Vec<&Object>> {
        wanted.sort_unstable();
        let mut states = BTreeMap::new();
        let mut objects: BTreeMap<&str, &Object> = BTreeMap::new();
        let mut truth = self.truth.iter().peekable();
        for revision in wanted {
            while let Some(change) = truth.next_if(|change| change.revision() <= revision) {
                match change.kind {
                    EventKind::Deleted => objects.remove(change.object.name.as_str()),
                    _ => objects.insert(&change.object.name, &change.object),
                };
            }
            states.insert(revision, objects.values().copied().collect());
        }
        states
    }
}
