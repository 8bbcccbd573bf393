//! From the node's own `Router` resource to what its router does, and from what the router sees back to the resource.
//!
//! [`compile()`] and [`status`] are pure; [`follow()`] keeps a [`Plan`], and the list of
//! other routers, current by a watch; [`Reporter`] writes the status: a change of state at once, what only ticks at most once per interval.

mod compile;
mod follow;
mod report;
mod reporter;

pub use compile::{Announced, DEFAULT_PORT, Plan, RouterFlags, compile};
pub use follow::{Following, follow};
pub use report::{ReportContext, state_changed, status};
pub use reporter::{Reporter, ReporterConfig};
