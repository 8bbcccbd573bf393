//! What the README promises in its tables, for tests that compare it with what is really there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rows of the first table under the heading `## section`, without its header, cells trimmed.
#[must_use]
pub fn table(section: &str) -> Vec<Vec<String>> {
    let text = include_str!("../../README.md");
    let heading = format!("## {section}");
    let rows = text
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    rows.skip(2).map(cells).collect()
}

fn cells(row: &str) -> Vec<String> {
    // A bar inside of a cell is written with a backslash.
    let row = row.trim().trim_matches('|').replace("\\|", "\0");
    row.split('|')
        .map(|cell| cell.trim().replace('\0', "|"))
        .collect()
}

/// A family of metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// `counter`, `gauge`.
    pub kind: String,
    /// The names of its labels, in their order.
    pub labels: Vec<String>,
    /// What it says.
    pub meaning: String,
}

impl Family {
    /// Its row in the README.
    #[must_use]
    pub fn row(&self, name: &str) -> String {
        let labels: Vec<String> = self
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let Self { kind, meaning, .. } = self;
        format!("| `{name}` | {kind} | {} | {meaning} |", labels.join(", "))
    }
}

/// The metrics that the README names.
#[must_use]
pub fn metrics() -> BTreeMap<String, Family> {
    let plain = |cell: &str| cell.replace('`', "");
    table("Metrics")
        .iter()
        .filter_map(|row| match row.as_slice() {
            [name, kind, labels, meaning] => {
                let labels = plain(labels);
                let labels = labels.split(", ").filter(|label| !label.is_empty());
                let family = Family {
                    kind: kind.clone(),
                    labels: labels.map(str::to_owned).collect(),
                    meaning: meaning.clone(),
                };
                Some((plain(name), family))
            }
            _ => None,
        })
        .collect()
}

/// The metrics of a scrape in the OpenMetrics format. Labels are those of its samples; a family without one shows none.
#[must_use]
pub fn scraped(text: &str) -> BTreeMap<String, Family> {
    let mut found: BTreeMap<String, Family> = BTreeMap::new();
    let mut meaning = "";
    let mut last = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            meaning = help
                .split_once(' ')
                .map_or("", |(_, help)| help.trim_end_matches('.'));
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let total = if kind == "counter" { "_total" } else { "" };
            last = format!("{name}{total}");
            let family = Family {
                kind: kind.to_owned(),
                labels: Vec::new(),
                meaning: meaning.to_owned(),
            };
            found.insert(last.clone(), family);
        } else if !line.starts_with('#')
            && let Some((_, labels)) = line.split_once('{')
            && let Some(family) = found.get_mut(&last)
        {
            let labels = labels.rsplit_once('}').map_or("", |(labels, _)| labels);
            family.labels = names(labels);
        }
    }
    found
}

/// The names in `role="consumer",service="a:1"`. No value of ours holds a quotation mark.
fn names(labels: &str) -> Vec<String> {
    labels
        .split('"')
        .step_by(2)
        .filter_map(|piece| piece.trim_start_matches(',').strip_suffix('='))
        .map(str::to_owned)
        .collect()
}

/// The families that the sources register, by name without `_total`, each with its meaning: a family without a sample is
/// in no scrape. What collectors make is in every scrape and not here.
///
/// # Errors
/// A source file cannot be read.
pub fn registered() -> anyhow::Result<BTreeMap<String, String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> = ["fabric", "control", "sidecar", "deploy"]
        .map(|name| root.join(name).join("src"))
        .to_vec();
    let mut found = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir()? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path)?;
                found.extend(text.split(".register(").skip(1).filter_map(|call| {
                    let (name, rest) = literal(call)?;
                    Some((name, literal(rest.strip_prefix(',')?)?.0))
                }));
                // The fabric's families are a table of their own.
                let table = text.split("\nmetrics! {").nth(1).unwrap_or_default();
                found.extend(table.lines().filter_map(|line| {
                    let (name, rest) = literal(line.split_once(" = ")?.1)?;
                    let (unit, help) = rest.split_once(',')?;
                    let unit = unit.replace(" in ", "_").to_lowercase();
                    Some((format!("keel_fabric_{name}{unit}"), literal(help)?.0))
                }));
            }
        }
    }
    Ok(found)
}

/// The string that a piece of source begins with, and what comes behind it.
fn literal(source: &str) -> Option<(String, &str)> {
    let (text, rest) = source.trim_start().strip_prefix('"')?.split_once('"')?;
    Some((text.to_owned(), rest))
}

/// What is wrong with the README's table of metrics, one sentence each, after a look at the sources and at these scrapes.
///
/// # Errors
/// As [`registered`].
pub fn differences(scrapes: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let told = metrics();
    let mut there: BTreeMap<String, Family> = BTreeMap::new();
    for (name, family) in scrapes.iter().flat_map(|text| scraped(text)) {
        let known = there.entry(name).or_insert_with(|| family.clone());
        if known.labels.is_empty() {
            known.labels = family.labels;
        }
    }
    let mut wrong = BTreeSet::new();
    for (name, family) in &there {
        let mut family = family.clone();
        let row = told.get(name);
        // A collector's family without a sample shows no labels.
        if let (true, Some(row)) = (family.labels.is_empty(), row) {
            family.labels.clone_from(&row.labels);
        }
        if row != Some(&family) {
            wrong.insert(format!("write: {}", family.row(name)));
        }
    }
    let mut registered = registered()?;
    for (name, row) in &told {
        let base = name.strip_suffix("_total").unwrap_or(name);
        match registered.remove(base) {
            Some(meaning) if meaning != row.meaning => {
                wrong.insert(format!("{name} is: {meaning}"));
            }
            None if !there.contains_key(name) => {
                wrong.insert(format!("there is no {name}"));
            }
            _ => {}
        }
    }
    wrong.extend(
        registered
            .iter()
            .map(|(name, meaning)| format!("no row for {name}: {meaning}")),
    );
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_is_understood() {
        let text = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
            a_bytes_total{role=\"x, y=\",service=\"s:1\"} 3\n# HELP b B.\n# TYPE b gauge\nb 1\n# EOF\n";
        let found = scraped(text);
        let row = found["a_bytes_total"].row("a_bytes_total");
        assert_eq!(
            row,
            "| `a_bytes_total` | counter | `role`, `service` | Bytes |"
        );
        assert!(found["b"].labels.is_empty());
        assert_eq!(cells("| a \\| b | c |"), ["a | b", "c"]);
    }
}
