//! What a watcher was told, and whether that is what happened.

use std::collections::BTreeMap;
use std::fmt::Debug;

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

/// Name and revision of each object.
pub(crate) type State = BTreeMap<String, String>;

/// A write: the object is of this revision now, or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) name: String,
    pub(crate) revision: Option<String>,
    /// Whether the object, as long as it is there, is on the side that is selected by some.
    pub(crate) selected: bool,
}

/// What the changes are to who selects, and to who does not.
pub(crate) fn seen(changes: &[Change], selects: bool) -> Vec<Change> {
    let mut there = BTreeMap::new();
    let mut seen = Vec::new();
    for change in changes {
        let shown = change.revision.is_some() && (change.selected || !selects);
        let was = there.insert(&change.name, shown).unwrap_or(false);
        // What leaves the selection is gone for who selects.
        let revision = change.revision.clone().filter(|_| shown);
        if shown || was {
            seen.push(Change {
                revision,
                ..change.clone()
            });
        }
    }
    seen
}

/// What is there after the changes.
pub(crate) fn state(changes: &[Change]) -> State {
    let mut state = State::new();
    for change in changes {
        apply(&mut state, change);
    }
    state
}

fn apply(state: &mut State, change: &Change) {
    match &change.revision {
        Some(revision) => state.insert(change.name.clone(), revision.clone()),
        None => state.remove(&change.name),
    };
}

/// One event of a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Init,
    InitApply(String, String),
    InitDone,
    Apply(String, String),
    Delete(String),
}

impl Entry {
    pub(crate) fn of<K: Resource>(event: &Event<K>) -> Self {
        let revision = |object: &K| object.resource_version().unwrap();
        match event {
            Event::Init => Self::Init,
            Event::InitApply(object) => Self::InitApply(object.name_any(), revision(object)),
            Event::InitDone => Self::InitDone,
            Event::Apply(object) => Self::Apply(object.name_any(), revision(object)),
            Event::Delete(object) => Self::Delete(object.name_any()),
        }
    }
}

/// Checks that the diary tells the changes in their order, each once, but for those that a state at the beginning has in it; gives back
/// how often it begins.
#[track_caller]
pub(crate) fn check(diary: &[Entry], changes: &[Change]) -> usize {
    let mut states = vec![State::new()];
    for change in changes {
        let mut state = states[states.len() - 1].clone();
        apply(&mut state, change);
        states.push(state);
    }
    // How many changes were told, and whether that is known from a state alone.
    let (mut at, mut guessed) = (0, false);
    let (mut begun, mut begins) = (State::new(), 0);
    for (line, entry) in diary.iter().enumerate() {
        let told = match entry {
            Entry::Init => {
                begun.clear();
                begins += 1;
                continue;
            }
            Entry::InitApply(name, revision) => {
                let twice = begun.insert(name.clone(), revision.clone());
                assert_eq!(twice, None, "{name} twice in one state, line {line}");
                continue;
            }
            Entry::InitDone => {
                // Never before what was known.
                let found = (at..states.len()).find(|at| states[*at] == begun);
                at = found.unwrap_or_else(|| panic!("line {line}: {begun:?} never was"));
                guessed = true;
                continue;
            }
            Entry::Apply(name, revision) => (name, Some(revision)),
            Entry::Delete(name) => (name, None),
        };
        let happened = |at: usize| {
            let change = changes.get(at);
            change.map(|change| (&change.name, change.revision.as_ref()))
        };
        // What comes and goes leaves the state as it was: which of several times it is, is known by what comes next.
        if std::mem::take(&mut guessed) {
            let mut times = (at..changes.len()).filter(|at| states[*at] == begun);
            at = times.find(|at| happened(*at) == Some(told)).unwrap_or(at);
        }
        assert_eq!(Some(told), happened(at), "line {line} of {}", diary.len());
        at += 1;
    }
    match guessed {
        true => assert_eq!(begun, states[changes.len()], "not told"),
        false => assert_eq!(at, changes.len(), "not told"),
    }
    begins
}

#[test]
fn a_wrong_diary_is_found_out() {
    let change = |name: &str, revision: Option<&str>| Change {
        name: name.into(),
        revision: revision.map(Into::into),
        selected: true,
    };
    let changes = [
        change("a", Some("1")),
        change("b", Some("2")),
        change("a", Some("3")),
        change("b", None),
    ];
    let apply = |name: &str, revision: &str| Entry::Apply(name.into(), revision.into());
    let right = vec![
        Entry::Init,
        Entry::InitApply("a".into(), "1".into()),
        Entry::InitDone,
        apply("b", "2"),
        Entry::Init,
        Entry::InitApply("a".into(), "3".into()),
        Entry::InitApply("b".into(), "2".into()),
        Entry::InitDone,
        Entry::Delete("b".into()),
    ];
    assert_eq!(check(&right, &changes), 2);
    let cancelled = [
        change("c", Some("1")),
        change("c", None),
        change("b", Some("2")),
    ];
    let short = [Entry::Init, Entry::InitDone, apply("b", "2")];
    assert_eq!(check(&short, &cancelled), 1);
    let mut wrong = vec![right.clone(); 4];
    wrong[0].remove(3);
    wrong[0].drain(3..7);
    wrong[1].insert(4, apply("b", "2"));
    wrong[2].pop();
    wrong[3].remove(5);
    for wrong in wrong {
        let found = std::panic::catch_unwind(|| check(&wrong, &changes));
        assert!(found.is_err(), "{wrong:?}");
    }
}
