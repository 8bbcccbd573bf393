//! Control groups that bound memory: how a process of ours is held where containers hold it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

/// Where control groups are mounted.
const MOUNTED: &str = "/sys/fs/cgroup";

/// A control group with little memory. Dropping it removes it; its processes must have ended.
#[derive(Debug)]
pub struct MemoryGroup {
    folder: PathBuf,
    unified: bool,
}

impl MemoryGroup {
    /// A group whose processes may have `bytes` together; the kernel kills one of them if they want more.
    ///
    /// # Errors
    /// If the kernel, or who runs this, lets nobody make one here.
    pub fn new(bytes: u64) -> anyhow::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "keel-{}-{}",
            std::process::id(),
            MADE.fetch_add(1, Ordering::Relaxed)
        );
        let top = Path::new(MOUNTED);
        let unified = top.join("cgroup.controllers").exists();
        let (folder, limit) = if unified {
            // Refused if it is there already, as it is where anything else uses it.
            let _there = std::fs::write(top.join("cgroup.subtree_control"), "+memory");
            (top.join(name), "memory.max")
        } else {
            (top.join("memory").join(name), "memory.limit_in_bytes")
        };
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let group = Self { folder, unified };
        std::fs::write(group.folder.join(limit), bytes.to_string())
            .context("limit a control group")?;
        Ok(group)
    }

    /// What to put in front of a program (see [`crate::process::Program::behind`]) on a host so that it runs in this group, and
    /// sees its limit as in a container: what `ip netns exec` mounts has no control groups.
    #[must_use]
    pub fn front(&self) -> [&str; 4] {
        let folder = self.folder.to_str().unwrap_or_default();
        let enter = if self.unified {
            "mount -t cgroup2 keel /sys/fs/cgroup && echo $$ >\"$0/cgroup.procs\" && exec \"$@\""
        } else {
            "mount -t tmpfs keel /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory && \
             mount -t cgroup -o memory keel /sys/fs/cgroup/memory && echo $$ >\"$0/cgroup.procs\" && exec \"$@\""
        };
        ["sh", "-c", enter, folder]
    }

    /// How many of its processes the kernel has killed.
    ///
    /// # Errors
    /// If the kernel does not count them.
    pub fn killed(&self) -> anyhow::Result<u64> {
        let file = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = std::fs::read_to_string(self.folder.join(file))?;
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .with_context(|| format!("no oom_kill in {file}"))?;
        Ok(count.trim().parse()?)
    }

    /// The most that it has had, in bytes; 0 where the kernel does not say.
    #[must_use]
    pub fn peak(&self) -> u64 {
        let file = if self.unified {
            "memory.peak"
        } else {
            "memory.max_usage_in_bytes"
        };
        let text = std::fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A process that was killed leaves its group a moment later.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            crate::wait::pause(std::time::Duration::from_millis(20));
        }
        eprintln!("{} is still used", self.folder.display());
    }
}
