//! Faults on purpose, with many connections under way: what the applications at both ends see is judged byte by byte.
//!
//! The short form runs in CI; `KEEL_LONG=1` (`tests/run --long`) runs the spans and numbers that are promised.
#![allow(clippy::print_stdout, reason = "tests say what they saw")]

mod address;
mod crowd;
mod files;
mod ground;
mod kills;
mod many;
mod memory;
mod outage;
mod paused;
mod plain;
mod rebinding;
mod rolling;
mod rough;
mod trickle;
mod versions;
