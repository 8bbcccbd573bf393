//! The control stream: the first bidirectional stream of a connection, opened by the one who dialled.
//!
//! Same framing as the legs (`type, length, body`), other types. Both sides start with HELLO.
//!
//! | type | message | body |
//! |---|---|---|
//! | 32 | HELLO | v version, t software, v instance (absent: unknown) |
//! | 33 | PUBLISH | v id, t service, v port, v protocol; if not the default of 1, 0, 0: v weight, v priority, v health (0 unknown, 1 healthy, 2 unhealthy) |
//! | 34 | WITHDRAW | v id |
//! | 35 | ANSWER | v id, v outcome (0 ok, 1 refused), v code, t text |
//! | 36 | DRAIN | |
//! | 37 | MOVED | |
//! | 38 | NOWHERE | |

use bytes::{Bytes, BytesMut};
use keel_certs::ServiceId;

use super::code::RefuseCode;
use super::decode::{Body, MAX_HEADER, WireError};
use super::frame::{MAX_TEXT, Protocol, numbers, put};
use super::input::{Header, Input};
use super::offer::Offer;
use super::varint::{self, Fields, write_text};

/// One message of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// First message of either side.
    Hello {
        /// [`VERSION`](super::VERSION).
        version: u64,
        /// Name and version of the program, for logs.
        software: String,
        /// Chosen by chance by whoever dials and needs one connection only: the newer one of two with the same identity
        /// and number takes the place of the older one, which is closed. Below 2^62.
        instance: Option<u64>,
    },
    /// The peer serves `service` on `port`; answered by ANSWER with the same id. Replaces what the same connection
    /// published of the same service, port and protocol before, which is how a change of `offer` is said.
    Publish {
        /// Chosen by the publisher, unique on this connection.
        id: u64,
        /// What is served.
        service: ServiceId,
        /// The service's port.
        port: u16,
        /// TCP or UDP.
        protocol: Protocol,
        /// How it wants to be chosen.
        offer: Offer,
    },
    /// Ends the publication of that id; answered by ANSWER.
    Withdraw {
        /// The publication's id.
        id: u64,
    },
    /// The outcome of a PUBLISH or WITHDRAW.
    Answer {
        /// The id that is answered.
        id: u64,
        /// Nothing, or why not (text at most [`MAX_TEXT`] bytes).
        outcome: Result<(), (RefuseCode, String)>,
    },
    /// The sender stops soon: open nothing new here, move what can move.
    Drain,
    /// Answer to DRAIN: no flow of the sender is left here.
    Moved,
    /// Answer to DRAIN: the flows of the sender that are left have no other way; they wait until the peer is back.
    Nowhere,
}

mod kind {
    pub(super) const HELLO: u64 = 32;
    pub(super) const PUBLISH: u64 = 33;
    pub(super) const WITHDRAW: u64 = 34;
    pub(super) const ANSWER: u64 = 35;
    pub(super) const DRAIN: u64 = 36;
    pub(super) const MOVED: u64 = 37;
    pub(super) const NOWHERE: u64 = 38;
}

impl Message {
    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Hello {
                version,
                software,
                instance,
            } => put(kind::HELLO, out, |body| {
                varint::write(*version, body);
                write_text(varint::clip(software, MAX_TEXT), body);
                if let Some(instance) = instance {
                    varint::write(*instance, body);
                }
            }),
            Self::Publish {
                id,
                service,
                port,
                protocol,
                offer,
            } => put(kind::PUBLISH, out, |body| {
                varint::write(*id, body);
                write_text(&service.to_string(), body);
                varint::write(u64::from(*port), body);
                varint::write(protocol.to_wire(), body);
                offer.encode(body);
            }),
            Self::Withdraw { id } => numbers(kind::WITHDRAW, &[*id], out),
            Self::Answer { id, outcome } => put(kind::ANSWER, out, |body| {
                varint::write(*id, body);
                match outcome {
                    Ok(()) => varint::write(0, body),
                    Err((code, text)) => {
                        varint::write(1, body);
                        varint::write(code.to_wire(), body);
                        write_text(varint::clip(text, MAX_TEXT), body);
                    }
                }
            }),
            Self::Drain => numbers(kind::DRAIN, &[], out),
            Self::Moved => numbers(kind::MOVED, &[], out),
            Self::Nowhere => numbers(kind::NOWHERE, &[], out),
        }
    }
}

/// Turns the bytes of a control stream into messages; use as [`Decoder`](super::Decoder).
#[derive(Debug, Default)]
pub struct MessageDecoder {
    input: Input,
    header: Option<Header>,
    skip: u64,
}

impl MessageDecoder {
    /// A decoder at the start of the control stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, chunk: Bytes) {
        self.input.push(chunk);
    }

    /// The next message, or `None` if more bytes are needed. Unknown types are skipped.
    ///
    /// # Errors
    /// See [`WireError`]; the connection should be closed then. A message is at most [`MAX_HEADER`] bytes long.
    #[allow(
        clippy::should_implement_trait,
        reason = "not an iterator: None means not yet, not the end"
    )]
    pub fn next(&mut self) -> Result<Option<Message>, WireError> {
        loop {
            self.skip -= self.input.skip(self.skip as usize) as u64;
            if self.skip > 0 {
                return Ok(None);
            }
            let Some(header) = self.header.take().or_else(|| self.input.header()) else {
                return Ok(None);
            };
            if header.len > MAX_HEADER as u64 {
                return Err(WireError::Oversized {
                    kind: header.kind,
                    len: header.len,
                    max: MAX_HEADER as u64,
                });
            }
            if !(kind::HELLO..=kind::NOWHERE).contains(&header.kind) {
                self.skip = header.len;
                continue;
            }
            let Some(body) = self.input.take(header.len as usize) else {
                self.header = Some(header);
                return Ok(None);
            };
            return parse(header.kind, &body).map(Some);
        }
    }
}

fn parse(kind: u64, body: &[u8]) -> Result<Message, WireError> {
    let fields = Fields::new(body);
    match kind {
        kind::HELLO => {
            let mut body = Body {
                frame: "HELLO",
                fields,
            };
            Ok(Message::Hello {
                version: body.version()?,
                software: body.text("software")?.to_owned(),
                instance: match body.fields.is_empty() {
                    true => None,
                    false => Some(body.number("instance")?),
                },
            })
        }
        kind::PUBLISH => {
            let mut body = Body {
                frame: "PUBLISH",
                fields,
            };
            Ok(Message::Publish {
                id: body.number("id")?,
                service: body.parsed("service")?,
                port: body.port()?,
                protocol: Protocol::from_wire(body.number("protocol")?)
                    .ok_or(body.malformed("protocol"))?,
                offer: Offer::decode(&mut body.fields).map_err(|field| body.malformed(field))?,
            })
        }
        kind::WITHDRAW => {
            let mut body = Body {
                frame: "WITHDRAW",
                fields,
            };
            Ok(Message::Withdraw {
                id: body.number("id")?,
            })
        }
        kind::ANSWER => {
            let mut body = Body {
                frame: "ANSWER",
                fields,
            };
            let id = body.number("id")?;
            let outcome = match body.number("outcome")? {
                0 => Ok(()),
                _ => Err((
                    RefuseCode::from_wire(body.number("code")?),
                    body.text("text")?.to_owned(),
                )),
            };
            Ok(Message::Answer { id, outcome })
        }
        kind::MOVED => Ok(Message::Moved),
        kind::NOWHERE => Ok(Message::Nowhere),
        // next() lets only the known types through.
        _ => Ok(Message::Drain),
    }
}
