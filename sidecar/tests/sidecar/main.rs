//! Sidecars with real sockets, most of them with a real APIServer and a real router, in one process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and one that counts says what"
)]

mod choice;
mod churn;
mod path;
mod start;
mod support;
mod udp;
