//! The incremental decoder of flow legs.

use std::collections::VecDeque;

use bytes::Bytes;
use keel_certs::Subject;

use super::VERSION;
use super::code::{AbortCode, GoneCode, RefuseCode};
use super::frame::{Frame, MAX_PAYLOAD, Open, Place, Protocol, Resume, kind};
use super::input::{Header, Input};
use super::proof::{FlowId, Generation, Proof, Secret};
use super::varint::{Fields, MAX};

/// Turns the bytes of one leg into frames: [`push`](Self::push) what arrived, then [`next`](Self::next) until `None`.
///
/// A DATA frame is handed on as it arrives, cut at the chunks' borders and never copied: one frame may come as several
/// `Data` with advancing offsets. Unknown types are skipped. Holds at most what was pushed and not taken; a caller that
/// takes until `None` leaves less than one frame that is not DATA (64 KiB).
#[derive(Debug, Default)]
pub struct Decoder {
    input: Input,
    part: Part,
    /// Most bytes of a header frame, if fewer than [`MAX_HEADER`].
    header: Option<usize>,
}

/// What of the current frame is still to come.
#[derive(Debug, Default, Clone, Copy)]
enum Part {
    #[default]
    Header,
    Body(Header),
    DataOffset {
        len: u64,
    },
    Data {
        offset: u64,
        left: usize,
    },
    Skip {
        left: u64,
    },
}

/// Bytes that are no frames of this protocol. The leg cannot be used any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame says that it is longer than its type may be.
    #[error("frame of type {kind} is {len} bytes long, at most {max} are allowed")]
    Oversized {
        /// The frame's type.
        kind: u64,
        /// Its length.
        len: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// A body is too short or a field cannot be read.
    #[error("{frame} frame has a malformed {field}")]
    Malformed {
        /// The frame's name.
        frame: &'static str,
        /// The first field that could not be read.
        field: &'static str,
    },
    /// A header of another protocol version.
    #[error("protocol version {version} is not spoken here, only {VERSION}")]
    Version {
        /// The version that was asked for.
        version: u64,
    },
}

impl Decoder {
    /// A decoder at the start of a leg.
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder at the start of a leg that takes header frames of at most so many bytes.
    pub fn with_header(most: usize) -> Self {
        Self {
            header: Some(most),
            ..Self::default()
        }
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, chunk: Bytes) {
        self.input.push(chunk);
    }

    /// The next frame (or piece of a DATA frame), or `None` if more bytes are needed.
    ///
    /// # Errors
    /// See [`WireError`]; the decoder must not be used any further then.
    #[allow(
        clippy::should_implement_trait,
        reason = "not an iterator: None means not yet, not the end"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            match self.part {
                Part::Header => {
                    let Some(header) = self.input.header() else {
                        return Ok(None);
                    };
                    self.part = begin(header, self.header)?;
                }
                Part::Body(header) => {
                    // begin() bounded the length, so it fits.
                    let Some(body) = self.input.take(header.len as usize) else {
                        return Ok(None);
                    };
                    self.part = Part::Header;
                    return parse(header.kind, &body).map(Some);
                }
                Part::DataOffset { len } => {
                    let Some((offset, size)) = self.input.varint() else {
                        return Ok(None);
                    };
                    self.part = data(offset, size, len)?;
                }
                Part::Data { left: 0, .. } | Part::Skip { left: 0 } => self.part = Part::Header,
                Part::Data { offset, left } => {
                    let bytes = self.input.take_piece(left);
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    self.part = Part::Data {
                        offset: offset + bytes.len() as u64,
                        left: left - bytes.len(),
                    };
                    return Ok(Some(Frame::Data { offset, bytes }));
                }
                Part::Skip { left } => {
                    let skipped = self.input.skip(left as usize);
                    if skipped == 0 {
                        return Ok(None);
                    }
                    self.part = Part::Skip {
                        left: left - skipped as u64,
                    };
                }
            }
        }
    }

    /// Whether everything pushed was decoded and no frame is half there: a stream may end only then.
    pub fn is_idle(&self) -> bool {
        self.input.len() == 0
            && matches!(
                self.part,
                Part::Header | Part::Data { left: 0, .. } | Part::Skip { left: 0 }
            )
    }

    /// Bytes that were pushed and did not come out yet.
    pub fn held(&self) -> usize {
        self.input.len()
    }

    /// The bytes behind the last frame, for a router that reads the header and passes the rest on untouched. Call it
    /// only between frames, that is right after the header frame came out.
    pub fn into_rest(self) -> VecDeque<Bytes> {
        self.input.into_chunks()
    }
}

/// Most bytes of a header frame (OPEN, RESUME).
pub const MAX_HEADER: usize = 4 * 1024;

/// Most bytes of a header frame with its type and its length.
pub const MAX_HEADER_FRAME: usize = 1 + 2 + MAX_HEADER;

/// Most bytes of any other known frame that is not DATA. It is held until it is whole, in no budget; what we send has a text
/// of at most [`MAX_TEXT`](super::MAX_TEXT) bytes and a few numbers, the rest is for fields of later versions.
pub const MAX_BODY: usize = 1024;

/// Most bytes of an unknown frame, which is skipped as it comes.
pub const MAX_UNKNOWN: usize = 64 * 1024;

fn begin(header: Header, most: Option<usize>) -> Result<Part, WireError> {
    let max = match header.kind {
        kind::OPEN | kind::RESUME => most.map_or(MAX_HEADER, |most| most.min(MAX_HEADER)),
        // The longest offset and the longest payload.
        kind::DATA => MAX_PAYLOAD + 8,
        kind::OPEN..=kind::PING => MAX_BODY,
        _ => MAX_UNKNOWN,
    } as u64;
    if header.len > max {
        return Err(WireError::Oversized {
            kind: header.kind,
            len: header.len,
            max,
        });
    }
    Ok(match header.kind {
        kind::DATA => Part::DataOffset { len: header.len },
        kind::OPEN..=kind::PING => Part::Body(header),
        _ => Part::Skip { left: header.len },
    })
}

fn data(offset: u64, size: usize, len: u64) -> Result<Part, WireError> {
    let malformed = WireError::Malformed {
        frame: "DATA",
        field: "offset",
    };
    let left = len.checked_sub(size as u64).ok_or(malformed.clone())?;
    if left > MAX_PAYLOAD as u64 {
        return Err(WireError::Oversized {
            kind: kind::DATA,
            len,
            max: (MAX_PAYLOAD + size) as u64,
        });
    }
    if offset + left > MAX {
        return Err(malformed);
    }
    Ok(Part::Data {
        offset,
        left: left as usize,
    })
}

fn parse(kind: u64, body: &[u8]) -> Result<Frame, WireError> {
    let fields = Fields::new(body);
    match kind {
        kind::OPEN => open(Body {
            frame: "OPEN",
            fields,
        })
        .map(|open| Frame::Open(Box::new(open))),
        kind::ACCEPT => {
            let mut body = Body {
                frame: "ACCEPT",
                fields,
            };
            Ok(Frame::Accept {
                limit: body.number("limit")?,
                max_datagram: body.number("max_datagram")?,
                window: body.told("window")?,
            })
        }
        kind::REFUSE => {
            let mut body = Body {
                frame: "REFUSE",
                fields,
            };
            Ok(Frame::Refuse {
                code: RefuseCode::from_wire(body.number("code")?),
                text: body.text("text")?.to_owned(),
            })
        }
        kind::RESUME => resume(Body {
            frame: "RESUME",
            fields,
        })
        .map(|resume| Frame::Resume(Box::new(resume))),
        kind::RESUMED => {
            let mut body = Body {
                frame: "RESUMED",
                fields,
            };
            Ok(Frame::Resumed {
                generation: Generation(body.number("generation")?),
                recv: body.number("recv")?,
                limit: body.number("limit")?,
                proof: Proof(body.array("proof")?),
                age: body.told("age")?,
            })
        }
        kind::GONE => {
            let mut body = Body {
                frame: "GONE",
                fields,
            };
            Ok(Frame::Gone {
                code: GoneCode::from_wire(body.number("code")?),
            })
        }
        kind::ACK => {
            let mut body = Body {
                frame: "ACK",
                fields,
            };
            Ok(Frame::Ack {
                recv: body.number("recv")?,
                limit: body.number("limit")?,
            })
        }
        kind::FIN => {
            let mut body = Body {
                frame: "FIN",
                fields,
            };
            Ok(Frame::Fin {
                offset: body.number("offset")?,
            })
        }
        kind::ABORT => {
            let mut body = Body {
                frame: "ABORT",
                fields,
            };
            Ok(Frame::Abort {
                code: AbortCode::from_wire(body.number("code")?),
                offset: body.number("offset")?,
            })
        }
        kind::MOVE => {
            let mut body = Body {
                frame: "MOVE",
                fields,
            };
            Ok(Frame::Move(match body.fields.is_empty() {
                true => Place::Elsewhere,
                false => Place::from_wire(body.number("place")?),
            }))
        }
        // begin() lets only the known types through, and DATA goes another way: what is left is PING.
        _ => Ok(Frame::Ping),
    }
}

fn open(mut body: Body<'_>) -> Result<Open, WireError> {
    Ok(Open {
        version: body.version()?,
        flow: FlowId::from_bytes(body.array("flow")?),
        generation: body.generation()?,
        secret: Secret::from_bytes(body.array("secret")?),
        service: body.parsed("service")?,
        port: body.port()?,
        protocol: Protocol::from_wire(body.number("protocol")?)
            .ok_or(body.malformed("protocol"))?,
        provider: body.parsed("provider")?,
        limit: body.number("limit")?,
        max_datagram: body.number("max_datagram")?,
        hops: body.number("hops")?,
        flags: body.number("flags")?,
        from: body.from()?,
        window: body.told("window")?,
        rest: body.fields.rest(),
    })
}

fn resume(mut body: Body<'_>) -> Result<Resume, WireError> {
    Ok(Resume {
        version: body.version()?,
        flow: FlowId::from_bytes(body.array("flow")?),
        generation: body.generation()?,
        service: body.parsed("service")?,
        port: body.port()?,
        provider: body.parsed("provider")?,
        recv: body.number("recv")?,
        limit: body.number("limit")?,
        proof: Proof(body.array("proof")?),
        from: body.from()?,
        protocol: if body.fields.is_empty() {
            Protocol::Tcp
        } else {
            Protocol::from_wire(body.number("protocol")?).ok_or(body.malformed("protocol"))?
        },
        rest: body.fields.rest(),
    })
}

/// The fields of one body, with errors that name frame and field.
pub(crate) struct Body<'a> {
    pub(crate) frame: &'static str,
    pub(crate) fields: Fields<'a>,
}

impl<'a> Body<'a> {
    pub(crate) fn malformed(&self, field: &'static str) -> WireError {
        WireError::Malformed {
            frame: self.frame,
            field,
        }
    }

    pub(crate) fn number(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.fields.varint().ok_or(self.malformed(field))
    }

    /// A number that earlier versions do not tell.
    fn told(&mut self, field: &'static str) -> Result<Option<u64>, WireError> {
        match self.fields.is_empty() {
            true => Ok(None),
            false => self.number(field).map(Some),
        }
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], WireError> {
        self.fields.array().ok_or(self.malformed(field))
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<&'a str, WireError> {
        self.fields.text().ok_or(self.malformed(field))
    }

    pub(crate) fn parsed<T: std::str::FromStr>(
        &mut self,
        field: &'static str,
    ) -> Result<T, WireError> {
        self.text(field)?.parse().map_err(|_| self.malformed(field))
    }

    pub(crate) fn port(&mut self) -> Result<u16, WireError> {
        u16::try_from(self.number("port")?).map_err(|_| self.malformed("port"))
    }

    pub(crate) fn version(&mut self) -> Result<u64, WireError> {
        match self.number("version")? {
            VERSION => Ok(VERSION),
            version => Err(WireError::Version { version }),
        }
    }

    fn generation(&mut self) -> Result<Generation, WireError> {
        match self.number("generation")? {
            0 => Err(self.malformed("generation")),
            generation => Ok(Generation(generation)),
        }
    }

    fn from(&mut self) -> Result<Option<Subject>, WireError> {
        match self.text("from")? {
            "" => Ok(None),
            path => path.parse().map(Some).map_err(|_| self.malformed("from")),
        }
    }
}
