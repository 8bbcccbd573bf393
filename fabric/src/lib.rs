//! The fabric of ServiceKeel: QUIC endpoints, the flow protocol, the router and the two ends of a flow.
//!
//! The path of one proxied connection, top to bottom:
//!
//! 1. [`consumer`] owns the application's TCP socket and picks up a connection to a router from [`link`].
//! 2. It opens one bidirectional QUIC stream (a *leg*) and writes OPEN, with the bytes that are already there.
//! 3. [`router`] reads the header, stamps the caller's identity into it, finds the provider's connection and from
//!    then on copies chunks both ways without looking into them.
//! 4. [`provider`] authorises the stamped identity, dials the backend and answers ACCEPT or REFUSE.
//! 5. Both ends drive one [`flow::Flow`] each with the pump of this crate until both directions have ended.
//!
//! A UDP service takes the same path with the packets of one client, see [`udp`].
//!
//! The bytes of a flow live in its two ends only, so a router may die without hurting it: the consumer's end opens
//! another leg and both machines go on where the far end stopped.

pub mod attempt;
pub mod consumer;
mod end;
pub mod flow;
mod grace;
mod leg;
pub mod legs;
pub mod limits;
pub mod link;
pub mod memory;
mod meter;
pub mod metrics;
pub mod options;
pub mod pace;
pub mod provider;
mod pump;
pub mod quic;
pub mod router;
mod series;
mod silence;
mod turns;
pub mod udp;
pub mod units;
pub mod wire;

pub use end::{EndReason, FlowEnd};
pub use grace::Grace;
