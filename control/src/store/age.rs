//! Which events are old, by a clock that nobody sets.
//!
//! An event has the time of the clock at its commit, which is of use only for what was there before this process: a clock that is
//! set a day ahead must not make a day's history old at once, and one that is set back must not keep it for ever.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::Revision;

/// Marks that are kept for one time of keeping; so much later, by parts of that time, events may be found old.
const MARKS: u32 = 64;

pub(super) struct Age {
    keep_for: Duration,
    /// Revisions that were there, and since when, as far as they are not old.
    marks: VecDeque<(Instant, Revision)>,
    old: Revision,
    /// What was there when this process began.
    found: Revision,
}

/// Which events are old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Old {
    /// All up to here.
    pub(super) upto: Revision,
    /// Up to here those of which the clock says so.
    pub(super) found: Revision,
}

impl Age {
    pub(super) fn new(keep_for: Duration, found: Revision) -> Self {
        Self {
            keep_for,
            marks: VecDeque::new(),
            old: Revision(0),
            found,
        }
    }

    /// Which events are old `now`, when those up to `current` are there.
    pub(super) fn look(&mut self, now: Instant, current: Revision) -> Old {
        let last = self.marks.back();
        if last.is_none_or(|(at, _)| now.duration_since(*at) >= self.keep_for / MARKS) {
            self.marks.push_back((now, current));
        }
        while let Some((at, revision)) = self.marks.front()
            && now.duration_since(*at) >= self.keep_for
        {
            self.old = *revision;
            self.marks.pop_front();
        }
        Old {
            upto: self.old,
            found: self.found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_long_enough_is_old() {
        let start = Instant::now();
        let mut age = Age::new(Duration::from_secs(3600), Revision(7));
        let mut upto = |seconds, current| {
            let now = start + Duration::from_secs(seconds);
            let old = age.look(now, Revision(current));
            assert!(age.marks.len() <= 65, "{} marks", age.marks.len());
            assert_eq!(old.found, Revision(7));
            old.upto.0
        };
        assert_eq!(upto(0, 10), 0);
        for second in 1..3600 {
            assert_eq!(upto(second, 10 + second), 0, "{second}");
        }
        assert_eq!(upto(3600, 5000), 10);
        assert!((3600 - 57 + 10..=3600 + 10).contains(&upto(7200, 6000)));
        assert_eq!(upto(20_000, 7000), 6000);
    }
}
