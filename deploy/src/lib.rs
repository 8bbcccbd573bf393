//! The binaries of ServiceKeel: this crate wires the parts together and holds no logic of the data or control path.
//!
//! [`run::Node`] is a whole node as a library, for tests and for whoever embeds one.

pub mod cli;
pub mod errors;
pub mod process;
pub mod quickstart;
pub mod run;
pub mod settings;
pub mod telemetry;
