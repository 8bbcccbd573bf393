//! One flow over several legs.

use std::time::Duration;

use bytes::Bytes;

use super::pair::{Pair, other_open};
use crate::flow::{FlowLimits, State, TERMINATOR_GRACE, Violation};
use crate::wire::{AbortCode, Frame, Generation, GoneCode, Place, Proof, RefuseCode, Role};

#[test]
fn a_lost_last_word_is_repeated_from_the_record() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.finish();
    pair.provider().finish();
    pair.exchange_until(|frame| matches!(frame, Frame::Gone { .. }));
    assert_eq!(*pair.provider().state(), State::Done);
    assert_eq!(*pair.consumer.state(), State::Attached(Generation(1)));
    pair.consumer.leg_lost(Generation(1), pair.now);
    let second = pair.consumer.resume(pair.now).expect("a leg is wanted");
    let Some(Frame::Resume(resume)) = pair.consumer.transmit(second, pair.now) else {
        panic!("no RESUME")
    };
    let now = pair.now;
    assert_eq!(
        pair.provider().attach(&resume, now),
        Err(GoneCode::Complete)
    );
    let code = pair.finished().code;
    pair.consumer
        .receive(second, Frame::Gone { code }, now)
        .expect("a good answer");
    assert_eq!(*pair.consumer.state(), State::Done);
}

#[test]
fn an_open_that_never_left_is_the_first_one_on_the_next_leg() {
    let mut pair = Pair::new();
    pair.consumer.write(Bytes::from_static(b"early"));
    pair.consumer.leg_lost(Generation(1), pair.now);
    let generation = pair.consumer.resume(pair.now).expect("a leg is wanted");
    let frames = pair.sent_by_consumer();
    let [Frame::Open(open), Frame::Data { .. }] = &frames[..] else {
        panic!("early bytes ride along: {frames:?}")
    };
    assert_eq!(
        (generation, open.generation),
        (Generation(1), Generation(1))
    );
    frames.into_iter().for_each(|frame| pair.deliver(frame));
    pair.accepted();
    assert_eq!(pair.take_all(), b"early");
}

#[test]
fn a_flow_without_a_window_is_cut_with_its_leg() {
    let limits = FlowLimits {
        resume_window: Duration::ZERO,
        ..FlowLimits::default()
    };
    let mut pair = Pair::with(limits);
    pair.accepted();
    pair.lose_leg();
    assert_eq!(
        *pair.consumer.state(),
        State::Aborted(AbortCode::WindowExpired)
    );
    assert_eq!(
        *pair.provider().state(),
        State::Aborted(AbortCode::WindowExpired)
    );
}

#[test]
fn an_open_whose_window_passes_goes_elsewhere_only_if_nothing_was_said() {
    for (window, said) in [(0, false), (0, true), (60, false), (60, true)] {
        let mut pair = Pair::with(FlowLimits {
            resume_window: Duration::from_secs(window),
            ..FlowLimits::default()
        });
        if said {
            pair.consumer.write(Bytes::from_static(b"early"));
        }
        pair.exchange();
        pair.lose_leg();
        pair.consumer.tick(pair.now + Duration::from_secs(window));
        let expired = State::Aborted(AbortCode::WindowExpired);
        assert_eq!(*pair.consumer.state(), expired);
        assert_eq!(pair.consumer.restart(other_open()), !said, "{window} s");
        if !said {
            pair.provider = None;
            pair.consumer.write(Bytes::from_static(b"hello"));
            pair.accepted();
            assert_eq!(pair.take_all(), b"hello");
            pair.lose_leg();
            pair.consumer.tick(pair.now + Duration::from_secs(window));
            assert!(!pair.consumer.restart(other_open()), "it was taken");
        }
    }
}

#[test]
fn an_open_without_an_answer_is_repeated_and_attached_once() {
    let mut pair = Pair::new();
    pair.consumer.write(Bytes::from_static(b"early"));
    pair.exchange();
    pair.lose_leg();
    assert!(
        !pair.consumer.restart(other_open()),
        "the provider may have dialled"
    );
    let second = pair.consumer.resume(pair.now).expect("a leg is wanted");
    let Some(Frame::Open(open)) = pair.consumer.transmit(second, pair.now) else {
        panic!("no OPEN")
    };
    assert_eq!(
        (open.generation, pair.consumer.transmit(second, pair.now)),
        (Generation(2), None)
    );
    let now = pair.now;
    pair.provider()
        .attach_open(&open, now)
        .expect("a known flow");
    pair.accepted();
    assert_eq!(pair.take_all(), b"early");
    assert_eq!(*pair.consumer.state(), State::Attached(second));
}

#[test]
fn forged_and_replayed_resumes_do_not_touch_the_leg() {
    let mut pair = Pair::new();
    pair.accepted();
    let now = pair.now;
    let forged = pair.forged_resume();
    assert_eq!(
        pair.provider().attach(&forged, now),
        Err(GoneCode::Forbidden)
    );
    assert_eq!(*pair.provider().state(), State::Attached(Generation(1)));

    pair.lose_leg();
    let replayed = pair.resume();
    assert_eq!(pair.provider().attach(&replayed, now), Err(GoneCode::Stale));
    let mut foreign = replayed;
    foreign.flow = other_open().flow;
    assert_eq!(
        pair.provider().attach(&foreign, now),
        Err(GoneCode::Unknown)
    );
    assert!(matches!(pair.provider().state(), State::Attached(_)));
}

#[test]
fn an_answer_without_a_proof_cuts_the_leg_and_not_the_flow() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.lose_leg();
    let second = pair.consumer.resume(pair.now).expect("a leg is wanted");
    pair.sent_by_consumer();
    let forged = Frame::Resumed {
        generation: second,
        recv: 0,
        limit: 0,
        proof: Proof::from_bytes([7; 32]),
        age: None,
    };
    assert_eq!(
        pair.consumer.receive(second, forged, pair.now),
        Err(Violation::Proof)
    );
    assert!(matches!(pair.consumer.state(), State::Detached { .. }) && pair.consumer.wants_leg());
}

#[test]
fn a_move_asks_for_a_leg_and_the_old_one_is_fenced() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.provider().request_move(Place::Elsewhere);
    pair.exchange();
    assert_eq!(pair.consumer.move_requested(), Some(Place::Elsewhere));
    assert!(pair.consumer.wants_leg());
    pair.resume();
    assert!(!pair.consumer.wants_leg());
    let now = pair.now;
    let stray = Frame::Data {
        offset: 99,
        bytes: Bytes::from_static(b"?"),
    };
    pair.provider()
        .receive(Generation(1), stray, now)
        .expect("ignored");
    assert_eq!(pair.provider().transmit(Generation(1), now), None);
    pair.provider().leg_lost(Generation(1), now);
    assert_eq!(*pair.provider().state(), State::Attached(Generation(2)));
}

#[test]
fn a_repeated_open_is_refused_by_the_provider_only() {
    let mut pair = Pair::new();
    pair.consumer.write(Bytes::from_static(b"early"));
    pair.exchange();
    pair.consumer.leg_lost(Generation(1), pair.now);
    let second = pair.consumer.resume(pair.now).expect("a leg is wanted");
    pair.sent_by_consumer();
    let refusal = || Frame::Refuse {
        code: RefuseCode::NoProvider,
        text: "not published here".to_owned(),
    };
    pair.consumer
        .receive(second, refusal(), pair.now)
        .expect("only the leg is of no use");
    assert!(matches!(pair.consumer.state(), State::Detached { .. }) && pair.consumer.wants_leg());
    assert!(!pair.consumer.restart(other_open()));

    // A provider that has taken the first one proves who it is, and may refuse.
    let third = pair.consumer.resume(pair.now).expect("a leg is wanted");
    let Some(Frame::Open(open)) = pair.consumer.transmit(third, pair.now) else {
        panic!("no OPEN")
    };
    let now = pair.now;
    let provider = pair.provider();
    provider.attach_open(&open, now).expect("a known flow");
    provider.refuse(RefuseCode::BackendRefused, "refused");
    let answers: Vec<_> = std::iter::from_fn(|| provider.transmit(third, now)).collect();
    let names: Vec<_> = answers.iter().map(Frame::name).collect();
    assert_eq!(names, ["RESUMED", "REFUSE"]);
    for frame in answers {
        let taken = pair.consumer.receive(third, frame, now);
        taken.expect("a good frame");
    }
    assert!(pair.consumer.restart(other_open()));
}

#[test]
fn only_a_process_that_is_older_than_the_flow_can_say_that_it_never_came() {
    for (early, age, may_restart) in [
        (&b"early"[..], 29_999, false),
        (b"early", 30_000, true),
        (b"", 0, true),
    ] {
        let mut pair = Pair::new();
        if !early.is_empty() {
            pair.consumer.write(Bytes::from_static(early));
        }
        pair.exchange();
        pair.consumer.leg_lost(Generation(1), pair.now);
        pair.now += Duration::from_secs(30);
        let second = pair.consumer.resume(pair.now).expect("a leg is wanted");
        let Some(Frame::Open(open)) = pair.consumer.transmit(second, pair.now) else {
            panic!("no OPEN")
        };
        let resumed = Frame::Resumed {
            generation: second,
            recv: 0,
            limit: 0,
            proof: open.secret.prove(open.flow, second, Role::Terminator),
            age: Some(age),
        };
        let refuse = Frame::Refuse {
            code: RefuseCode::NeverArrived,
            text: String::new(),
        };
        for frame in [resumed, refuse] {
            let taken = pair.consumer.receive(second, frame, pair.now);
            taken.expect("a good frame");
        }
        assert_eq!(pair.consumer.restart(other_open()), may_restart, "{age}");
        let cut = State::Aborted(AbortCode::PeerGone);
        assert_eq!(*pair.consumer.state() == cut, !may_restart, "{age}");
    }
}

#[test]
fn without_a_window_nothing_is_kept_and_only_credit_is_acknowledged() {
    let limits = FlowLimits {
        resume_window: Duration::ZERO,
        ..FlowLimits::default()
    };
    let mut pair = Pair::with(limits);
    pair.consumer.write(Bytes::from(vec![1; 1000]));
    pair.exchange();
    // Another provider may still get them.
    assert_eq!(pair.consumer.stats().buffered, 1000);
    pair.accepted();
    assert_eq!(pair.consumer.stats().buffered, 0);
    for round in 0..200u64 {
        pair.consumer.write(Bytes::from(vec![2; 2000]));
        for frame in pair.sent_by_consumer() {
            pair.deliver(frame);
        }
        assert_eq!(pair.consumer.stats().buffered, 0);
        pair.take_all();
        pair.now += Duration::from_millis(20);
        let now = pair.now;
        let provider = pair.provider();
        if let Some(frame) = provider.transmit(provider.generation(), now) {
            // The window is 256 KiB, and credit is given once half of it is used.
            assert!(
                matches!(frame, Frame::Ack { .. }) && round > 60,
                "{round}: {frame:?}"
            );
            pair.consumer
                .receive(Generation(1), frame, now)
                .expect("a good frame");
        }
    }
    pair.consumer.finish();
    pair.provider().finish();
    pair.exchange();
    assert_eq!(pair.take_all(), b"");
    assert_eq!(pair.states(), (State::Done, State::Done));
}

#[test]
fn a_flow_that_one_end_does_not_keep_goes_on_only_if_nothing_was_on_its_way() {
    let limits = FlowLimits {
        resume_window: Duration::ZERO,
        ..FlowLimits::default()
    };
    for lost in [false, true] {
        let mut pair = Pair::new();
        pair.exchange_first(limits);
        // An earlier version does not tell, or does not hear it.
        pair.consumer.limits = FlowLimits::default();
        pair.provider().write(Bytes::from_static(b"bytes"));
        if lost {
            let now = pair.now;
            pair.provider().transmit(Generation(1), now);
        } else {
            pair.exchange();
        }
        let second = pair.consumer.resume(pair.now).expect("the flow is kept");
        let Some(Frame::Resume(resume)) = pair.consumer.transmit(second, pair.now) else {
            panic!("no RESUME")
        };
        let now = pair.now;
        let attached = pair.provider().attach(&resume, now);
        let expected = if lost { Err(GoneCode::Expired) } else { Ok(()) };
        assert_eq!(attached, expected);
    }
}

#[test]
fn the_shorter_window_of_both_ends_is_that_of_both() {
    for (own, other, until) in [(60, 600, 60), (600, 60, 60), (60, 0, 0), (0, 60, 0)] {
        let limits = |seconds| FlowLimits {
            resume_window: Duration::from_secs(seconds),
            ..FlowLimits::default()
        };
        let mut pair = Pair::with(limits(own));
        pair.exchange_first(limits(other));
        pair.consumer.write(Bytes::from_static(b"bytes"));
        pair.consumer.transmit(Generation(1), pair.now);
        let kept = usize::from(until > 0) * 5;
        assert_eq!(pair.consumer.stats().buffered, kept);
        pair.consumer.leg_lost(Generation(1), pair.now);
        let expected = match until {
            0 => State::Aborted(AbortCode::WindowExpired),
            seconds => State::Detached {
                until: pair.now + Duration::from_secs(seconds),
            },
        };
        assert_eq!(*pair.consumer.state(), expected);
        // The provider's end waits longer, but not for what nobody will come back for.
        let now = pair.now;
        pair.provider().leg_lost(Generation(1), now);
        let expected = match until {
            0 => State::Aborted(AbortCode::WindowExpired),
            seconds => State::Detached {
                until: now + Duration::from_secs(seconds) + TERMINATOR_GRACE,
            },
        };
        assert_eq!(*pair.provider().state(), expected);
    }
}
