//! How a test that cannot run says so.

use std::fs::OpenOptions;
use std::io::Write;

/// Says that the calling test is skipped because something is missing: loudly, and in the list that `tests/run` counts
/// (`$KEEL_SKIPPED`). Where it may not be missing (`$KEEL_REQUIRE`), that is a failure. Of kubectl no version is in a Debian package:
/// it is required only where it is named.
pub(crate) fn skipped(missing: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("?");
    let required = std::env::var("KEEL_REQUIRE").unwrap_or_default();
    let (program, packaged) = match missing.split_once(' ') {
        Some((program, _version)) => (program, false),
        None => (missing, true),
    };
    assert!(
        !required
            .split(',')
            .any(|name| name == program || (name == "all" && packaged)),
        "{test} needs {missing}, which is required here (KEEL_REQUIRE) and missing"
    );
    eprintln!("SKIPPED {test}: no {missing}");
    if let Some(list) = std::env::var_os("KEEL_SKIPPED") {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(list)
            .and_then(|mut file| file.write_all(format!("{test}: no {missing}\n").as_bytes()))
            .unwrap();
    }
}
