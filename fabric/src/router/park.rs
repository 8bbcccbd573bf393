//! A resumed leg whose provider is not here: it may be on its way back, as after a restart of this router.

use std::pin::pin;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, Semaphore};

use super::Shared;
use super::clients::Client;
use super::identities::Allowance;
use super::route::Next;

/// Legs that wait for their provider.
#[derive(Debug)]
pub(super) struct Parking {
    places: Semaphore,
    arrived: Notify,
}

impl Parking {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: Semaphore::new(places.min(Semaphore::MAX_PERMITS)),
            arrived: Notify::new(),
        }
    }

    /// A provider has come, or publishes something more.
    pub(super) fn arrived(&self) {
        self.arrived.notify_waiters();
    }
}

/// A leg that is counted while it waits.
struct Waiting<'a>(&'a Gauge);

impl<'a> Waiting<'a> {
    fn count(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Waits a moment for the provider of a leg that `client` opened; `None` if it does not come, or nobody can wait here.
pub(super) async fn wait<C: Clone>(
    shared: &Shared,
    client: &Client,
    allowance: &Allowance,
    route: impl Fn() -> Option<Next<C>>,
) -> Option<Next<C>> {
    let (Some(_own), Ok(_place)) = (
        allowance.park(&shared.limits),
        shared.parking.places.try_acquire(),
    ) else {
        shared.metrics.hit("parked");
        return None;
    };
    let _waiting = Waiting::count(&shared.metrics.router_legs_parked);
    let wait = async {
        loop {
            let mut arrived = pin!(shared.parking.arrived.notified());
            // From here on no arrival is missed.
            arrived.as_mut().enable();
            if let Some(next) = route() {
                return next;
            }
            arrived.await;
        }
    };
    tokio::select! {
        next = wait => Some(next),
        () = tokio::time::sleep(shared.limits.park_time) => {
            shared.metrics.hit("park_time");
            None
        }
        () = shared.drain.begun() => None,
        _ = client.connection.closed() => None,
    }
}
