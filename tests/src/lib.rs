//! The lab in which ServiceKeel is tried as a whole: hosts and NATs out of network namespaces, real servers, backends
//! that misbehave on purpose, and the project's own binaries started as a user starts them.
//!
//! Everything here is synchronous: a test is one thread that starts processes and waits for states, each wait bounded.
//! What a scenario starts it also ends (by process id, on drop), so that tests run beside each other and leave nothing.

pub mod backends;
pub mod client;
pub mod credentials;
pub mod lab;
pub mod load;
pub mod need;
pub mod nodes;
pub mod process;
pub mod readme;
pub mod servers;
pub mod site;
pub mod wait;
