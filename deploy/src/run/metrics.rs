//! The node's metrics port: `/metrics`, `/healthz`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use keel_sidecar::admin::{Admin, Ready};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use crate::settings::Wanted;

/// The running metrics port.
pub(super) struct MetricsPort {
    addr: SocketAddr,
    task: JoinSet<()>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl MetricsPort {
    /// Serves `registry` and `ready` on `wanted`. A default address that is taken gives way to a free port; one that the user
    /// gave does not.
    pub(super) async fn start(
        wanted: Wanted,
        registry: Registry,
        ready: Ready,
    ) -> anyhow::Result<Self> {
        let registry = Arc::new(registry);
        let admin = match Admin::bind(wanted.addr, registry.clone(), ready.clone()).await {
            Ok(admin) => admin,
            Err(error) if !wanted.given => {
                let free = SocketAddr::new(wanted.addr.ip(), 0);
                let admin = Admin::bind(free, registry, ready)
                    .await
                    .context("no port for metrics can be had")?;
                warn!(%error, wanted = %wanted.addr, taken = %admin.local_addr(), "the default metrics address cannot be had; another one is used");
                admin
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "metrics cannot listen on {}; give another --metrics-listen",
                        wanted.addr
                    )
                });
            }
        };
        let addr = admin.local_addr();
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(admin.run(stop.clone()));
        Ok(Self {
            addr,
            task,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// Where it listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while self.task.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_default_gives_way_and_a_taken_wish_does_not() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let port = MetricsPort::start(
            Wanted { addr, given: false },
            Registry::default(),
            Ready::default(),
        )
        .await
        .unwrap();
        assert_ne!(port.addr(), addr);
        port.stop().await;
        let refused = MetricsPort::start(
            Wanted { addr, given: true },
            Registry::default(),
            Ready::default(),
        )
        .await;
        let text = format!("{:#}", refused.err().unwrap());
        assert!(
            text.contains(&addr.to_string()) && text.contains("--metrics-listen"),
            "{text}"
        );
    }
}
