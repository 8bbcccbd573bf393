//! How an error reaches a person: once, as one line, with its causes.

use std::error::Error;
use std::fmt::Write as _;

/// The error and its causes as one text: `outer: inner: innermost`.
///
/// A cause whose text is in the outer one already is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// A command was used or configured wrongly: exit code 2 instead of 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A signal came before a command had its answer: exit code 130, without a word.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open {0}")]
    struct Outer(&'static str, #[source] std::io::Error);

    #[test]
    fn a_chain_names_every_cause_once() {
        let inner = std::io::Error::other("disk on fire");
        assert_eq!(
            chain(&Outer("store", inner)),
            "cannot open store: disk on fire"
        );
        let same = std::io::Error::other("cannot open store");
        assert_eq!(chain(&Outer("store", same)), "cannot open store");
    }
}
