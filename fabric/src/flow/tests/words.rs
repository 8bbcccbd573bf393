//! What an end that is cut still tells the other one, and for how long.

use std::time::Duration;

use bytes::Bytes;

use super::pair::Pair;
use crate::flow::{ABORT_LINGER, FlowLimits, State, TERMINATOR_GRACE};
use crate::wire::{AbortCode, Frame, GoneCode, RefuseCode};

#[test]
fn a_reset_during_an_outage_is_told_on_the_next_leg() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.lose_leg();
    pair.consumer.abort(AbortCode::Reset);
    assert!(pair.consumer.wants_leg());
    pair.resume();
    assert_eq!(*pair.provider().state(), State::Aborted(AbortCode::Reset));
    assert!(!pair.consumer.wants_leg());

    let mut pair = Pair::new();
    pair.accepted();
    pair.lose_leg();
    pair.provider().abort(AbortCode::BackendReset);
    let second = pair.consumer.resume(pair.now).expect("a leg is wanted");
    let Some(Frame::Resume(resume)) = pair.consumer.transmit(second, pair.now) else {
        panic!("no RESUME")
    };
    let now = pair.now;
    assert_eq!(pair.provider().attach(&resume, now), Ok(()));
    pair.exchange();
    assert_eq!(
        *pair.consumer.state(),
        State::Aborted(AbortCode::BackendReset)
    );
}

#[test]
fn bytes_before_a_reset_during_an_outage_arrive_and_so_does_the_end_of_file() {
    for finished in [false, true] {
        let mut pair = Pair::new();
        pair.accepted();
        pair.lose_leg();
        pair.consumer.write(Bytes::from_static(b"last words"));
        if finished {
            pair.consumer.finish();
        }
        pair.consumer.abort(AbortCode::Reset);
        assert_eq!(*pair.consumer.state(), State::Aborted(AbortCode::Reset));
        // The ABORT is sent, and lost with this leg.
        pair.resume_and_lose();
        assert!(pair.consumer.is_telling() && pair.consumer.wants_leg());
        pair.resume();
        assert_eq!(pair.take_all(), b"last words");
        assert_eq!(pair.provider().at_eof(), finished);
        if finished {
            pair.provider().abort(AbortCode::Reset);
        }
        assert_eq!(*pair.provider().state(), State::Aborted(AbortCode::Reset));
        let generation = pair.consumer.generation();
        pair.consumer.leg_finished(generation);
        assert!(!pair.consumer.is_telling() && pair.consumer.stats().buffered == 0);
    }
}

#[test]
fn a_reset_that_a_router_refuses_is_told_again() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.lose_leg();
    pair.consumer.abort(AbortCode::Reset);
    let second = pair.consumer.resume(pair.now).expect("a leg is wanted");
    assert_eq!(
        pair.sent_by_consumer().len(),
        1,
        "nothing behind the RESUME"
    );
    let refusal = Frame::Refuse {
        code: RefuseCode::NoProvider,
        text: String::new(),
    };
    pair.consumer
        .receive(second, refusal, pair.now)
        .expect("only the leg is of no use");
    assert!(pair.consumer.is_telling() && pair.consumer.wants_leg());
    pair.resume();
    assert_eq!(*pair.provider().state(), State::Aborted(AbortCode::Reset));
}

#[test]
fn a_reset_that_cannot_be_told_is_given_up_with_the_window() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.lose_leg();
    pair.consumer.abort(AbortCode::Reset);
    let end = pair.now + FlowLimits::default().resume_window;
    assert_eq!(pair.consumer.next_timeout(), Some(end));
    pair.consumer.tick(end);
    assert!(!pair.consumer.wants_leg());
    assert_eq!(
        (pair.consumer.next_timeout(), pair.consumer.resume(end)),
        (None, None)
    );
}

#[test]
fn the_windows_end_at_the_initiator_first() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.lose_leg();
    let window = FlowLimits::default().resume_window;
    let end = pair.now + window;
    assert_eq!(pair.consumer.next_timeout(), Some(end));
    pair.consumer.tick(end);
    assert_eq!(
        *pair.consumer.state(),
        State::Aborted(AbortCode::WindowExpired)
    );
    pair.provider().tick(end);
    assert!(matches!(pair.provider().state(), State::Detached { .. }));
    pair.provider().tick(end + TERMINATOR_GRACE);
    assert_eq!(
        *pair.provider().state(),
        State::Aborted(AbortCode::WindowExpired)
    );
    assert_eq!(pair.finished().code, GoneCode::Expired);
}

#[test]
fn a_reset_that_has_not_left_when_its_leg_is_lost_goes_over_the_next_one() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.write(Bytes::from_static(b"last words"));
    pair.consumer.abort(AbortCode::Reset);
    // The leg has taken nothing.
    pair.lose_leg();
    let end = pair.now + FlowLimits::default().resume_window;
    assert!(pair.consumer.is_telling() && pair.consumer.wants_leg());
    assert_eq!(pair.consumer.next_timeout(), Some(end));
    pair.resume();
    assert_eq!(pair.take_all(), b"last words");
    assert_eq!(*pair.provider().state(), State::Aborted(AbortCode::Reset));

    let mut pair = Pair::new();
    pair.accepted();
    pair.provider().write(Bytes::from_static(b"last words"));
    pair.provider().abort(AbortCode::BackendReset);
    pair.lose_leg();
    pair.resume();
    let bytes = pair.consumer.readable().flat_map(|chunk| chunk.to_vec());
    assert_eq!(bytes.collect::<Vec<_>>(), b"last words");
    pair.consumer.consumed(10);
    assert_eq!(
        *pair.consumer.state(),
        State::Aborted(AbortCode::BackendReset)
    );
}

#[test]
fn what_cannot_be_told_for_a_window_is_told_no_more() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.abort(AbortCode::Limit);
    pair.lose_leg();
    let end = pair.now + FlowLimits::default().resume_window;
    pair.consumer.tick(end);
    assert!(!pair.consumer.is_telling() && !pair.consumer.wants_leg());
    assert_eq!(pair.consumer.resume(end), None);
}

#[test]
fn a_terminator_that_cannot_tell_does_not_wait() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.provider().abort(AbortCode::Limit);
    pair.lose_leg();
    assert!(!pair.provider().is_telling());
    assert_eq!(pair.provider().next_timeout(), None);
}

#[test]
fn a_window_that_ends_while_a_resume_is_under_way_ends_at_both() {
    for answered in [false, true] {
        let mut pair = Pair::new();
        pair.accepted();
        pair.lose_leg();
        let end = pair.now + FlowLimits::default().resume_window;
        pair.consumer.resume(pair.now).expect("a leg is wanted");
        for frame in pair.sent_by_consumer() {
            pair.deliver(frame);
        }
        assert!(matches!(pair.provider().state(), State::Attached(_)));
        pair.consumer.tick(end);
        assert_eq!(
            *pair.consumer.state(),
            State::Aborted(AbortCode::WindowExpired)
        );
        if answered {
            pair.exchange();
        } else {
            let said = pair.sent_by_consumer();
            assert!(matches!(said[..], [Frame::Abort { .. }]), "{said:?}");
            said.into_iter().for_each(|frame| pair.deliver(frame));
        }
        assert!(!pair.consumer.is_telling() && !pair.consumer.wants_leg());
        assert_eq!(
            *pair.provider().state(),
            State::Aborted(AbortCode::WindowExpired)
        );
    }
    // A leg that was lost at that moment is the last one.
    let mut pair = Pair::new();
    pair.accepted();
    pair.lose_leg();
    let second = pair.consumer.resume(pair.now).expect("a leg is wanted");
    let end = pair.now + FlowLimits::default().resume_window;
    pair.consumer.tick(end);
    pair.consumer.leg_lost(second, end);
    assert!(!pair.consumer.is_telling() && !pair.consumer.wants_leg());
}

#[test]
fn who_leaves_a_leg_that_waits_says_so() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.lose_leg();
    pair.consumer.write(Bytes::from_static(b"late"));
    pair.consumer.resume(pair.now).expect("a leg is wanted");
    let header = pair.sent_by_consumer();
    header.into_iter().for_each(|frame| pair.deliver(frame));
    pair.consumer.abort(AbortCode::Reset);
    assert_eq!(pair.sent_by_consumer(), []);
    pair.consumer.hurry_abort();
    let said = pair.sent_by_consumer();
    assert!(matches!(said[..], [Frame::Abort { .. }]), "{said:?}");
    said.into_iter().for_each(|frame| pair.deliver(frame));
    assert_eq!(
        *pair.provider().state(),
        State::Aborted(AbortCode::Shutdown)
    );
}

#[test]
fn bytes_before_a_reset_have_their_time_from_when_nothing_else_holds_them() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.provider().write(Bytes::from_static(b"slowly"));
    pair.provider().abort(AbortCode::BackendReset);
    pair.exchange();
    let later = pair.now + ABORT_LINGER - Duration::from_millis(1);
    pair.consumer.linger(later);
    pair.consumer.tick(pair.now + ABORT_LINGER);
    assert!(matches!(pair.consumer.state(), State::Aborting { .. }));
    pair.consumer.tick(later + ABORT_LINGER);
    assert_eq!(
        *pair.consumer.state(),
        State::Aborted(AbortCode::BackendReset)
    );
}
