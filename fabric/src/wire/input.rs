//! The bytes of a stream that arrived and are not decoded yet.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::varint;

/// A queue of chunks that is cut at frame borders without copying what lies in one chunk.
#[derive(Debug, Default)]
pub(crate) struct Input {
    chunks: VecDeque<Bytes>,
    len: usize,
}

/// Type and length of a frame whose body has not been taken yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) kind: u64,
    pub(crate) len: u64,
}

impl Input {
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.len += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes a frame's type and length, or `None` if they have not arrived whole.
    pub(crate) fn header(&mut self) -> Option<Header> {
        let mut start = [0; 16];
        let start = self.peek(&mut start);
        let (kind, kind_len) = varint::read(start)?;
        let (len, len_len) = varint::read(&start[kind_len..])?;
        self.skip(kind_len + len_len);
        Some(Header { kind, len })
    }

    /// Takes one varint, or `None` if it has not arrived whole.
    pub(crate) fn varint(&mut self) -> Option<(u64, usize)> {
        let mut start = [0; 8];
        let (value, len) = varint::read(self.peek(&mut start))?;
        self.skip(len);
        Some((value, len))
    }

    /// Takes exactly `len` bytes, or `None` if fewer are here. Copies only if they lie in several chunks.
    pub(crate) fn take(&mut self, len: usize) -> Option<Bytes> {
        if self.len < len {
            return None;
        }
        if self.chunks.front().is_none_or(|front| front.len() >= len) {
            return Some(self.take_piece(len));
        }
        let mut whole = BytesMut::with_capacity(len);
        while whole.len() < len {
            whole.extend_from_slice(&self.take_piece(len - whole.len()));
        }
        Some(whole.freeze())
    }

    /// Takes what lies in one chunk, at most `max` bytes; empty if nothing is here.
    pub(crate) fn take_piece(&mut self, max: usize) -> Bytes {
        let Some(front) = self.chunks.front_mut() else {
            return Bytes::new();
        };
        let piece = if front.len() <= max {
            self.chunks.pop_front().unwrap_or_default()
        } else {
            front.split_to(max)
        };
        self.len -= piece.len();
        piece
    }

    /// Drops at most `max` bytes and returns how many.
    pub(crate) fn skip(&mut self, max: usize) -> usize {
        let mut skipped = 0;
        while skipped < max {
            let piece = self.take_piece(max - skipped);
            if piece.is_empty() {
                break;
            }
            skipped += piece.len();
        }
        skipped
    }

    /// All chunks that are left, in order.
    pub(crate) fn into_chunks(self) -> VecDeque<Bytes> {
        self.chunks
    }

    fn peek<'a>(&self, out: &'a mut [u8]) -> &'a [u8] {
        let mut filled = 0;
        for chunk in &self.chunks {
            let part = chunk.len().min(out.len() - filled);
            out[filled..filled + part].copy_from_slice(&chunk[..part]);
            filled += part;
            if filled == out.len() {
                break;
            }
        }
        &out[..filled]
    }
}
