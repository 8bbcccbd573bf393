//! Who this sidecar is: where its identity comes from, and how it stays fresh.
//!
//! In this order: a directory that somebody else keeps fresh, the identity kept in the state directory, a join token, a node's
//! workload socket. With none of them it says so and goes on looking.

mod fresh;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use keel_certs::{
    Chain, Csr, JoinToken, KeyPair, LiveError, LiveIdentity, Namespace, NodeName, PodName, RootPin,
    Subject,
};
use keel_control::enroll;
use keel_fabric::quic::HostPort;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{SidecarConfig, parse_apiserver};
use crate::snapshot::Origin;

pub use fresh::keep_fresh;

/// Between two looks for an identity.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Between two lines that say there is none.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// How long a node on this machine may take to say where its APIServer is; without an answer the last one counts.
const ASK_SOCKET: Duration = Duration::from_millis(500);

/// An identity, and what belongs to it.
#[derive(Clone)]
pub struct Found {
    /// Key and certificates.
    pub live: LiveIdentity,
    /// The node that vouches for it.
    pub node: NodeName,
    /// The node's APIServer.
    pub apiserver: HostPort,
    /// How the identity is renewed.
    pub renewal: Renewal,
}

/// How an identity is renewed.
#[derive(Debug, Clone)]
pub enum Renewal {
    /// Somebody replaces the files of this directory.
    Directory(PathBuf),
    /// By the node: over one of these sockets, else over the network.
    Node(Vec<PathBuf>),
}

/// Why there is no identity, for good.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// None was found in the time given.
    #[error("no identity was found in {0:?}: {1}")]
    Timeout(Duration, String),
    /// The token was refused; it will not become better.
    #[error("{why} (at a node: `keel token create --sidecar {namespace}/{pod}`)")]
    Refused {
        /// What the node said.
        why: String,
        /// The namespace that is asked for.
        namespace: Namespace,
        /// The name that is asked for.
        pod: PodName,
    },
}

/// Everything that the look-up needs.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// See [`SidecarConfig::identity_dir`].
    pub identity_dir: Option<PathBuf>,
    /// Where an identity is kept: `identity` in the state directory.
    pub kept: Option<PathBuf>,
    /// See [`SidecarConfig::join`].
    pub join: Option<JoinToken>,
    /// See [`SidecarConfig::workload_sockets`].
    pub sockets: Vec<PathBuf>,
    /// See [`SidecarConfig::apiserver`].
    pub apiserver: Option<HostPort>,
    /// Where the kept identity came from.
    pub origin: Option<Origin>,
    /// The namespace to be in.
    pub namespace: Namespace,
    /// The name to have.
    pub pod: PodName,
    /// True if the user gave that name; a made-up one is no reason to refuse another.
    pub pod_given: bool,
    /// See [`SidecarConfig::identity_timeout`].
    pub timeout: Option<Duration>,
}

impl Lookup {
    /// The look-up of a sidecar called `pod` with its state in `state`.
    pub fn new(
        config: &SidecarConfig,
        pod: PodName,
        state: Option<&Path>,
        origin: Option<Origin>,
    ) -> Self {
        Self {
            identity_dir: config.identity_dir.clone(),
            kept: state.map(|dir| dir.join("identity")),
            join: config.join.clone(),
            sockets: config.workload_sockets.clone(),
            apiserver: config.apiserver.clone(),
            origin,
            namespace: config.namespace.clone(),
            pod,
            pod_given: config.pod.is_some(),
            timeout: config.identity_timeout,
        }
    }

    /// Looks until there is an identity. Cancel safe: a key that a token was used with is kept.
    ///
    /// # Errors
    /// A refused token, or no identity within the timeout.
    pub async fn run(&self) -> Result<Found, IdentityError> {
        let start = Instant::now();
        let mut said: Option<(Instant, String)> = None;
        loop {
            let why = match self.once().await {
                Ok(found) => {
                    tracing::info!(identity = %found.live.identity(), apiserver = %found.apiserver, "identity found");
                    return Ok(found);
                }
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(why)) => why,
            };
            if let Some(limit) = self.timeout
                && start.elapsed() >= limit
            {
                return Err(IdentityError::Timeout(limit, why));
            }
            if said
                .as_ref()
                .is_none_or(|(at, last)| at.elapsed() >= SAY_EVERY || *last != why)
            {
                tracing::warn!("no identity yet: {why}");
                said = Some((Instant::now(), why));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn once(&self) -> Result<Found, Attempt> {
        if let Some(dir) = &self.identity_dir {
            return self.in_directory(dir, SystemTime::now());
        }
        let useless = match self.kept_one().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(why) => Some(why),
        };
        let other = match &self.join {
            Some(token) => self.with_token(token).await,
            None => self.over_sockets().await,
        };
        other.map_err(|attempt| match (attempt, useless) {
            (Attempt::Again(why), Some(useless)) => Attempt::Again(format!("{useless}; {why}")),
            (attempt, _) => attempt,
        })
    }

    fn in_directory(&self, dir: &Path, now: SystemTime) -> Result<Found, Attempt> {
        let live = LiveIdentity::load(dir).map_err(|error| {
            Attempt::Again(format!(
                "the identity in {} cannot be read: {error}",
                dir.display()
            ))
        })?;
        if live.not_after() <= now {
            return Err(Attempt::Again(format!(
                "the certificate in {} has expired, and nobody has replaced it yet (is this machine's clock right?)",
                dir.display()
            )));
        }
        let node = node_of(&live).ok_or_else(|| {
            Attempt::Again(format!("{} is no identity of a sidecar", live.identity()))
        })?;
        let apiserver = self.apiserver_or(None);
        Ok(Found {
            live,
            node,
            apiserver,
            renewal: Renewal::Directory(dir.to_owned()),
        })
    }

    /// The identity of an earlier run, if there is one; why it is of no use, if so.
    async fn kept_one(&self) -> Result<Option<Found>, String> {
        let kept = self.kept.as_ref();
        let Some(dir) = kept.filter(|dir| dir.join("tls.crt").exists()) else {
            return Ok(None);
        };
        let live = LiveIdentity::load(dir).map_err(|error| {
            let dir = dir.display();
            format!("the identity kept in {dir} cannot be used: {error}")
        })?;
        let identity = live.identity();
        let Subject::Pod {
            node,
            namespace,
            pod,
        } = &identity.subject
        else {
            return Ok(None);
        };
        // A token may be for another name than the one that this sidecar was told; what it gave is what was wanted.
        let joined = std::fs::read_to_string(joined(dir)).ok();
        let other = *namespace != self.namespace || (self.pod_given && *pod != self.pod);
        let wanted = format!("{}/{}", self.namespace, self.pod);
        if other && joined.is_none() {
            return Err(format!(
                "the identity kept in {} is of {identity}, and {wanted} is wanted",
                dir.display()
            ));
        }
        if other && self.pod_given {
            tracing::warn!(%identity, wanted, "a token named this sidecar otherwise, and that counts; another sidecar needs its own --state-dir");
        }
        if live.not_after() <= SystemTime::now() {
            return Err(format!(
                "the identity kept in {} has expired",
                dir.display()
            ));
        }
        if let Some(token) = &self.join
            && !live
                .roots()
                .iter()
                .any(|root| RootPin::of(root).is_ok_and(|pin| pin == token.pin))
        {
            tracing::warn!(%identity, token = %token.id, "the join token is for another trust domain; going on with the kept identity");
        }
        let told = match self.told_by_socket(node).await {
            Some(apiserver) => Some(apiserver),
            None => self
                .origin
                .as_ref()
                .filter(|origin| origin.node == *node)
                .map(|origin| &origin.apiserver)
                .or(joined.as_ref())
                .and_then(|apiserver| apiserver.trim().parse().ok()),
        };
        let apiserver = self.apiserver_or(told);
        if let Err(error) = live.keep_in(dir) {
            tracing::warn!(%error, "renewed certificates will not be kept");
        }
        Ok(Some(Found {
            live,
            node: node.clone(),
            apiserver,
            renewal: Renewal::Node(self.sockets.clone()),
        }))
    }

    /// Whether it was said where the APIServer is.
    pub(crate) fn names_apiserver(&self) -> bool {
        self.apiserver.is_some()
    }

    /// Where `node`'s APIServer is now, if the node is on this machine: it may have moved since the identity was kept.
    pub(crate) async fn told_by_socket(&self, node: &NodeName) -> Option<HostPort> {
        let csr = KeyPair::generate().ok()?.csr().ok()?;
        for socket in self.sockets.iter().filter(|socket| socket.exists()) {
            let asked = enroll::local::workload(socket, &self.namespace, &self.pod, &csr);
            if let Ok(Ok(workload)) = timeout(ASK_SOCKET, asked).await
                && workload.node == *node
            {
                return parse_apiserver(&workload.info.apiserver).ok();
            }
        }
        None
    }

    async fn with_token(&self, token: &JoinToken) -> Result<Found, Attempt> {
        let (key, csr) = self.key()?;
        let joined = enroll::join::sidecar(token, &csr).await.map_err(|error| {
            if error.is_retryable() {
                return Attempt::Again(error.to_string());
            }
            Attempt::Final(IdentityError::Refused {
                why: error.to_string(),
                namespace: self.namespace.clone(),
                pod: self.pod.clone(),
            })
        })?;
        let apiserver = token.endpoint.parse().ok();
        self.found(key, joined.chain, joined.roots, apiserver, Some(token))
    }

    async fn over_sockets(&self) -> Result<Found, Attempt> {
        let (mut errors, mut hidden) = (Vec::new(), Vec::new());
        for socket in &self.sockets {
            match socket.try_exists() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    hidden.push(format!("{}: {error}", socket.display()));
                    continue;
                }
            }
            let (key, csr) = self.key()?;
            match enroll::local::workload(socket, &self.namespace, &self.pod, &csr).await {
                Ok(workload) => {
                    let apiserver = parse_apiserver(&workload.info.apiserver).ok();
                    return self.found(key, workload.chain, workload.roots, apiserver, None);
                }
                Err(error) => errors.push(format!("{}: {error}", socket.display())),
            }
        }
        if !errors.is_empty() {
            return Err(Attempt::Again(errors.join("; ")));
        }
        if !hidden.is_empty() {
            return Err(Attempt::Again(format!(
                "there may be a node on this machine that this user cannot reach ({}), and there is no join token; either run this \
                 as a user who may look there, or run `keel token create --sidecar {}/{}` at a node and give the token with \
                 `--join @FILE`",
                hidden.join("; "),
                self.namespace,
                self.pod
            )));
        }
        let looked: Vec<_> = self
            .sockets
            .iter()
            .map(|socket| socket.display().to_string())
            .collect();
        Err(Attempt::Again(format!(
            "there is no node on this machine (no socket at {}) and no join token; either start a node here with `keel up`, or run \
             `keel token create --sidecar {}/{}` at a node and give the token with `--join @FILE`",
            looked.join(", "),
            self.namespace,
            self.pod
        )))
    }

    fn found(
        &self,
        key: KeyPair,
        chain: Chain,
        roots: Vec<rustls_pki_types::CertificateDer<'static>>,
        apiserver: Option<HostPort>,
        token: Option<&JoinToken>,
    ) -> Result<Found, Attempt> {
        let live = LiveIdentity::new(key, chain, roots)
            .map_err(|error| Attempt::Again(error.to_string()))?;
        let node = node_of(&live).ok_or_else(|| {
            Attempt::Again(format!("{} is no identity of a sidecar", live.identity()))
        })?;
        if let Some(dir) = &self.kept {
            match note_joined(dir, token).and_then(|()| live.keep_in(dir)) {
                // Best effort: the key is in the identity now.
                Ok(()) => _ = std::fs::remove_file(pending(dir)),
                // The key stays: with it the next start may use the token once more.
                Err(error) => {
                    tracing::warn!(%error, "the identity cannot be kept; the next start needs the node again");
                }
            }
        }
        Ok(Found {
            live,
            node,
            apiserver: self.apiserver_or(apiserver),
            renewal: Renewal::Node(self.sockets.clone()),
        })
    }

    /// The key to ask with: the same one until it is certified, because a token belongs to the first key that uses it.
    fn key(&self) -> Result<(KeyPair, Csr), Attempt> {
        let again = |error: &dyn std::fmt::Display| Attempt::Again(format!("no key: {error}"));
        let file = self.kept.as_ref().map(|dir| pending(dir));
        let kept = file
            .as_ref()
            .and_then(|file| std::fs::read_to_string(file).ok());
        let key = match kept.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
            Some(key) => key,
            None => {
                let key = KeyPair::generate().map_err(|error| again(&error))?;
                if let Some(file) = &file
                    && let Err(error) = keel_certs::write_atomic(file, key.pem().as_bytes(), 0o600)
                {
                    tracing::warn!(%error, "the key cannot be kept");
                }
                key
            }
        };
        let csr = key.csr().map_err(|error| again(&error))?;
        Ok((key, csr))
    }

    fn apiserver_or(&self, told: Option<HostPort>) -> HostPort {
        let default = || HostPort::from(std::net::SocketAddr::from(([127, 0, 0, 1], 7443)));
        self.apiserver.clone().or(told).unwrap_or_else(default)
    }
}

enum Attempt {
    Again(String),
    Final(IdentityError),
}

fn node_of(live: &LiveIdentity) -> Option<NodeName> {
    live.identity().subject.node().cloned()
}

/// The file that says that the identity in `dir` came by a token, and from where.
fn joined(dir: &Path) -> PathBuf {
    dir.with_extension("joined")
}

/// Written before the identity, so that a crash in between does no harm: without an identity nobody reads it.
fn note_joined(dir: &Path, token: Option<&JoinToken>) -> Result<(), LiveError> {
    let path = joined(dir);
    match token {
        Some(token) => Ok(keel_certs::write_atomic(
            &path,
            token.endpoint.as_bytes(),
            0o600,
        )?),
        None => {
            // Where there is none, nothing is to be removed.
            let _ = std::fs::remove_file(path);
            Ok(())
        }
    }
}

fn pending(dir: &Path) -> PathBuf {
    dir.with_extension("pending.key")
}

#[cfg(test)]
mod tests;
