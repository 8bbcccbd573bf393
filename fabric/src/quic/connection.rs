//! Connections and attempts at them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use keel_certs::{IdentityError, PeerIdentity, peer_identity};
use quinn::VarInt;
use quinn::crypto::rustls::HandshakeData;
use rustls_pki_types::CertificateDer;
use tokio::task::JoinSet;

use super::datagrams::Datagrams;
use super::error::{ConnectError, Lost};
use super::stream::{Half, Opener};
use super::transport::Whole;
use super::{Profile, RecvStream, SendStream, Windows};
use crate::wire::CloseCode;

/// The server's configuration for peers elsewhere and on this host.
#[derive(Debug, Clone)]
pub(super) struct ServerConfigs {
    pub(super) network: Arc<quinn::ServerConfig>,
    pub(super) loopback: Arc<quinn::ServerConfig>,
}

/// A connection attempt that waits for its handshake.
///
/// Dropping it refuses the attempt.
#[derive(Debug)]
pub struct Incoming {
    incoming: quinn::Incoming,
    configs: ServerConfigs,
    profile: Profile,
    windows: Windows,
}

impl Incoming {
    pub(super) const fn new(
        incoming: quinn::Incoming,
        configs: ServerConfigs,
        profile: Profile,
        windows: Windows,
    ) -> Self {
        Self {
            incoming,
            configs,
            profile,
            windows,
        }
    }

    /// Where the attempt comes from; proven only if [`Self::is_validated`].
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Whether the peer has shown that it receives at that address.
    #[must_use]
    pub fn is_validated(&self) -> bool {
        self.incoming.remote_address_validated()
    }

    /// Tells the peer no.
    pub fn refuse(self) {
        self.incoming.refuse();
    }

    /// Tells the peer nothing: it asks again by itself, after a second at first.
    pub fn ignore(self) {
        self.incoming.ignore();
    }

    /// Asks the peer to come back with a proof of its address; refuses it if it already did.
    pub fn retry(self) {
        if let Err(error) = self.incoming.retry() {
            error.into_incoming().refuse();
        }
    }

    /// Does the handshake. Give it a deadline: it lasts as long as the peer wants, up to the idle time.
    ///
    /// # Errors
    /// [`ConnectError::Handshake`] says why it failed.
    pub async fn handshake(self) -> Result<Connection, ConnectError> {
        let loopback = self
            .incoming
            .remote_address()
            .ip()
            .to_canonical()
            .is_loopback();
        let config = if loopback {
            self.configs.loopback
        } else {
            self.configs.network
        };
        let connection = self
            .incoming
            .accept_with(config)
            .map_err(Lost::from)?
            .await
            .map_err(Lost::from)?;
        Ok(Connection::new(connection, self.profile, self.windows))
    }
}

/// What a connection has done, as far as it shows whether the peer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Frames sent that the peer has to acknowledge.
    pub(crate) eliciting: u64,
    /// Changes with every new acknowledgement.
    pub(crate) rtt: Duration,
}

/// An established connection; cheap to clone.
///
/// It ends by itself when the peer's certificate expires. It is closed when its last clone and stream are dropped.
#[derive(Debug, Clone)]
pub struct Connection {
    inner: quinn::Connection,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    peer: Option<Result<PeerIdentity, IdentityError>>,
    streams: Arc<Streams>,
    datagrams: Arc<Datagrams>,
    whole: Whole,
    /// Ends the connection at the peer's not-after; aborted when the last clone is dropped.
    expiry: Mutex<JoinSet<()>>,
}

/// How many streams a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamCount {
    /// Now.
    pub(crate) open: u32,
    /// At once, so far.
    pub(crate) most: u32,
}

/// Counts the streams of a connection by their halves, to allow the peer more of them in time.
#[derive(Debug)]
pub(super) struct Streams {
    of_peer: AtomicU32,
    own: AtomicU32,
    /// Of both together at once.
    most: AtomicU32,
    allowed: AtomicU32,
    max: u32,
}

impl Streams {
    pub(super) fn half_opened(&self, by: Opener) {
        self.halves(by).fetch_add(1, Ordering::Relaxed);
        self.most.fetch_max(self.open_halves(), Ordering::Relaxed);
    }

    pub(super) fn half_closed(&self, by: Opener) {
        self.halves(by).fetch_sub(1, Ordering::Relaxed);
    }

    fn halves(&self, by: Opener) -> &AtomicU32 {
        match by {
            Opener::Us => &self.own,
            Opener::Peer => &self.of_peer,
        }
    }

    fn open_halves(&self) -> u32 {
        self.of_peer.load(Ordering::Relaxed) + self.own.load(Ordering::Relaxed)
    }

    fn count(&self) -> StreamCount {
        StreamCount {
            open: self.open_halves().div_ceil(2),
            most: self.most.load(Ordering::Relaxed).div_ceil(2),
        }
    }

    /// To be called after the peer has opened a stream; returns the new allowance if it should grow.
    fn grown(&self) -> Option<u32> {
        let halves = self.of_peer.load(Ordering::Relaxed);
        let allowed = self.allowed.load(Ordering::Relaxed);
        if halves / 2 < allowed / 2 || allowed >= self.max {
            return None;
        }
        let grown = allowed.saturating_mul(2).min(self.max);
        self.allowed.store(grown, Ordering::Relaxed);
        Some(grown)
    }
}

impl Connection {
    pub(super) fn new(inner: quinn::Connection, profile: Profile, windows: Windows) -> Self {
        let certs = inner
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let peer = certs
            .filter(|certs| !certs.is_empty())
            .map(|certs| peer_identity(&certs));
        let mut expiry = JoinSet::new();
        if let Some(Ok(peer)) = &peer {
            expiry.spawn(expire(inner.clone(), peer.not_after));
        }
        let (allowed, max) = profile.bidi();
        let streams = Arc::new(Streams {
            of_peer: AtomicU32::new(0),
            own: AtomicU32::new(0),
            most: AtomicU32::new(0),
            allowed: AtomicU32::new(allowed),
            max,
        });
        let datagrams = Datagrams::new(inner.clone(), windows.packets);
        Self {
            inner,
            shared: Arc::new(Shared {
                peer,
                streams,
                datagrams,
                whole: profile.whole(windows),
                expiry: Mutex::new(expiry),
            }),
        }
    }

    /// As if the peer's certificate ended at that time.
    #[cfg(test)]
    pub(super) fn expire_at(&self, not_after: SystemTime) {
        let mut expiry = self
            .shared
            .expiry
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        expiry.spawn(expire(self.inner.clone(), not_after));
    }

    /// Bytes of packets that left so far.
    #[cfg(test)]
    pub(super) fn sent(&self) -> u64 {
        self.inner.stats().udp_tx.bytes
    }

    /// The peer's identity; `None` if it showed no certificate.
    ///
    /// # Errors
    /// [`IdentityError`] if it showed a certificate that names nobody we know of.
    pub fn peer(&self) -> Result<Option<&PeerIdentity>, &IdentityError> {
        match &self.shared.peer {
            None => Ok(None),
            Some(Ok(peer)) => Ok(Some(peer)),
            Some(Err(error)) => Err(error),
        }
    }

    /// The application protocol agreed on.
    #[must_use]
    pub fn alpn(&self) -> Option<Vec<u8>> {
        self.inner
            .handshake_data()?
            .downcast::<HandshakeData>()
            .ok()?
            .protocol
    }

    /// Where the peer is now; changes when it moves.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// The smoothed round trip time.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.inner.rtt()
    }

    /// Packets that have come from the peer.
    pub(crate) fn heard(&self) -> u64 {
        self.inner.stats().udp_rx.datagrams
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let stats = self.inner.stats();
        let sent = stats.frame_tx;
        // A probe of the path's MTU, which is both of these, says nothing about the peer if it is lost.
        let mtu = stats.path.sent_plpmtud_probes;
        let pings = sent.ping.saturating_sub(mtu) + sent.immediate_ack.saturating_sub(mtu);
        let credit = sent.max_data + sent.max_stream_data;
        Traffic {
            eliciting: sent.stream + sent.datagram + sent.reset_stream + pings + credit,
            rtt: stats.path.rtt,
        }
    }

    /// Lets it hold what the `rank`th of its peer's connections may, the oldest being the first.
    pub(crate) fn set_rank(&self, rank: u32) {
        let part = self.shared.whole.part(rank);
        self.inner
            .set_receive_window(VarInt::from_u32(part.receive));
        self.inner.set_send_window(part.send);
        self.shared.datagrams.set_queue(part.datagrams);
    }

    /// The datagrams beside its streams.
    pub(crate) fn datagrams(&self) -> &Arc<Datagrams> {
        &self.shared.datagrams
    }

    /// The streams that are held here, those of the peer that nobody has taken yet are not among them.
    pub(crate) fn streams(&self) -> StreamCount {
        self.shared.streams.count()
    }

    fn sending(&self, send: quinn::SendStream, by: Opener) -> SendStream {
        let half = Half::new(Arc::clone(&self.shared.streams), by);
        SendStream::new(send, Arc::clone(&self.shared.datagrams), half)
    }

    fn receiving(&self, recv: quinn::RecvStream, by: Opener) -> RecvStream {
        RecvStream::new(recv, Half::new(Arc::clone(&self.shared.streams), by))
    }

    /// Opens a bidirectional stream; waits while the peer allows no more. Cancel safe.
    ///
    /// # Errors
    /// [`Lost`] if the connection has ended.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), Lost> {
        let (send, recv) = self.inner.open_bi().await?;
        Ok((
            self.sending(send, Opener::Us),
            self.receiving(recv, Opener::Us),
        ))
    }

    /// Takes the next bidirectional stream of the peer. Cancel safe.
    ///
    /// # Errors
    /// [`Lost`] if the connection has ended.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Lost> {
        let (send, recv) = self.inner.accept_bi().await?;
        let taken = (
            self.sending(send, Opener::Peer),
            self.receiving(recv, Opener::Peer),
        );
        if let Some(allowed) = self.shared.streams.grown() {
            self.inner
                .set_max_concurrent_bi_streams(VarInt::from_u32(allowed));
        }
        Ok(taken)
    }

    /// Opens a unidirectional stream. Cancel safe.
    ///
    /// # Errors
    /// [`Lost`] if the connection has ended.
    pub async fn open_uni(&self) -> Result<SendStream, Lost> {
        Ok(self.sending(self.inner.open_uni().await?, Opener::Us))
    }

    /// Takes the next unidirectional stream of the peer. Cancel safe.
    ///
    /// # Errors
    /// [`Lost`] if the connection has ended.
    pub async fn accept_uni(&self) -> Result<RecvStream, Lost> {
        Ok(self.receiving(self.inner.accept_uni().await?, Opener::Us))
    }

    /// Closes the connection at once with an application code; streams are cut.
    pub fn close(&self, code: u64, reason: &[u8]) {
        self.inner
            .close(VarInt::from_u64(code).unwrap_or(VarInt::MAX), reason);
    }

    /// Waits for the end of the connection. Cancel safe.
    pub async fn closed(&self) -> Lost {
        self.inner.closed().await.into()
    }

    /// Why the connection has ended; `None` while it lives.
    #[must_use]
    pub fn close_reason(&self) -> Option<Lost> {
        self.inner.close_reason().map(Into::into)
    }
}

/// Closes `connection` when the wall clock reaches `not_after`.
async fn expire(connection: quinn::Connection, not_after: SystemTime) {
    // The wall clock may be set while we sleep, so look at it now and then.
    const LOOK: Duration = Duration::from_secs(30);
    while let Ok(left) = not_after.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK) + Duration::from_millis(1)).await;
    }
    let code = VarInt::from_u64(CloseCode::Forbidden.to_wire()).unwrap_or(VarInt::MAX);
    connection.close(code, b"the peer's certificate has expired");
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.expiry
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .abort_all();
    }
}
