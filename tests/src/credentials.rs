//! Certificates of a user or a pod as files, for clients that are not ours.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::process::Program;
use crate::site::Node;

/// A client certificate, its key and the root to trust, as PEM files.
#[derive(Debug)]
pub struct Credentials {
    /// The certificate with its intermediate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The root of the trust domain.
    pub ca: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

impl Credentials {
    /// Those of a node's administrator, out of its kubeconfig.
    ///
    /// # Errors
    /// If the kubeconfig lacks one.
    pub fn admin(node: &Node) -> anyhow::Result<Self> {
        let config = std::fs::read_to_string(node.kubeconfig()?)?;
        let folder = tempfile::tempdir()?;
        let write = |field: &str, name: &str| -> anyhow::Result<PathBuf> {
            let (_, value) = config
                .split_once(&format!("{field}:"))
                .with_context(|| format!("no {field} in {config}"))?;
            // On one line or folded over several; the next key ends it.
            let base64: String = value
                .lines()
                .map(str::trim)
                .filter(|line| *line != ">-")
                .take_while(|line| !line.contains([':', '-']))
                .collect();
            let path = folder.path().join(name);
            std::fs::write(
                &path,
                data_encoding::BASE64
                    .decode(base64.as_bytes())
                    .with_context(|| format!("{field} is no base64"))?,
            )?;
            Ok(path)
        };
        let cert = write("client-certificate-data", "tls.crt")?;
        let key = write("client-key-data", "tls.key")?;
        let ca = write("certificate-authority-data", "ca.crt")?;
        Ok(Self {
            cert,
            key,
            ca,
            _folder: Some(folder),
        })
    }

    /// Those that a sidecar keeps under a folder (its state directory).
    ///
    /// # Errors
    /// If it keeps none there.
    pub fn kept_in(folder: &Path) -> anyhow::Result<Self> {
        let cert = search(folder, "tls.crt")
            .with_context(|| format!("no tls.crt under {}", folder.display()))?;
        Ok(Self {
            key: cert.with_file_name("tls.key"),
            ca: cert.with_file_name("ca.crt"),
            cert,
            _folder: None,
        })
    }

    /// `curl` with this certificate; prints the body and, on a last line, the status.
    #[must_use]
    pub fn curl(&self) -> Program {
        let program = Program::new("curl")
            .args(["-sS", "-w", "\n%{http_code}", "--cert"])
            .arg(&self.cert)
            .arg("--key")
            .arg(&self.key);
        program.arg("--cacert").arg(&self.ca)
    }
}

/// Looks for a file of that name under a folder.
#[must_use]
pub fn search(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let here = entries
        .iter()
        .find(|path| path.file_name().is_some_and(|found| found == name))
        .cloned();
    here.or_else(|| entries.iter().find_map(|path| search(path, name)))
}
