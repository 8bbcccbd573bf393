//! Datagrams of one connection: who takes those that arrive, and a fair queue for those that leave.
//!
//! A datagram starts with the id of the QUIC stream of its leg (varint), its packet follows. Nothing here waits for a
//! flow: what arrives is handed on or dropped at once, and what leaves waits in a bounded queue per flow, from which the
//! flows are served in turn. The tasks of a connection start with its first flow of datagrams.
//!
//! The implementation puts datagrams into packets before anything else, so a flood of them would leave nothing of a full
//! connection to its streams. While streams have something to send too, [`Share`] gives each kind half.

mod queue;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::SendDatagramError;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::queue::Queue;
pub(super) use self::queue::QueueLimits;
use crate::metrics::FabricMetrics;
use crate::wire::varint;

/// Most bytes of a stream id.
const HEADER: usize = 8;
/// Largest packet in any datagram: what a QUIC packet of 1,200 bytes leaves, for every connection takes those.
pub(crate) const SAFE_DATAGRAM: u64 = 1152;
/// Bytes by which datagrams may be ahead of the streams.
const AHEAD: usize = 32 << 10;
/// Bytes that leave at once while the connection is not full.
const BATCH: usize = 8 << 10;
/// Bytes of a QUIC packet that are neither a datagram's nor a stream's, about.
const OVERHEAD: u64 = 48;
/// How long after its last write a stream may still have something under way, in milliseconds.
const STREAMS_LINGER: u64 = 3000;
/// How often a connection that is full is looked at again.
const LOOK: Duration = Duration::from_millis(1);

/// Takes the packets that arrive for one stream. Must not wait.
pub(crate) trait Sink: Send + Sync + fmt::Debug {
    /// One packet, without its header.
    fn take(&self, packet: Bytes);
}

/// Why a packet did not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotSent {
    /// It is larger than what the connection takes now.
    TooLarge,
    /// The queue of its flow or connection is full; the limit that was hit.
    Full(&'static str),
    /// The connection has ended, or the peer takes no datagrams.
    Lost,
}

/// The datagrams of one connection; its tasks end with this.
pub(crate) struct Datagrams {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    connection: quinn::Connection,
    routes: Mutex<HashMap<u64, Arc<dyn Sink>>>,
    queue: Mutex<Queue>,
    queued: Notify,
    began: Instant,
    /// When a stream last had something to send, in milliseconds since `began`; nobody looks before there is a route.
    streams: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half changed here, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagrams").finish_non_exhaustive()
    }
}

impl Datagrams {
    pub(super) fn new(connection: quinn::Connection, limits: QueueLimits) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                connection,
                routes: Mutex::default(),
                queue: Mutex::new(Queue::new(limits)),
                queued: Notify::new(),
                began: Instant::now(),
                streams: AtomicU64::new(NO_ROUTE),
            }),
            tasks: Mutex::default(),
        })
    }

    /// Lets no more than so many bytes wait to leave.
    pub(super) fn set_queue(&self, bytes: usize) {
        lock(&self.shared.queue).set_bytes(bytes);
    }

    /// Hands the packets of `stream` to `sink` for as long as the route lives.
    pub(crate) fn route(
        self: &Arc<Self>,
        stream: u64,
        sink: Arc<dyn Sink>,
        metrics: &Arc<FabricMetrics>,
    ) -> Route {
        let mut tasks = lock(&self.tasks);
        if tasks.is_empty() {
            self.shared.streams.store(0, Ordering::Relaxed);
            tasks.spawn(receive(Arc::clone(&self.shared), Arc::clone(metrics)));
            tasks.spawn(send(Arc::clone(&self.shared), Arc::clone(metrics)));
        }
        lock(&self.shared.routes).insert(stream, sink);
        Route {
            to: self.sender(stream),
        }
    }

    /// Sends packets of `stream`; whoever has its route lets them out.
    pub(crate) fn sender(self: &Arc<Self>, stream: u64) -> Sender {
        Sender {
            datagrams: Arc::clone(self),
            stream,
        }
    }

    /// A stream of the connection has something to send.
    pub(super) fn stream_sends(&self) {
        let streams = &self.shared.streams;
        if streams.load(Ordering::Relaxed) != NO_ROUTE {
            streams.store(self.shared.millis(), Ordering::Relaxed);
        }
    }

    /// Largest packet that fits into a datagram now; 0 for none. Changes with the path.
    pub(crate) fn max_packet(&self) -> u64 {
        let max = self.shared.connection.max_datagram_size().unwrap_or(0);
        max.saturating_sub(HEADER) as u64
    }
}

/// No flow of datagrams has begun.
const NO_ROUTE: u64 = u64::MAX;

impl Shared {
    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0)
    }

    /// Whether streams have something to send too, or had a moment ago.
    fn has_busy_streams(&self) -> bool {
        let at = self.streams.load(Ordering::Relaxed);
        at > 0 && at != NO_ROUTE && self.millis().saturating_sub(at) < STREAMS_LINGER
    }
}

/// Where the packets of a stream go. Dropped, they are nobody's, and those that wait to leave are dropped too.
#[derive(Debug)]
pub(crate) struct Route {
    to: Sender,
}

impl Route {
    /// The way out.
    pub(crate) const fn sender(&self) -> &Sender {
        &self.to
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let shared = &self.to.datagrams.shared;
        lock(&shared.routes).remove(&self.to.stream);
        lock(&shared.queue).forget(self.to.stream);
    }
}

/// The way out for the packets of one stream.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    datagrams: Arc<Datagrams>,
    stream: u64,
}

impl Sender {
    /// Largest packet that fits now; 0 for none.
    pub(crate) fn max_packet(&self) -> u64 {
        self.datagrams.max_packet()
    }

    /// Sends one packet, or queues it.
    ///
    /// # Errors
    /// [`NotSent`]; the packet is lost.
    pub(crate) fn send(&self, packet: &[u8]) -> Result<(), NotSent> {
        let shared = &self.datagrams.shared;
        let mut datagram = BytesMut::with_capacity(varint::size(self.stream) + packet.len());
        varint::write(self.stream, &mut datagram);
        datagram.extend_from_slice(packet);
        let datagram = datagram.freeze();
        let max = shared.connection.max_datagram_size().ok_or(NotSent::Lost)?;
        if datagram.len() > max {
            return Err(NotSent::TooLarge);
        }
        let mut queue = lock(&shared.queue);
        let space = || shared.connection.datagram_send_buffer_space();
        if queue.is_idle() && !shared.has_busy_streams() && space() >= datagram.len() {
            return shared
                .connection
                .send_datagram(datagram)
                .map_err(|error| match error {
                    SendDatagramError::TooLarge => NotSent::TooLarge,
                    _ => NotSent::Lost,
                });
        }
        queue.push(self.stream, datagram).map_err(NotSent::Full)?;
        drop(queue);
        shared.queued.notify_one();
        Ok(())
    }
}

/// Hands on what arrives until the connection ends.
async fn receive(shared: Arc<Shared>, metrics: Arc<FabricMetrics>) {
    while let Ok(datagram) = shared.connection.read_datagram().await {
        let sink = varint::read(&datagram).and_then(|(stream, header)| {
            let sink = lock(&shared.routes).get(&stream).cloned()?;
            Some((sink, header))
        });
        match sink {
            Some((sink, header)) => sink.take(datagram.slice(header..)),
            None => metrics.dropped("unknown_flow"),
        }
    }
}

/// Lets out what is queued until the connection ends.
async fn send(shared: Arc<Shared>, metrics: Arc<FabricMetrics>) {
    let mut share = Share::default();
    loop {
        let next = lock(&shared.queue).pop();
        let Some(datagram) = next else {
            shared.queued.notified().await;
            continue;
        };
        while shared.has_busy_streams() && !share.allows(datagram.len(), &shared.connection) {
            if share.waited {
                tokio::time::sleep(LOOK).await;
            } else {
                // One that is not full sends what it has when it has its turn.
                tokio::task::yield_now().await;
                share.waited = !share.is_empty(&shared.connection);
            }
        }
        match shared.connection.send_datagram_wait(datagram).await {
            Ok(()) => {}
            Err(SendDatagramError::TooLarge) => metrics.dropped("too_large"),
            Err(_) => return,
        }
    }
}

/// What datagrams may have of a connection whose streams are busy: as many bytes as everything else had, and one datagram
/// whenever none is left in the connection. One that lets them out as they come is not full, and delays none.
#[derive(Debug, Default)]
struct Share {
    /// Room of the connection's own buffer when it is empty.
    room: usize,
    /// Bytes of datagrams that were handed to the connection so far.
    handed: u64,
    /// Bytes that it sent so far for anything else.
    others: u64,
    /// Bytes that may leave.
    credit: usize,
    /// The connection was given time since the last datagram.
    waited: bool,
}

/// What a connection has sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    bytes: u64,
    packets: u64,
    /// Room for datagrams that wait.
    space: usize,
}

impl Share {
    fn allows(&mut self, len: usize, connection: &quinn::Connection) -> bool {
        let udp = connection.stats().udp_tx;
        let sent = Sent {
            bytes: udp.bytes,
            packets: udp.datagrams,
            space: connection.datagram_send_buffer_space(),
        };
        self.takes(len, sent)
    }

    /// Whether no datagram is left in the connection.
    fn is_empty(&self, connection: &quinn::Connection) -> bool {
        connection.datagram_send_buffer_space() >= self.room
    }

    /// Whether `len` bytes may leave now; then they are taken to have left.
    fn takes(&mut self, len: usize, sent: Sent) -> bool {
        self.room = self.room.max(sent.space);
        let waiting = (self.room - sent.space) as u64;
        let datagrams = self.handed.saturating_sub(waiting);
        let others = sent
            .bytes
            .saturating_sub(datagrams + OVERHEAD * sent.packets);
        let had = usize::try_from(others.saturating_sub(self.others)).unwrap_or(usize::MAX);
        self.others = self.others.max(others);
        self.credit = self.credit.saturating_add(had).min(AHEAD);
        if waiting == 0 && !self.waited {
            self.credit = self.credit.max(BATCH);
        }
        if self.credit < len && waiting > 0 {
            return false;
        }
        self.credit = self.credit.saturating_sub(len);
        self.handed += len as u64;
        self.waited = false;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that lets so many bytes out at a time, in packets of 1,200 bytes: datagrams first, then streams. What each had.
    fn shared(grant: usize, datagram: usize) -> (usize, usize) {
        let mut share = Share::default();
        let (room, mut waiting) = (64 << 10, 0);
        let (mut bytes, mut packets) = (0, 0);
        let (mut datagrams, mut streams) = (0, 0);
        for _ in 0..1000 {
            loop {
                let sent = Sent {
                    bytes,
                    packets,
                    space: room - waiting,
                };
                if !share.takes(datagram, sent) {
                    break;
                }
                waiting += datagram;
            }
            share.waited = true;
            let first = grant.min(waiting);
            waiting -= first;
            datagrams += first;
            streams += grant - first;
            let out = (grant / 1200) as u64;
            packets += out;
            bytes += grant as u64 + OVERHEAD * out;
        }
        (datagrams, streams)
    }

    #[test]
    fn busy_streams_get_as_much_of_a_full_connection_as_datagrams() {
        for (grant, datagram) in [
            (1200, 100),
            (2400, 1100),
            (2400, 1200),
            (12_000, 1100),
            (65_000, 1200),
        ] {
            let (datagrams, streams) = shared(grant, datagram);
            let part = datagrams as f64 / (datagrams + streams) as f64;
            assert!((0.4..0.6).contains(&part), "{part} of {grant}, {datagram}");
        }
    }

    #[test]
    fn a_connection_that_is_not_full_delays_no_datagram() {
        let mut share = Share::default();
        let sent = Sent {
            bytes: 0,
            packets: 0,
            space: 64 << 10,
        };
        assert!((0..1000).all(|_| share.takes(1200, sent)));
    }
}
