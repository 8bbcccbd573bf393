//! A QUIC client whose packets say what a test wants: the frames of large ones are replaced before they are encrypted.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey,
    Session,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{
    ConnectError, ConnectionId, ConnectionIdGenerator, RandomConnectionIdGenerator, Side,
    TransportError,
};

/// A packet with so much in it is one that was made to be replaced.
const LARGE: usize = 900;

/// Makes the frames of one packet, from what was heard and how many bytes there are.
pub(crate) type Frames = Box<dyn FnMut(&Heard, usize) -> Vec<u8> + Send>;

/// What a forger needs to know of its connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    /// The largest number of a packet of the other side.
    pub(crate) largest: u64,
    /// By which the other side calls this one.
    pub(crate) id: Vec<u8>,
}

/// What is forged, shared with the client's sessions.
#[derive(Default)]
pub(crate) struct Forgery {
    frames: Mutex<Option<Frames>>,
    largest: AtomicU64,
    id: Mutex<Option<ConnectionId>>,
}

impl Forgery {
    /// From now on.
    pub(crate) fn begin(&self, frames: Frames) {
        *self.frames() = Some(frames);
    }

    /// Makes the ids of an endpoint with one connection.
    pub(crate) fn ids(self: &Arc<Self>) -> Box<dyn ConnectionIdGenerator> {
        Box::new(Ids {
            random: RandomConnectionIdGenerator::default(),
            forgery: Arc::clone(self),
        })
    }

    fn id(&self) -> std::sync::MutexGuard<'_, Option<ConnectionId>> {
        self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was heard so far.
    pub(crate) fn heard(&self) -> Heard {
        Heard {
            largest: self.largest.load(Ordering::Relaxed),
            id: self.id().map(|id| id.to_vec()).unwrap_or_default(),
        }
    }

    fn frames(&self) -> std::sync::MutexGuard<'_, Option<Frames>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Ids {
    random: RandomConnectionIdGenerator,
    forgery: Arc<Forgery>,
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let id = self.random.generate_cid();
        self.forgery.id().get_or_insert(id);
        id
    }

    fn cid_len(&self) -> usize {
        self.random.cid_len()
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        self.random.cid_lifetime()
    }
}

/// Starts sessions that forge.
pub(crate) struct Forger {
    pub(crate) honest: Arc<QuicClientConfig>,
    pub(crate) forgery: Arc<Forgery>,
}

impl ClientConfig for Forger {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let honest = Arc::clone(&self.honest).start_session(version, server_name, params)?;
        Ok(Box::new(Forging {
            honest,
            handshake_done: false,
            forgery: Arc::clone(&self.forgery),
        }))
    }
}

struct Forging {
    honest: Box<dyn Session>,
    /// The first keys that are negotiated are those of the handshake.
    handshake_done: bool,
    forgery: Arc<Forgery>,
}

impl Forging {
    fn forge(&self, keys: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
        let forge = |honest| -> Box<dyn PacketKey> {
            let forgery = Arc::clone(&self.forgery);
            Box::new(ForgingKey { honest, forgery })
        };
        KeyPair {
            local: forge(keys.local),
            remote: forge(keys.remote),
        }
    }
}

impl Session for Forging {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.honest.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.honest.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.honest.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.honest.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.honest.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.honest.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.honest.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.honest.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let mut keys = self.honest.write_handshake(buf)?;
        if std::mem::replace(&mut self.handshake_done, true) {
            keys.packet = self.forge(keys.packet);
        }
        Some(keys)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.honest.next_1rtt_keys()?;
        Some(self.forge(keys))
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.honest.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.honest.export_keying_material(output, label, context)
    }
}

struct ForgingKey {
    honest: Box<dyn PacketKey>,
    forgery: Arc<Forgery>,
}

impl PacketKey for ForgingKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let end = buf.len() - self.honest.tag_len();
        let payload = &mut buf[header_len..end];
        if payload.len() >= LARGE
            && let Some(frames) = &mut *self.forgery.frames()
        {
            let forged = frames(&self.forgery.heard(), payload.len());
            let (taken, padding) = payload.split_at_mut(forged.len());
            taken.copy_from_slice(&forged);
            padding.fill(0);
        }
        self.honest.encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.honest.decrypt(packet, header, payload)?;
        self.forgery.largest.fetch_max(packet, Ordering::Relaxed);
        if self.forgery.frames().is_some() {
            without_answers(payload);
        }
        Ok(())
    }

    fn tag_len(&self) -> usize {
        self.honest.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.honest.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.honest.integrity_limit()
    }
}

/// Takes the answers to what the client never asked out of a packet: it would break off at them.
fn without_answers(payload: &mut [u8]) {
    let mut rest = payload;
    while let Some(kind) = rest.first().copied() {
        let mut frame = Numbers { bytes: rest, at: 1 };
        let mut is_answer = false;
        match kind {
            // PADDING, PING, IMMEDIATE_ACK
            0x00 | 0x01 | 0x1f => {}
            // ACK, without and with counters
            0x02 | 0x03 => {
                let [_largest, _delay, ranges, _first] = frame.take();
                let counters = if kind == 0x03 { 3 } else { 0 };
                (0..ranges * 2 + counters).for_each(|_| frame.skip());
            }
            // MAX_DATA, MAX_STREAMS, MAX_STREAM_DATA
            0x10 | 0x12 | 0x13 => frame.skip(),
            0x11 => (0..2).for_each(|_| frame.skip()),
            // NEW_CONNECTION_ID, with the length of the id, and a token
            0x18 => {
                let [_sequence, _retired, id] = frame.take();
                frame.at += id as usize + 16;
            }
            // RETIRE_CONNECTION_ID
            0x19 => {
                frame.skip();
                is_answer = true;
            }
            // PATH_RESPONSE
            0x1b => {
                frame.at += 8;
                is_answer = true;
            }
            // CONNECTION_CLOSE, and whatever stands at the end of a packet
            _ => return,
        }
        let length = frame.at;
        let (frame, behind) = rest.split_at_mut(length);
        if is_answer {
            frame.fill(0);
        }
        rest = behind;
    }
}

/// Numbers of variable length.
struct Numbers<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Numbers<'_> {
    fn take<const N: usize>(&mut self) -> [u64; N] {
        std::array::from_fn(|_| self.next())
    }

    fn skip(&mut self) {
        self.next();
    }

    fn next(&mut self) -> u64 {
        let first = self.bytes[self.at];
        let length = 1 << (first >> 6);
        let rest = &self.bytes[self.at + 1..self.at + length];
        self.at += length;
        rest.iter().fold(u64::from(first & 0x3f), |number, byte| {
            number << 8 | u64::from(*byte)
        })
    }
}
