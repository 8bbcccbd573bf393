//! The sidecar of a pod or a shell: names, addresses and listeners for mapped services, and publication of its own.
//!
//! The path of a connection, top to bottom: [`dns`] answers a mapped name with an address of [`vip`] -> [`listener`] accepts
//! there -> [`proxy`] picks a provider ([`pick`]) out of the [`directory`] and opens a flow through a router. The directory is
//! written by [`discovery`] alone, which follows the Routers of the node's APIServer; [`snapshot`] keeps what it saw, so that
//! all of this also starts without a network. [`publish`] offers the pod's own services. [`identity`] finds out who we are.
//!
//! Data moves on the runtime that the sidecar is run on, one thread; DNS and discovery have the control runtime. Nothing here
//! writes to a store, and nothing reads the environment.

pub mod admin;
mod carrying;
pub mod config;
pub mod directory;
pub mod discovery;
pub mod dns;
mod endpoints;
mod error;
mod following;
pub mod identity;
pub mod listener;
mod mapper;
pub mod metrics;
pub mod options;
mod parked;
pub mod pick;
mod proxy;
mod publish;
mod reach;
mod remember;
mod run;
pub mod snapshot;
pub mod spec;
mod start;
pub mod state;
mod survey;
mod table;
pub mod udp;
mod unprovided;
pub mod vip;
mod ways;

pub use config::SidecarConfig;
pub use error::{RunError, StartError};
pub use run::Sidecar;
