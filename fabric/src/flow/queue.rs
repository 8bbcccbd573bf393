//! A queue of chunks that moves bytes without copying, except for tiny ones.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Chunks in order. Neighbours that are tiny are joined, so that a peer (or an application) that sends byte by byte
/// cannot make the bookkeeping larger than the bytes: at most about one entry for 2 KiB, and each byte is copied at most
/// `log2(JOIN)` times.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Bytes>,
    len: usize,
    /// Chunks at the front whose memory nobody shares.
    own: usize,
}

/// A place in a queue that stays at the same byte while the queue changes at both ends.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Cursor {
    /// Index of the chunk; the number of chunks if everything is behind the cursor.
    index: usize,
    /// Bytes of that chunk that are behind the cursor.
    offset: usize,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Bytes> + Clone {
        self.chunks.iter()
    }

    pub(crate) fn push(&mut self, mut bytes: Bytes, cursor: &mut Cursor) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        // As in a binary counter: a chunk grows only by one that is at least as large, which bounds the copying.
        while let Some(last) = self.chunks.back()
            && last.len() <= bytes.len()
            && last.len() + bytes.len() <= JOIN
        {
            let last_len = last.len();
            let mut joined = BytesMut::with_capacity(last_len + bytes.len());
            joined.extend_from_slice(last);
            joined.extend_from_slice(&bytes);
            if cursor.index == self.chunks.len() {
                *cursor = Cursor {
                    index: cursor.index - 1,
                    offset: last_len + cursor.offset,
                };
            }
            self.chunks.pop_back();
            bytes = joined.freeze();
        }
        self.own = self.own.min(self.chunks.len());
        self.chunks.push_back(bytes);
    }

    /// Gives all chunks memory of their own, each once. One that came in packets is a part of them, and would keep the bytes
    /// of others that came with it.
    pub(crate) fn part(&mut self) {
        for chunk in self.chunks.range_mut(self.own..) {
            *chunk = Bytes::copy_from_slice(chunk);
        }
        self.own = self.chunks.len();
    }

    /// Drops the first `count` bytes, at most all.
    pub(crate) fn advance(&mut self, count: usize, cursor: &mut Cursor) {
        let mut left = count.min(self.len);
        self.len -= left;
        while let Some(front) = self.chunks.front_mut() {
            if left < front.len() {
                front.advance(left);
                if cursor.index == 0 {
                    cursor.offset = cursor.offset.saturating_sub(left);
                }
                break;
            }
            left -= front.len();
            self.chunks.pop_front();
            self.own = self.own.saturating_sub(1);
            *cursor = match cursor.index.checked_sub(1) {
                Some(index) => Cursor { index, ..*cursor },
                None => Cursor::default(),
            };
        }
        if self.len == 0 && self.chunks.capacity() > KEPT {
            self.chunks = VecDeque::new();
        }
    }

    /// The piece at the cursor, at most `max` bytes, and moves the cursor behind it.
    pub(crate) fn piece(&self, max: usize, cursor: &mut Cursor) -> Option<Bytes> {
        let chunk = self.chunks.get(cursor.index)?;
        let end = chunk.len().min(cursor.offset.saturating_add(max));
        if end == cursor.offset {
            return None;
        }
        let piece = chunk.slice(cursor.offset..end);
        *cursor = if end == chunk.len() {
            Cursor {
                index: cursor.index + 1,
                offset: 0,
            }
        } else {
            Cursor {
                offset: end,
                ..*cursor
            }
        };
        Some(piece)
    }

    /// The cursor at `position` bytes from the front. Walks over the chunks: for resumes, not for the data path.
    pub(crate) fn seek(&self, position: usize) -> Cursor {
        let mut left = position;
        for (index, chunk) in self.chunks.iter().enumerate() {
            if left < chunk.len() {
                return Cursor {
                    index,
                    offset: left,
                };
            }
            left -= chunk.len();
        }
        Cursor {
            index: self.chunks.len(),
            offset: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Chunks are joined up to this size: one page, small enough that copying it is cheaper than an entry and a segment.
const JOIN: usize = 4096;

/// Entries that an empty queue may keep room for; an idle flow holds no more than that.
const KEPT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_chunks_are_joined_and_the_cursor_stays_at_its_byte() {
        let mut queue = Queue::default();
        let mut cursor = Cursor::default();
        let mut read = Vec::new();
        let bytes: Vec<u8> = (0..50_000u32).map(|i| (i % 251) as u8).collect();
        for (i, byte) in bytes.iter().enumerate() {
            queue.push(Bytes::copy_from_slice(&[*byte]), &mut cursor);
            if i % 7 == 0 {
                read.extend_from_slice(&queue.piece(3, &mut cursor).unwrap_or_default());
            }
        }
        assert!(
            queue.chunks().count() < 50_000 / 2048 + 13,
            "{} chunks",
            queue.chunks().count()
        );
        queue.advance(read.len() / 2, &mut cursor);
        while let Some(piece) = queue.piece(1000, &mut cursor) {
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, bytes);
    }

    #[test]
    fn what_parts_keeps_no_packet_and_is_copied_once() {
        let packet = Bytes::from(vec![7; 60_000]);
        let mut queue = Queue::default();
        let mut cursor = Cursor::default();
        for at in [0, 10_000, 20_000, 20_500] {
            queue.push(packet.slice(at..at + 6000 - at / 5), &mut cursor);
        }
        queue.part();
        assert!(packet.is_unique());
        let places = |queue: &Queue| queue.chunks().map(|at| at.as_ptr()).collect::<Vec<_>>();
        let before = places(&queue);
        queue.advance(7000, &mut cursor);
        queue.push(packet.slice(..6000), &mut cursor);
        queue.part();
        assert!(packet.is_unique());
        let after = places(&queue);
        assert_eq!(after[1..after.len() - 1], before[2..]);
    }

    #[test]
    fn an_emptied_queue_keeps_no_room() {
        let mut queue = Queue::default();
        for _ in 0..100 {
            queue.push(Bytes::from(vec![0; JOIN]), &mut Cursor::default());
        }
        queue.advance(usize::MAX, &mut Cursor::default());
        assert!(queue.is_empty() && queue.chunks.capacity() <= KEPT);
    }
}
