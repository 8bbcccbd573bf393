//! The sidecar: its bytes on a thread of their own, its DNS and discovery on the caller's runtime.

use std::time::Duration;

use anyhow::anyhow;
use keel_sidecar::admin::Ready;
use keel_sidecar::{Sidecar, StartError};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::datapath::DataPath;
use crate::errors::{Usage, chain};
use crate::settings::SidecarSettings;
use crate::telemetry::ProcessCollector;

/// Runs a sidecar until `stop`.
///
/// # Errors
/// It cannot start, or a part of it failed.
pub async fn sidecar(settings: SidecarSettings, stop: CancellationToken) -> anyhow::Result<()> {
    let sidecar = RunningSidecar::start(settings, stop.clone()).await?;
    let (ready, addresses) = (sidecar.ready.clone(), sidecar.addresses.clone());
    let ended = sidecar.ended();
    tokio::pin!(ended);
    tokio::select! {
        biased;
        outcome = &mut ended => return outcome,
        () = until_ready(&ready) => {}
    }
    info!(dns = addresses.dns.map(tracing::field::display), metrics = %addresses.metrics, "ready");
    ended.await
}

/// What no other machine would make right is wrong usage.
fn start_error(error: StartError) -> anyhow::Error {
    match error {
        StartError::Range(_) | StartError::Upstream(_) => Usage(chain(&error)).into(),
        other => other.into(),
    }
}

/// How often readiness is looked at; it is told to nobody.
const LOOK: Duration = Duration::from_millis(100);

async fn until_ready(ready: &Ready) {
    while !ready.missing().is_empty() {
        tokio::time::sleep(LOOK).await;
    }
}

/// A sidecar that was started.
#[derive(Debug)]
pub struct RunningSidecar {
    data_path: DataPath,
    stop: CancellationToken,
    addresses: SidecarAddresses,
    ready: Ready,
    _stop_on_drop: DropGuard,
}

/// Where a started sidecar listens.
#[derive(Debug, Clone)]
pub struct SidecarAddresses {
    /// Where DNS is answered; none if nothing is mapped.
    pub dns: Option<std::net::SocketAddr>,
    /// Where metrics and health are served.
    pub metrics: std::net::SocketAddr,
}

impl RunningSidecar {
    /// Starts a sidecar; returns once its listeners are bound, which does not wait for an APIServer.
    ///
    /// # Errors
    /// A listener cannot be had; the error names it and says what to do.
    pub async fn start(settings: SidecarSettings, stop: CancellationToken) -> anyhow::Result<Self> {
        let config = &settings.config;
        if config.mapped.is_empty() && config.published.is_empty() {
            warn!("nothing is mapped or published: give --mapped-services or --published-services");
        }
        let control = Handle::current();
        let (tell, told) = oneshot::channel();
        let inner = stop.clone();
        let mut registry = Registry::default();
        let runtimes = ProcessCollector::register(&mut registry, control.clone());
        let mut data_path = DataPath::start("keel-data", runtimes, move || async move {
            let sidecar = Sidecar::start(settings.config, registry, inner, control)
                .await
                .map_err(start_error)?;
            let addresses = SidecarAddresses {
                dns: sidecar.dns_addr(),
                metrics: sidecar.metrics_addr(),
            };
            // Nobody listens only if the starter was dropped; the sidecar is stopped by its token then.
            let _ = tell.send((addresses, sidecar.ready()));
            sidecar.run().await?;
            Ok(())
        })?;
        match told.await {
            Ok((addresses, ready)) => Ok(Self {
                data_path,
                _stop_on_drop: stop.clone().drop_guard(),
                stop,
                addresses,
                ready,
            }),
            Err(_) => Err(data_path
                .ended()
                .await
                .err()
                .unwrap_or_else(|| anyhow!("the sidecar was stopped before it started"))),
        }
    }

    /// Where it listens.
    pub fn addresses(&self) -> &SidecarAddresses {
        &self.addresses
    }

    /// What it still waits for.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Waits until the sidecar has ended, by its token or by an error.
    ///
    /// # Errors
    /// A part of it failed.
    pub async fn ended(self) -> anyhow::Result<()> {
        self.data_path.join().await
    }

    /// Stops the sidecar and waits for its end.
    ///
    /// # Errors
    /// As [`RunningSidecar::ended`].
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.ended().await
    }
}
