//! From a configuration to bound sockets: what must be there before the sidecar can say that it runs.

use std::net::SocketAddr;
use std::path::Path;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::admin::{Admin, Ready};
use crate::config::{ListenOn, SidecarConfig, Upstreams};
use crate::dns::DnsSockets;
use crate::dns::forward::{Forwarder, TRY_TIMEOUT};
use crate::dns::handler::Others;
use crate::dns::resolv::{ResolvConf, is_self};
use crate::error::{StartError, dns_remedy};
use crate::snapshot::{Snapshot, SnapshotFiles};

/// Runs `work` on the runtime `on`, where its sockets then belong to.
pub(crate) async fn on<T: Send + 'static>(
    handle: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let mut tasks = JoinSet::new();
    tasks.spawn_on(work, handle);
    // `None` only if the work panicked or its runtime is gone.
    tasks.join_next().await?.ok()
}

/// Why DNS would listen elsewhere than on port 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elsewhere {
    /// The user wants it so.
    Asked,
    /// Another program, or another sidecar, listens there.
    Taken,
    /// The system does not allow it.
    NotAllowed,
}

/// DNS at the address that was given, or at a free port near the default one.
pub(crate) async fn bind_dns(
    listen: ListenOn,
    control: &Handle,
) -> Result<(DnsSockets, Elsewhere), StartError> {
    let bind = async |address: SocketAddr| {
        let bound = on(control, DnsSockets::bind(address)).await;
        bound.unwrap_or_else(|| Err(std::io::Error::other("the control runtime is gone")))
    };
    let address = listen.address;
    let source = match bind(address).await {
        Ok(sockets) => return Ok((sockets, Elsewhere::Asked)),
        Err(source) => source,
    };
    if listen.given {
        return Err(StartError::Dns { address, source });
    }
    let free = SocketAddr::new(address.ip(), 0);
    let sockets = match bind(free).await {
        Ok(sockets) => sockets,
        // Systems other than Linux have 127.0.0.1 only.
        Err(_) => bind(([127, 0, 0, 1], 0).into())
            .await
            .map_err(|source| StartError::Dns { address, source })?,
    };
    tracing::warn!(
        "DNS listens on {} because {address} is not to be had ({source}); {}",
        sockets.address(),
        dns_remedy(address, &source)
    );
    let why = match source.kind() {
        std::io::ErrorKind::AddrInUse => Elsewhere::Taken,
        _ => Elsewhere::NotAllowed,
    };
    Ok((sockets, why))
}

/// Metrics and health at the address that was given, or at a free port if the default one is taken.
pub(crate) async fn bind_admin(
    listen: ListenOn,
    registry: prometheus_client::registry::Registry,
    ready: Ready,
    control: &Handle,
) -> Result<Admin, StartError> {
    let registry = std::sync::Arc::new(registry);
    let bind = async |address: SocketAddr| {
        let bound = on(
            control,
            Admin::bind(address, registry.clone(), ready.clone()),
        )
        .await;
        bound.unwrap_or_else(|| Err(std::io::Error::other("the control runtime is gone")))
    };
    let address = listen.address;
    match bind(address).await {
        Ok(admin) => Ok(admin),
        Err(source) if listen.given => Err(StartError::Metrics { address, source }),
        Err(source) => {
            let admin = bind(SocketAddr::new(address.ip(), 0))
                .await
                .map_err(|source| StartError::Metrics { address, source })?;
            tracing::info!(
                "metrics are at http://{}/metrics because {address} is not to be had ({source})",
                admin.local_addr()
            );
            Ok(admin)
        }
    }
}

/// The resolv.conf in force; one that cannot be read is empty.
pub(crate) fn read_resolv_conf(path: &Path) -> ResolvConf {
    match std::fs::read_to_string(path) {
        Ok(text) => ResolvConf::parse(&text),
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "no resolv.conf");
            ResolvConf::default()
        }
    }
}

/// Where names that are not ours go, for a DNS server at `own`.
pub(crate) fn others(
    config: &SidecarConfig,
    conf: &ResolvConf,
    own: SocketAddr,
) -> Result<Others, StartError> {
    let servers = match &config.dns_upstreams {
        Upstreams::None => return Ok(Others::Deny),
        Upstreams::Given(servers) => {
            if let Some(ourselves) = servers.iter().find(|server| is_self(own, **server)) {
                return Err(StartError::Upstream(*ourselves));
            }
            servers.clone()
        }
        Upstreams::ResolvConf => conf.upstreams(Some(own)),
    };
    if servers.is_empty() {
        tracing::warn!(
            "no DNS server is left to ask for other names ({} names none but this sidecar), so they fail; set SIDECAR_DNS_UPSTREAM",
            config.resolv_conf.display()
        );
        return Ok(Others::Fail);
    }
    tracing::debug!(?servers, "other names are asked for there");
    Ok(Others::Forward(Forwarder::new(
        servers,
        config.ip_range,
        TRY_TIMEOUT,
    )))
}

/// The newest snapshot of `dir`; what cannot be read is said.
pub(crate) fn read_snapshot(dir: &Path) -> (SnapshotFiles, Option<Snapshot>) {
    let (files, snapshot, errors) = SnapshotFiles::open(dir);
    for (path, error) in &errors {
        let then = if snapshot.is_some() {
            "the older one is used"
        } else {
            "starting with nothing"
        };
        tracing::warn!(
            "the snapshot {} is not usable: {error}; {then}",
            path.display()
        );
    }
    (files, snapshot)
}
