//! The whole system as its users meet it: the real binaries on several hosts, real servers, real faults.

mod access;
mod backend;
mod bulk;
mod caddy;
mod config;
mod dns;
mod enrol;
mod http3;
mod kubectl;
mod lone;
mod openapi;
mod outage;
mod quickstart;
mod real;
mod stopped;
mod sync;
mod udp;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Scenarios that load both cores for seconds go one at a time; those that wait go beside them.
fn heavy() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A scenario that failed leaves nothing behind that the next one could trip over.
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
