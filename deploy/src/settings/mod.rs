//! Settings: flags win over environment, environment over file, file over default.
//!
//! Each command has one raw struct that clap fills (flags and environment) and that the YAML file fills with the same
//! names in camelCase; [`NodeFlags::over`] lays one over the other, and `resolve` makes the settings that the parts take,
//! once. Nothing else in the project reads the environment; [`environment`] says what an empty variable means.

pub(crate) mod environment;
mod file;
mod limits;
mod node;
mod options;
mod room;
mod scalar;
mod sidecar;
mod store;
mod values;

pub(crate) use file::describe;
pub use file::{FileError, read as read_file};
pub use node::{NodeFlags, NodeSettings, Part};
pub use sidecar::{Machine, SidecarFlags, SidecarSettings};
pub use store::StoreUrl;
pub use values::{ObjectName, PeerArg, Span, TokenSource, ValueError, within};

use std::net::SocketAddr;

/// An address that is either the user's word or our guess.
///
/// A default that is taken gives way to a free port and says so; a given one that is taken is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The address.
    pub addr: SocketAddr,
    /// Whether the user gave it.
    pub given: bool,
}

impl Wanted {
    /// What the user gave, else the default.
    pub fn new(given: Option<SocketAddr>, default: SocketAddr) -> Self {
        Self {
            addr: given.unwrap_or(default),
            given: given.is_some(),
        }
    }
}

/// The list that says something, the first one winning.
fn or_list<T>(over: Vec<T>, under: Vec<T>) -> Vec<T> {
    if over.is_empty() { under } else { over }
}
