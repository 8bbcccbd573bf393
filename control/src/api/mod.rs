//! The resources: one Rust type per kind is the only schema.
//!
//! `kind` lists what the API serves, stores and documents; `schema` derives the OpenAPI schemas from the types, `decode` reads
//! bodies by them (the spec strictly, the status leniently), [`Status`] is how Kubernetes clients are told what went wrong.

pub mod answer;
pub mod core;
pub(crate) mod decode;
pub mod events;
pub mod frpserver;
pub(crate) mod kind;
pub mod meta;
pub(crate) mod metadata;
mod options;
pub(crate) mod protobuf;
pub(crate) mod review;
pub mod router;
pub(crate) mod schema;
pub mod state;
pub(crate) mod validate;

pub use answer::{Cause, Reason, Status};
pub use frpserver::{ActiveConnection, FrpServer, FrpServerStatus};
pub use kind::{KindNames, kept_kinds};
pub use meta::{ObjectMeta, OwnerReference, Revision, Time};
pub(crate) use options::options;
pub use router::{
    AdvertisedService, Frps, HealthCheck, PortRange, Router, RouterSpec, Secret, Transport,
    WebServer,
};
pub use state::{
    ActiveService, ClientStatus, Condition, Incidents, ProviderStatus, RouterStatus, SYNCED,
    ServiceStatus, Source,
};

/// The API group of the resources.
pub const GROUP: &str = "edge.example.com";
/// The version of the group.
pub const VERSION: &str = "v1";
/// `apiVersion` of every resource of the group.
pub const API_VERSION: &str = "edge.example.com/v1";
/// The kind of [`Router`].
pub const KIND: &str = "Router";
/// Largest object that a server keeps, encoded, in bytes. Readers take this much and its envelope; an object that were larger would
/// stop the watches that it is in.
pub const MAX_OBJECT: usize = 1 << 20;
/// The plural, as it is written in paths.
pub const PLURAL: &str = "routers";
