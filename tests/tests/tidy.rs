//! The rules of the tree that no compiler knows: who may import whom, how long a file may be, what may not be left behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates from left to right: each may import those before it and no other.
const ARROW: [(&str, &str); 6] = [
    ("certs", "keel-certs"),
    ("fabric", "keel-fabric"),
    ("control", "keel-control"),
    ("sidecar", "keel-sidecar"),
    ("deploy", "keel"),
    ("tests", "keel-tests"),
];

/// All that may lie at the top: the six crates, and files that tools or readers look for there.
const TOP: [&str; 20] = [
    ".cargo",
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "README.zh-CN.md",
    "SECURITY.md",
    "certs",
    "clippy.toml",
    "control",
    "deny.toml",
    "deploy",
    "fabric",
    "rust-toolchain.toml",
    "sidecar",
    "tests",
];

/// How often each file may switch `unsafe_code` on. A new line here needs a reason in review as well as in the code.
const UNSAFE: [(&str, usize); 3] = [
    ("deploy/src/run/crowd.rs", 2),
    ("fabric/src/quic/udp.rs", 1),
    ("tests/src/lab/link/tap.rs", 1),
];

/// Dependencies whose crate has another name in code than in `Cargo.toml`.
const RENAMED: [(&str, &str); 1] = [("rustls-webpki", "webpki")];

/// A file that needs more than this does more than one thing.
const LONGEST: usize = 500;

/// Names under which everything ends up.
const BANNED_NAMES: [&str; 8] = [
    "util", "utils", "helper", "helpers", "common", "manager", "misc", "shared",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
        .to_path_buf()
}

/// The files that are, or would be, in version control.
fn files() -> Vec<String> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output();
    let listed = listed.expect("git lists the files");
    assert!(
        listed.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let names = String::from_utf8(listed.stdout).expect("file names are text");
    names
        .split('\0')
        .filter(|name| !name.is_empty() && root().join(name).exists())
        .map(str::to_owned)
        .collect()
}

fn sources() -> Vec<(String, String)> {
    let rust = files().into_iter().filter(|name| name.ends_with(".rs"));
    rust.map(|name| {
        (
            std::fs::read_to_string(root().join(&name)).expect("sources are text"),
            name,
        )
    })
    .map(|(text, name)| (name, text))
    .collect()
}

fn manifest(folder: &str) -> toml::Table {
    let path = root().join(folder).join("Cargo.toml");
    std::fs::read_to_string(path)
        .expect("every crate has a manifest")
        .parse()
        .expect("cargo reads it too")
}

/// All dependency tables of a manifest, also those of targets.
fn dependencies(manifest: &toml::Table) -> BTreeMap<String, toml::Value> {
    let targets = manifest
        .get("target")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(toml::Table::values);
    let tables = std::iter::once(manifest).chain(targets.filter_map(toml::Value::as_table));
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let found =
        tables.flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()));
    found
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn fail_on(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn crates_import_to_their_left_only() {
    let mut wrong = Vec::new();
    for (place, (folder, name)) in ARROW.iter().enumerate() {
        let right: Vec<_> = ARROW[place..].iter().map(|(_, name)| *name).collect();
        let imports = dependencies(&manifest(folder));
        wrong.extend(
            imports
                .keys()
                .filter(|import| right.contains(&import.as_str()))
                .map(|import| format!("{name} imports {import}")),
        );
    }
    fail_on(
        wrong,
        "a crate imports only from its left: certs <- fabric <- control <- sidecar <- deploy <- tests",
    );
}

#[test]
fn dependencies_are_declared_once() {
    let mut wrong = Vec::new();
    for (folder, _) in ARROW {
        for (name, value) in dependencies(&manifest(folder)) {
            let inherits = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
            let pinned = value.get("version").is_some()
                || value.get("path").is_some()
                || value.get("git").is_some();
            if !inherits || pinned {
                wrong.push(format!("{folder}/Cargo.toml: {name}"));
            }
        }
        if manifest(folder)
            .get("lints")
            .and_then(|lints| lints.get("workspace")?.as_bool())
            != Some(true)
        {
            wrong.push(format!(
                "{folder}/Cargo.toml: [lints] workspace = true is missing"
            ));
        }
    }
    fail_on(
        wrong,
        "versions and lints stand in the workspace's Cargo.toml, members inherit them (workspace = true)",
    );
}

#[test]
fn every_declared_dependency_is_used() {
    let used: Vec<_> = ARROW
        .iter()
        .flat_map(|(folder, _)| dependencies(&manifest(folder)).into_keys())
        .collect();
    let workspace = manifest(".");
    let declared = workspace["workspace"]["dependencies"]
        .as_table()
        .expect("the workspace declares them");
    let idle = declared
        .keys()
        .filter(|name| !used.contains(name))
        .cloned()
        .collect();
    fail_on(idle, "declared in the workspace and used by no crate");
}

#[test]
fn every_dependency_of_a_crate_is_named_in_its_code() {
    let sources = sources();
    let mut idle = Vec::new();
    for (folder, _) in ARROW {
        for name in dependencies(&manifest(folder)).into_keys() {
            let renamed = RENAMED
                .iter()
                .find(|(package, _)| *package == name)
                .map(|(_, path)| *path);
            let path = renamed.unwrap_or(&name).replace('-', "_");
            let named = |text: &str| {
                text.contains(&format!("{path}::"))
                    || text.contains(&format!("use {path}"))
                    || text.contains(&format!("extern crate {path}"))
            };
            if !sources
                .iter()
                .any(|(file, text)| file.starts_with(&format!("{folder}/")) && named(text))
            {
                idle.push(format!("{folder}/Cargo.toml: {name}"));
            }
        }
    }
    fail_on(idle, "a dependency that the crate never names");
}

#[test]
fn files_are_short() {
    let long = sources()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST);
    fail_on(
        long.map(|(name, lines)| format!("{name}: {lines} lines"))
            .collect(),
        "no file over 500 lines, tests included",
    );
}

#[test]
fn names_say_what_is_inside() {
    let vague = files().into_iter().filter(|name| {
        let parts = Path::new(name).with_extension("");
        parts.iter().any(|part| {
            BANNED_NAMES
                .iter()
                .any(|banned| part.to_str() == Some(banned))
        })
    });
    fail_on(vague.collect(), "a file is named by what it does");
}

#[test]
fn the_top_level_is_as_agreed() {
    let extra = files().into_iter().filter(|name| {
        name.split('/')
            .next()
            .is_some_and(|top| !TOP.contains(&top))
    });
    fail_on(extra.collect(), "nothing else lies at the top level");
}

#[test]
fn unsafe_code_is_counted() {
    let allowed = BTreeMap::from(UNSAFE);
    let marks = ["allow(unsafe_code", "expect(unsafe_code"];
    let mut wrong = Vec::new();
    for (name, text) in sources()
        .into_iter()
        .filter(|(name, _)| name != "tests/tests/tidy.rs")
    {
        let count = marks
            .iter()
            .map(|mark| text.matches(mark).count())
            .sum::<usize>();
        if count != allowed.get(name.as_str()).copied().unwrap_or(0) {
            wrong.push(format!(
                "{name}: {count} times, agreed are {}",
                allowed.get(name.as_str()).copied().unwrap_or(0)
            ));
        }
    }
    fail_on(
        wrong,
        "unsafe code is switched on only where the list in this test says so",
    );
}

#[test]
fn every_allowance_has_its_reason() {
    let mut bare = Vec::new();
    for (name, text) in sources()
        .into_iter()
        .filter(|(name, _)| name != "tests/tests/tidy.rs")
    {
        for mark in ["[allow(", "[expect("] {
            for (at, _) in text.match_indices(mark) {
                let rest = &text[at..];
                let attribute = &rest[..rest.find(")]").map_or(rest.len(), |end| end + 2)];
                if !attribute.contains("reason") {
                    bare.push(format!("{name}: {attribute}"));
                }
            }
        }
    }
    fail_on(bare, "an allow(…) says why: reason = \"…\"");
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [
        "todo!(",
        "unimplemented!(",
        "dbg!(",
        "#[ignore",
        "FIXME",
        "XXX",
        "allow(dead_code",
        "allow(unused",
    ];
    let mut left = Vec::new();
    for (name, text) in sources()
        .into_iter()
        .filter(|(name, _)| name != "tests/tests/tidy.rs")
    {
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)));
        left.extend(lines.map(|(number, line)| format!("{name}:{}: {}", number + 1, line.trim())));
    }
    fail_on(left, "nothing unfinished lands");
}

#[test]
fn no_machine_is_named() {
    // Put together here, so that this file does not find itself.
    let places = [
        ["/wo", "rk/"].concat(),
        ["/ro", "ot/"].concat(),
        ["/ho", "me/"].concat(),
    ];
    let mut named = Vec::new();
    for name in files() {
        let Ok(text) = std::fs::read_to_string(root().join(&name)) else {
            continue;
        };
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| places.iter().any(|place| line.contains(place)));
        named.extend(lines.map(|(number, line)| format!("{name}:{}: {}", number + 1, line.trim())));
    }
    fail_on(named, "no path of somebody's machine is in the tree");
}
