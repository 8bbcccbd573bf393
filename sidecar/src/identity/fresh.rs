//! Keeping an identity fresh while it is used.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use keel_certs::{Csr, Issuer, LiveIdentity, RenewError, Renewed, Subject};
use keel_control::client::Client;
use keel_control::enroll;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Found, Renewal};

/// How often the files of `--identity-dir` are read again.
const READ_EVERY: Duration = Duration::from_secs(10);

/// Keeps the identity fresh until `stop`; `client` talks to the node's APIServer.
pub async fn keep_fresh(found: Found, client: Client, stop: CancellationToken) {
    match found.renewal {
        Renewal::Directory(dir) => follow_files(&found.live, &dir, stop).await,
        Renewal::Node(sockets) => {
            let remote = Arc::new(enroll::RemoteIssuer { client });
            let issuer = NodeIssuer {
                live: found.live.clone(),
                sockets,
                remote,
            };
            keel_certs::rotate(found.live, Arc::new(issuer), stop.cancelled_owned()).await;
        }
    }
}

/// Asks the node: over a socket of its own machine, which works whatever the certificate's state, else over the network.
pub(super) struct NodeIssuer {
    /// The identity to renew.
    pub(super) live: LiveIdentity,
    pub(super) sockets: Vec<PathBuf>,
    pub(super) remote: Arc<dyn Issuer>,
}

impl Issuer for NodeIssuer {
    fn renew(&self, csr: &Csr) -> BoxFuture<'static, Result<Renewed, RenewError>> {
        let (live, sockets, remote, csr) = (
            self.live.clone(),
            self.sockets.clone(),
            self.remote.clone(),
            csr.clone(),
        );
        Box::pin(async move {
            if let Subject::Pod {
                node,
                namespace,
                pod,
            } = &live.identity().subject
            {
                let held = live.roots();
                for socket in sockets.iter().filter(|socket| socket.exists()) {
                    match enroll::local::workload(socket, namespace, pod, &csr).await {
                        Ok(workload)
                            if workload.node == *node
                                && workload.roots.iter().any(|root| held.contains(root)) =>
                        {
                            return Ok((workload.chain, workload.roots));
                        }
                        // The socket of another node, or of one of that name in another trust domain, or a name that only a token gives: the network knows better.
                        Ok(_) => {}
                        Err(error) => {
                            tracing::debug!(%error, socket = %socket.display(), "no renewal over the socket")
                        }
                    }
                }
            }
            remote.renew(&csr).await
        })
    }
}

/// Takes over what somebody else writes into the directory.
pub(super) async fn follow_files(live: &LiveIdentity, dir: &Path, stop: CancellationToken) {
    let mut said = false;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(READ_EVERY) => {}
        }
        let over = live.not_after() <= SystemTime::now();
        if over && !said {
            tracing::warn!(identity = %live.identity(), dir = %dir.display(), "the certificate has expired, and nobody has replaced it");
        }
        said = over;
        // Half-written files do not fit together; the next look finds them whole.
        let Ok(new) = LiveIdentity::load(dir) else {
            continue;
        };
        if new.chain().certs == live.chain().certs && new.roots() == live.roots() {
            continue;
        }
        match live.replace_all(new.key(), new.chain(), new.roots()) {
            Ok(()) => tracing::info!(identity = %live.identity(), "certificate replaced"),
            Err(error) => {
                tracing::warn!(%error, dir = %dir.display(), "the new certificate is not taken")
            }
        }
    }
}
