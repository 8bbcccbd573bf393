//! QUIC's variable-length integers (RFC 9000, section 16) and a reader over one frame body.

use bytes::{BufMut, Bytes, BytesMut};

/// Largest value that a varint can hold.
pub const MAX: u64 = (1 << 62) - 1;

/// Appends `value` in its shortest form.
///
/// Values above [`MAX`] do not exist on this wire (offsets are checked where they are added up); one that got here is
/// written as `MAX`, which every receiver refuses as out of range.
pub fn write(value: u64, out: &mut BytesMut) {
    let value = value.min(MAX);
    match value {
        0..=0x3f => out.put_u8(value as u8),
        0x40..=0x3fff => out.put_u16(0x4000 | value as u16),
        0x4000..=0x3fff_ffff => out.put_u32(0x8000_0000 | value as u32),
        _ => out.put_u64(0xc000_0000_0000_0000 | value),
    }
}

/// Bytes that [`write`] takes for `value`.
pub fn size(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Reads one varint from the front of `input`: its value and its length, or `None` if more bytes are needed.
///
/// Forms that are longer than necessary are accepted, as in QUIC.
pub fn read(input: &[u8]) -> Option<(u64, usize)> {
    let first = *input.first()?;
    let len = 1usize << (first >> 6);
    let bytes = input.get(..len)?;
    let value = bytes[1..]
        .iter()
        .fold(u64::from(first & 0x3f), |value, byte| {
            value << 8 | u64::from(*byte)
        });
    Some((value, len))
}

/// Reads the fields of one frame body in order. Bytes that are left over are fields of later versions.
#[derive(Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub(crate) fn varint(&mut self) -> Option<u64> {
        let (value, len) = read(self.0)?;
        self.0 = &self.0[len..];
        Some(value)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    /// Whether every byte was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What no field was read from.
    pub(crate) fn rest(&mut self) -> Bytes {
        Bytes::copy_from_slice(std::mem::take(&mut self.0))
    }

    /// A varint length and that many bytes of UTF-8.
    pub(crate) fn text(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.varint()?).ok()?;
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(head).ok()
    }
}

/// Appends a varint length and the bytes of `text`.
pub(crate) fn write_text(text: &str, out: &mut BytesMut) {
    write(text.len() as u64, out);
    out.put_slice(text.as_bytes());
}

/// The longest front part of `text` that fits `max` bytes and ends at a character's end.
pub(crate) fn clip(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
