//! What the fabric adds to the time of a round trip and of a banner.

use std::time::Duration;

use crate::alone::alone;
use crate::long;
use crate::script::Case;
use crate::script::Step::{Banner, Close, Fin, Options, Ping, Pong, ReadEnd, Send};
use crate::ways::{Seen, Through, direct, whole};

/// Both ways one after the other, so often: the middle one counts, as the machine may do something else meanwhile.
const TIMES: usize = 5;
const BANNERS: usize = 100;

/// What may be added, each at the 99th percentile.
struct Bounds {
    rounds: usize,
    round_trip: Duration,
    banner: Duration,
}

/// The short form finds what waits for a timer, as Nagle's algorithm with a delayed acknowledgement does: 40 ms.
fn bounds() -> Bounds {
    if long() {
        Bounds {
            rounds: 1000,
            round_trip: Duration::from_millis(2),
            banner: Duration::from_millis(5),
        }
    } else {
        Bounds {
            rounds: 200,
            round_trip: Duration::from_millis(30),
            banner: Duration::from_millis(30),
        }
    }
}

/// One client that plays ping-pong, and then many that wait for a banner. The first makes the link that the others use.
fn cases(rounds: usize) -> Vec<Case> {
    let ping = Case {
        name: "ping-pong".to_owned(),
        client: vec![Options, Ping(rounds, 1), Fin, ReadEnd],
        server: Some(vec![Options, Pong(rounds, 1), ReadEnd, Close]),
    };
    let banner = Case {
        name: "banner".to_owned(),
        client: vec![Banner(1), Close],
        server: Some(vec![Send(1), ReadEnd, Close]),
    };
    std::iter::once(ping)
        .chain(std::iter::repeat_n(banner, BANNERS))
        .collect()
}

/// Of round trips and of banners.
fn p99(seen: &[Seen]) -> [Duration; 2] {
    let banners = seen[1..].iter().flat_map(|seen| seen.times.clone());
    [seen[0].times.clone(), banners.collect()].map(|mut times| {
        times.sort_unstable();
        times[times.len() * 99 / 100]
    })
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_trip_and_a_banner_take_hardly_longer_than_direct() {
    let _turn = alone().await;
    let bounds = bounds();
    let cases = cases(bounds.rounds);
    let (mut plain, mut fabric) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        plain.push(p99(&whole(direct(&cases, 1)).await));
        let through = async { Through::new(&cases).await.play(&cases, 1).await };
        fabric.push(p99(&whole(through).await));
    }
    for (index, (what, bound)) in [("round trip", bounds.round_trip), ("banner", bounds.banner)]
        .into_iter()
        .enumerate()
    {
        let of = |all: &[[Duration; 2]]| middle(all.iter().map(|times| times[index]).collect());
        let (plain, fabric) = (of(&plain), of(&fabric));
        println!("p99 of a {what}: {plain:?} direct, {fabric:?} through the fabric");
        assert!(
            fabric <= plain + bound,
            "{what}: {plain:?} direct, {fabric:?} through the fabric"
        );
    }
}
