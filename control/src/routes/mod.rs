//! From the node's own `Router` resource to what its router does, and from what the router sees back to the resource.
//!
//! [`compile()`] and [`status`] are pure; [`follow()`] keeps a [`Plan`], and the list of
//! other routers, current by a watch; [`Reporter`] writes the status: a change of state at once, what only ticks at most once per interval.
//! A router that follows an FRPServer takes its listener from it, and reports there too ([`StatusWriter`]).

mod compile;
mod follow;
mod frpserver;
mod report;
mod reporter;

pub use compile::{Announced, DEFAULT_PORT, Following, Found, Plan, RouterFlags, compile};
pub use follow::{Resources, follow};
pub use frpserver::{StatusWriter, frpserver_status};
pub use report::{ReportContext, state_changed, status};
pub use reporter::{Reporter, ReporterConfig};
