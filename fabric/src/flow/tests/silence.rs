//! Legs that are suspected because nothing comes, and flows that are given up for it.

use std::time::Duration;

use bytes::Bytes;

use super::pair::{Pair, other_open};
use crate::flow::{Flow, FlowLimits, State};
use crate::wire::{Frame, Generation, Open, Protocol};

#[test]
fn a_leg_that_says_nothing_is_asked_and_then_left() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.write(Bytes::from_static(b"anybody there?"));
    pair.sent_by_consumer();
    let start = pair.now;
    let mut frames = Vec::new();
    while !pair.consumer.wants_leg() {
        let at = pair
            .consumer
            .next_timeout()
            .expect("the silence is watched");
        assert!(at <= start + Duration::from_secs(3));
        pair.consumer.tick(at);
        pair.now = at;
        frames.extend(pair.sent_by_consumer());
    }
    assert_eq!(
        (frames, pair.now - start),
        (vec![Frame::Ping], Duration::from_secs(3))
    );
    assert!(pair.consumer.is_suspected() && pair.consumer.has_leg());
    // It was only slow.
    let ack = Frame::Ack { recv: 14, limit: 0 };
    pair.consumer
        .receive(Generation(1), ack, pair.now)
        .expect("a good frame");
    assert!(!pair.consumer.wants_leg());
    assert_eq!(pair.consumer.next_timeout(), None);
}

#[test]
fn after_a_doubt_that_was_wrong_a_busy_flow_is_watched_as_before() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.write(Bytes::from_static(b"anybody there?"));
    pair.sent_by_consumer();
    let silent = |pair: &mut Pair| {
        while !pair.consumer.is_suspected() {
            pair.now = pair.consumer.next_timeout().expect("watched");
            pair.consumer.tick(pair.now);
            pair.sent_by_consumer();
        }
    };
    silent(&mut pair);
    // It was only slow, and there is always something under way.
    let ack = Frame::Ack { recv: 7, limit: 0 };
    pair.consumer
        .receive(Generation(1), ack, pair.now)
        .expect("a good frame");
    assert!(!pair.consumer.is_suspected());
    let heard = pair.now;
    silent(&mut pair);
    assert!(pair.now - heard <= Duration::from_secs(12));
}

#[test]
fn a_reader_that_stalls_is_not_taken_for_a_dead_leg() {
    let mut pair = Pair::new();
    pair.accepted();
    let start = pair.now;
    while pair.now < start + Duration::from_secs(60) {
        let room = pair.consumer.writable();
        pair.consumer.write(Bytes::from(vec![0; room]));
        pair.now += Duration::from_millis(20);
        pair.exchange();
        if pair
            .consumer
            .next_timeout()
            .is_some_and(|at| at <= pair.now)
        {
            pair.consumer.tick(pair.now);
        }
        assert!(!pair.consumer.is_suspected());
    }
    assert_eq!(pair.consumer.writable(), 0);
}

#[test]
fn a_resume_without_an_answer_is_left_too() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.lose_leg();
    let mut waited = Vec::new();
    for _ in 0..4 {
        pair.consumer.resume(pair.now).expect("a leg is wanted");
        pair.sent_by_consumer();
        assert!(!pair.consumer.wants_leg());
        let begun = pair.now;
        while !pair.consumer.wants_leg() {
            pair.now = pair.consumer.next_timeout().expect("watched");
            pair.consumer.tick(pair.now);
        }
        waited.push((pair.now - begun).as_secs());
    }
    assert_eq!(waited, [1, 2, 4, 8]);
    pair.resume();
    assert_eq!(*pair.consumer.state(), State::Attached(Generation(6)));
}

/// An open of an association.
fn packets() -> Open {
    Open {
        protocol: Protocol::Udp,
        ..other_open()
    }
}

#[test]
fn packets_that_had_no_answer_are_said_again_to_whoever_is_asked_next() {
    for expired in [false, true] {
        let mut pair = Pair::new();
        pair.consumer = Flow::initiate(packets(), FlowLimits::default());
        pair.consumer.write(Bytes::from_static(b"packet"));
        pair.exchange();
        if expired {
            pair.lose_leg();
            pair.consumer.tick(pair.now + Duration::from_secs(60));
        } else {
            assert!(pair.consumer.forsake());
        }
        assert!(pair.consumer.is_forsaken());
        assert!(pair.consumer.restart(packets()));
        pair.provider = None;
        pair.accepted();
        assert_eq!(pair.take_all(), b"packet");
        assert!(!pair.consumer.forsake(), "it was taken");
    }
}

#[test]
fn a_flow_without_a_leg_can_be_hurried_but_gets_no_more_time() {
    let mut pair = Pair::new();
    pair.accepted();
    let window = |pair: &Pair| pair.consumer.next_timeout().map(|at| at - pair.now);
    pair.consumer.hurry(pair.now);
    assert_eq!(window(&pair), None, "it has a leg");
    pair.lose_leg();
    for (by, left) in [(50, 50), (70, 50), (5, 5)] {
        pair.consumer.hurry(pair.now + Duration::from_secs(by));
        assert_eq!(window(&pair), Some(Duration::from_secs(left)));
    }
}
