//! The first command of the README, as root and as an ordinary user, and what a node takes of the machine.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use keel_tests::lab::Lab;
use keel_tests::need::{Need, lacking};
use keel_tests::process::{Program, bin_dir};
use nix::sys::signal::Signal;

/// Under 10 s is the promise for a release build on an idle machine; other tests run beside this one.
const PROOF: Duration = Duration::from_secs(40);

/// A folder that `nobody` owns, with the binaries in it: the target directory may be out of his reach.
pub(crate) fn home_of_nobody() -> anyhow::Result<tempfile::TempDir> {
    let home = tempfile::tempdir()?;
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755))?;
    for name in ["keel", "keel-sidecar"] {
        std::fs::copy(bin_dir()?.join(name), home.path().join(name))?;
    }
    std::os::unix::fs::chown(home.path(), Some(65_534), Some(65_534))?;
    Ok(home)
}

fn proves_itself(quickstart: &Program) -> anyhow::Result<()> {
    let began = Instant::now();
    let said = quickstart.ok(PROOF)?;
    eprintln!("{said}took {:.1?}", began.elapsed());
    for word in ["edge-a", "edge-b", ".default.svc", "127.0."] {
        assert!(said.contains(word), "it shows {word}: {said}");
    }
    Ok(())
}

#[test]
fn once_on_this_machine() -> anyhow::Result<()> {
    let temp = tempfile::tempdir()?;
    proves_itself(
        &Program::ours("keel")?
            .args(["quickstart", "--once"])
            .env("TMPDIR", temp.path()),
    )?;
    let left: Vec<_> = std::fs::read_dir(temp.path())?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.is_empty(), "it leaves nothing behind: {left:?}");
    Ok(())
}

#[test]
fn once_as_an_ordinary_user_without_a_network() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let home = home_of_nobody()?;
    let quickstart = Program::new(home.path().join("keel"))
        .args(["quickstart", "--once"])
        .env("HOME", home.path());
    proves_itself(&quickstart.unprivileged().on(&lab.host("alone")?))
}

#[test]
fn twice_on_one_directory_and_interrupted() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let quickstart = Program::ours("keel")?
        .args(["quickstart", "--once", "--data-dir"])
        .arg(folder.path().join("kept"));
    proves_itself(&quickstart)?;
    proves_itself(&quickstart)?;
    let mut interrupted = Program::ours("keel")?
        .args(["quickstart", "--once"])
        .start()?;
    interrupted.says("edge-a is up", PROOF)?;
    interrupted.signal(Signal::SIGINT)?;
    let ended = interrupted.end(PROOF)?;
    assert!(
        !ended.success(),
        "what was not proved is no success: {}",
        interrupted.log()
    );
    Ok(())
}
