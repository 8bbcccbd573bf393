//! What applications see of TCP, direct and through the fabric: the same.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that panics has failed, and one that counts says so"
)]

mod alone;
mod app;
#[path = "../data_path/backend.rs"]
#[expect(dead_code, reason = "the other tests of the data path use more of it")]
mod backend;
mod cases;
mod left;
mod mended;
mod plan;
mod schedules;
mod scrape;
mod script;
mod timed;
mod trap;
mod unanswered;
mod ways;
#[path = "../data_path/world.rs"]
#[expect(dead_code, reason = "the other tests of the data path use more of it")]
mod world;

use std::collections::BTreeSet;
use std::time::Instant;

use script::Case;
use ways::{Seen, Through, direct, is_timed, whole};

/// Whether the long form of the tests runs (`KEEL_LONG=1`): the numbers and times that are promised.
fn long() -> bool {
    std::env::var_os("KEEL_LONG").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Times that plain TCP has to give the same outcome.
const DIRECT: usize = 3;
/// Cases beside each other on the second way.
const AT_ONCE: usize = 16;
/// Cases that one killed router cuts on the third way.
const BATCH: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_is_seen_through_the_fabric_as_it_is_seen_direct() {
    let _turn = alone::beside().await;
    // For work on one case.
    let only = std::env::var("KEEL_CASE").unwrap_or_default();
    let cases: Vec<Case> = cases::matrix()
        .into_iter()
        .filter(|case| case.name.contains(&only))
        .collect();
    let names: BTreeSet<_> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "names are unique");
    assert!(cases.len() >= 180 || !only.is_empty(), "{}", cases.len());

    let mut plain = Vec::new();
    let began = Instant::now();
    for _ in 0..DIRECT {
        plain.push(
            whole(apart(&cases, async |cases, at_once| {
                direct(&cases, at_once).await
            }))
            .await,
        );
    }
    println!("direct: {:?}", began.elapsed());
    let began = Instant::now();
    let through =
        async |cases: Vec<Case>, at_once| Through::new(&cases).await.play(&cases, at_once).await;
    let fabric = whole(apart(&cases, through)).await;
    println!("through the fabric: {:?}", began.elapsed());
    let began = Instant::now();
    let mut resumed = Vec::new();
    for batch in cases.chunks(BATCH) {
        let way = Through::new(batch).await;
        resumed.extend(whole(way.play_cut(batch)).await);
    }
    println!("resumed: {:?}", began.elapsed());
    report(&cases, &plain, &fabric, &resumed);
}

/// Plays the cases on a way that takes some beside each other; those whose times are looked at alone, one after the other.
async fn apart<W: AsyncFn(Vec<Case>, usize) -> Vec<Seen>>(cases: &[Case], way: W) -> Vec<Seen> {
    let (timed, others): (Vec<_>, Vec<_>) = cases.iter().cloned().partition(is_timed);
    let mut others = way(others, AT_ONCE).await.into_iter();
    let mut timed = way(timed, 1).await.into_iter();
    let next = cases.iter().map(|case| {
        let from = if is_timed(case) {
            &mut timed
        } else {
            &mut others
        };
        from.next().expect("one for each case")
    });
    next.collect()
}

fn report(cases: &[Case], plain: &[Vec<Seen>], fabric: &[Seen], resumed: &[Seen]) {
    let mut wrong = Vec::new();
    println!("case | direct | through the fabric | resumed");
    for (index, case) in cases.iter().enumerate() {
        let seen = &plain[0][index];
        let same = |other: &Seen| {
            if other == seen {
                "same".to_owned()
            } else {
                format!("DIFFERS: {other}")
            }
        };
        let line = format!(
            "{} | {seen} | {} | {}",
            case.name,
            same(&fabric[index]),
            same(&resumed[index])
        );
        println!("{line}");
        for again in &plain[1..] {
            if again[index] != *seen {
                wrong.push(format!(
                    "{} | {seen} | AND DIRECT AGAIN: {}",
                    case.name, again[index]
                ));
            }
        }
        if line.contains("DIFFERS") || bad(seen) {
            wrong.push(line);
        }
    }
    let count = cases.len();
    println!("{count} cases, {} not as they should be", wrong.len());
    assert!(
        wrong.is_empty(),
        "{} of {count} cases:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Outcomes that are wrong even if they are the same everywhere.
fn bad(seen: &Seen) -> bool {
    let seen = seen.to_string();
    [
        "HANGS",
        "NO CONNECTION",
        "SLOW",
        "other bytes",
        "prefix eof",
        "never broke",
    ]
    .iter()
    .any(|word| seen.contains(word))
}
