//! Which peers a node has: those of its flags or its `--config` file, and those of `peers.yaml` in the data directory, where the
//! node that this one joined through is kept. Both files are read again when they change.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use keel_certs::write_atomic;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::errors::chain;
use crate::settings::{NodeFlags, NodeSettings, PeerArg, read_file};

/// Between two looks at the files. A change counts once it is seen the same twice, so that a file that is being written is not read.
const LOOK: Duration = Duration::from_secs(1);

/// Where the peers of a node come from.
#[derive(Debug, Clone)]
pub(super) struct PeersSource {
    /// Those of flags and environment, or of the file as it was at the start.
    given: Vec<PeerArg>,
    /// The `--config` file, if the peers in it count.
    config: Option<PathBuf>,
    /// `peers.yaml` of the data directory.
    kept: PathBuf,
}

impl PeersSource {
    pub(super) fn new(settings: &NodeSettings, kept: PathBuf) -> Self {
        Self {
            given: settings.peers.clone(),
            config: settings.peers_file.clone(),
            kept,
        }
    }

    /// Those that are kept, and no others.
    #[cfg(test)]
    pub(super) fn kept(kept: PathBuf) -> Self {
        Self {
            given: Vec::new(),
            config: None,
            kept,
        }
    }

    /// The peers as the files say now.
    pub(super) fn read(&self) -> anyhow::Result<Vec<PeerArg>> {
        let given = match &self.config {
            Some(path) => read_file::<NodeFlags>(path)?.peer,
            None => self.given.clone(),
        };
        Ok(merge(&given, load(&self.kept)?))
    }

    /// Calls `tell` with the peers whenever they are no longer those that are `known`. A file that cannot be read changes nothing, and
    /// the log names it.
    pub(super) async fn follow(self, mut known: Vec<PeerArg>, mut tell: impl FnMut(Vec<PeerArg>)) {
        // What is known may be older than the first look.
        let (mut taken, mut before) = (None, self.fingerprint());
        loop {
            sleep(LOOK).await;
            let now = self.fingerprint();
            let is_settled = std::mem::replace(&mut before, now) == now;
            if taken == Some(now) || !is_settled {
                continue;
            }
            taken = Some(now);
            match self.read() {
                Ok(peers) if peers == known => {}
                Ok(peers) => {
                    info!(peers = peers.len(), "other peers from now on");
                    known.clone_from(&peers);
                    tell(peers);
                }
                Err(error) => {
                    warn!("the peers stay as they were: {}", chain(error.as_ref()));
                }
            }
        }
    }

    /// What tells that a file is another one than before.
    fn fingerprint(&self) -> [Option<(u64, i64, i64, u64)>; 2] {
        [self.config.as_deref(), Some(self.kept.as_path())].map(|path| {
            let data = std::fs::metadata(path?).ok()?;
            Some((data.ino(), data.mtime(), data.mtime_nsec(), data.len()))
        })
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PeersFile {
    /// Each `NAME=HOST:PORT`.
    peers: Vec<String>,
}

/// The peers kept in the file at `path`; none if there is no file.
pub(super) fn load(path: &Path) -> anyhow::Result<Vec<PeerArg>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let file: PeersFile = read_file(path)?;
    let parse = |text: &String| text.parse().with_context(|| format!("{}", path.display()));
    file.peers.iter().map(parse).collect()
}

/// Keeps `peers` in the file at `path`, atomically.
pub(super) fn save(path: &Path, peers: &[PeerArg]) -> anyhow::Result<()> {
    let file = PeersFile {
        peers: peers.iter().map(ToString::to_string).collect(),
    };
    let text = serde_saphyr::to_string(&file).context("cannot write the peers as YAML")?;
    write_atomic(path, text.as_bytes(), 0o600)?;
    Ok(())
}

/// `given` first, then those of `kept` that name another node.
pub(super) fn merge(given: &[PeerArg], kept: Vec<PeerArg>) -> Vec<PeerArg> {
    let mut all = given.to_vec();
    for peer in kept {
        if all.iter().all(|known| known.node != peer.node) {
            all.push(peer);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_kept_and_flags_win_over_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.yaml");
        assert!(load(&path).unwrap().is_empty());
        let kept: Vec<PeerArg> = vec![
            "a=a.example.net:7443".parse().unwrap(),
            "c=[2001:db8::1]:7443".parse().unwrap(),
        ];
        save(&path, &kept).unwrap();
        assert_eq!(load(&path).unwrap(), kept);
        let given = vec!["a=other.example.net:7443".parse().unwrap()];
        let merged: Vec<_> = merge(&given, kept)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(merged, ["a=other.example.net:7443", "c=[2001:db8::1]:7443"]);
    }

    #[tokio::test]
    async fn a_changed_file_is_taken_up_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("keel.yaml");
        let write = |text: &str| std::fs::write(&config, text).unwrap();
        write("peer: ['a=a.example.net:7443']\n");
        let source = PeersSource {
            given: Vec::new(),
            config: Some(config.clone()),
            kept: dir.path().join("peers.yaml"),
        };
        assert_eq!(source.read().unwrap().len(), 1);
        let (sender, mut told) = tokio::sync::mpsc::channel(8);
        let kept = source.kept.clone();
        let follow = source.follow(Vec::new(), |peers| {
            let names = peers.iter().map(ToString::to_string).collect::<Vec<_>>();
            sender.try_send(names.join(" ")).unwrap();
        });
        let steps = async {
            write("peer: nonsense\n");
            // Long enough for it to be seen, which nothing tells.
            sleep(4 * LOOK).await;
            save(&kept, &["c=c.example.net:7443".parse().unwrap()]).unwrap();
            write("peer: ['b=b.example.net:7443']\n");
            let mut last = told.recv().await.unwrap();
            // The two files may be seen one after the other.
            while !last.contains("c=") || !last.contains("b=") {
                last = told.recv().await.unwrap();
            }
            assert_eq!(last, "b=b.example.net:7443 c=c.example.net:7443");
        };
        let bound = Duration::from_secs(20);
        tokio::select! {
            () = follow => {}
            outcome = tokio::time::timeout(bound, steps) => outcome.unwrap(),
        }
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.yaml");
        std::fs::write(&path, "peers: [nonsense]\n").unwrap();
        assert!(format!("{:#}", load(&path).unwrap_err()).contains("peers.yaml"));
    }
}
