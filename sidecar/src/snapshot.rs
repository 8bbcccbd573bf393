//! What the sidecar last knew, on disk: so that it starts without a network, also after a reboot.
//!
//! Two files take turns, so that a torn write never costs the older one. Each is one line `keel-snapshot 1 <SHA-256 of the
//! rest, hex>` and a JSON document. The newer one that is whole counts; with none the sidecar starts empty.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use keel_certs::NodeName;
use keel_control::api::Router;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::spec::ServiceRef;

const NAMES: [&str; 2] = ["snapshot.0", "snapshot.1"];
const MAGIC: &str = "keel-snapshot 1 ";

/// Larger files are not read: ten thousand Routers with a dozen services each stay below.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Snapshot {
    /// Counts the snapshots of this directory.
    pub revision: u64,
    /// Where the identity came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The address of every mapped service.
    #[serde(with = "as_text")]
    pub addresses: BTreeMap<ServiceRef, IpAddr>,
    /// The Routers as they were last seen.
    pub routers: Vec<Arc<Router>>,
    /// True if those were all Routers at the time; false before the APIServer was read for the first time.
    pub whole: bool,
}

/// The node that the identity belongs to, and its APIServer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The node.
    pub node: NodeName,
    /// `host:port` of the APIServer.
    pub apiserver: String,
}

/// Why a file is no snapshot.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    /// It is larger than any snapshot.
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// The first line is another one.
    #[error("it does not begin like a snapshot")]
    Header,
    /// The hash is another one: the file was torn or changed.
    #[error("its hash does not fit its content")]
    Hash,
    /// The document does not parse.
    #[error("its document is not readable: {0}")]
    Document(serde_json::Error),
}

/// The two files of one state directory.
#[derive(Debug)]
pub struct SnapshotFiles {
    dir: PathBuf,
    revision: u64,
    next: usize,
}

impl SnapshotFiles {
    /// Reads the newest whole snapshot of `dir`; the errors are those of files that exist and are none.
    pub fn open(dir: &Path) -> (Self, Option<Snapshot>, Vec<(PathBuf, SnapshotError)>) {
        let mut newest: Option<(usize, Snapshot)> = None;
        let mut errors = Vec::new();
        for (index, name) in NAMES.iter().enumerate() {
            let path = dir.join(name);
            match read(&path) {
                Ok(Some(snapshot))
                    if newest
                        .as_ref()
                        .is_none_or(|(_, other)| snapshot.revision > other.revision) =>
                {
                    newest = Some((index, snapshot));
                }
                Ok(_) => {}
                Err(error) => errors.push((path, error)),
            }
        }
        let revision = newest.as_ref().map_or(0, |(_, snapshot)| snapshot.revision);
        let next = newest.as_ref().map_or(0, |(index, _)| 1 - index);
        (
            Self {
                dir: dir.to_owned(),
                revision,
                next,
            },
            newest.map(|(_, snapshot)| snapshot),
            errors,
        )
    }

    /// Writes `snapshot` over the older file; blocks until it is on disk.
    ///
    /// # Errors
    /// Of the disk. The other file is as it was.
    pub fn write(&mut self, mut snapshot: Snapshot) -> io::Result<()> {
        snapshot.revision = self.revision.saturating_add(1);
        let document = serde_json::to_vec(&snapshot).map_err(io::Error::other)?;
        let mut bytes = format!("{MAGIC}{}\n", hash(&document)).into_bytes();
        bytes.extend_from_slice(&document);
        keel_certs::write_atomic(&self.dir.join(NAMES[self.next]), &bytes, 0o600)
            .map_err(io::Error::other)?;
        self.revision = snapshot.revision;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Snapshot>, SnapshotError> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SnapshotError::Read(error)),
    };
    if size > MAX_BYTES {
        return Err(SnapshotError::TooLarge);
    }
    let bytes = std::fs::read(path).map_err(SnapshotError::Read)?;
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(SnapshotError::Header)?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| SnapshotError::Header)?;
    let expected = header.strip_prefix(MAGIC).ok_or(SnapshotError::Header)?;
    let document = &bytes[end + 1..];
    if hash(document) != expected {
        return Err(SnapshotError::Hash);
    }
    serde_json::from_slice(document)
        .map(Some)
        .map_err(SnapshotError::Document)
}

fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// A map with services as keys, which JSON has as text.
mod as_text {
    use serde::de::Error as _;
    use serde::{Deserializer, Serializer};

    use super::*;

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<ServiceRef, IpAddr>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(
            map.iter()
                .map(|(service, address)| (service.to_string(), address)),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<ServiceRef, IpAddr>, D::Error> {
        let map = BTreeMap::<String, IpAddr>::deserialize(from)?;
        map.into_iter()
            .map(|(text, address)| Ok((text.parse().map_err(D::Error::custom)?, address)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(address: &str) -> Snapshot {
        Snapshot {
            revision: 0,
            origin: Some(Origin {
                node: "a".parse().unwrap(),
                apiserver: "127.0.0.1:7443".to_owned(),
            }),
            addresses: BTreeMap::from([
                ("mysql.default".parse().unwrap(), address.parse().unwrap()),
                (
                    "redis.default.east".parse().unwrap(),
                    "127.0.66.9".parse().unwrap(),
                ),
            ]),
            routers: vec![Arc::new(Router::named("a"))],
            whole: true,
        }
    }

    fn load(dir: &Path) -> (Option<Snapshot>, usize) {
        let (_, snapshot, errors) = SnapshotFiles::open(dir);
        (snapshot, errors.len())
    }

    fn filled() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, none, errors) = SnapshotFiles::open(dir.path());
        assert!(none.is_none() && errors.is_empty());
        files.write(sample("127.0.66.1")).unwrap();
        files.write(sample("127.0.66.2")).unwrap();
        dir
    }

    #[test]
    fn the_newest_is_read_back_and_the_files_take_turns() {
        let dir = filled();
        let (mut files, newest, _) = SnapshotFiles::open(dir.path());
        assert_eq!(
            newest.unwrap(),
            Snapshot {
                revision: 2,
                ..sample("127.0.66.2")
            }
        );
        files.write(sample("127.0.66.3")).unwrap();
        assert_eq!(load(dir.path()).0.unwrap().revision, 3);
        std::fs::remove_file(dir.path().join("snapshot.0")).unwrap();
        assert_eq!(
            load(dir.path()).0.unwrap(),
            Snapshot {
                revision: 2,
                ..sample("127.0.66.2")
            }
        );
    }

    #[test]
    fn a_corrupt_file_gives_way_to_the_other_whatever_byte_it_is() {
        let dir = filled();
        let newer = dir.path().join("snapshot.1");
        let whole = std::fs::read(&newer).unwrap();
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0x10;
            std::fs::write(&newer, &broken).unwrap();
            let (snapshot, errors) = load(dir.path());
            assert_eq!((snapshot.unwrap().revision, errors), (1, 1), "byte {at}");
        }
        for length in [0, 5, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&newer, &whole[..length]).unwrap();
            assert_eq!(load(dir.path()).0.unwrap().revision, 1);
        }
    }

    #[test]
    fn with_both_corrupt_it_starts_empty_and_says_so() {
        let dir = filled();
        for name in NAMES {
            std::fs::write(dir.path().join(name), b"\xff\x00keel").unwrap();
        }
        let (mut files, snapshot, errors) = SnapshotFiles::open(dir.path());
        assert!(snapshot.is_none() && errors.len() == 2);
        files.write(sample("127.0.66.1")).unwrap();
        assert_eq!(
            load(dir.path()),
            (
                Some(Snapshot {
                    revision: 1,
                    ..sample("127.0.66.1")
                }),
                1
            )
        );
    }
}
