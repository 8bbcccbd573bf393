//! The whole data path in one process: real QUIC on loopback, real TCP sockets, certificates of a test trust domain.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that panics has failed, and one that measures says what"
)]

mod admission;
mod backend;
mod bad_links;
mod bandwidth;
mod bounds;
mod budgets;
mod counters;
mod drain;
mod fairness;
mod flood;
mod flows;
mod grace;
mod headers;
mod hijack;
mod interactive;
mod legs;
mod limits;
mod malformed;
mod memory;
mod moved;
mod offers;
mod publications;
mod relay;
mod renewed;
mod repeated;
mod resets;
mod resume;
mod silent;
mod udp;
mod unread;
mod versions;
mod world;
mod worn;

/// Whether the long form runs (`KEEL_LONG=1`), with the spans and numbers that are promised. Read as everywhere in this
/// repository: an empty value and `0` are no.
fn long() -> bool {
    std::env::var_os("KEEL_LONG").is_some_and(|value| !value.is_empty() && value != "0")
}
