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
        limit: &Arc<Limit>,
        metrics: &Arc<FabricMetrics>,
    ) -> Self {
        let narrowed = CancellationToken::new();
        let (gate_up, gate_down) = Pace::between(limit);
        let forward = |from: &SendStream, to: &SendStream, up, gate: Gate| {
            let forward = Forward {
                to: to.datagrams().sender(to.id()),
                up,
                gate: Mutex::new(gate),
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
    gate: Mutex<Gate>,
    passing: Arc<Passing>,
    narrowed: CancellationToken,
    metrics: Arc<FabricMetrics>,
}

impl Sink for Forward {
    fn take(&self, packet: Bytes) {
        let goes = {
            // A short look; nothing is left half changed.
            let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            gate.try_take(packet.len(), Instant::now())
        };
        if !goes {
            return self.metrics.dropped("rate");
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
            Err(NotSent::Full(limit)) => self.metrics.queue_full(limit),
            Err(NotSent::Lost) => self.metrics.dropped("no_leg"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meter;
    use crate::metrics::DropLabels;
    use crate::quic::tests::{Taken, pair, soon};
    use crate::series::At;
    use crate::wire::Protocol;

    fn passing(metrics: &Arc<FabricMetrics>) -> Arc<Passing> {
        let service = "ntp.default".parse().unwrap();
        let at = At(&service, 123, Protocol::Udp);
        let running = metrics.pairs.start("router", at, &"peer");
        let none = Meter::default;
        Arc::new(Passing::new(Vec::new(), none(), none(), running))
    }

    fn unlimited(metrics: &Arc<FabricMetrics>) -> Arc<Limit> {
        Limit::new("identity".to_owned(), None, metrics)
    }

    #[tokio::test]
    async fn packets_go_on_under_the_other_connections_stream_until_the_splice_ends() {
        let metrics = Arc::new(FabricMetrics::default());
        let (consumer, near, _consumers) = pair().await;
        let (far, provider, _providers) = pair().await;
        let (mut opened, _answers) = consumer.open_bi().await.unwrap();
        opened.write_all(b"OPEN").await.unwrap();
        let (near_stream, _near_recv) = soon(near.accept_bi()).await.unwrap();
        // Another flow came first: the ids differ.
        let _first = far.open_bi().await.unwrap();
        let (far_stream, _far_recv) = far.open_bi().await.unwrap();
        assert_ne!(opened.id(), far_stream.id());
        let taken = Arc::new(Taken::default());
        let sink = Arc::clone(&taken);
        let _end = provider.datagrams().route(far_stream.id(), sink, &metrics);
        let passing = passing(&metrics);
        let limit = unlimited(&metrics);
        let beside = Beside::join(&near_stream, &far_stream, &passing, &limit, &metrics);
        let sender = consumer.datagrams().sender(opened.id());
        sender.send(b"packet").unwrap();
        let arrived = |count| {
            let taken = Arc::clone(&taken);
            async move {
                while taken.0.lock().unwrap().len() < count {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
        };
        soon(arrived(1)).await;
        assert_eq!(taken.0.lock().unwrap()[0], "packet");
        drop(beside);
        sender.send(b"late").unwrap();
        let unknown = DropLabels {
            reason: "unknown_flow",
        };
        let counted = async {
            while metrics.packets_dropped.get_or_create(&unknown).get() == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        soon(counted).await;
        assert_eq!(taken.0.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_packet_that_no_longer_fits_ends_the_splice() {
        let metrics = Arc::new(FabricMetrics::default());
        let (near, _far, _endpoints) = pair().await;
        let narrowed = CancellationToken::new();
        let forward = Forward {
            to: near.datagrams().sender(0),
            up: true,
            gate: Mutex::new(Pace::between(&unlimited(&metrics)).0),
            passing: passing(&metrics),
            narrowed: narrowed.clone(),
            metrics: Arc::clone(&metrics),
        };
        forward.take(Bytes::from_static(&[0; 1152]));
        assert!(!narrowed.is_cancelled(), "this fits everywhere");
        forward.take(Bytes::from(vec![0; 10_000]));
        assert!(narrowed.is_cancelled());
        let reason = "too_large";
        let dropped = metrics
            .packets_dropped
            .get_or_create(&DropLabels { reason });
        assert_eq!(dropped.get(), 1);
    }
}
