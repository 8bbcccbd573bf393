//! The store from outside: one battery on SQLite and on PostgreSQL, what only one of them has to stand, and what watches promise.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../again/mod.rs"]
mod again;
mod battery;
mod both;
mod crash;
mod cuts;
mod damage;
mod disk;
mod log;
mod model;
#[path = "../need/mod.rs"]
mod need;
mod opening;
mod place;
mod restart;
mod server;
mod sharing;
mod tokens;
mod watches;

use bytes::Bytes;
use keel_control::api::Revision;
use keel_control::store::{Change, Key, Object, Store};

const RESOURCE: &str = "things.example.com";

fn key(name: &str) -> Key {
    Key {
        resource: RESOURCE.into(),
        name: name.into(),
    }
}

async fn put(store: &Store, name: &str, data: &'static str) -> Revision {
    store
        .write(key(name), move |_, revision| {
            (Change::Put(Bytes::from_static(data.as_bytes())), revision)
        })
        .await
        .unwrap()
}

async fn delete(store: &Store, name: &str) -> Option<Revision> {
    let decide = |current: Option<&Object>, revision| match current {
        Some(object) => (Change::Delete(object.data.clone()), Some(revision)),
        None => (Change::Keep, None),
    };
    store.write(key(name), decide).await.unwrap()
}
