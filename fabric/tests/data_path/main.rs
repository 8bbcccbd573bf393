//! The whole data path in one process: real QUIC on loopback, real TCP sockets, certificates of a test trust domain.

mod admission;
mod backend;
mod flows;
mod resets;
mod resume;
mod world;
