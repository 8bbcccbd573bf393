use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn bytes_that_make_no_progress_for_a_second_are_a_stall_as_long_as_it_lasts() {
    let mut stall = Stall::default();
    let start = Instant::now();
    assert_eq!(stall.follow(true, 0, start), None);
    assert_eq!(stall.look, Some(start + STALL));
    assert_eq!(stall.follow(true, 0, start + 999 * MS), None);
    assert_eq!(
        stall.follow(true, 0, start + 1000 * MS),
        Some((true, 1000 * MS))
    );
    assert_eq!(stall.look, Some(start + 2000 * MS));
    assert_eq!(
        stall.follow(true, 0, start + 2500 * MS),
        Some((false, 1500 * MS))
    );
    assert_eq!(
        stall.follow(true, 9, start + 2600 * MS),
        Some((false, 100 * MS))
    );
    assert_eq!((stall.count, stall.time), (1, 2600 * MS));
    assert_eq!(stall.follow(false, 10, start + 9000 * MS), None);
    assert_eq!(stall.follow(true, 10, start + 9001 * MS), None);
    assert_eq!(
        stall.follow(true, 10, start + 11_000 * MS),
        Some((true, 1999 * MS))
    );
    assert_eq!(stall.count, 2);
}

#[test]
fn a_flow_that_moves_or_is_idle_never_stalls() {
    let mut stall = Stall::default();
    let start = Instant::now();
    for step in 0..100 {
        assert_eq!(
            stall.follow(true, step.into(), start + 900 * MS * step),
            None
        );
    }
    assert_eq!(stall.follow(false, 100, start + 90_000 * MS), None);
    assert_eq!(stall.follow(false, 100, start + 200_000 * MS), None);
    assert_eq!((stall.count, stall.look), (0, None));
}
