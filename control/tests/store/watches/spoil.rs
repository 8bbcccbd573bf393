//! The validators are shown a sound history, and then the same one spoilt in one way: each finds what it is there for, and nothing
//! else.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_control::store::EventKind;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::history::{
    At, Change, End, From, History, List, Object, Outcome, SELECTED, Seen, Watch, Write,
};
use super::validate::broken;

const CHANGES: usize = 200;

/// The time at which so many changes had been made.
fn at(changes: usize) -> At {
    Duration::from_millis(u64::try_from(changes).unwrap())
}

/// A store's life, clients that saw it right, and none that saw everything.
fn sound(seed: u64) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    let mut history = History::default();
    let mut there: BTreeMap<String, u64> = BTreeMap::new();
    let mut revision = 1_000;
    for number in 0..CHANGES {
        // Numbers are skipped where a server is started anew.
        revision += if random.random_ratio(1, 40) { 500 } else { 1 };
        let name = format!("node-{}", random.random_range(0..5));
        let before = there.insert(name.clone(), revision);
        let kind = match before {
            None => EventKind::Added,
            Some(_) if random.random_ratio(1, 5) => EventKind::Deleted,
            Some(_) => EventKind::Modified,
        };
        let write = format!("write-{number}");
        let object = Object {
            name: name.clone(),
            revision,
            twin: write.clone(),
            write: write.clone(),
            side: if random.random() { SELECTED } else { "right" }.to_owned(),
        };
        let outcome = match (kind, before) {
            _ if random.random_ratio(1, 10) => Outcome::Unknown,
            (EventKind::Deleted, Some(revision)) => Outcome::Gone { revision },
            _ => Outcome::Done(object.clone()),
        };
        if kind == EventKind::Deleted {
            there.remove(&name);
        }
        history.truth.push(Change { kind, object });
        history.writes.push(Write {
            name,
            write,
            answered: at(number + 1),
            outcome,
        });
    }
    for number in (10..CHANGES).step_by(20) {
        let revision = history.truth[number].revision();
        let selects = random.random();
        let mut list = List {
            lister: "lister".to_owned(),
            selects,
            asked: at(number + 1) + Duration::from_micros(1),
            answered: at(number + 1) + Duration::from_micros(2),
            revision,
            objects: Vec::new(),
        };
        list.objects = state(&history, revision, selects);
        history.lists.push(list);
    }
    for watcher in 0..8 {
        follow(&mut history, watcher, &mut random);
    }
    history
}

fn state(history: &History, revision: u64, selects: bool) -> Vec<Object> {
    let mut objects: Vec<Object> = history.states(vec![revision])[&revision]
        .iter()
        .map(|object| (*object).clone())
        .collect();
    objects.retain(|object| !selects || object.is_selected());
    objects
}

/// Watches one after the other, each going on where the one before ended; every second watcher has bookmarks.
fn follow(history: &mut History, watcher: usize, random: &mut StdRng) {
    let (selects, bookmarks) = (watcher % 4 >= 2, watcher % 2 == 1);
    let expected = history.expected(selects);
    let mut reached = 0;
    let mut after = From::State;
    while reached + 1 < CHANGES {
        let began = reached;
        let mut watch = Watch {
            watcher: format!("watcher {watcher}"),
            selects,
            from: after,
            asked: at(began + 1),
            seen: Vec::new(),
            end: End::Open,
            ended: at(began + 1),
        };
        let mut known = match after {
            From::After(revision) => revision,
            From::State => {
                let revision = history.truth[began].revision();
                for object in state(history, revision, selects) {
                    let kind = EventKind::Added;
                    watch.seen.push(Seen::Change(Change { kind, object }));
                }
                let begins = true;
                watch.seen.push(Seen::Bookmark { revision, begins });
                revision
            }
        };
        reached = (began + random.random_range(20..40)).min(CHANGES - 1);
        let upto = history.truth[reached].revision();
        for change in expected.range(known + 1..=upto).map(|(_, change)| change) {
            known = change.revision();
            watch.seen.push(Seen::Change(change.clone()));
            if bookmarks && random.random_ratio(1, 5) {
                let begins = false;
                watch.seen.push(Seen::Bookmark {
                    revision: known,
                    begins,
                });
            }
        }
        watch.ended = at(reached + 1);
        after = From::After(known);
        if random.random_ratio(1, 4) {
            // Forgotten before it could go on.
            history.compactions.push((watch.ended, known + 1));
            watch.end = End::Refused(410);
            after = From::State;
        }
        history.watches.push(watch);
    }
}

/// A watch with at least so many changes behind its beginning, and with bookmarks among them or none.
fn watch(history: &mut History, changes: usize, bookmarks: bool) -> &mut Watch {
    let found = history.watches.iter_mut().find(|watch| {
        let (_, told) = watch.told().unwrap();
        let marks = told
            .iter()
            .filter(|seen| matches!(seen, Seen::Bookmark { .. }));
        let marks = marks.count();
        watch.end == End::Open
            && matches!(watch.from, From::After(_))
            && told.len() >= changes + marks
            && (marks > 1) == bookmarks
            && (marks == 0 || bookmarks)
    });
    found.expect("there is one in every history")
}

/// Where the changes of a watch are.
fn places(watch: &Watch) -> Vec<usize> {
    let is_change = |at: &usize| matches!(watch.seen[*at], Seen::Change(_));
    (0..watch.seen.len()).filter(is_change).collect()
}

fn change(seen: &mut Seen) -> &mut Change {
    match seen {
        Seen::Change(change) => change,
        Seen::Bookmark { .. } => panic!("a bookmark"),
    }
}

type Spoil = fn(&mut History);

/// What is done to a history, and the promises that it breaks then.
const SPOILS: &[(&str, Spoil, &[&str])] = &[
    (
        "two changes swapped",
        |history| watch(history, 4, false).seen.swap(1, 2),
        &["ordered"],
    ),
    (
        "a change twice",
        |history| {
            let watch = watch(history, 4, false);
            let again = watch.seen[2].clone();
            watch.seen.insert(3, again);
        },
        &["unique"],
    ),
    (
        "a change left out",
        |history| drop(watch(history, 4, false).seen.remove(2)),
        &["gap-free"],
    ),
    (
        "a deletion left out, where others go on",
        |history| {
            let found = history.watches.iter_mut().find_map(|watch| {
                let places = places(watch);
                let inner = places.get(1..places.len().checked_sub(1)?)?;
                let at = *inner.iter().find(|at| match &watch.seen[**at] {
                    Seen::Change(change) => change.kind == EventKind::Deleted,
                    Seen::Bookmark { .. } => false,
                })?;
                let marked = watch
                    .seen
                    .iter()
                    .any(|seen| matches!(seen, Seen::Bookmark { .. }));
                (!marked).then_some((watch, at))
            });
            let (watch, at) = found.expect("there is one in every history");
            watch.seen.remove(at);
        },
        &["gap-free"],
    ),
    (
        "a change told as another kind",
        |history| {
            let change = change(&mut watch(history, 4, false).seen[2]);
            change.kind = match change.kind {
                EventKind::Added => EventKind::Modified,
                _ => EventKind::Added,
            };
        },
        &["gap-free"],
    ),
    (
        "an object of two writes",
        |history| change(&mut watch(history, 4, false).seen[2]).object.twin = "other".to_owned(),
        &["atomic", "durable", "gap-free"],
    ),
    (
        "an object missing in a list",
        |history| {
            let list = history
                .lists
                .iter_mut()
                .find(|list| !list.objects.is_empty());
            list.unwrap().objects.remove(0);
        },
        &["atomic"],
    ),
    (
        "a list with an object of a later revision",
        |history| {
            let list = history.lists.iter_mut().find(|list| !list.selects).unwrap();
            let later = history.truth.iter().find(|change| {
                change.revision() > list.revision
                    && change.kind == EventKind::Modified
                    && list
                        .objects
                        .iter()
                        .any(|object| object.name == change.object.name)
            });
            let later = later.unwrap().object.clone();
            let old = list
                .objects
                .iter_mut()
                .find(|object| object.name == later.name);
            *old.unwrap() = later;
        },
        &["atomic"],
    ),
    (
        "an object missing in what a watch begins with",
        |history| {
            let watch = history.watches.iter_mut().find(|watch| {
                watch
                    .beginning()
                    .is_some_and(|(first, _)| !first.is_empty())
            });
            watch.unwrap().seen.remove(0);
        },
        &["atomic"],
    ),
    (
        "the first change behind the revision left out",
        |history| drop(watch(history, 4, false).seen.remove(0)),
        &["resumable"],
    ),
    (
        "a change from before the revision",
        |history| {
            let watch = watch(history, 4, false);
            let From::After(after) = &mut watch.from else {
                unreachable!()
            };
            *after = change(&mut watch.seen[0]).revision();
        },
        &["resumable"],
    ),
    (
        "called too old without a compaction",
        |history| {
            history.compactions.clear();
            watch(history, 4, false).end = End::Refused(410);
        },
        &["resumable"],
    ),
    (
        "called too new by the only server",
        |history| watch(history, 4, false).end = End::Refused(504),
        &["resumable"],
    ),
    (
        "a bookmark ahead of what was told",
        |history| {
            let last = history.truth.last().unwrap().revision();
            let watch = watch(history, 4, true);
            let begins = false;
            watch.seen.insert(
                0,
                Seen::Bookmark {
                    revision: last,
                    begins,
                },
            );
        },
        &["bookmarkable"],
    ),
    (
        "a bookmark that goes back",
        |history| {
            let watch = watch(history, 4, true);
            let From::After(revision) = watch.from else {
                unreachable!()
            };
            let begins = false;
            watch.seen.push(Seen::Bookmark { revision, begins });
        },
        &["bookmarkable"],
    ),
    (
        "a bookmark in front of the change that it names",
        |history| {
            let watch = watch(history, 4, true);
            let at = watch
                .seen
                .iter()
                .position(|seen| matches!(seen, Seen::Bookmark { .. }));
            let at = at.unwrap();
            watch.seen.swap(at - 1, at);
        },
        &["bookmarkable"],
    ),
    (
        "an answered write lost",
        |history| {
            // One that nobody was told of: the last.
            let lost = Write {
                name: "node-9".to_owned(),
                write: "lost".to_owned(),
                answered: at(CHANGES + 1),
                outcome: Outcome::Done(Object {
                    name: "node-9".to_owned(),
                    revision: history.truth.last().unwrap().revision() + 1,
                    write: "lost".to_owned(),
                    twin: "lost".to_owned(),
                    side: SELECTED.to_owned(),
                }),
            };
            history.writes.push(lost);
        },
        &["durable"],
    ),
    (
        "an answered write with another's object",
        |history| {
            let mut writes = history.writes.iter_mut();
            let write = writes.find(|write| matches!(write.outcome, Outcome::Done(_)));
            write.unwrap().write = "mine".to_owned();
        },
        &["durable"],
    ),
    (
        "an answered deletion undone",
        |history| {
            let last = history.truth.last().unwrap();
            let (name, revision) = (last.object.name.clone(), last.revision());
            history.writes.push(Write {
                name,
                write: "deletion".to_owned(),
                answered: at(CHANGES + 1),
                outcome: Outcome::Gone { revision },
            });
        },
        &["durable"],
    ),
    (
        "a change that never happened",
        |history| {
            let next = history.truth.last().unwrap().revision() + 1;
            let watch = history.watches.last_mut().unwrap();
            let mut made_up = history.truth.last().unwrap().clone();
            made_up.object.revision = next;
            watch.seen.push(Seen::Change(made_up));
            watch.end = End::Open;
        },
        &["durable"],
    ),
    (
        "a list from before an answered write",
        |history| history.lists[1].asked = at(CHANGES),
        &["fresh"],
    ),
    (
        "lists that go back",
        |history| {
            history.writes.clear();
            let (old, new) = (history.lists[2].clone(), history.lists[5].clone());
            history.lists = vec![new, old];
            history.lists[1].asked = at(CHANGES);
            history.lists[1].answered = at(CHANGES);
            history.watches.clear();
        },
        &["fresh"],
    ),
    (
        "a watch that begins before an answered write",
        |history| {
            let state = |watch: &&mut Watch| watch.from == From::State;
            history.watches.iter_mut().find(state).unwrap().asked = at(CHANGES + 1);
        },
        &["fresh"],
    ),
];

#[test]
fn each_validator_finds_what_it_is_there_for() {
    let first = rand::rng().next_u64();
    for seed in (0..20).map(|number| first.wrapping_add(number)) {
        let history = sound(seed);
        assert_eq!(broken(&history), BTreeMap::new(), "seed {seed}");
        let mut found: Vec<&str> = Vec::new();
        for (what, spoil, promises) in SPOILS {
            let mut history = history.clone();
            spoil(&mut history);
            let broken = broken(&history);
            let names: Vec<&str> = broken.keys().copied().collect();
            assert_eq!(names, *promises, "seed {seed}, {what}: {broken:?}");
            found.extend(*promises);
        }
        for (name, _) in super::validate::ALL {
            assert!(found.contains(&name), "nothing breaks {name}");
        }
    }
}
