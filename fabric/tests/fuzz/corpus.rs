//! Where the mutator starts: the golden bytes of the protocol.

use keel_fabric::wire::{Decoder, Frame, Open};

/// Name and bytes of each frame and message.
pub(crate) fn golden() -> Vec<(String, Vec<u8>)> {
    let mut entries: Vec<(String, Vec<u8>)> = Vec::new();
    for line in include_str!("../../src/wire/golden.hex").lines() {
        let line = line.split('#').next().unwrap().trim();
        if let Some(name) = line.strip_prefix('[') {
            entries.push((name.trim_end_matches(']').to_owned(), Vec::new()));
        } else if !line.is_empty() {
            let digits: String = line.split_whitespace().collect();
            let bytes = (0..digits.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap());
            entries.last_mut().unwrap().1.extend(bytes);
        }
    }
    entries
}

/// The golden OPEN; the golden RESUME and RESUMED belong to it.
pub(crate) fn open() -> Open {
    let bytes = golden().swap_remove(0).1;
    let mut decoder = Decoder::new();
    decoder.push(bytes.into());
    match decoder.next() {
        Ok(Some(Frame::Open(open))) => *open,
        other => panic!("the first entry is an OPEN, not {other:?}"),
    }
}
