//! Mutations that know nothing.

use super::Random;

/// What stands for something somewhere.
const PIECES: [&str; 22] = [
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "=",
    "!",
    "(",
    ")",
    "%",
    "&",
    "\0",
    "\u{202e}",
    "é",
    "\n",
    "- ",
    "&a",
    "*a",
    "!!binary ",
];

/// Changes some bytes.
pub(crate) fn hurt(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 if at < end => drop(bytes.drain(at..end)),
            4 if at < end => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => drop(bytes.splice(at..at, random.text(&PIECES).into_bytes())),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
}
