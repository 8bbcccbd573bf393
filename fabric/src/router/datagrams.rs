//! Datagrams beside a splice: from one connection to the other without waiting, under the stream ids of the splice.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::meter::Passing;
use crate::metrics::FabricMetrics;
use crate::pace::{Gate, Limit, Pace};
use crate::quic::{NotSent, Route, SendStream, Sender, Sink};

/// Both directions; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Beside {
    _routes: [Route; 2],
    narrowed: CancellationToken,
}

impl Beside {
    /// Forwards between the connections of two streams, `near` being the initiator's.
    pub(super) fn join(
        near: &SendStream,
        far: &SendStream,
        passing: &Arc<Passing>,
        limit: Option<&Arc<Limit>>,
        metrics: &Arc<FabricMetrics>,
    ) -> Self {
        let narrowed = CancellationToken::new();
        let (gate_up, gate_down) = limit.map(Pace::between).unzip();
        let forward = |from: &SendStream, to: &SendStream, up, gate: Option<Gate>| {
            let forward = Forward {
                to: to.datagrams().sender(to.id()),
                up,
                gate: gate.map(Mutex::new),
                passing: Arc::clone(passing),
                narrowed: narrowed.clone(),
                metrics: Arc::clone(metrics),
            };
            from.datagrams()
                .route(from.id(), Arc::new(forward), metrics)
        };
        Self {
            _routes: [
                forward(near, far, true, gate_up),
                forward(far, near, false, gate_down),
            ],
            narrowed,
        }
    }

    /// Waits until a packet did not fit: the path has become narrower than what the ends agreed on. On a new leg they send
    /// only what fits everywhere.
    pub(super) async fn narrowed(&self) {
        self.narrowed.cancelled().await;
    }
}

#[derive(Debug)]
struct Forward {
    to: Sender,
    up: bool,
    gate: Option<Mutex<Gate>>,
    passing: Arc<Passing>,
    narrowed: CancellationToken,
    metrics: Arc<FabricMetrics>,
}

impl Sink for Forward {
    fn take(&self, packet: Bytes) {
        if let Some(gate) = &self.gate {
            // A short look; nothing is left half changed.
            let mut gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
            if !gate.try_take(packet.len(), Instant::now()) {
                return self.metrics.dropped("rate");
            }
        }
        match self.to.send(&packet) {
            Ok(()) => {
                let meter = if self.up {
                    &self.passing.up
                } else {
                    &self.passing.down
                };
                meter.add(packet.len() as u64);
            }
            Err(NotSent::TooLarge) => {
                self.metrics.dropped("too_large");
                self.narrowed.cancel();
            }
            Err(NotSent::Full) => self.metrics.dropped("queue"),
            Err(NotSent::Lost) => self.metrics.dropped("no_leg"),
        }
    }
}
