//! Sidecars with real sockets, most of them with a real APIServer and a real router, in one process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod choice;
mod churn;
mod path;
mod start;
mod support;
mod udp;
