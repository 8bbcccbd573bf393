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
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold spaces and brackets; what follows its last bracket does not.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || -> anyhow::Result<u64> { Ok(fields.next().context("short stat")?.parse()?) };
    let ticks = ticks()? + ticks()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}
