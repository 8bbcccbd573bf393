//! The promises, one validator each. They are etcd's of its watches (ordered, unique, reliable, atomic, resumable, bookmarkable), and
//! what a store promises beside them: what was answered stays, what is told has happened, and no list goes back in time.

use std::collections::{BTreeMap, BTreeSet};

use keel_control::store::EventKind;

use super::history::{Change, End, From, History, Object, Outcome, Seen, Watch, changes};

/// Why a history breaks a promise.
pub(crate) type Broken = String;
pub(crate) type Validator = fn(&History) -> Result<(), Broken>;

/// Every promise, by name.
pub(crate) const ALL: [(&str, Validator); 8] = [
    ("ordered", ordered),
    ("unique", unique),
    ("gap-free", gap_free),
    ("atomic", atomic),
    ("resumable", resumable),
    ("bookmarkable", bookmarkable),
    ("durable", durable),
    ("fresh", fresh),
];

/// The promises that a history breaks, and how.
pub(crate) fn broken(history: &History) -> BTreeMap<&'static str, Broken> {
    ALL.iter()
        .filter_map(|(name, validate)| Some((*name, validate(history).err()?)))
        .collect()
}

fn each(history: &History, validate: impl Fn(&Watch) -> Result<(), Broken>) -> Result<(), Broken> {
    history.watches.iter().try_for_each(|watch| {
        validate(watch).map_err(|why| format!("{} {:?}: {why}", watch.watcher, watch.from))
    })
}

/// No change comes behind a later one.
fn ordered(history: &History) -> Result<(), Broken> {
    each(history, |watch| {
        let Some((_, told)) = watch.told() else {
            return Ok(());
        };
        let revisions: Vec<u64> = changes(told).map(Change::revision).collect();
        match revisions.windows(2).find(|pair| pair[0] > pair[1]) {
            Some(pair) => Err(format!("{} came behind {}", pair[1], pair[0])),
            None => Ok(()),
        }
    })
}

/// No change comes twice.
fn unique(history: &History) -> Result<(), Broken> {
    each(history, |watch| {
        let Some((_, told)) = watch.told() else {
            return Ok(());
        };
        let mut seen = BTreeSet::new();
        match changes(told).find(|change| !seen.insert(change.revision())) {
            Some(change) => Err(format!("{} came twice", change.revision())),
            None => Ok(()),
        }
    })
}

/// Between two changes that a watch told, it told every change there was, as what it was.
fn gap_free(history: &History) -> Result<(), Broken> {
    let expected = Expected::of(history);
    each(history, |watch| {
        let Some((_, told)) = watch.told() else {
            return Ok(());
        };
        let told: BTreeMap<u64, &Change> = changes(told)
            .map(|change| (change.revision(), change))
            .collect();
        let (Some(first), Some(last)) = (told.first_key_value(), told.last_key_value()) else {
            return Ok(());
        };
        for (revision, change) in expected.by(watch.selects).range(*first.0..=*last.0) {
            match told.get(revision) {
                None => {
                    return Err(format!(
                        "{revision} was left out between {} and {}",
                        first.0, last.0
                    ));
                }
                Some(told) if *told != change => {
                    return Err(format!("{told:?} was told of {change:?}"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    })
}

/// What is shown together was so at one revision: a list, what a watch begins with, and every object in itself.
fn atomic(history: &History) -> Result<(), Broken> {
    let torn = |object: &Object| match object.write == object.twin {
        true => Ok(()),
        false => Err(format!("{object:?} is of two writes")),
    };
    let revisions = history.lists.iter().map(|list| list.revision);
    let began = history.watches.iter().filter_map(Watch::beginning);
    let states = history.states(
        revisions
            .chain(began.map(|(_, revision)| revision))
            .collect(),
    );
    let same = |found: Vec<&Object>, selects: bool, revision: u64| {
        let mut wanted = states[&revision].clone();
        wanted.retain(|object| !selects || object.is_selected());
        match found == wanted {
            true => Ok(()),
            false => Err(format!(
                "at {revision} there was {wanted:?}, shown was {found:?}"
            )),
        }
    };
    for list in &history.lists {
        let found = list.objects.iter().collect();
        same(found, list.selects, list.revision)
            .map_err(|why| format!("{} list: {why}", list.lister))?;
    }
    each(history, |watch| {
        for change in changes(&watch.seen) {
            torn(&change.object)?;
        }
        let Some((first, revision)) = watch.beginning() else {
            return Ok(());
        };
        if let Some(other) = changes(first).find(|change| change.kind != EventKind::Added) {
            return Err(format!("{other:?} among what it began with"));
        }
        let mut found: Vec<&Object> = changes(first).map(|change| &change.object).collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        same(found, watch.selects, revision)
    })
}

/// A watch goes on exactly behind the revision it names, or says that it cannot, and only if that is so.
fn resumable(history: &History) -> Result<(), Broken> {
    let expected = Expected::of(history);
    each(history, |watch| {
        let Some((after, told)) = watch.told() else {
            return refused(history, watch, None);
        };
        if let Some(again) = changes(told).find(|change| change.revision() <= after) {
            return Err(format!("{} came again", again.revision()));
        }
        if let Some(first) = changes(told).map(Change::revision).min() {
            let mut between = expected.by(watch.selects).range(after + 1..first);
            if let Some((left_out, _)) = between.next() {
                return Err(format!("{left_out} was left out before {first}"));
            }
        }
        let known = told.iter().map(|seen| match seen {
            Seen::Change(change) => change.revision(),
            Seen::Bookmark { revision, .. } => *revision,
        });
        refused(history, watch, Some(known.fold(after, u64::max)))
    })
}

/// Whether the watch was refused for a reason; it had told everything up to `known`.
fn refused(history: &History, watch: &Watch, known: Option<u64>) -> Result<(), Broken> {
    let why = match watch.end {
        End::Open => return Ok(()),
        End::Refused(410) => history
            .compactions
            .iter()
            .any(|(asked, upto)| *asked <= watch.ended && Some(*upto) > known),
        // Ahead of the server: a server that was stopped, or that others write beside, may not have caught up.
        End::Refused(504) => {
            history.is_shared
                || history
                    .pauses
                    .iter()
                    .any(|(from, to)| *from <= watch.ended && watch.asked <= *to)
        }
        End::Refused(_) => false,
    };
    match why {
        true => Ok(()),
        false => Err(format!("{:?} without a reason", watch.end)),
    }
}

/// A bookmark comes behind every change up to its revision, and before every later one; none goes back.
fn bookmarkable(history: &History) -> Result<(), Broken> {
    let expected = Expected::of(history);
    each(history, |watch| {
        let Some((after, told)) = watch.told() else {
            return Ok(());
        };
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        let mut marked = after;
        for line in told {
            match line {
                Seen::Change(change) if change.revision() <= marked && marked > after => {
                    return Err(format!(
                        "{} came behind the bookmark {marked}",
                        change.revision()
                    ));
                }
                Seen::Change(change) => {
                    seen.insert(change.revision());
                }
                Seen::Bookmark { revision, .. } => {
                    let last = seen.last().copied().unwrap_or_default();
                    if *revision < marked.max(last) {
                        return Err(format!("the bookmark {revision} goes back"));
                    }
                    let mut upto = expected.by(watch.selects).range(marked + 1..revision + 1);
                    if let Some((left_out, _)) = upto.find(|(wanted, _)| !seen.contains(wanted)) {
                        return Err(format!("{left_out} is missing at the bookmark {revision}"));
                    }
                    marked = *revision;
                }
            }
        }
        Ok(())
    })
}

/// What was answered has happened, as it was answered; and nobody was told of what has not.
fn durable(history: &History) -> Result<(), Broken> {
    let truth: BTreeMap<u64, &Change> = history
        .truth
        .iter()
        .map(|change| (change.revision(), change))
        .collect();
    // The change behind each one of the same object.
    let mut next: BTreeMap<u64, EventKind> = BTreeMap::new();
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for change in &history.truth {
        if let Some(before) = last.insert(&change.object.name, change.revision()) {
            next.insert(before, change.kind);
        }
    }
    let happened = |object: &Object| match truth.get(&object.revision) {
        Some(change) => change.object == *object,
        None => false,
    };
    let selected = history.expected(true);
    let left = |object: &Object| match selected.get(&object.revision) {
        Some(change) => change.object == *object,
        None => false,
    };
    for write in &history.writes {
        let done = match &write.outcome {
            Outcome::Done(object) => {
                happened(object) && object.name == write.name && object.write == write.write
            }
            Outcome::Gone { revision } => next.get(revision) == Some(&EventKind::Deleted),
            Outcome::Refused | Outcome::Unknown => true,
        };
        if !done {
            return Err(format!("answered, and not there: {write:?}"));
        }
    }
    let listed = history.lists.iter().flat_map(|list| &list.objects);
    let told = history
        .watches
        .iter()
        .flat_map(|watch| changes(&watch.seen).map(|change| &change.object));
    match listed
        .chain(told)
        .find(|object| !happened(object) && !left(object))
    {
        Some(object) => Err(format!("shown, and never so: {object:?}")),
        None => Ok(()),
    }
}

/// A list, and what a watch begins with, has everything that was answered before it was asked for: writes, and other lists.
fn fresh(history: &History) -> Result<(), Broken> {
    let mut known: Vec<(super::history::At, u64)> = history
        .writes
        .iter()
        .filter_map(|write| match &write.outcome {
            Outcome::Done(object) => Some((write.answered, object.revision)),
            _ => None,
        })
        .collect();
    known.extend(
        history
            .lists
            .iter()
            .map(|list| (list.answered, list.revision)),
    );
    known.sort_unstable();
    // What was known at a time is the highest that was known until then.
    let mut highest = 0;
    for (_, revision) in &mut known {
        highest = highest.max(*revision);
        *revision = highest;
    }
    let known = |at| {
        let count = known.partition_point(|(answered, _)| *answered < at);
        count.checked_sub(1).map_or(0, |last| known[last].1)
    };
    for list in &history.lists {
        let wanted = known(list.asked);
        if list.revision < wanted {
            let (lister, shown) = (&list.lister, list.revision);
            return Err(format!(
                "{lister}: a list of {shown}, when {wanted} was known"
            ));
        }
    }
    each(history, |watch| match (watch.from, watch.beginning()) {
        (From::State, Some((_, revision))) if revision < known(watch.asked) => Err(format!(
            "it began at {revision}, when {} was known",
            known(watch.asked)
        )),
        _ => Ok(()),
    })
}

/// What watches have to tell, with a selection and without.
struct Expected {
    all: BTreeMap<u64, Change>,
    selected: BTreeMap<u64, Change>,
}

impl Expected {
    fn of(history: &History) -> Self {
        Self {
            all: history.expected(false),
            selected: history.expected(true),
        }
    }

    fn by(&self, selects: bool) -> &BTreeMap<u64, Change> {
        match selects {
            true => &self.selected,
            false => &self.all,
        }
    }
}
