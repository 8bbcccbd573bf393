use super::*;

const NOW: Now = Now {
    max: 1152,
    attached: true,
    accepted: true,
    has_leg: true,
    room: 1 << 16,
};

#[test]
fn small_packets_are_datagrams_and_large_ones_go_on_the_stream() {
    assert_eq!(way(0, NOW), Way::Datagram);
    assert_eq!(way(1152, NOW), Way::Datagram);
    assert_eq!(way(1153, NOW), Way::Stream);
    assert_eq!(way((1 << 16) - PREFIX, NOW), Way::Stream);
    assert_eq!(way((1 << 16) - PREFIX + 1, NOW), Way::Drop("queue"));
}

#[test]
fn before_the_answer_everything_goes_on_the_stream_and_without_a_leg_nothing_goes() {
    let opening = Now {
        attached: false,
        accepted: false,
        ..NOW
    };
    assert_eq!(way(10, opening), Way::Stream);
    let no_leg = Now {
        has_leg: false,
        ..NOW
    };
    assert_eq!(way(10, no_leg), Way::Drop("no_leg"));
    // The first packet waits for the first leg.
    let waiting = Now {
        has_leg: false,
        ..opening
    };
    assert_eq!(way(10, waiting), Way::Stream);
    let resuming = Now {
        attached: false,
        ..NOW
    };
    assert_eq!(way(10, resuming), Way::Stream);
}
