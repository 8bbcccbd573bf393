//! `peers.yaml` in the data directory: the node that this one joined through, so that it is a peer on every later start.

use std::path::Path;

use anyhow::Context as _;
use keel_certs::write_atomic;
use serde::{Deserialize, Serialize};

use crate::settings::{PeerArg, read_file};

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

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.yaml");
        std::fs::write(&path, "peers: [nonsense]\n").unwrap();
        assert!(format!("{:#}", load(&path).unwrap_err()).contains("peers.yaml"));
    }
}
