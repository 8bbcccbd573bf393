//! Room on the disk that is held back for the day when it is full.
//!
//! A full disk stops more than writes: moving the log into the file and forgetting old events need room too. So some is held by a
//! file that is given up then. Writes are refused until there is room for it again, and as much beside it, so that the store does
//! not go back and forth between the two.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;
use tracing::{error, info, warn};

/// The file that holds the room.
pub(super) struct Ballast {
    path: PathBuf,
    bytes: u64,
    /// The file was given up, and there is no room for it yet.
    full: bool,
}

impl Ballast {
    /// Holds room back for the store at `store`. If there is none, the disk counts as full.
    pub(super) fn hold(store: &Path, bytes: u64) -> Self {
        let mut ballast = Self {
            path: beside(store),
            bytes,
            full: false,
        };
        ballast.make();
        if ballast.full {
            ballast.complain();
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
        if !std::mem::replace(&mut self.full, true) {
            self.complain();
        }
    }

    /// Whether the disk has room for writes: it has, or has again.
    pub(super) fn has_room(&mut self) -> bool {
        if self.full && self.can_be_made() {
            self.make();
            if !self.full {
                info!(ballast = %self.path.display(), "the disk has room again: the store takes writes");
            }
        }
        !self.full
    }

    fn complain(&self) {
        error!(
            ballast = %self.path.display(), bytes = self.bytes,
            "THE DISK IS FULL: the store takes no writes until there is room for twice the ballast; what is there can be read"
        );
    }

    fn can_be_made(&self) -> bool {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        statvfs(folder).is_ok_and(|disk| {
            #[allow(
                clippy::useless_conversion,
                reason = "the widths differ between systems"
            )]
            let free =
                u64::from(disk.blocks_available()).saturating_mul(disk.fragment_size().into());
            free / 2 >= self.bytes
        })
    }

    fn make(&mut self) {
        self.full = false;
        if self.bytes == 0 {
            return;
        }
        let Err(error) = self.try_make() else { return };
        // A part of it holds nothing back and takes room.
        remove(&self.path);
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.full = true,
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
