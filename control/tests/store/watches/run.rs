//! One run: servers on one store, clients, faults; and what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use keel_certs::fixture::Fabric;
use keel_control::api::Revision;
use keel_control::store::Event;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::clients::{Desk, ROUTERS, list, object, outcome, write};
use super::history::{Change, History, Object, Outcome, SELECTED, Write};
use super::plant::{Bug, COMPACT};
use super::process::{Slot, config};
use super::watcher::{Diary, MANNERS, watch as follow};
use crate::place::Place;

const WRITERS: usize = 4;
const LISTERS: usize = 2;
/// Longer than anything takes here, also on a machine that is busy with something else.
const SOON: Duration = Duration::from_secs(60);

/// How long, and with what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) servers: usize,
    /// Rounds, each of them with a fault in the end.
    pub(crate) rounds: usize,
    /// Writes between two faults.
    pub(crate) writes: usize,
    pub(crate) bug: Bug,
}

struct Run<'a> {
    place: &'a Place,
    random: StdRng,
    slots: Vec<Slot>,
    desk: Desk,
    truth: Vec<Change>,
    /// Up to where the truth is known.
    cursor: Option<Revision>,
    history: History,
}

/// Plays a plan; says what everybody saw.
pub(crate) async fn play(place: &Place, plan: Plan, seed: u64) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    let fabric = Fabric::new();
    let folder = TempDir::new().unwrap();
    let slots: Vec<Slot> = ["edge-a", "edge-b"][..plan.servers]
        .iter()
        .map(|node| Slot::new(&fabric, folder.path(), node, place.url(), plan.bug))
        .collect();
    let (last, seen_last) = watch::channel(None);
    let desk = Desk {
        servers: slots.iter().map(Slot::life).collect(),
        live: fabric.fabric_admin("root"),
        began: Instant::now(),
        stop: CancellationToken::new(),
        answered: watch::Sender::new(0),
        last: seen_last,
        reached: watch::Sender::new(BTreeMap::new()),
    };
    let mut run = Run {
        place,
        slots,
        truth: Vec::new(),
        cursor: None,
        history: History {
            is_shared: plan.servers > 1,
            ..History::default()
        },
        random: StdRng::seed_from_u64(random.next_u64()),
        desk: desk.clone(),
    };
    // Before the first server: the truth begins where the store does.
    run.look().await;
    for slot in &mut run.slots {
        slot.start().await;
    }

    let mut writers = JoinSet::new();
    let mut listers = JoinSet::new();
    let mut watchers = JoinSet::new();
    for number in 0..WRITERS {
        writers.spawn(write(desk.clone(), number, random.next_u64()));
    }
    for number in 0..LISTERS {
        listers.spawn(list(desk.clone(), number, random.next_u64()));
    }
    for manner in MANNERS {
        watchers.spawn(follow(desk.clone(), manner, random.next_u64()));
    }
    for round in 0..plan.rounds {
        run.writes(plan.writes).await;
        run.fault(round).await;
    }
    run.writes(plan.writes).await;

    desk.stop.cancel();
    let writes = timeout(SOON, writers.join_all())
        .await
        .expect("writers stop");
    let lists = timeout(SOON, listers.join_all())
        .await
        .expect("listers stop");
    let end = run.end().await;
    last.send_replace(Some(end));
    let mut diaries = Vec::new();
    // Watches go on for ever: whoever does not see the end has lost something.
    let patience = match plan.bug {
        Bug::Nothing => SOON,
        _ => Duration::from_secs(1),
    };
    let all = async {
        while let Some(diary) = watchers.join_next().await {
            diaries.push(diary.unwrap());
        }
    };
    if timeout(patience, all).await.is_err() {
        let reached = desk.reached.borrow().clone();
        assert!(
            plan.bug != Bug::Nothing,
            "not all have seen {end}: {reached:?}"
        );
        // That was to be expected: nothing has to be seen any more.
        last.send_replace(Some(0));
        diaries.extend(watchers.join_all().await);
    }
    run.slots.clear();
    run.look().await;
    let mut history = run.history;
    history.truth = run.truth;
    history.writes.extend(writes.into_iter().flatten());
    history.lists.extend(lists.into_iter().flatten());
    for Diary { watches, lists } in diaries {
        history.watches.extend(watches);
        history.lists.extend(lists);
    }
    history
}

impl Run<'_> {
    /// Waits for so many answered writes.
    async fn writes(&mut self, count: usize) {
        let mut answered = self.desk.answered.subscribe();
        let wanted = *answered.borrow() + count;
        let reached = timeout(SOON, answered.wait_for(|answered| *answered >= wanted));
        assert!(reached.await.is_ok(), "no {count} writes in {SOON:?}");
    }

    async fn fault(&mut self, round: usize) {
        let victim = round % self.slots.len();
        match self.random.random_range(0..4) {
            0 => {
                self.pause(victim).await;
                self.compact(false).await;
            }
            1 => self.compact(false).await,
            2 => self.compact(true).await,
            _ => {}
        }
        self.slots[victim].kill();
        // Now and then all of them.
        if self.random.random_ratio(1, 4) {
            self.slots.iter_mut().for_each(Slot::kill);
        }
        self.look().await;
        for slot in &mut self.slots {
            if slot.life().borrow().is_none() {
                slot.start().await;
            }
        }
        // Mostly before anybody is back who was far behind.
        if self.random.random_ratio(2, 3) {
            self.compact(false).await;
        }
    }

    /// Stops a server for a while, as a machine does that is out of memory, or moved.
    async fn pause(&mut self, victim: usize) {
        let from = self.desk.now();
        self.slots[victim].signal(Signal::SIGSTOP);
        let time = Duration::from_millis(self.random.random_range(50..400));
        tokio::time::sleep(time).await;
        self.slots[victim].signal(Signal::SIGCONT);
        self.history.pauses.push((from, self.desk.now()));
        self.writes(20).await;
    }

    /// Compacts up to some revision that is known. `cut`: does not wait until it is done.
    async fn compact(&mut self, cut: bool) {
        // Nearly everything, so that who was away for a moment can no longer go on.
        let Some(last) = self.truth.len().checked_sub(1) else {
            return;
        };
        let upto = last - self.random.random_range(0..=last.min(50));
        let upto = self.truth[upto].revision();
        self.history.compactions.push((self.desk.now(), upto));
        let link = self.desk.connect(&mut self.random).await;
        let path = format!("{COMPACT}?{upto}");
        let answer = link.send(Method::POST, &path, None);
        let patience = match cut {
            true => Duration::from_micros(self.random.random_range(0..5000)),
            false => SOON,
        };
        let answer = timeout(patience, answer).await;
        assert!(cut || answer.is_ok_and(|answer| answer.is_some()));
    }

    /// Reads what has happened since the last look.
    async fn look(&mut self) {
        let store = self.place.open(config()).await;
        let mut cursor = self.cursor.unwrap_or_else(|| store.current());
        loop {
            let events = store.events_since(cursor, 500).await.unwrap();
            let Some(last) = events.last() else { break };
            cursor = last.revision;
            self.truth.extend(events.iter().map(change));
        }
        self.cursor = Some(cursor);
        store.close().await;
    }

    /// The last write, when all others are done.
    async fn end(&mut self) -> u64 {
        let link = self.desk.connect(&mut self.random).await;
        let object = object("the-end", "the-end", SELECTED, "");
        let outcome = outcome(link.ask(Method::POST, ROUTERS, Some(&object)).await);
        let Outcome::Done(done) = &outcome else {
            panic!("the last write: {outcome:?}");
        };
        let revision = done.revision;
        self.history.writes.push(Write {
            name: done.name.clone(),
            write: done.write.clone(),
            answered: self.desk.now(),
            outcome,
        });
        revision
    }
}

fn change(event: &Arc<Event>) -> Change {
    let object = Object::read(&serde_json::from_slice(&event.object).unwrap());
    assert_eq!(
        object.revision, event.revision.0,
        "an object names its revision"
    );
    let kind = event.kind;
    Change { kind, object }
}
