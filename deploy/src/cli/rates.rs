//! What flows through a node's Router at this moment: two looks at its counters, and what lies between them.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_control::enroll::wire::FlowInfo;
use serde::Serialize;

use super::table::{render, size};

/// Rows of the table: those that move most. JSON has all.
const ROWS: usize = 20;

/// One service's flows per second, of all its peers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rate {
    pub(super) service: String,
    pub(super) role: String,
    /// Flows now.
    pub(super) active: u64,
    pub(super) started_per_second: f64,
    pub(super) bytes_up_per_second: f64,
    pub(super) bytes_down_per_second: f64,
}

impl Rate {
    fn moves(&self) -> f64 {
        self.bytes_up_per_second + self.bytes_down_per_second + self.started_per_second
    }
}

/// Flows started, bytes up, bytes down, flows now.
type Sums = [u64; 4];

fn sums(flows: &[FlowInfo]) -> BTreeMap<(&str, &str), Sums> {
    let mut all: BTreeMap<_, Sums> = BTreeMap::new();
    for flow in flows {
        let sums = all
            .entry((flow.service.as_str(), flow.role.as_str()))
            .or_default();
        let started = flow.started.unwrap_or_default();
        let these = [started, flow.bytes_up, flow.bytes_down, flow.active];
        for (sum, this) in sums.iter_mut().zip(these) {
            *sum += this;
        }
    }
    all
}

/// What happened between two looks that are `span` apart, of services that have flows or had some in between; those that
/// move most first.
pub(super) fn between(before: &[FlowInfo], now: &[FlowInfo], span: Duration) -> Vec<Rate> {
    let before = sums(before);
    let mut rates = Vec::new();
    for ((service, role), [started, up, down, active]) in sums(now) {
        let then = before.get(&(service, role)).copied().unwrap_or_default();
        // A counter never goes back, but for a node that was started again in between.
        let rate = |now: u64, then: u64| {
            now.saturating_sub(then) as f64 / span.as_secs_f64().max(f64::EPSILON)
        };
        let rate = Rate {
            service: service.to_owned(),
            role: role.to_owned(),
            active,
            started_per_second: rate(started, then[0]),
            bytes_up_per_second: rate(up, then[1]),
            bytes_down_per_second: rate(down, then[2]),
        };
        if active > 0 || rate.moves() > 0.0 {
            rates.push(rate);
        }
    }
    // Stable, so that services that move nothing stay in the order of their names.
    rates.sort_by(|one, other| other.moves().total_cmp(&one.moves()));
    rates
}

/// The services that move most, as a table.
pub(super) fn table(rates: &[Rate]) -> String {
    let rows: Vec<_> = rates.iter().take(ROWS).map(row).collect();
    let header = ["SERVICE", "ROLE", "ACTIVE", "NEW/S", "UP/S", "DOWN/S"];
    let mut text = render(&header, &rows);
    if rates.len() > ROWS {
        text.push_str(&format!(
            "and {} more: keel status -o json\n",
            rates.len() - ROWS
        ));
    }
    text
}

fn row(rate: &Rate) -> Vec<String> {
    let bytes = |per_second: f64| size(per_second.round() as u64);
    vec![
        rate.service.clone(),
        rate.role.clone(),
        rate.active.to_string(),
        format!("{:.1}", rate.started_per_second),
        bytes(rate.bytes_up_per_second),
        bytes(rate.bytes_down_per_second),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(service: &str, peer: &str, active: u64, started: u64, bytes: u64) -> FlowInfo {
        FlowInfo {
            role: "router".into(),
            service: service.into(),
            peer: peer.into(),
            active,
            started: Some(started),
            bytes_up: bytes,
            bytes_down: bytes * 1000,
            ..FlowInfo::default()
        }
    }

    #[test]
    fn rates_are_what_lies_between_two_looks_per_service() {
        let before = [
            flow("a", "x", 1, 5, 100),
            flow("quiet", "x", 1, 1, 7),
            flow("over", "x", 0, 9, 9),
        ];
        let now = [
            flow("a", "x", 1, 7, 300),
            flow("a", "y", 1, 4, 1000),
            flow("quiet", "x", 1, 1, 7),
            flow("over", "x", 0, 9, 9),
            flow("new", "x", 0, 1, 4),
        ];
        let rates = between(&before, &now, Duration::from_secs(2));
        assert_eq!(
            table(&rates),
            "\
SERVICE   ROLE     ACTIVE   NEW/S   UP/S    DOWN/S
a         router   2        3.0     600 B   600.0 kB
new       router   0        0.5     2 B     2.0 kB
quiet     router   1        0.0     0 B     0 B
"
        );
        let again = between(&now, &before, Duration::from_secs(2));
        assert!(again.iter().all(|rate| rate.moves() == 0.0), "{again:?}");
    }

    #[test]
    fn many_services_are_counted() {
        let now: Vec<_> = (0..23)
            .map(|number| flow(&format!("s{number}"), "x", 1, 1, number))
            .collect();
        let text = table(&between(&[], &now, Duration::from_secs(1)));
        assert!(
            text.ends_with("and 3 more: keel status -o json\n"),
            "{text}"
        );
        assert!(text.lines().nth(1).unwrap().starts_with("s22 "), "{text}");
    }
}
