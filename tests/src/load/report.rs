//! What became of the connections of a load.

use std::fmt;
use std::time::Duration;

use super::stream::End;

/// When no byte came for 100 ms and more: from when, since the start of the load, and for how long.
pub(super) type Pause = (Duration, Duration);

/// What became of one connection.
#[derive(Debug, Clone)]
pub struct Seen {
    /// How both directions ended: as what came back, and if that was exact, as what came to the server.
    pub end: End,
    /// When it ended, from the start of the load.
    pub at: Duration,
    /// Pauses in either direction.
    pub pauses: Vec<(Duration, Duration)>,
}

/// What became of all connections of a load.
#[derive(Debug, Clone)]
pub struct Report {
    /// Each connection.
    pub flows: Vec<Seen>,
    /// Bytes that came back, right ones only.
    pub arrived: u64,
    /// Bytes that were sent.
    pub sent: u64,
}

impl Report {
    /// How many connections ended so.
    #[must_use]
    pub fn count(&self, end: End) -> usize {
        self.flows.iter().filter(|flow| flow.end == end).count()
    }

    /// Every connection carried every byte and ended cleanly.
    ///
    /// # Errors
    /// How the others ended.
    pub fn exact(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.count(End::Exact) == self.flows.len(), "{self}");
        Ok(())
    }

    /// Every connection carried exact bytes to its end or to a reset.
    ///
    /// # Errors
    /// How the others ended.
    pub fn honest(&self) -> anyhow::Result<()> {
        let honest = self.count(End::Exact) + self.count(End::Reset);
        anyhow::ensure!(honest == self.flows.len(), "{self}");
        Ok(())
    }

    /// The pause that this part of all pauses of 100 ms and more do not exceed (0.99: the 99th percentile); 1.0 is the
    /// longest.
    #[must_use]
    pub fn stall(&self, part: f64) -> Duration {
        let pauses = self.flows.iter().flat_map(|flow| &flow.pauses);
        percentile(pauses.map(|(_, pause)| *pause).collect(), part)
    }

    /// The same of the longest pause that each connection had after each of these times, which are from the start of the load
    /// and in order: among all pauses those that harm nobody hide a few that are far too long. A pause belongs to the last
    /// time before its end.
    #[must_use]
    pub fn stall_after(&self, times: &[Duration], part: f64) -> Duration {
        let mut longest = Vec::new();
        for flow in &self.flows {
            let mut after = vec![None; times.len()];
            for &(began, pause) in &flow.pauses {
                let before = times.partition_point(|time| *time < began + pause);
                if let Some(one) = before.checked_sub(1).and_then(|index| after.get_mut(index)) {
                    *one = (*one).max(Some(pause));
                }
            }
            longest.extend(after.into_iter().flatten());
        }
        percentile(longest, part)
    }
}

fn percentile(mut pauses: Vec<Duration>, part: f64) -> Duration {
    pauses.sort_unstable();
    let place = (pauses.len() as f64 * part).ceil() as usize;
    pauses
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let odd = self.flows.iter().filter(|flow| flow.end != End::Exact);
        let mut odd: Vec<_> = odd
            .map(|flow| format!("{:?} at {:.1?}", flow.end, flow.at))
            .collect();
        let count = odd.len();
        odd.truncate(8);
        write!(
            f,
            "{} flows, {count} not exact {odd:?}; {} bytes came back of {} sent out; pauses: p50 {:.0?}, p99 {:.0?}, longest {:.0?}",
            self.flows.len(),
            self.arrived,
            self.sent,
            self.stall(0.5),
            self.stall(0.99),
            self.stall(1.0)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_pauses_the_longest_after_each_time_counts() {
        let millis = Duration::from_millis;
        // A hundred short pauses on each connection, and one that is far too long after the second time.
        let flow = |long| {
            let mut pauses: Vec<_> = (0..100).map(|n| (millis(n * 200), millis(150))).collect();
            pauses.push((millis(11_990), millis(long)));
            Seen {
                end: End::Exact,
                at: millis(30_000),
                pauses,
            }
        };
        let report = Report {
            flows: vec![flow(500), flow(9000)],
            arrived: 0,
            sent: 0,
        };
        let times = [millis(5000), millis(12_000)];
        assert_eq!(report.stall(0.99), millis(150), "hidden by the others");
        assert_eq!(report.stall_after(&times, 0.99), millis(9000));
        assert_eq!(report.stall_after(&times, 0.5), millis(150));
        assert_eq!(report.stall_after(&[], 0.99), Duration::ZERO);
    }
}
