//! What processes cost, as the kernel counts it.

use std::time::Duration;

use anyhow::Context;

/// Ticks in a second of `/proc/<pid>/stat`; Linux fixes it for user space.
const TICKS: u64 = 100;

/// Processor time that a process has used so far, in user and system mode, all threads.
///
/// # Errors
/// If the process is gone.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = stat(pid)?;
    let mut fields = stat.split_whitespace().skip(11);
    let mut ticks = || -> anyhow::Result<u64> { Ok(fields.next().context("short stat")?.parse()?) };
    let ticks = ticks()? + ticks()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// The fields behind the name, the state first.
fn stat(pid: u32) -> anyhow::Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold spaces and brackets; what follows its last bracket does not.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    Ok(rest.to_owned())
}

/// The children of a process, and theirs.
///
/// # Errors
/// If processes cannot be listed here.
pub(crate) fn descendants(pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(child) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // One that has ended meanwhile is nobody's child.
        if let Ok(stat) = stat(child)
            && let Some(Ok(parent)) = stat.split_whitespace().nth(1).map(str::parse::<u32>)
        {
            parents.push((child, parent));
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = parents.iter().filter(|(_, its)| *its == parent);
        found.extend(children.map(|(child, _)| child));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}
