//! The data side of a running sidecar: connections to routers once there is an identity, and the publications.

use std::sync::Arc;

use keel_fabric::Grace;
use keel_fabric::limits::{Limits, LinkLimits};
use keel_fabric::link::Links;
use keel_fabric::memory::Memory;
use keel_fabric::metrics::FabricMetrics;
use keel_fabric::pace::Paces;
use keel_fabric::provider::{Entrances, Provider, ProviderConfig};
use keel_fabric::quic::{Endpoint, Profile, Windows};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::error::RunError;
use crate::identity::Found;
use crate::options::AllOptions;
use crate::publish::{self, Decided};
use crate::spec::PublishedService;
use crate::survey::Survey;

/// The data side: connections to routers once there is an identity, and the publications.
pub(crate) struct Carrying {
    pub(crate) published: Vec<PublishedService>,
    pub(crate) options: Arc<AllOptions>,
    /// How long flows to published services may go on after the stop.
    pub(crate) grace: Grace,
    pub(crate) paces: Arc<Paces>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) entrances: Entrances,
    pub(crate) limits: Limits,
    pub(crate) fabric: Arc<FabricMetrics>,
    pub(crate) links: watch::Sender<Option<Links>>,
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    pub(crate) found: watch::Receiver<Option<Found>>,
}

impl Carrying {
    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), RunError> {
        let found = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            found = self.found.wait_for(Option::is_some) => found.ok().and_then(|found| found.clone()),
        };
        let Some(found) = found else { return Ok(()) };
        let endpoint = Endpoint::client_with(Profile::Sidecar, Windows::of(&self.limits))?;
        let links = Links::new(
            endpoint,
            found.live.clone(),
            LinkLimits::default(),
            self.fabric.clone(),
        );
        self.links.send_replace(Some(links.clone()));
        if self.published.is_empty() {
            stop.cancelled().await;
        } else {
            let provider = Provider::new(
                links.clone(),
                found.live,
                ProviderConfig {
                    grace: self.grace,
                    limits: self.limits.provider.clone(),
                    flow: self.limits.flow,
                    paces: self.paces,
                    memory: self.memory,
                    entrances: self.entrances,
                },
                self.fabric,
            );
            let decided = Decided {
                publications: watch::Sender::default(),
                routers: watch::Sender::default(),
            };
            let serving = provider.serve(
                decided.publications.subscribe(),
                decided.routers.subscribe(),
                stop.clone(),
            );
            let survey = Survey::new(|router| {
                let links = &links;
                Box::pin(async move {
                    links.link(&router).await.ok()?;
                    links.rtt(&router.node)
                })
            });
            tokio::join!(
                serving,
                publish::say_unreachable(provider.state(), stop.clone()),
                publish::follow(
                    (self.published, self.options),
                    self.directory,
                    provider.state(),
                    survey,
                    decided,
                    stop.clone()
                )
            );
        }
        // Live connections of the listeners still use the links; they are closed when the last one is gone.
        Ok(())
    }
}
