//! What the system lets this process have, and what of it flows may take.

use std::num::NonZero;
use std::path::Path;

use keel_control::transport;
use keel_fabric::limits::Limits;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files that are left for all but connections of applications: DNS and its questions, metrics, links to routers, the
/// store, what is read and written. At most half of all.
const FILES_LEFT: u64 = 128;

/// What a connection takes apart from what is buffered for it, at the most.
const CONNECTION: u64 = 16 << 10;

/// The share of all memory for what flows have buffered, and the same for the connections themselves.
const SHARE: u64 = 4;

/// The least window of a connection.
const LEAST_WINDOW: u32 = 1 << 20;

/// Who shares the files of a node: connections to backends that its Router dials, and the APIServer's over TCP.
pub(super) const OF_NODE: u64 = 2;

/// Files and memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    files: u64,
    memory: u64,
}

impl Room {
    /// As the system has it; as many files may be open from now on as an ordinary user may ask for.
    pub(super) fn of_process() -> Self {
        Self {
            files: raise_files(),
            memory: memory_of(Path::new("/sys/fs/cgroup"), &own_cgroups()),
        }
    }

    /// How many files each of `users` may have open.
    pub(super) fn files_each(self, users: u64) -> u64 {
        let left = FILES_LEFT.min(self.files / 2);
        ((self.files - left) / users.max(1)).max(1)
    }

    /// How many connections the APIServer of a node takes over TCP: so many, or by default what there is room for.
    pub(super) fn api_connections(self, given: Option<NonZero<u32>>) -> usize {
        let default = transport::Limits::default().connections;
        let most = given.map_or(self.files_each(OF_NODE), |given| given.get().into());
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        match given {
            Some(_) => most,
            None => most.min(default),
        }
    }

    /// `limits`, lowered to what there is room for; connections are shared with others if there are `users` of them.
    pub(super) fn fit(self, mut limits: Limits, users: u64) -> Limits {
        let files = self.files_each(users);
        let memory = self.memory / SHARE;
        let most = usize::try_from(files.min(memory / CONNECTION).max(1)).unwrap_or(usize::MAX);
        let before = limits.consumer.connections;
        limits.consumer.connections = before.min(most);
        limits.provider.flows = limits.provider.flows.min(most);
        limits.memory.process = limits.memory.process.min(memory);
        // One consumer is all that many a provider has.
        limits.memory.identity = limits.memory.identity.min(memory / 2);
        limits.router.passing = limits.router.passing.min(memory);
        limits.router.passing_identity = limits.router.passing_identity.min(memory / 2);
        let window = u32::try_from(memory).unwrap_or(u32::MAX).max(LEAST_WINDOW);
        limits.windows.connection = limits.windows.connection.min(window);
        if limits.consumer.connections < before {
            let raise = if files <= memory / CONNECTION {
                "open files (ulimit -n, LimitNOFILE=)"
            } else {
                "memory of the control group"
            };
            tracing::info!(
                "at most {most} connections at once; raise the limit of {raise} for more"
            );
        }
        limits
    }
}

/// Raises the limit of open files to the hard one, and says what it is then.
fn raise_files() -> u64 {
    let files = Resource::RLIMIT_NOFILE;
    let Ok((soft, hard)) = getrlimit(files) else {
        return u64::MAX;
    };
    // The low default is for programs that use select(2); no program is started from here.
    match setrlimit(files, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// The control groups of this process, as the kernel lists them.
fn own_cgroups() -> String {
    // Where there is no /proc there is no limit that could be found.
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// The memory that these control groups and those above them allow, under where they are mounted.
fn memory_of(mounted: &Path, cgroups: &str) -> u64 {
    let limits = cgroups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (top, file) = match controllers {
            "" => (mounted.to_owned(), "memory.max"),
            "memory" => (mounted.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        // A container sees its own group at the top, whatever its path is outside.
        let groups = Path::new(path.trim_start_matches('/')).ancestors();
        let limits = groups.filter_map(|group| {
            let text = std::fs::read_to_string(top.join(group).join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        });
        limits.min()
    });
    limits.min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn where_there_is_room_the_defaults_stay() {
        let room = Room {
            files: 1 << 20,
            memory: u64::MAX,
        };
        assert_eq!(room.fit(Limits::default(), 2), Limits::default());
    }

    #[test]
    fn of_few_files_and_little_memory_some_are_left() {
        let few = Room {
            files: 1024,
            memory: u64::MAX,
        };
        assert_eq!(few.fit(Limits::default(), 1).consumer.connections, 896);
        assert_eq!(few.fit(Limits::default(), 2).provider.flows, 448);
        assert_eq!(Room { files: 64, ..few }.files_each(1), 32);
        let small = Room {
            files: 1 << 20,
            memory: 128 * MIB,
        };
        let limits = small.fit(Limits::default(), 2);
        assert_eq!(limits.memory.process, 32 * MIB);
        assert_eq!(limits.memory.identity, 16 * MIB);
        assert_eq!(limits.router.passing, 32 * MIB);
        assert_eq!(limits.router.passing_identity, 16 * MIB);
        assert_eq!(limits.windows.connection, 32 << 20);
        assert_eq!(limits.consumer.connections, 2048);
    }

    #[test]
    fn the_strictest_control_group_counts() {
        let mounted = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = mounted.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        let of = |cgroups: &str| memory_of(mounted.path(), cgroups);
        assert_eq!(of("0::/pod/container\n"), u64::MAX);
        write("pod/memory.max", "268435456\n");
        write("pod/container/memory.max", "max\n");
        assert_eq!(of("0::/pod/container\n"), 256 * MIB);
        // The groups are not mounted under their path, but at the top.
        write("memory/memory.limit_in_bytes", "134217728\n");
        assert_eq!(of("9:cpu:/x\n4:memory:/docker/abc\n0::/\n"), 128 * MIB);
    }
}
