//! The data directory of a node: its lock, its layout, and files that are replaced whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The data directory of a node. While one opened with [`DataDir::open`] lives, no other process can open it.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the flock; `None` for a peek.
    _lock: Option<File>,
}

/// A file or directory that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path:?}: {source}")]
pub struct DiskError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A file operation failed.
    #[error("{0}; give a directory of your own with --data-dir")]
    Disk(#[from] DiskError),
    /// Another process works on it.
    #[error(
        "the data directory {path:?} is in use by {holder}; stop that one, or give another --data-dir"
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// Process id and command of the holder, as far as known.
        holder: String,
    },
    /// Another process is this part of the node already.
    #[error(
        "the data directory {path:?} has a {part} already, {holder}; stop that one, or give another --data-dir"
    )]
    PartHeld {
        /// The directory.
        path: PathBuf,
        /// The part's name.
        part: &'static str,
        /// Process id and command of the holder, as far as known.
        holder: String,
    },
}

/// A part of the node that no other process can be while this lives.
#[derive(Debug)]
pub struct PartLock {
    _file: File,
}

impl DataDir {
    /// Creates the directory if needed (mode 0700) and locks it.
    ///
    /// # Errors
    /// [`DataDirError::Held`] names the process that has it; [`DataDirError::Disk`] what else is wrong.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let path = path.into();
        create_dir(&path)?;
        let file = lock(&path.join("lock")).map_err(|failed| match failed {
            Locked::Disk(error) => error.into(),
            Locked::By(holder) => DataDirError::Held {
                path: path.clone(),
                holder,
            },
        })?;
        let this = Self {
            path,
            _lock: Some(file),
        };
        for directory in [this.path(), &this.ca(), &this.node(), &this.quic()] {
            remove_leftovers(directory);
        }
        Ok(this)
    }

    /// The directory without its lock, for commands that only read it or talk to its sockets.
    pub fn peek(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            _lock: None,
        }
    }

    /// Claims a part of the node that need not be where the directory's own lock is: a router, a syncer.
    ///
    /// # Errors
    /// [`DataDirError::PartHeld`] names the process that is this part; [`DataDirError::Disk`] what else is wrong.
    pub fn claim(&self, part: &'static str) -> Result<PartLock, DataDirError> {
        match lock(&self.path.join(format!("{part}.lock"))) {
            Ok(_file) => Ok(PartLock { _file }),
            Err(Locked::Disk(error)) => Err(error.into()),
            Err(Locked::By(holder)) => Err(DataDirError::PartHeld {
                path: self.path.clone(),
                part,
                holder,
            }),
        }
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root of the trust domain; on its first node only.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.path.join("ca")
    }

    /// The node's intermediate and leaf.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        self.path.join("node")
    }

    /// Keys of the QUIC endpoints.
    #[must_use]
    pub fn quic(&self) -> PathBuf {
        self.path.join("quic")
    }

    /// The database of the APIServer.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path.join("store.db")
    }

    /// The socket for the node's owner.
    #[must_use]
    pub fn admin_sock(&self) -> PathBuf {
        self.path.join("admin.sock")
    }

    /// The socket for workloads.
    #[must_use]
    pub fn workload_sock(&self) -> PathBuf {
        self.path.join("workload.sock")
    }

    /// The peers that this node knows.
    #[must_use]
    pub fn peers(&self) -> PathBuf {
        self.path.join("peers.yaml")
    }
}

/// The data directory if none is given: `$KEEL_DATA_DIR`, else `/var/lib/keel` for root, `$XDG_DATA_HOME/keel`
/// (`~/.local/share/keel`) otherwise. `env` reads the environment; an empty value counts as none.
pub fn default_data_dir(env: impl Fn(&str) -> Option<String>) -> PathBuf {
    let get = |name: &str| {
        env(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = get("KEEL_DATA_DIR") {
        return path;
    }
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/keel");
    }
    let data_home = get("XDG_DATA_HOME").filter(|path| path.is_absolute());
    match data_home.or_else(|| get("HOME").map(|home| home.join(".local/share"))) {
        Some(path) => path.join("keel"),
        None => PathBuf::from("/var/lib/keel"),
    }
}

/// Replaces a file whole or not at all, also across a power cut: writes a sibling, syncs it, renames it over `path`.
///
/// # Errors
/// [`DiskError`]; the old file is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DiskError> {
    let mut sibling = path.as_os_str().to_owned();
    sibling.push(format!(".{:08x}.new", rand::random::<u32>()));
    let sibling = PathBuf::from(sibling);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&sibling)?;
        // The umask may have taken bits away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&sibling, path)
    };
    if let Err(source) = write() {
        // Best effort: a left-over sibling is never read.
        let _ = fs::remove_file(&sibling);
        return Err(DiskError {
            action: "write",
            path: path.to_owned(),
            source,
        });
    }
    sync_parent(path)
}

/// Removes the siblings that [`write_atomic`] left in a directory when its process was killed: they may hold keys. Only for
/// a directory that nobody else writes to now. Best effort: left-overs are never read.
pub(crate) fn remove_leftovers(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let random = name
            .to_str()
            .and_then(|name| name.strip_suffix(".new")?.rsplit_once('.'));
        if random
            .is_some_and(|(_, hex)| hex.len() == 8 && hex.bytes().all(|c| c.is_ascii_hexdigit()))
            && entry.file_type().is_ok_and(|kind| kind.is_file())
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Renames within a directory, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    fs::rename(from, to).map_err(|source| DiskError {
        action: "write",
        path: to.to_owned(),
        source,
    })?;
    sync_parent(to)
}

/// Creates a directory and its parents; those that are new are for the owner only.
pub(crate) fn create_dir(path: &Path) -> Result<(), DiskError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| DiskError {
            action: "create",
            path: path.to_owned(),
            source,
        })
}

fn sync_parent(path: &Path) -> Result<(), DiskError> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| DiskError {
            action: "sync",
            path: parent.to_owned(),
            source,
        })
}

/// Reads a text file.
pub(crate) fn read(path: &Path) -> Result<String, DiskError> {
    fs::read_to_string(path).map_err(|source| DiskError {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

/// Reads a text file that may be missing.
pub(crate) fn read_optional(path: &Path) -> Result<Option<String>, DiskError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DiskError {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Why a file is not locked.
enum Locked {
    Disk(DiskError),
    /// Another process has it.
    By(String),
}

/// Locks a file, and writes this process's id into it. The lock goes with the file.
fn lock(path: &Path) -> Result<File, Locked> {
    let failed = |action| {
        move |source| {
            Locked::Disk(DiskError {
                action,
                path: path.to_owned(),
                source,
            })
        }
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Locked::By(holder(&mut file))),
        Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
    }
    file.set_len(0)
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
        .map_err(failed("write"))?;
    Ok(file)
}

/// Who holds the lock, from what the holder wrote into it.
fn holder(lock: &mut File) -> String {
    let mut pid = String::new();
    // Unreadable or empty only means that nothing more is known.
    let _ = lock.take(32).read_to_string(&mut pid);
    let Ok(pid) = pid.trim().parse::<u32>() else {
        return "another process".to_owned();
    };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let error = DataDir::open(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {} (", std::process::id())),
            "{error}"
        );
        assert!(error.contains("--data-dir"), "{error}");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let router = first.claim("router").unwrap();
        let error = DataDir::peek(&path)
            .claim("router")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!(
                "has a router already, process {} (",
                std::process::id()
            )),
            "{error}"
        );
        first.claim("syncer").unwrap();
        drop(router);
        first.claim("router").unwrap();
        drop(first);
        let leftover = path.join("lock.00c0ffee.new");
        let others = [path.join("mine.new"), path.join("a.00c0ffeg.new")];
        for file in others.iter().chain([&leftover]) {
            fs::write(file, "").unwrap();
        }
        DataDir::open(&path).unwrap();
        assert!(!leftover.exists() && others.iter().all(|file| file.exists()));
    }

    #[test]
    fn files_are_replaced_whole_with_their_mode() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("key");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        assert!(
            write_atomic(&temp.path().join("no/such"), b"", 0o600)
                .unwrap_err()
                .to_string()
                .contains("no/such")
        );
    }

    #[test]
    fn the_default_directory_follows_the_environment() {
        assert_eq!(
            default_data_dir(|name| (name == "KEEL_DATA_DIR").then(|| "/x".into())),
            Path::new("/x")
        );
        if !nix::unistd::geteuid().is_root() {
            assert_eq!(
                default_data_dir(|name| (name == "HOME").then(|| "/h".into())),
                Path::new("/h/.local/share/keel")
            );
        }
    }
}
