//! What runs: whole nodes, their parts alone, and sidecars. Composition only; what the parts do is in their crates.

mod about;
mod apiserver;
mod crowd;
mod datapath;
mod identity;
mod metrics;
mod node;
mod parts;
mod peers;
mod ports;
mod renewal;
mod router;
mod sidecar;
mod syncer;

pub(crate) use crowd::one_arena;
pub use node::{Node, RunningNode};
pub use parts::{apiserver, router, syncer};
pub use sidecar::{RunningSidecar, SidecarAddresses, sidecar};
