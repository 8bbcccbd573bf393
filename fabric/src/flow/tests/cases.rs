//! One flow over one leg.

use std::time::Duration;

use bytes::Bytes;

use super::pair::{Pair, other_open};
use crate::flow::{ABORT_LINGER, Flow, FlowLimits, State};
use crate::wire::{AbortCode, EARLY, Frame, Generation, GoneCode, RefuseCode};

#[test]
fn open_leaves_at_once_with_the_early_bytes() {
    let mut pair = Pair::new();
    assert_eq!(pair.consumer.writable() as u64, EARLY);
    pair.consumer.write(Bytes::from_static(b"hello"));
    let frames = pair.sent_by_consumer();
    assert!(
        matches!(&frames[..], [Frame::Open(_), Frame::Data { offset: 0, .. }]),
        "{frames:?}"
    );
    assert_eq!(pair.consumer.writable() as u64, EARLY - 5);
}

#[test]
fn early_bytes_are_held_until_the_backend_is_there() {
    let mut pair = Pair::new();
    pair.consumer.write(Bytes::from_static(b"hello"));
    pair.consumer.finish();
    pair.exchange();
    assert_eq!(pair.provider().readable().count(), 0);
    assert!(!pair.provider().at_eof());
    pair.provider().accept(0);
    assert_eq!(pair.provider().readable().map(Bytes::len).sum::<usize>(), 5);
    pair.provider().consumed(5);
    assert!(pair.provider().at_eof());
}

#[test]
fn a_refused_open_goes_elsewhere_with_the_same_bytes() {
    let mut pair = Pair::new();
    pair.consumer.write(Bytes::from_static(b"hello"));
    pair.consumer.finish();
    pair.exchange();
    pair.provider()
        .refuse(RefuseCode::BackendRefused, "connection refused");
    pair.exchange();
    let refused = State::Refused {
        code: RefuseCode::BackendRefused,
        text: "connection refused".into(),
    };
    assert_eq!(*pair.consumer.state(), refused);
    assert_eq!(pair.provider().readable().count(), 0);

    assert!(pair.consumer.restart(other_open()));
    pair.provider = None;
    pair.accepted();
    assert_eq!(pair.take_all(), b"hello");
    assert!(pair.provider().at_eof());
    assert!(
        !pair.consumer.restart(other_open()),
        "after ACCEPT only a resume is allowed"
    );
}

#[test]
fn half_closes_in_both_orders_end_in_done() {
    for consumer_first in [true, false] {
        let mut pair = Pair::new();
        pair.accepted();
        if consumer_first {
            pair.consumer.finish();
            pair.exchange();
            assert!(
                pair.provider().at_eof()
                    && *pair.provider().state() == State::Attached(Generation(1))
            );
        }
        pair.provider().write(Bytes::from_static(b"answer"));
        pair.provider().finish();
        pair.exchange();
        assert_eq!(pair.consumer.readable().next().map(Bytes::len), Some(6));
        pair.consumer.consumed(6);
        assert!(pair.consumer.at_eof());
        pair.consumer.finish();
        pair.exchange();
        assert_eq!(pair.states(), (State::Done, State::Done));
        assert_eq!(pair.finished().code, GoneCode::Complete);
    }
}

#[test]
fn a_slow_application_keeps_draining_without_a_leg_or_a_limit() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.write(Bytes::from_static(b"last words"));
    pair.consumer.finish();
    pair.provider().finish();
    pair.exchange();
    assert_eq!(pair.states(), (State::Done, State::Draining));
    let later = pair.now + Duration::from_secs(86_400);
    pair.provider().leg_lost(Generation::FIRST, later);
    pair.provider().tick(later);
    assert_eq!(pair.take_all(), b"last words");
    assert_eq!(*pair.provider().state(), State::Done);
}

#[test]
fn bytes_before_a_reset_are_delivered_and_no_end_of_file() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.write(Bytes::from_static(b"half a requ"));
    pair.consumer.abort(AbortCode::Reset);
    assert_eq!(*pair.consumer.state(), State::Aborted(AbortCode::Reset));
    pair.exchange();
    assert!(matches!(
        pair.provider().state(),
        State::Aborting {
            code: AbortCode::Reset,
            ..
        }
    ));
    assert_eq!(pair.provider().writable(), 0);
    assert_eq!(pair.take_all(), b"half a requ");
    assert!(!pair.provider().at_eof());
    assert_eq!(*pair.provider().state(), State::Aborted(AbortCode::Reset));
}

#[test]
fn an_application_that_never_reads_is_reset_all_the_same() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.write(Bytes::from_static(b"x"));
    pair.consumer.abort(AbortCode::Reset);
    pair.exchange();
    let late = pair.now + ABORT_LINGER;
    assert_eq!(pair.provider().next_timeout(), Some(late));
    pair.provider().tick(late);
    assert_eq!(*pair.provider().state(), State::Aborted(AbortCode::Reset));
    assert_eq!(pair.provider().readable().count(), 0);
}

#[test]
fn impossible_numbers_abort_the_flow_at_both_ends() {
    let data = |offset, len| Frame::Data {
        offset,
        bytes: Bytes::from(vec![0; len]),
    };
    let frames = [
        data(1, 10),
        data(0, 257 * 1024),
        Frame::Ack { recv: 1, limit: 0 },
        Frame::Fin { offset: 1 },
        Frame::Gone {
            code: GoneCode::Complete,
        },
        Frame::Accept {
            limit: 0,
            max_datagram: 0,
            window: None,
        },
        Frame::Open(Box::new(other_open())),
    ];
    for frame in frames {
        let mut pair = Pair::new();
        pair.accepted();
        let now = pair.now;
        let name = frame.name();
        pair.provider()
            .receive(Generation(1), frame, now)
            .expect_err(name);
        assert_eq!(
            *pair.provider().state(),
            State::Aborted(AbortCode::Protocol),
            "{name}"
        );
        pair.exchange();
        assert_eq!(
            *pair.consumer.state(),
            State::Aborted(AbortCode::Protocol),
            "{name}"
        );
    }
}

#[test]
fn acks_wait_for_64_kib_or_20_ms_and_the_fin_for_nothing() {
    let mut pair = Pair::new();
    pair.accepted();
    let now = pair.now;
    let data = |offset: u64, len| Frame::Data {
        offset,
        bytes: Bytes::from(vec![0; len]),
    };
    pair.provider()
        .receive(Generation(1), data(0, 100), now)
        .expect("in order");
    assert_eq!(pair.provider().transmit(Generation(1), now), None);
    let due = now + Duration::from_millis(20);
    assert_eq!(pair.provider().next_timeout(), Some(due));
    pair.provider().tick(due);
    // The leg may take nothing for long; the driver must not spin meanwhile.
    assert_eq!(pair.provider().next_timeout(), None);
    assert!(matches!(
        pair.provider().transmit(Generation(1), due),
        Some(Frame::Ack { recv: 100, .. })
    ));
    assert_eq!(pair.provider().next_timeout(), None);

    pair.provider()
        .receive(Generation(1), data(100, 65_536), due)
        .expect("in order");
    assert!(matches!(
        pair.provider().transmit(Generation(1), due),
        Some(Frame::Ack { recv: 65_636, .. })
    ));
    pair.provider()
        .receive(Generation(1), data(65_636, 5), due)
        .expect("in order");
    pair.provider().write(Bytes::from_static(b"answer"));
    assert!(
        matches!(
            pair.provider().transmit(Generation(1), due),
            Some(Frame::Ack { recv: 65_641, .. })
        ),
        "rides along"
    );
    pair.provider()
        .receive(Generation(1), Frame::Fin { offset: 65_641 }, due)
        .expect("in order");
    assert!(matches!(
        pair.provider().transmit(Generation(1), due),
        Some(Frame::Ack { recv: 65_642, .. })
    ));
}

#[test]
fn a_slow_reader_gives_credit_bit_by_bit() {
    let mut pair = Pair::new();
    pair.accepted();
    let (now, window) = (pair.now, FlowLimits::default().window);
    let all = Frame::Data {
        offset: 0,
        bytes: Bytes::from(vec![0; window]),
    };
    let provider = pair.provider();
    provider.receive(Generation(1), all, now).expect("in order");
    provider.transmit(Generation(1), now);
    provider.consumed(1000);
    assert_eq!(provider.transmit(Generation(1), now), None);
    let due = now + Duration::from_millis(20);
    assert_eq!(provider.next_timeout(), Some(due));
    let (recv, limit) = (window as u64, window as u64 + 1000);
    let ack = provider.transmit(Generation(1), due);
    assert_eq!(ack, Some(Frame::Ack { recv, limit }));
}

#[test]
fn windows_grow_with_use_and_never_past_the_maximum() {
    let limits = FlowLimits::default();
    let mut pair = Pair::with(limits);
    pair.accepted();
    let (mut most, mut narrow) = (0, 0);
    for _ in 0..40 {
        // A slow network and fast applications: everything that may be sent is sent before anything is acknowledged.
        let room = pair.consumer.writable();
        most = most.max(room);
        pair.consumer.write(Bytes::from(vec![0; room]));
        let frames = pair.sent_by_consumer();
        for frame in frames {
            pair.deliver(frame);
        }
        pair.take_all();
        if pair.provider().take_narrow() {
            assert_eq!(most, limits.max_window);
            narrow += 1;
        }
        pair.exchange();
    }
    assert_eq!((most, narrow), (limits.max_window, 1));
    pair.consumer.set_max_window(1000);
    assert!(pair.consumer.writable() <= 1000);
}

#[test]
fn a_ping_is_answered_at_once() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.ping();
    for frame in pair.sent_by_consumer() {
        pair.deliver(frame);
    }
    let now = pair.now;
    assert!(matches!(
        pair.provider().transmit(Generation(1), now),
        Some(Frame::Ack { .. })
    ));
}

#[test]
fn an_idle_flow_is_small_and_wakes_nobody() {
    let mut pair = Pair::new();
    pair.accepted();
    pair.consumer.write(Bytes::from(vec![1; 10_000]));
    pair.exchange();
    pair.take_all();
    pair.now += Duration::from_millis(20);
    pair.exchange();
    for flow in [&mut pair.consumer, pair.provider.as_mut().expect("opened")] {
        assert_eq!((flow.next_timeout(), flow.stats().buffered), (None, 0));
    }
    assert!(
        size_of::<Flow>() <= 640,
        "a flow takes {} bytes",
        size_of::<Flow>()
    );
}
