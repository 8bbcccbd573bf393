//! What a watch promises, proved from outside, as etcd proves it: APIServers that are killed, stopped and compacted under clients
//! that write, list and watch over HTTP/3; everything that they are told is written down, and every promise has a validator that
//! looks through it. Each validator is shown to find what it looks for: in histories that were spoilt, and in servers with a bug.
//!
//! `KEEL_LONG=1` plays more rounds.

mod clients;
mod history;
mod plant;
mod process;
mod run;
mod spoil;
mod validate;
mod watcher;

use std::collections::BTreeMap;

use history::{End, From, History, Seen};
use plant::Bug;
use rand::Rng;
use run::{Plan, play};

use crate::place::{Place, long};

/// The test that is the server in a process of its own.
const SERVER: &str = "watches::watches_keep_their_promises_on_one_server";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_keep_their_promises_on_one_server() {
    process::serve().await;
    for _ in 0..if long() { 12 } else { 1 } {
        keep_their_promises(&Place::sqlite(), 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_keep_their_promises_on_two_servers_with_one_database() {
    for _ in 0..if long() { 12 } else { 1 } {
        if let Some(place) = Place::postgres().await {
            keep_their_promises(&place, 2).await;
        }
    }
}

async fn keep_their_promises(place: &Place, servers: usize) {
    let seed = rand::rng().next_u64();
    eprintln!("{servers} servers, seed {seed}");
    let plan = Plan {
        servers,
        // Every opening leaves a gap, and a store that has many of them forgets what is before.
        rounds: if long() { 30 } else { 10 },
        writes: 150,
        bug: Bug::Nothing,
    };
    let history = play(place, plan, seed).await;
    let broken = validate::broken(&history);
    eprintln!("{}", told(&history));
    assert_eq!(broken, BTreeMap::new(), "seed {seed}");
    assert!(history.truth.len() > plan.rounds * plan.writes);
    assert!(history.watches.len() > 2 * plan.rounds, "few watches");
    let bookmarks = history.watches.iter().flat_map(|watch| &watch.seen);
    let bookmarks = bookmarks.filter(|seen| matches!(seen, Seen::Bookmark { .. }));
    assert!(bookmarks.count() > plan.rounds, "few bookmarks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_bug_is_found_out() {
    for (bug, promise) in Bug::ALL {
        let seed = rand::rng().next_u64();
        let plan = Plan {
            servers: 1,
            rounds: 0,
            writes: 200,
            bug,
        };
        let history = play(&Place::sqlite(), plan, seed).await;
        let broken = validate::broken(&history);
        eprintln!("{bug:?}, seed {seed}: {broken:?}");
        assert!(
            broken.contains_key(promise),
            "{bug:?} breaks {promise}, found was {broken:?} in {}",
            told(&history)
        );
    }
}

/// How much there was to look at.
fn told(history: &History) -> String {
    let watches = &history.watches;
    let refused = watches.iter().filter(|watch| watch.end != End::Open);
    let states = watches.iter().filter(|watch| watch.from == From::State);
    let lines: usize = watches.iter().map(|watch| watch.seen.len()).sum();
    format!(
        "{} changes, {} writes, {} lists, {} watches ({} with a state first, {} refused) with {lines} lines, {} compactions, {} pauses",
        history.truth.len(),
        history.writes.len(),
        history.lists.len(),
        watches.len(),
        states.count(),
        refused.count(),
        history.compactions.len(),
        history.pauses.len(),
    )
}
