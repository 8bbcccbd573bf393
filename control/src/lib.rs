//! Resources, store, API server, client and syncer: the control plane of a node.
//!
//! The path of a write, top to bottom: [`transport`] (HTTP/3 or TCP, mTLS) -> [`server`] (who may do what, Kubernetes' API
//! conventions) -> [`store`] (SQLite or PostgreSQL, one writer, revisions) -> watches. [`client`] is the other end of the wire, [`syncer`]
//! exchanges resources between nodes, [`routes`] compiles them into what the fabric serves, [`enroll`] hands out identities.

pub mod api;
pub mod client;
pub mod enroll;
#[cfg(test)]
mod fuzz;
pub mod http;
mod pace;
pub mod routes;
pub mod server;
pub mod store;
pub mod syncer;
pub mod transport;
