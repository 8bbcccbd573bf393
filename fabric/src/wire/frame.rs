//! The frames of a flow leg: types, layout of the bodies, encoding.
//!
//! A frame is `type, length, body`, the first two as varints. In the table `v` is a varint, `t` text (varint length and
//! UTF-8), a number that many raw bytes.
//!
//! | type | frame | body |
//! |---|---|---|
//! | 1 | OPEN | v version, 16 flow, v generation, 32 secret, t service, v port, v protocol, t provider, v limit, v max_datagram, v hops, v flags, t from, v window (absent: not told), the rest |
//! | 2 | ACCEPT | v limit, v max_datagram, v window (absent: not told) |
//! | 3 | REFUSE | v code, t text |
//! | 4 | RESUME | v version, 16 flow, v generation, t service, v port, t provider, v recv, v limit, 32 proof, t from, v protocol (absent: TCP), the rest |
//! | 5 | RESUMED | v generation, v recv, v limit, 32 proof, v age (absent: the flow is known) |
//! | 6 | GONE | v code |
//! | 7 | DATA | v offset, the rest: bytes |
//! | 8 | ACK | v recv, v limit |
//! | 9 | FIN | v offset |
//! | 10 | ABORT | v code, v offset |
//! | 11 | MOVE | v place (absent: elsewhere) |
//! | 12 | PING | |

use bytes::{BufMut, Bytes, BytesMut};
use keel_certs::{ServiceId, Subject};

use super::code::{AbortCode, GoneCode, RefuseCode};
use super::proof::{FlowId, Generation, Proof, Secret};
use super::varint::{self, write_text};

/// One frame of a flow leg. A DATA frame is decoded piecewise, so a `Data` may be only a part of the frame sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First frame of a flow's first leg, by the initiator.
    Open(Box<Open>),
    /// The provider took the flow; `limit` bytes may be sent to it in all.
    Accept {
        /// Credit: the offset that the sender must not pass.
        limit: u64,
        /// Largest datagram payload both ends can use; 0 for none.
        max_datagram: u64,
        /// For how many milliseconds the terminator keeps the flow without a leg, beside its grace.
        window: Option<u64>,
    },
    /// The flow was refused and nothing was delivered.
    Refuse {
        /// Why.
        code: RefuseCode,
        /// For people; at most [`MAX_TEXT`] bytes.
        text: String,
    },
    /// First frame of a later leg, by the initiator.
    Resume(Box<Resume>),
    /// The terminator attached the leg of a RESUME.
    Resumed {
        /// The generation it answers.
        generation: Generation,
        /// Bytes that the terminator owns.
        recv: u64,
        /// Credit.
        limit: u64,
        /// Proof of the terminator.
        proof: Proof,
        /// Only if the terminator's process does not know the flow, and before its REFUSE: for how many milliseconds it
        /// would have known it. A process that is younger than the flow cannot say what the one before has delivered.
        age: Option<u64>,
    },
    /// The flow cannot be resumed; with `COMPLETE` the terminator's last word on a flow that ended well.
    Gone {
        /// Why.
        code: GoneCode,
    },
    /// Bytes of the application.
    Data {
        /// Offset of the first byte in its direction.
        offset: u64,
        /// The bytes, at most [`MAX_PAYLOAD`].
        bytes: Bytes,
    },
    /// What the receiver owns and how far the sender may go.
    Ack {
        /// Bytes owned by the receiver's process; one more than the final offset once the FIN is.
        recv: u64,
        /// Credit.
        limit: u64,
    },
    /// The direction ends at `offset`.
    Fin {
        /// All bytes of the direction.
        offset: u64,
    },
    /// The flow is cut in both directions.
    Abort {
        /// Why.
        code: AbortCode,
        /// Bytes that the sender had sent before.
        offset: u64,
    },
    /// Please open another leg.
    Move(Place),
    /// Answered with an ACK at once.
    Ping,
}

/// The OPEN frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// [`VERSION`](super::VERSION).
    pub version: u64,
    /// The new flow.
    pub flow: FlowId,
    /// 1, or more if an open without an answer is repeated.
    pub generation: Generation,
    /// The flow's secret.
    pub secret: Secret,
    /// What is asked for.
    pub service: ServiceId,
    /// The service's port.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The provider that was chosen; a router forwards to it or refuses.
    pub provider: Subject,
    /// Credit of the initiator.
    pub limit: u64,
    /// Largest datagram payload, lowered by each router; 0 for none.
    pub max_datagram: u64,
    /// Routers passed so far.
    pub hops: u64,
    /// Bits of [`flags`]; a terminator refuses bits that it does not know.
    pub flags: u64,
    /// The initiator's identity. Written by the first router only, from the peer's certificate.
    pub from: Option<Subject>,
    /// Milliseconds of the initiator's resume window: there is nothing to keep for longer. Earlier versions do not tell.
    pub window: Option<u64>,
    /// Fields of later versions, as they came: a router passes them on. Nothing without a window.
    pub rest: Bytes,
}

/// The RESUME frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// [`VERSION`](super::VERSION).
    pub version: u64,
    /// The flow to go on with.
    pub flow: FlowId,
    /// Higher than that of every leg before.
    pub generation: Generation,
    /// As in the OPEN.
    pub service: ServiceId,
    /// As in the OPEN.
    pub port: u16,
    /// As in the OPEN.
    pub provider: Subject,
    /// Bytes that the initiator owns.
    pub recv: u64,
    /// Credit of the initiator.
    pub limit: u64,
    /// Proof of the initiator.
    pub proof: Proof,
    /// The initiator's identity. Written by the first router only, from the peer's certificate.
    pub from: Option<Subject>,
    /// As in the OPEN; a router carries datagrams beside a leg of UDP.
    pub protocol: Protocol,
    /// Fields of later versions, as they came: a router passes them on.
    pub rest: Bytes,
}

/// What a flow carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// A UDP association.
    Udp,
}

impl Protocol {
    pub(crate) fn to_wire(self) -> u64 {
        match self {
            Self::Tcp => 1,
            Self::Udp => 2,
        }
    }

    pub(crate) fn from_wire(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Tcp),
            2 => Some(Self::Udp),
            _ => None,
        }
    }
}

/// `TCP` or `UDP`.
impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Where the leg is wanted that a MOVE asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The router of the leg at hand will do: only a connection of that leg comes to its end.
    Anywhere,
    /// At another router. So do ends of earlier versions read every MOVE.
    Elsewhere,
}

/// [`Place::Anywhere`] in a MOVE.
const ANYWHERE: u64 = 1;

impl Place {
    pub(crate) fn from_wire(number: u64) -> Self {
        match number {
            ANYWHERE => Self::Anywhere,
            _ => Self::Elsewhere,
        }
    }
}

/// Bits of [`Open::flags`].
pub mod flags {
    /// Reserved: the bytes are sealed end to end, past the routers.
    pub const SEALED: u64 = 1;
}

/// Most payload bytes of one DATA frame.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Most bytes of a REFUSE's or an ANSWER's text; longer ones are cut when written.
pub const MAX_TEXT: usize = 512;

pub(crate) mod kind {
    pub(crate) const OPEN: u64 = 1;
    pub(crate) const ACCEPT: u64 = 2;
    pub(crate) const REFUSE: u64 = 3;
    pub(crate) const RESUME: u64 = 4;
    pub(crate) const RESUMED: u64 = 5;
    pub(crate) const GONE: u64 = 6;
    pub(crate) const DATA: u64 = 7;
    pub(crate) const ACK: u64 = 8;
    pub(crate) const FIN: u64 = 9;
    pub(crate) const ABORT: u64 = 10;
    pub(crate) const MOVE: u64 = 11;
    pub(crate) const PING: u64 = 12;
}

impl Frame {
    /// Appends the whole frame. For DATA this copies the payload; the data path uses [`data_header`] instead and sends
    /// the payload as its own chunk.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Open(open) => open.encode(out),
            Self::Accept {
                limit,
                max_datagram,
                window: None,
            } => numbers(kind::ACCEPT, &[*limit, *max_datagram], out),
            Self::Accept {
                limit,
                max_datagram,
                window: Some(window),
            } => numbers(kind::ACCEPT, &[*limit, *max_datagram, *window], out),
            Self::Refuse { code, text } => put(kind::REFUSE, out, |body| {
                varint::write(code.to_wire(), body);
                write_text(varint::clip(text, MAX_TEXT), body);
            }),
            Self::Resume(resume) => resume.encode(out),
            Self::Resumed {
                generation,
                recv,
                limit,
                proof,
                age,
            } => put(kind::RESUMED, out, |body| {
                for number in [generation.0, *recv, *limit] {
                    varint::write(number, body);
                }
                body.put_slice(&proof.0);
                if let Some(age) = age {
                    varint::write(*age, body);
                }
            }),
            Self::Gone { code } => numbers(kind::GONE, &[code.to_wire()], out),
            Self::Data { offset, bytes } => {
                data_header(*offset, bytes.len(), out);
                out.put_slice(bytes);
            }
            Self::Ack { recv, limit } => numbers(kind::ACK, &[*recv, *limit], out),
            Self::Fin { offset } => numbers(kind::FIN, &[*offset], out),
            Self::Abort { code, offset } => numbers(kind::ABORT, &[code.to_wire(), *offset], out),
            Self::Move(Place::Elsewhere) => numbers(kind::MOVE, &[], out),
            Self::Move(Place::Anywhere) => numbers(kind::MOVE, &[ANYWHERE], out),
            Self::Ping => numbers(kind::PING, &[], out),
        }
    }

    /// The frame's name in logs and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "OPEN",
            Self::Accept { .. } => "ACCEPT",
            Self::Refuse { .. } => "REFUSE",
            Self::Resume(_) => "RESUME",
            Self::Resumed { .. } => "RESUMED",
            Self::Gone { .. } => "GONE",
            Self::Data { .. } => "DATA",
            Self::Ack { .. } => "ACK",
            Self::Fin { .. } => "FIN",
            Self::Abort { .. } => "ABORT",
            Self::Move(_) => "MOVE",
            Self::Ping => "PING",
        }
    }
}

/// Appends all of a DATA frame that stands before its `len` payload bytes (at most 13 bytes; `len` at most
/// [`MAX_PAYLOAD`]).
pub fn data_header(offset: u64, len: usize, out: &mut BytesMut) {
    varint::write(kind::DATA, out);
    varint::write((varint::size(offset) + len) as u64, out);
    varint::write(offset, out);
}

impl Open {
    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        put(kind::OPEN, out, |body| self.body(body));
    }

    fn body(&self, out: &mut BytesMut) {
        varint::write(self.version, out);
        out.put_slice(self.flow.as_bytes());
        varint::write(self.generation.0, out);
        out.put_slice(self.secret.as_bytes());
        write_text(&self.service.to_string(), out);
        varint::write(u64::from(self.port), out);
        varint::write(self.protocol.to_wire(), out);
        write_text(&self.provider.path(), out);
        for number in [self.limit, self.max_datagram, self.hops, self.flags] {
            varint::write(number, out);
        }
        write_from(self.from.as_ref(), out);
        if let Some(window) = self.window {
            varint::write(window, out);
        }
        out.put_slice(&self.rest);
    }
}

impl Resume {
    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        put(kind::RESUME, out, |body| self.body(body));
    }

    fn body(&self, out: &mut BytesMut) {
        varint::write(self.version, out);
        out.put_slice(self.flow.as_bytes());
        varint::write(self.generation.0, out);
        write_text(&self.service.to_string(), out);
        varint::write(u64::from(self.port), out);
        write_text(&self.provider.path(), out);
        varint::write(self.recv, out);
        varint::write(self.limit, out);
        out.put_slice(&self.proof.0);
        write_from(self.from.as_ref(), out);
        if self.protocol != Protocol::Tcp || !self.rest.is_empty() {
            varint::write(self.protocol.to_wire(), out);
        }
        out.put_slice(&self.rest);
    }
}

fn write_from(from: Option<&Subject>, out: &mut BytesMut) {
    match from {
        Some(subject) => write_text(&subject.path(), out),
        None => write_text("", out),
    }
}

/// Appends a frame whose body is only varints.
pub(crate) fn numbers(kind: u64, fields: &[u64], out: &mut BytesMut) {
    varint::write(kind, out);
    varint::write(
        fields.iter().map(|field| varint::size(*field) as u64).sum(),
        out,
    );
    for field in fields {
        varint::write(*field, out);
    }
}

/// Appends a frame with any body.
pub(crate) fn put(kind: u64, out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let mut bytes = BytesMut::new();
    body(&mut bytes);
    varint::write(kind, out);
    varint::write(bytes.len() as u64, out);
    out.unsplit(bytes);
}
