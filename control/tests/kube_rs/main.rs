//! kube-rs against the real APIServer, over TLS: what a controller does with it, and that its caches miss nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../again/mod.rs"]
mod again;
mod diary;
mod discovery;
mod events;
mod metadata;
mod objects;
mod server;
mod watches;

use std::fmt::Debug;
use std::time::Duration;

use kube::Error;
use kube::core::Status;

/// Longer than any step takes, short enough to find out.
const SOON: Duration = Duration::from_secs(60);

/// What the server refused something with.
#[track_caller]
fn refused<T: Debug>(answer: Result<T, Error>) -> Box<Status> {
    match answer {
        Err(Error::Api(status)) => status,
        other => panic!("this is no refusal: {other:?}"),
    }
}
