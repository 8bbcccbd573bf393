//! What a test needs from the machine, and how a test that cannot run says so.
//!
//! libtest knows no "skipped": such a test returns early, and the line it leaves in `$KEEL_SKIPPED` is what
//! `tests/run` counts. `KEEL_REQUIRE=all` (set in CI) turns every skip into a failure, but for `kubectl`, which no
//! Debian package carries, `memory group`, which few containers may make, and `previous`, the binaries of an earlier
//! version: they are required only when named (`KEEL_REQUIRE=all,kubectl`).

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One thing outside the repository that a test leans on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The super user, for namespaces, NAT and port 53.
    Root,
    /// `redis-server`, `redis-cli`, `redis-benchmark`.
    Redis,
    /// `mariadbd`, `mariadb-install-db`, `mariadb`, `mariadb-dump`.
    MariaDb,
    /// `dig`.
    Dig,
    /// `curl`.
    Curl,
    /// `kubectl`.
    Kubectl,
    /// A Python with `curl_cffi`, an HTTP/3 client that shares no line with ours.
    CurlCffi,
    /// A Python with `aioquic`, another one.
    Aioquic,
    /// A Python with `qh3`, another one.
    Qh3,
    /// A Python with `schemathesis`, which tries an API by its OpenAPI document.
    Schemathesis,
    /// `caddy`, an HTTP/3 server that shares no line with ours.
    Caddy,
    /// `faketime`, for clocks that are far off.
    Faketime,
    /// `chronyd`, a time server and client.
    Chrony,
    /// Control groups that can be made and bound memory.
    MemoryGroup,
    /// The binaries of an earlier version, which `tests/previous` builds.
    Previous,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Redis => "redis-server",
            Self::MariaDb => "mariadb-server",
            Self::Dig => "dig",
            Self::Curl => "curl",
            Self::Kubectl => KUBECTL,
            Self::CurlCffi => "curl_cffi",
            Self::Aioquic => "aioquic",
            Self::Qh3 => "qh3",
            Self::Schemathesis => "schemathesis",
            Self::Caddy => "caddy",
            Self::Faketime => "faketime",
            Self::Chrony => "chronyd",
            Self::MemoryGroup => MEMORY_GROUP,
            Self::Previous => PREVIOUS,
        }
    }

    fn is_there(self) -> bool {
        match self {
            Self::Root => {
                nix::unistd::geteuid().is_root()
                    && ["ip", "nft", "conntrack"]
                        .into_iter()
                        .all(|tool| find(tool).is_some())
            }
            Self::Redis => ["redis-server", "redis-cli", "redis-benchmark"]
                .into_iter()
                .all(|tool| find(tool).is_some()),
            Self::MariaDb => ["mariadbd", "mariadb-install-db", "mariadb", "mariadb-dump"]
                .into_iter()
                .all(|tool| find(tool).is_some()),
            Self::CurlCffi | Self::Aioquic | Self::Qh3 | Self::Schemathesis => imports(self.name()),
            Self::MemoryGroup => crate::lab::MemoryGroup::new(1 << 30).is_ok(),
            Self::Previous => previous().is_some(),
            other => find(other.name()).is_some(),
        }
    }
}

const KUBECTL: &str = "kubectl";
const MEMORY_GROUP: &str = "memory group";
const PREVIOUS: &str = "previous";
/// What `all` does not require.
const ONLY_BY_NAME: [&str; 3] = [KUBECTL, MEMORY_GROUP, PREVIOUS];

/// The directory with the binaries of an earlier version: `$KEEL_PREVIOUS`.
#[must_use]
pub fn previous() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("KEEL_PREVIOUS")?);
    Some(folder).filter(|folder| folder.join("keel").is_file())
}

/// Finds a program on the path or where Debian keeps the programs of root.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// The Python with what tests need of it: `$KEEL_PYTHON`, else the environment that `tests/run` makes under the target
/// directory.
#[must_use]
pub fn python() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("KEEL_PYTHON") {
        return Some(PathBuf::from(named));
    }
    let target = crate::process::bin_dir().ok()?;
    Some(target.parent()?.join("venv/bin/python")).filter(|python| python.is_file())
}

/// Whether there is a Python that has this module.
fn imports(module: &str) -> bool {
    python().is_some_and(|python| {
        Command::new(python)
            .args(["-c", &format!("import {module}")])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

/// Whether the calling test must stop here because something is missing; it has said so.
///
/// # Panics
/// If the environment (`KEEL_REQUIRE`) says that nothing may be missing.
#[must_use]
pub fn lacking(needs: &[Need]) -> bool {
    let missing: Vec<_> = needs
        .iter()
        .filter(|need| !need.is_there())
        .map(|need| need.name())
        .collect();
    if missing.is_empty() {
        return false;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("?");
    let required = std::env::var("KEEL_REQUIRE").unwrap_or_default();
    let required: Vec<_> = required.split(',').collect();
    for name in &missing {
        let must =
            required.contains(name) || (required.contains(&"all") && !ONLY_BY_NAME.contains(name));
        assert!(
            !must,
            "{test} needs {name}, which is required here (KEEL_REQUIRE) and missing"
        );
    }
    eprintln!("SKIPPED {test}: no {}", missing.join(", "));
    if let Some(list) = std::env::var_os("KEEL_SKIPPED") {
        note(
            Path::new(&list),
            &format!("{test}: no {}\n", missing.join(", ")),
        );
    }
    true
}

/// Whether the long form of the tests runs (`KEEL_LONG=1`, `tests/run --long`): the spans, rounds and numbers that are
/// promised, instead of shorter ones that find the same faults with less certainty in the time of a CI run.
#[must_use]
pub fn long() -> bool {
    std::env::var_os("KEEL_LONG").is_some_and(|value| !value.is_empty() && value != "0")
}

/// What a test's chances follow from: `KEEL_SEED`, or its own number.
#[must_use]
pub fn seed(own: u64) -> u64 {
    let said = std::env::var("KEEL_SEED").ok();
    said.and_then(|seed| seed.parse().ok()).unwrap_or(own)
}

fn note(list: &Path, line: &str) {
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(list)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!("the skip could not be noted in {}: {error}", list.display());
    }
}
