//! The keys that make a restarted endpoint recognise, and be recognised by, the peers it had.

use std::fmt;
use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::{hkdf, hmac};

use super::cid::KeyedCids;

/// Why the keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The directory or a file in it cannot be read or written.
    #[error("cannot use the QUIC key {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Stateless-reset key, connection-id key and address-token key of one endpoint.
///
/// Kept across restarts, so that peers of the former process learn at their next packet that it is gone.
#[derive(Clone)]
pub struct QuicKeys {
    reset: [u8; 64],
    cid: [u8; 32],
    token: [u8; 32],
    peers: Option<PathBuf>,
}

impl fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QuicKeys(..)")
    }
}

impl QuicKeys {
    /// Keys for an endpoint that nobody needs to recognise after a restart.
    #[must_use]
    pub fn ephemeral() -> Self {
        Self {
            reset: fresh(),
            cid: fresh(),
            token: fresh(),
            peers: None,
        }
    }

    /// Reads `reset.key`, `cid.key` and `token.key` in `dir`; makes what is missing: the directory with mode 0700, the
    /// files with mode 0600. One that is damaged is set aside (`reset.key.damaged`) with a warning, and a new one takes its place: peers
    /// notice this restart later than others, which is no reason not to start.
    ///
    /// # Errors
    /// [`KeysError`] names the file.
    pub fn load_or_create(dir: &Path) -> Result<Self, KeysError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| KeysError::Io {
                path: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            reset: load_key(&dir.join("reset.key"))?,
            cid: load_key(&dir.join("cid.key"))?,
            token: load_key(&dir.join("token.key"))?,
            peers: None,
        })
    }

    /// An endpoint with these keys keeps its peers in that file (mode 0600), and at its start tells those of the process
    /// before that their connections are gone. Without it they notice at their next packet.
    #[must_use]
    pub fn with_peers(self, file: PathBuf) -> Self {
        Self {
            peers: Some(file),
            ..self
        }
    }

    pub(super) fn peers(&self) -> Option<&Path> {
        self.peers.as_deref()
    }

    pub(super) fn reset_key(&self) -> Arc<dyn quinn::crypto::HmacKey> {
        Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.reset))
    }

    pub(super) fn token_key(&self) -> Arc<dyn quinn::crypto::HandshakeTokenKey> {
        Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&self.token))
    }

    pub(super) fn cids(&self, shard: u8) -> KeyedCids {
        let mut tag_key = [0; 16];
        let mut mask_key = [0; 16];
        tag_key.copy_from_slice(&self.cid[..16]);
        mask_key.copy_from_slice(&self.cid[16..]);
        KeyedCids {
            tag_key,
            mask_key,
            shard,
        }
    }
}

fn fresh<const N: usize>() -> [u8; N] {
    let mut key = [0; N];
    rand::fill(&mut key[..]);
    key
}

fn load_key<const N: usize>(path: &Path) -> Result<[u8; N], KeysError> {
    let io_error = |source| KeysError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::read(path) {
        Ok(bytes) => match bytes.try_into() {
            Ok(key) => return Ok(key),
            Err(_) => {
                let aside = path.with_extension("key.damaged");
                std::fs::rename(path, &aside).map_err(io_error)?;
                tracing::warn!(
                    key = %path.display(), set_aside = %aside.display(),
                    "a QUIC key is damaged and made anew: peers notice this restart some seconds later than usual"
                );
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(error)),
    }
    let key = fresh();
    write_secret(path, &key).map_err(io_error)?;
    Ok(key)
}

/// Writes beside and renames, so that a power cut leaves no half key.
fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_survive_a_restart_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = QuicKeys::load_or_create(dir.path()).unwrap();
        let second = QuicKeys::load_or_create(dir.path()).unwrap();
        assert_eq!(
            (first.reset, first.cid, first.token),
            (second.reset, second.cid, second.token)
        );
        let mode = std::fs::metadata(dir.path().join("reset.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let first = QuicKeys::load_or_create(dir.path()).unwrap();
        for damage in [&b""[..], b"short"] {
            std::fs::write(dir.path().join("cid.key"), damage).unwrap();
            let second = QuicKeys::load_or_create(dir.path()).unwrap();
            assert_eq!((first.reset, first.token), (second.reset, second.token));
            assert_ne!(first.cid, second.cid);
            let aside = std::fs::read(dir.path().join("cid.key.damaged"));
            assert_eq!(aside.unwrap(), damage);
            let third = QuicKeys::load_or_create(dir.path()).unwrap();
            assert_eq!(second.cid, third.cid);
        }
    }
}
