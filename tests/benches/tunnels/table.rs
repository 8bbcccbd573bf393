//! The figures of all rounds, and the tables made of them.

use crate::arguments::Arguments;
use crate::place::Link;
use crate::tunnel::Tunnel;

/// The columns, in the order in which they are printed, and how many decimals each has.
const COLUMNS: &[(&str, usize)] = &[
    ("up x1", 2),
    ("down x1", 2),
    ("up x8", 2),
    ("cpu s/GB", 2),
    ("conn/s x1", 0),
    ("conn/s x64", 0),
    ("p50 us", 0),
    ("p99 us", 0),
    ("idle kB", 1),
];

/// What the project set out to reach: on which link, in which column, at least how much.
type Reach = (Link, &'static str, f64);

/// Whose ratios are printed, and to whom.
const RATIOS: &[(Tunnel, Tunnel, Option<Reach>)] = &[
    (
        Tunnel::Keel,
        Tunnel::KeelNoResume,
        Some((Link::Pair, "up x1", 0.9)),
    ),
    (
        Tunnel::Keel,
        Tunnel::RatholePlain,
        Some((Link::Pair, "up x1", 0.73)),
    ),
    (
        Tunnel::Keel,
        Tunnel::RatholeTls,
        Some((Link::Pair, "up x1", 1.0)),
    ),
    (Tunnel::Keel, Tunnel::RatholeNoise, None),
    (Tunnel::Keel, Tunnel::Stunnel, None),
    (Tunnel::Keel, Tunnel::Direct, None),
];

/// What an idle connection of ours may take at both ends together, on any link.
const IDLE: (&str, f64) = ("idle kB", 12.0);

/// What one tunnel did in one round: a figure for each column that was measured.
#[derive(Debug, Default, Clone)]
pub(crate) struct Row(Vec<(&'static str, f64)>);

impl Row {
    pub(crate) fn set(&mut self, column: &'static str, value: f64) {
        self.0.push((column, value));
    }

    fn get(&self, column: &str) -> Option<f64> {
        let found = self.0.iter().find(|(name, _)| *name == column);
        found.map(|(_, value)| *value)
    }
}

/// Everything that was measured on one link.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(Tunnel, usize, Row)>);

impl Figures {
    pub(crate) fn add(&mut self, tunnel: Tunnel, round: usize, row: Row) {
        self.0.push((tunnel, round, row));
    }

    fn of(&self, tunnel: Tunnel, column: &str) -> Vec<f64> {
        let rows = self.0.iter().filter(|(one, ..)| *one == tunnel);
        rows.filter_map(|(.., row)| row.get(column)).collect()
    }

    /// The figures of one tunnel over those of another, round by round.
    fn ratios(&self, over: Tunnel, under: Tunnel, column: &str) -> Vec<f64> {
        let one = |tunnel: Tunnel, round: usize| {
            let row = self
                .0
                .iter()
                .find(|(t, r, _)| *t == tunnel && *r == round)?;
            row.2.get(column)
        };
        let rounds = self.0.iter().map(|(_, round, _)| round + 1).max();
        (0..rounds.unwrap_or(0))
            .filter_map(|round| Some(one(over, round)? / one(under, round)?))
            .collect()
    }

    /// Prints the tables in Markdown; whether all was reached that was measured.
    #[allow(
        clippy::print_stdout,
        reason = "the tables are the product of this program"
    )]
    pub(crate) fn print(&self, link: Link, arguments: &Arguments) -> bool {
        println!(
            "\n### {link}: medians of {} rounds, {:.1} s a load; Gbit/s for up and down, lowest to highest in brackets\n",
            arguments.rounds,
            arguments.time().as_secs_f64()
        );
        header("tunnel");
        for tunnel in Tunnel::FAST {
            line(tunnel.name(), |column, decimals| {
                spread(self.of(*tunnel, column), decimals)
            });
        }
        println!("\n### {link}: ratios, medians of the rounds\n");
        header("ratio");
        let mut all = true;
        for (over, under, reach) in RATIOS {
            line(
                &format!("{} / {}", over.name(), under.name()),
                |column, _| spread(self.ratios(*over, *under, column), 2),
            );
            if let Some((at, column, least)) = reach
                && *at == link
            {
                let ratio = median(self.ratios(*over, *under, column));
                let reached = ratio.is_some_and(|ratio| ratio >= *least);
                all &= reached;
                let (word, ratio) = (word(reached), shown(ratio, 2, "x"));
                println!("| | reach {column}: {least}x, {word}: {ratio} |");
            }
        }
        let (column, most) = IDLE;
        let idle = median(self.of(Tunnel::Keel, column));
        let reached = idle.is_some_and(|idle| idle < most);
        all &= reached;
        let (word, idle) = (word(reached), shown(idle, 1, ""));
        println!("| | reach {column}: below {most}, {word}: {idle} |");
        all
    }
}

/// A figure that is reached only if it was measured.
fn shown(figure: Option<f64>, decimals: usize, unit: &str) -> String {
    figure.map_or_else(
        || "not measured".to_owned(),
        |figure| format!("{figure:.decimals$}{unit}"),
    )
}

const fn word(reached: bool) -> &'static str {
    if reached { "reached" } else { "NOT reached" }
}

#[allow(
    clippy::print_stdout,
    reason = "the tables are the product of this program"
)]
fn header(first: &str) {
    let names: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
    println!("| {first} | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(COLUMNS.len()));
}

#[allow(
    clippy::print_stdout,
    reason = "the tables are the product of this program"
)]
fn line(name: &str, cell: impl Fn(&str, usize) -> String) {
    let cells: Vec<_> = COLUMNS
        .iter()
        .map(|(column, decimals)| cell(column, *decimals))
        .collect();
    println!("| {name} | {} |", cells.join(" | "));
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// The median, with the lowest and the highest if there are several.
fn spread(mut values: Vec<f64>, decimals: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (Some(low), Some(high), Some(middle)) = (
        values.first().copied(),
        values.last().copied(),
        median(values.clone()),
    ) else {
        return "-".to_owned();
    };
    if values.len() == 1 {
        return format!("{middle:.decimals$}");
    }
    format!("{middle:.decimals$} ({low:.decimals$}-{high:.decimals$})")
}
