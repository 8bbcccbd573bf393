//! How a command gets at the node: an admin identity over `admin.sock`, then the API as everybody else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use keel_certs::{DataDir, JoinToken, LiveIdentity, NodeName, UserName, rotate};
use keel_control::client::{Client, ClientConfig};
use keel_control::enroll::wire::{FlowInfo, NodeInfo, TokenRequest};
use keel_control::enroll::{AdminSocketIssuer, LocalError, local};
use keel_control::store::TokenScope;
use keel_fabric::quic::HostPort;
use keel_sidecar::config::parse_apiserver;

/// An admin of the node whose data directory it is.
pub(crate) struct Admin {
    pub(crate) live: LiveIdentity,
    pub(crate) info: NodeInfo,
    pub(crate) server: HostPort,
    user: UserName,
    socket: PathBuf,
}

impl Admin {
    /// Asks the node at `dir` for an admin identity; `ttl` defaults to the life of all leaves.
    pub(crate) async fn get(
        dir: &Path,
        user: Option<UserName>,
        ttl: Option<Duration>,
    ) -> anyhow::Result<Self> {
        let socket = socket(dir);
        let info = local::info(&socket).await?;
        let user = user.unwrap_or_else(current_user);
        let live = local::admin_identity(&socket, &user, ttl, false).await?;
        let server = parse_apiserver(&info.apiserver).context("the node names no APIServer")?;
        Ok(Self {
            live,
            info,
            server,
            user,
            socket,
        })
    }

    /// Keeps the identity fresh, for ever: for commands that run longer than it lives.
    pub(crate) async fn keep_fresh(&self) {
        let issuer = AdminSocketIssuer {
            socket: self.socket.clone(),
            user: self.user.clone(),
        };
        rotate(self.live.clone(), Arc::new(issuer), std::future::pending()).await;
    }

    /// A client of the node's APIServer.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let config = ClientConfig {
            server: self.server.clone(),
            expect: self.info.node.clone(),
            live: self.live.clone(),
        };
        Client::new(config).context("no socket for a client of the APIServer")
    }

    /// What the node's process counts of flows now; none if its Router is another process.
    pub(crate) async fn flows(&self) -> anyhow::Result<Option<Vec<FlowInfo>>> {
        match local::flows(&self.socket).await {
            // A node of a version that does not count them.
            Err(LocalError::Refused(_)) => Ok(None),
            other => Ok(other?),
        }
    }

    /// A token with which `node` joins at `endpoint`, once, within ten minutes.
    pub(crate) async fn node_token(
        &self,
        node: &NodeName,
        endpoint: &str,
    ) -> anyhow::Result<JoinToken> {
        let request = TokenRequest {
            scope: TokenScope::Node {
                node: Some(node.clone()),
            },
            ttl_seconds: 600,
            uses: 1,
            endpoint: Some(endpoint.to_owned()),
        };
        Ok(local::create_token(&self.socket, &request).await?)
    }
}

/// `admin.sock` of the data directory.
pub(crate) fn socket(dir: &Path) -> PathBuf {
    DataDir::peek(dir).admin_sock()
}

/// Who asks, for the audit: the user's name if it is one, else `admin`.
fn current_user() -> UserName {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid())
        .ok()
        .flatten();
    let name = user.and_then(|user| user.name.parse().ok());
    // Invariant: `admin` is a valid name.
    name.unwrap_or_else(|| "admin".parse().expect("a valid user name"))
}
