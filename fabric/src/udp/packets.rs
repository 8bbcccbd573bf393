//! Packets inside a flow's bytes: two bytes of length, then the packet. Pure.

use bytes::{BufMut as _, Bytes, BytesMut};

/// Bytes of the length.
pub(super) const PREFIX: usize = 2;

/// One packet as it goes into the flow's bytes; `None` if it is longer than any packet can be.
pub(super) fn frame(packet: &[u8]) -> Option<Bytes> {
    let length = u16::try_from(packet.len()).ok()?;
    let mut framed = BytesMut::with_capacity(PREFIX + packet.len());
    framed.put_u16(length);
    framed.put_slice(packet);
    Some(framed.freeze())
}

/// The first packet in `chunks` behind the first `skip` bytes, if all of it is there. It takes `PREFIX` bytes more than
/// its length.
pub(super) fn first<'a>(
    chunks: impl Iterator<Item = &'a Bytes> + Clone,
    skip: usize,
) -> Option<Bytes> {
    let prefix = copy(chunks.clone(), skip, PREFIX)?;
    let length = usize::from(u16::from_be_bytes([prefix[0], prefix[1]]));
    copy(chunks, skip + PREFIX, length)
}

/// `length` bytes behind the first `skip`; shared if they are in one chunk, else copied.
fn copy<'a>(
    chunks: impl Iterator<Item = &'a Bytes>,
    mut skip: usize,
    length: usize,
) -> Option<Bytes> {
    if length == 0 {
        return Some(Bytes::new());
    }
    let mut all = BytesMut::new();
    for chunk in chunks {
        if skip >= chunk.len() {
            skip -= chunk.len();
            continue;
        }
        let there = chunk.len() - skip;
        if all.is_empty() && there >= length {
            return Some(chunk.slice(skip..skip + length));
        }
        all.reserve(length - all.len());
        let part = there.min(length - all.len());
        all.extend_from_slice(&chunk[skip..skip + part]);
        skip = 0;
        if all.len() == length {
            return Some(all.freeze());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_comes_out_before_all_of_it_is_there() {
        let framed = frame(b"packet").unwrap();
        for end in 0..framed.len() {
            assert_eq!(first([framed.slice(..end)].iter(), 0), None, "{end}");
        }
        assert_eq!(
            first([framed].iter(), 0),
            Some(Bytes::from_static(b"packet"))
        );
        assert_eq!(frame(&vec![0; 65_536]), None);
    }

    proptest! {
        #[test]
        fn packets_keep_their_borders_however_the_bytes_are_cut(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            cuts in proptest::collection::vec(1usize..9, 1..60),
        ) {
            let bytes: Vec<u8> = packets.iter().flat_map(|packet| frame(packet).unwrap()).collect();
            let mut rest = Bytes::from(bytes);
            let mut chunks = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                chunks.push(rest.split_to((*cut).min(rest.len())));
            }
            let (mut found, mut at) = (Vec::new(), 0);
            while let Some(packet) = first(chunks.iter(), at) {
                at += PREFIX + packet.len();
                found.push(packet.to_vec());
            }
            prop_assert_eq!(found, packets);
        }
    }
}
