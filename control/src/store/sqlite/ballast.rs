//! Room on the disk that is held back for the day when it is full.
//!
//! A full disk stops more than writes: moving the log into the file and forgetting old events need room too. So some is held by a
//! file that is given up then. Writes are refused until there is room for it again, and as much beside it, so that the store does
//! not go back and forth between the two.
//!
//! Where the store itself has filled the disk, that room never comes: a file of SQLite's does not shrink. What comes, when events
//! are forgotten, is free pages within it, and they are as good: writes go on, without a ballast, while the disk has room for the
//! log and the file for what the log brings.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;
use tracing::{error, info, warn};

use super::super::events::Room;

/// The part of the disk that history may take, and what it may take of a small one.
const SHARE: u64 = 4;
const HISTORY: u64 = 64 << 20;

/// The file that holds the room.
pub(super) struct Ballast {
    path: PathBuf,
    bytes: u64,
    /// The file was given up, and there is no room for it yet.
    given_up: bool,
    /// Writes are refused.
    full: bool,
}

impl Ballast {
    /// Holds room back for the store at `store`. If there is none, the disk counts as full.
    pub(super) fn hold(store: &Path, bytes: u64) -> Self {
        let mut ballast = Self {
            path: beside(store),
            bytes,
            given_up: true,
            full: false,
        };
        ballast.make();
        if ballast.given_up {
            ballast.refuse();
        }
        ballast
    }

    /// Gives the room up that a store which is not open yet has held back.
    pub(super) fn give_up(store: &Path) {
        remove(&beside(store));
    }

    /// Gives the room up.
    pub(super) fn release(&mut self) {
        remove(&self.path);
        self.given_up = true;
        self.refuse();
    }

    /// Whether nothing was given up, so that nobody need look whether there is room.
    pub(super) fn is_held(&self) -> bool {
        !self.given_up
    }

    /// Whether there is room for writes: on the disk, in the `log` and in the free `pages` of the file, in bytes.
    ///
    /// A log of as many bytes as the ballast has can be written then, and moved into the file.
    pub(super) fn has_room(&mut self, log: u64, pages: u64) -> bool {
        let disk = self.free();
        if self.given_up && disk / 2 >= self.bytes {
            self.make();
        }
        let room = disk.saturating_add(log);
        let enough = room >= self.bytes && room.saturating_add(pages) / 2 >= self.bytes;
        if self.given_up && !enough {
            self.refuse();
        } else if std::mem::replace(&mut self.full, false) {
            info!(ballast = %self.path.display(), held = !self.given_up, "there is room again: the store takes writes");
        }
        !self.full
    }

    /// How much history a store may have whose file has so many bytes.
    pub(super) fn room_for(&self, file: u64) -> Room {
        match self.full {
            // What writes need to go on, see `has_room`.
            true => Room::Less(2 * self.bytes),
            false => Room::Bytes((self.free().saturating_add(file) / SHARE).max(HISTORY)),
        }
    }

    fn refuse(&mut self) {
        if !std::mem::replace(&mut self.full, true) {
            error!(
                ballast = %self.path.display(), bytes = self.bytes,
                "THE DISK IS FULL: the store takes no writes until there is room for twice the ballast, on the disk or \
                 where old events were; what is there can be read"
            );
        }
    }

    /// Bytes that the disk has left.
    fn free(&self) -> u64 {
        let folder = match self.path.parent() {
            // A name alone.
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => Path::new("/"),
        };
        statvfs(folder).map_or(0, |disk| {
            #[allow(
                clippy::useless_conversion,
                reason = "the widths differ between systems"
            )]
            u64::from(disk.blocks_available()).saturating_mul(disk.fragment_size().into())
        })
    }

    fn make(&mut self) {
        self.given_up = false;
        if self.bytes == 0 {
            return;
        }
        let Err(error) = self.try_make() else { return };
        // A part of it holds nothing back and takes room.
        remove(&self.path);
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.given_up = true,
            _ => warn!(
                ballast = %self.path.display(), bytes = self.bytes, %error,
                "no room can be held back for a full disk"
            ),
        }
    }

    fn try_make(&self) -> io::Result<()> {
        let bytes = i64::try_from(self.bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.path)?;
        posix_fallocate(&file, 0, bytes).map_err(io::Error::from)
    }
}

fn beside(store: &Path) -> PathBuf {
    let mut path = store.as_os_str().to_owned();
    path.push("-ballast");
    path.into()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        error!(ballast = %path.display(), %error, "the ballast cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_without_a_folder_in_its_path_is_on_a_disk_too() {
        let ballast = Ballast {
            path: beside(Path::new("store.db")),
            bytes: 0,
            given_up: true,
            full: true,
        };
        assert!(ballast.free() > 0);
    }
}
