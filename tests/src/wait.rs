//! Waiting for a state, never for a moment: poll until it holds, with a bound.

use std::time::{Duration, Instant};

/// How often a state is looked at. Short enough that a test loses nothing by it, long enough to leave the CPU alone.
const POLL: Duration = Duration::from_millis(20);

/// What most states need at most on a machine that runs four scenarios at once. A test that waits longer has failed.
pub const SOON: Duration = Duration::from_secs(20);

/// Polls `probe` until it answers `Some`, and gives the answer back.
///
/// # Errors
/// After `bound`: `what` did not come true, with the last complaint of the probe.
pub fn until_some<T>(
    what: &str,
    bound: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(found) => return Ok(found),
            Err(complaint) if start.elapsed() >= bound => {
                anyhow::bail!("after {:.1?}: {what}: {complaint}", start.elapsed())
            }
            Err(_) => pause(POLL),
        }
    }
}

/// Polls `probe` until it holds.
///
/// # Errors
/// After `bound`: `what` did not come true.
pub fn until(what: &str, bound: Duration, mut probe: impl FnMut() -> bool) -> anyhow::Result<()> {
    until_some(what, bound, || {
        if probe() {
            Ok(())
        } else {
            Err("still not so".to_owned())
        }
    })
}

/// Lets `span` pass: for tests whose subject is time itself (a connection that idles, an outage that lasts).
pub fn pause(span: Duration) {
    let end = Instant::now() + span;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        std::thread::park_timeout(left);
    }
}
